"""Which modules and functions are activations, and the gain of each."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.fx
from torch import Tensor, nn

from lightning_cnnopt.core.errors import ConfigurationError

_ACTIVATION_MODULES: tuple[type[nn.Module], ...] = tuple(
    getattr(nn, name)
    for name in nn.modules.activation.__all__
    if name not in {"MultiheadAttention", "Softmax", "Softmax2d", "LogSoftmax", "Softmin", "GLU"}  # not elementwise
)
# torch names a function like its class: F.leaky_relu, torch.tanh and x.relu_() are nn.LeakyReLU, nn.Tanh and nn.ReLU
_CLASS_OF_FUNCTION: dict[str, type[nn.Module]] = {cls.__name__.lower(): cls for cls in (*_ACTIVATION_MODULES, nn.GLU)}
_CLAMPS = {"clamp", "clip", "clampmin"}

_ARITHMETIC = {
    name for word in ("add", "sub", "mul", "div", "truediv") for name in (word, f"i{word}", f"r{word}")
} | {"neg", "addcmul", "clone", "positive"}  # fmt: skip
_PRODUCTS = {"mul", "imul", "rmul"}
_WITH_WEIGHTS = ("conv", "linear", "bilinear")
_METADATA = {"shape", "size", "ndim", "dim", "ndimension", "numel", "stride", "device", "dtype"}


def is_activation(module: nn.Module) -> bool:
    """Return whether a module is an elementwise activation.

    Those are the activations of ``torch.nn``, every module that states a ``gain`` and has no parameters but scalars, and
    those whose class name is that of one of torch's (timm has its own ``Swish``, ``Mish``, …).

    Example:
        >>> is_activation(nn.GELU()), is_activation(nn.Dropout())
        (True, False)
    """
    # timm's scaled convolutions have an attribute of that name, too
    states_gain = hasattr(module, "gain") and all(parameter.numel() == 1 for parameter in module.parameters())
    if isinstance(module, _ACTIVATION_MODULES) or states_gain:
        return True
    names = {cls.__name__.lower() for cls in _ACTIVATION_MODULES} | {"swish", "gelutanh", "quickgelu"}
    return type(module).__module__.startswith("timm.layers.activations") and (
        type(module).__name__.lower().removesuffix("me").removesuffix("jit") in names
    )


def gain_of(activation: nn.Module | None) -> float:
    """Return the factor that a layer's weights need so that ``activation`` keeps the signal's scale.

    A layer that states its ``gain`` is believed; torch's value is used where it has one; for anything else it is
    1/√E[f(z)²] with z standard normal, He's condition, by quadrature.

    Args:
        activation: What follows the layer; ``None`` for nothing (gain 1).

    Raises:
        ConfigurationError: If the activation has a parameter per channel, so that no one gain is right.

    Example:
        >>> round(gain_of(nn.ReLU()), 4), round(gain_of(nn.GELU()), 4), gain_of(None)
        (1.4142, 1.5335, 1.0)
    """
    if activation is None or isinstance(activation, nn.Identity):
        return 1.0
    if hasattr(activation, "gain"):
        return float(activation.gain)  # type: ignore[arg-type]
    if isinstance(activation, nn.LeakyReLU):
        return float(nn.init.calculate_gain("leaky_relu", activation.negative_slope))
    if isinstance(activation, nn.RReLU):  # the mean of a slope's square, uniform between the bounds
        low, high = activation.lower, activation.upper
        return (2 / (1 + (low**2 + low * high + high**2) / 3)) ** 0.5
    if isinstance(activation, nn.GLU):  # a · σ(b) of independent a and b: the second moment is that of σ(b)
        return _second_moment(torch.sigmoid) ** -0.5
    name, origin = type(activation).__name__.lower(), type(activation).__module__
    if name in ("relu", "tanh", "sigmoid", "selu") and origin.startswith(("torch.nn.", "timm.layers.")):
        return float(nn.init.calculate_gain(name))  # type: ignore[arg-type]
    parameters = [p for p in activation.parameters() if p.numel() > 1]
    if parameters:  # a PReLU with a slope per channel: its first one stands for all
        raise ConfigurationError(f"{activation!r} has a parameter per channel; state its gain as an attribute `gain`.")
    second_moment = _second_moment(activation, next(iter(activation.parameters()), None))
    return 1.0 if second_moment <= 0 else second_moment**-0.5


def _second_moment(function: Callable[[Tensor], Tensor], beside: Tensor | None = None) -> float:
    nodes, weights = np.polynomial.hermite_e.hermegauss(201)
    device = None if beside is None else beside.device
    with torch.no_grad():
        values = function(torch.as_tensor(nodes, dtype=torch.float32, device=device)).double().cpu().numpy()
    return float((weights * values**2).sum() / math.sqrt(2 * math.pi))


# nodes of a graph that call a function or a method


def function_name(node: torch.fx.Node) -> str:
    """Return the name of the function or method that a node calls."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def activation_called(node: torch.fx.Node) -> nn.Module | str | None:
    """Return the module of the same meaning as the activation that a node calls, with its arguments.

    Returns:
        The module; ``None`` if the node calls no activation; a description of the call if torch has no module for it, or
        its arguments are computed or learned.
    """
    name = _plain_name(node)
    cls = _CLASS_OF_FUNCTION.get(name)
    if cls is None and name not in _CLAMPS:
        return None
    rest, named = node.args[1:], {key: value for key, value in node.kwargs.items() if key != "input"}
    if any(isinstance(value, (torch.fx.Node, Tensor)) for value in (*rest, *named.values())):
        return f"the function {function_name(node)} with computed arguments"
    if cls is None:
        return _clamp(*rest, **named)  # type: ignore[arg-type]
    # the arguments of the function are those of the class, in the same order
    names = [key for key in inspect.signature(cls).parameters if key not in ("device", "dtype")]
    arguments = dict(zip(names, rest, strict=False)) | {key: value for key, value in named.items() if key in names}
    return cls(**{key: value for key, value in arguments.items() if key != "inplace"})


def calls_activation(node: torch.fx.Node) -> bool:
    """Return whether a node calls an activation as a function or a method."""
    if node.op not in ("call_function", "call_method"):
        return False
    return _plain_name(node) in _CLASS_OF_FUNCTION or isinstance(activation_called(node), nn.Module)


def is_layer_called(node: torch.fx.Node) -> bool:
    """Return whether a node calls a convolution or a linear layer as a function."""
    return _plain_name(node).startswith(_WITH_WEIGHTS)


def reads_shape_only(node: torch.fx.Node) -> bool:
    """Return whether a node takes no values from its input, but its size, its type or its device."""
    name = str(node.args[1]) if node.target is getattr else function_name(node).strip("_")
    return name in _METADATA or name.startswith(("new_", "is_")) or name.endswith("_like")


def keeps_linear(node: torch.fx.Node) -> bool:
    """Return whether a node that calls a function or a method is surely no activation, nor a part of one.

    That are arithmetic, and the operations of torch that are not elementwise: reshaping, pooling, normalization, dropout.
    Other elementwise ones (``exp``, ``where``, …), and functions from elsewhere, may be an activation.
    """
    if _plain_name(node) in _ARITHMETIC:
        return True
    pointwise = _is_pointwise(node)
    if pointwise is not None:
        return not pointwise
    origin = getattr(node.target, "__module__", None) or "torch"  # a method is a string here, or a slot of torch's class
    return origin.split(".")[0] in ("torch", "torchvision", "_operator", "builtins")


def is_elementwise(node: torch.fx.Node) -> bool:
    """Return whether a node computes each value of its output from the same value of its input, and from numbers."""
    if node.op in ("placeholder", "output"):
        return True
    called = node.op in ("call_function", "call_method")
    return called and (_plain_name(node) in _ARITHMETIC or _is_activation_of_torch(node) or bool(_is_pointwise(node)))


def is_part_of_formula(node: torch.fx.Node, linear: set[torch.fx.Node]) -> bool:
    """Return whether an activation is but a part of one that is written out, as σ is of x · σ(x).

    Args:
        node: The call of the activation.
        linear: What the layer's output became before it, without an activation.
    """
    pending = [node]
    while pending:
        current = pending.pop()
        for user in current.users:
            if user.op not in ("call_function", "call_method"):
                continue
            name, inputs = _plain_name(user), [value for value in user.args if isinstance(value, torch.fx.Node)]
            if name in _PRODUCTS and (inputs.count(current) > 1 or any(value in linear for value in inputs)):
                return True
            if current is node and (activation_called(user) is not None or not keeps_linear(user)):
                return True
            if name in _ARITHMETIC and len(inputs) == 1:
                pending.append(user)
    return False


def _is_activation_of_torch(node: torch.fx.Node) -> bool:
    called = activation_called(node)
    return isinstance(called, nn.Module) and not isinstance(called, nn.GLU)


def _is_pointwise(node: torch.fx.Node) -> bool | None:
    name = function_name(node).strip("_")
    for known in (name, name[1:] if name[:1] in ("i", "r") else name):  # operator.ipow and Tensor.__rpow__ are pow
        operation = getattr(torch.ops.aten, known, None)
        if isinstance(operation, torch._ops.OpOverloadPacket):
            return any(torch.Tag.pointwise in getattr(operation, form).tags for form in operation.overloads())
    return None


def _plain_name(node: torch.fx.Node) -> str:
    return function_name(node).replace("_", "")


def _clamp(min: float | None = None, max: float | None = None) -> nn.Module | str:
    if min == 0 and max is None:
        return nn.ReLU()
    return "the function clamp" if min is None or max is None else nn.Hardtanh(min, max)
