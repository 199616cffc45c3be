"""What really follows a layer: read off the traced computation, not off the order of registration."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.fx
from torch import nn
from torch.nn import functional as F

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.parameters import NORMALIZATION_LAYERS
from lightning_cnnopt.core.surgery import inserted

WEIGHTED_LAYERS: tuple[type[nn.Module], ...] = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear)
"""Layers with fans: what initializers draw."""

_FUNCTIONAL_ACTIVATIONS: dict[Any, type[nn.Module]] = {
    F.relu: nn.ReLU, F.relu_: nn.ReLU, torch.relu: nn.ReLU, torch.relu_: nn.ReLU, "relu": nn.ReLU, "relu_": nn.ReLU,
    F.leaky_relu: nn.LeakyReLU, F.leaky_relu_: nn.LeakyReLU, F.elu: nn.ELU, F.selu: nn.SELU, torch.selu: nn.SELU,
    F.gelu: nn.GELU, F.silu: nn.SiLU, F.mish: nn.Mish, F.hardswish: nn.Hardswish, F.hardsigmoid: nn.Hardsigmoid,
    F.relu6: nn.ReLU6, F.softplus: nn.Softplus, F.celu: nn.CELU,
    torch.tanh: nn.Tanh, F.tanh: nn.Tanh, "tanh": nn.Tanh, "tanh_": nn.Tanh,
    torch.sigmoid: nn.Sigmoid, F.sigmoid: nn.Sigmoid, "sigmoid": nn.Sigmoid, "sigmoid_": nn.Sigmoid,
}  # fmt: skip
_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")

_ACTIVATION_MODULES: tuple[type[nn.Module], ...] = tuple(
    getattr(nn, name)
    for name in nn.modules.activation.__all__
    if name not in {"MultiheadAttention", "Softmax", "Softmax2d", "LogSoftmax", "Softmin"}
)


def is_activation(module: nn.Module) -> bool:
    """Return whether a module is an elementwise activation.

    Those are the activations of ``torch.nn``, and every module without parameters that states a ``gain`` or whose class
    name is that of one of them (timm has its own ``Swish``, ``Mish``, …).

    Example:
        >>> is_activation(nn.GELU()), is_activation(nn.Dropout())
        (True, False)
    """
    states_gain = hasattr(module, "gain") and next(module.parameters(), None) is None  # timm's scaled convolutions do, too
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
    known = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid", nn.SELU: "selu"}
    if type(activation) in known:
        return float(nn.init.calculate_gain(known[type(activation)]))  # type: ignore[arg-type]
    nodes, weights = np.polynomial.hermite_e.hermegauss(201)
    parameters = [p for p in activation.parameters() if p.numel() > 1]
    if parameters:  # a PReLU with a slope per channel: its first one stands for all
        raise ConfigurationError(f"{activation!r} has a parameter per channel; state its gain as an attribute `gain`.")
    tensor = next(iter(activation.parameters()), torch.zeros(()))
    with torch.no_grad():
        values = activation(torch.as_tensor(nodes, dtype=torch.float32, device=tensor.device)).double().cpu().numpy()
    second_moment = float((weights * values**2).sum() / math.sqrt(2 * math.pi))
    return 1.0 if second_moment <= 0 else second_moment**-0.5


@dataclass(frozen=True)
class Branch:
    """A residual branch: what is computed beside a shortcut and added to it.

    Args:
        end: Name of the module that computes the branch's last value.
        modules: Names of all modules of the branch, in the order of computation.
        block: Name of the module whose forward adds the branch to the shortcut; empty for the network itself.
    """

    end: str
    modules: tuple[str, ...]
    block: str = field(default="", compare=False)


class _Tracer(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            # timm's hold their activation, see NetworkGraph.activation_after; and either kind may hold what edits inserted
            isinstance(m, (*NORMALIZATION_LAYERS, *WEIGHTED_LAYERS))
            or (not isinstance(m, nn.Sequential) and not any(True for _ in m.children()))
            or super().is_leaf_module(m, module_qualified_name)
        )


class NetworkGraph:
    """The computation of a network, traced with torch.fx.

    Args:
        network: Any module. For one that can't be traced (control flow that depends on data), its traceable parts are
            followed; a network without any raises.

    Raises:
        ConfigurationError: If neither the network nor any of its children can be traced.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh())
        >>> NetworkGraph(net).activation_after("0")
        Tanh()
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self._modules = dict(network.named_modules())
        self._parts: list[tuple[str, torch.fx.Graph]] = []
        self._trace(network, "")
        traced = {_join(prefix, str(node.target)) for prefix, graph in self._parts for node in graph.nodes}
        for name, module in self._modules.items():
            for child in inserted(module) if name in traced else ():
                if any(True for _ in module.get_submodule(child).children()):
                    self._trace(module.get_submodule(child), _join(name, child))
        if not self._parts:
            raise ConfigurationError(
                f"{type(network).__name__} can't be traced by torch.fx, so what follows its layers is unknown. "
                "Layers that a module "
                "makes in its own setup or configure_model don't exist before: call the edit at the end of that method."
            )

    def activation_after(self, path: str) -> nn.Module | None:
        """Return the activation that the output of the module at ``path`` goes through, or ``None``.

        Normalization, pooling, dropout, reshaping and additions are looked through. What the value reaches first decides: an
        activation, or another layer with weights, before which there is none. A normalization layer that holds its
        activation (timm's) counts as both.
        """
        for prefix, node in self._calls(path):
            found = self._follow(prefix, node)
            if found is not None:
                return found
        return None

    def functional_activations(self) -> list[str]:
        """Return the activations that are called as functions and so can't be replaced as modules."""
        return [
            getattr(node.target, "__name__", str(node.target))
            for _, graph in self._parts
            for node in graph.nodes
            if node.op in ("call_function", "call_method") and _is_functional_activation(node)
        ]

    def function_calls(self, *functions: Any) -> list[torch.fx.Node]:
        """Return where any of ``functions`` is called, which no edit of modules reaches."""
        return [
            node for _, graph in self._parts for node in graph.nodes if node.op == "call_function" and node.target in functions
        ]

    def residual_branches(self) -> list[Branch]:
        """Return the residual branches in the order of computation.

        A branch ends in an addition whose other side, the shortcut, starts from the same value. Where both sides have
        modules (a projection shortcut), the branch is the side with more of them.
        """
        branches = []
        for prefix, graph in self._parts:
            calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
            order = {node: index for index, node in enumerate(graph.nodes)}
            for node in graph.nodes:
                if node.op not in ("call_function", "call_method") or node.target not in _ADDITIONS:
                    continue
                sides = [argument for argument in node.args if isinstance(argument, torch.fx.Node)]
                if len(sides) != 2 or sides[0] is sides[1]:
                    continue
                first, second = (_ancestors(side) for side in sides)
                own = [(first - second, sides[0]), (second - first, sides[1])]
                if not (first & second):
                    continue
                paths = [
                    ([n for n in sorted(nodes, key=order.__getitem__) if n.op == "call_module"], side) for nodes, side in own
                ]
                inside, end = max(paths, key=lambda item: len(item[0]))
                last = _last_module(end, node, set(inside), calls)
                if inside and last is not None:
                    around = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
                    names = tuple(_join(prefix, str(n.target)) for n in inside)
                    branches.append(Branch(_join(prefix, last), names, _join(prefix, around[-1]) if around else prefix))
        return branches

    def block_end(self, path: str) -> str:
        """Return the last module of the chain of normalization and activation behind the layer at ``path``.

        Modules that are used in several places (a shared ReLU) don't belong to the chain.
        """
        end = path
        for prefix, node in self._calls(path):
            while len(node.users) == 1:
                node = next(iter(node.users))
                if node.op != "call_module" or len(list(self._calls(_join(prefix, str(node.target))))) > 1:
                    break
                module = self._modules[_join(prefix, str(node.target))]
                if not (isinstance(module, NORMALIZATION_LAYERS) or is_activation(module)):
                    break
                end = _join(prefix, str(node.target))
        return end

    def activated_at(self, path: str) -> tuple[str, bool]:
        """Return where the output of the layer at ``path`` has been through its normalization and activation.

        Args:
            path: Dotted name of the layer.

        Returns:
            The name of a module, and whether the place is in front of it (true) or behind it (false). In front: where the
            activation is a function or is shared with other places, the layer that takes its value alone stands for it.
        """
        end = path
        for prefix, start in self._calls(path):
            node = start
            while len(node.users) == 1:
                node = next(iter(node.users))
                name = _join(prefix, str(node.target)) if node.op == "call_module" else ""
                module = self._modules.get(name)
                own = module is not None and len(list(self._calls(name))) == 1
                activates = _is_functional_activation(node) or (module is not None and is_activation(module))
                if own and (activates or isinstance(module, (*NORMALIZATION_LAYERS, nn.Identity))):
                    end = name
                elif activates and len(node.users) == 1:
                    after = next(iter(node.users))
                    name = _join(prefix, str(after.target)) if after.op == "call_module" else ""
                    if name and len(list(self._calls(name))) == 1:
                        return name, True
                if not own or activates or end != name:
                    break
        return end, False

    def only_user(self, path: str) -> str | None:
        """Return the module that takes the output of the module at ``path``, alone and directly, both called in one place."""
        calls = list(self._calls(path))
        if len(calls) != 1 or len(calls[0][1].users) != 1:
            return None
        prefix, user = calls[0][0], next(iter(calls[0][1].users))
        name = _join(prefix, str(user.target))
        return name if user.op == "call_module" and len(list(self._calls(name))) == 1 else None

    def is_normalized(self, path: str) -> bool:
        """Return whether a normalization follows the layer at ``path`` before another layer with weights does.

        Other modules and additions are looked through.
        """
        for prefix, start in self._calls(path):
            pending, seen = list(start.users), set()
            while pending:
                node = pending.pop(0)
                if node in seen:
                    continue
                seen.add(node)
                if node.op == "call_module":
                    module = self._modules[_join(prefix, str(node.target))]
                    if isinstance(module, NORMALIZATION_LAYERS):
                        return True
                    if isinstance(module, WEIGHTED_LAYERS):
                        continue
                elif node.target not in _ADDITIONS and not _is_functional_activation(node):
                    continue
                pending.extend(node.users)
        return False

    def _trace(self, module: nn.Module, prefix: str) -> None:
        try:
            self._parts.append((prefix, _Tracer().trace(module)))
        except Exception:  # whatever a forward may raise when it is run on proxies
            for name, child in module.named_children():
                if any(True for _ in child.children()) or isinstance(child, WEIGHTED_LAYERS):
                    self._trace(child, _join(prefix, name))

    def _calls(self, path: str) -> Iterator[tuple[str, torch.fx.Node]]:
        for prefix, graph in self._parts:
            for node in graph.nodes:
                if node.op == "call_module" and _join(prefix, str(node.target)) == path:
                    yield prefix, node

    def _follow(self, prefix: str, start: torch.fx.Node) -> nn.Module | None:
        pending, seen = list(start.users), set()
        while pending:
            node = pending.pop(0)
            if node in seen:
                continue
            seen.add(node)
            if node.op == "call_module":
                module = self._modules[_join(prefix, str(node.target))]
                if is_activation(module):
                    return module
                inner = next((child for child in module.children() if is_activation(child)), None)
                if isinstance(module, NORMALIZATION_LAYERS) and inner is not None:
                    return inner
                if isinstance(module, WEIGHTED_LAYERS):
                    return None
            elif _is_functional_activation(node):
                return _as_module(node)
            pending.extend(node.users)
        return None


def activations_after(network: nn.Module, layers: dict[str, nn.Module]) -> dict[str, nn.Module | None]:
    """Return, for each named layer, the activation that follows it in the traced computation."""
    graph = NetworkGraph(network)
    return {name: graph.activation_after(name) for name in layers}


def _ancestors(node: torch.fx.Node) -> set[torch.fx.Node]:
    found, pending = set(), [node]
    while pending:
        current = pending.pop()
        if current not in found:
            found.add(current)
            pending.extend(current.all_input_nodes)
    return found


def _last_module(node: torch.fx.Node, addition: torch.fx.Node, inside: set[torch.fx.Node], calls: Counter[Any]) -> str | None:
    around = {path for path, _ in addition.meta.get("nn_module_stack", {}).values()}
    while True:
        if node.op == "call_module":
            return str(node.target) if node in inside and calls[node.target] == 1 else None
        for call, (path, _) in node.meta.get("nn_module_stack", {}).items():
            if path not in around:  # the value leaves this module, so it is what the module returns
                return None if "@" in call else path
        if len(node.all_input_nodes) != 1:
            return None
        node = node.all_input_nodes[0]


def _is_functional_activation(node: torch.fx.Node) -> bool:
    return node.op in ("call_function", "call_method") and node.target in _FUNCTIONAL_ACTIVATIONS


def _as_module(node: torch.fx.Node) -> nn.Module:
    cls = _FUNCTIONAL_ACTIVATIONS[node.target]
    if cls is nn.LeakyReLU:
        slope = node.args[1] if len(node.args) > 1 else node.kwargs.get("negative_slope", 0.01)
        return nn.LeakyReLU(float(slope))  # type: ignore[arg-type]
    return cls()


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
