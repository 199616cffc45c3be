"""Activations in any network: their swap, and what is known of each."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from torch import Tensor, nn

from lightning_cnnopt.activation.layers import ReLUSquared, ReLUStar
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.graph import NetworkGraph, is_activation
from lightning_cnnopt.core.surgery import replace_modules

GATES: tuple[type[nn.Module], ...] = (nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, nn.Hardtanh)
"""Bounded activations: in a modern network they gate (squeeze-and-excitation) and are left alone by default.

timm's own classes of these names count, too; ``nn.ReLU6``, which is an ``nn.Hardtanh`` in torch, does not.
"""


_NOT_ELEMENTWISE = (nn.GLU, nn.MultiheadAttention)

_SLOPES: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": lambda y: y * (1 - y),
    "tanh": lambda y: 1 - y.square(),
    "softsign": lambda y: (1 - y.abs()).square(),
    "hardsigmoid": lambda y: ((y > 0) & (y < 1)) / 6,
}


def slope_of(activation: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """Return the slope |f′(x)| of an activation that saturates, as a function of its output f(x); ``None`` for another.

    Those are sigmoid, tanh, their hard forms, and softsign, torch's and timm's.

    Example:
        >>> import torch
        >>> slope_of(nn.Sigmoid())(torch.tensor(0.5)), slope_of(nn.ReLU())
        (tensor(0.2500), None)
    """
    if isinstance(activation, nn.Hardtanh) and not isinstance(activation, nn.ReLU6):
        low, high = activation.min_val, activation.max_val
        return lambda y: ((y > low) & (y < high)).float()
    return _SLOPES.get(_kind(activation)) if is_activation(activation) else None


def is_rectifier(activation: nn.Module) -> bool:
    """Return whether an activation is constant below 0: ReLU, ReLU6 and the squares of ReLU. A unit can die behind it.

    Example:
        >>> is_rectifier(nn.ReLU()), is_rectifier(nn.LeakyReLU())
        (True, False)
    """
    return isinstance(activation, (nn.ReLU, nn.ReLU6, ReLUSquared, ReLUStar))


def swap_activation(
    network: nn.Module, activation: Callable[[], nn.Module], replaces: tuple[type[nn.Module], ...] | None = None
) -> int:
    """Replace activation layers of a network, in place.

    Activations inside layers that hold norm and activation together (timm's) are reached as well. Those called as functions
    can't be replaced and are named in a warning.

    Args:
        network: Changed in place.
        activation: Makes the new layer.
        replaces: Which classes are replaced; by default every activation but gates (:data:`GATES`) and those that are of the
            new kind already.

    Returns:
        How many layers were replaced.

    Raises:
        ConfigurationError: If ``activation`` makes something else than a module, or one that changes its input's shape.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.Sigmoid())
        >>> swap_activation(net, nn.GELU), net[1], net[3]
        (1, GELU(approximate='none'), Sigmoid())
    """
    try:
        new = activation()
    except TypeError as error:
        raise ConfigurationError(f"swap_activation: {activation!r} can't be made: {error}.") from error
    if not isinstance(new, nn.Module):
        raise ConfigurationError(f"swap_activation: {activation!r} makes a {type(new).__name__}; expected an activation layer.")
    if isinstance(new, _NOT_ELEMENTWISE):
        raise ConfigurationError(f"swap_activation: {type(new).__name__} does not keep its input's shape, so it fits no place.")

    def wanted(module: nn.Module) -> bool:
        if repr(module) == repr(new):
            return False
        if replaces is not None:
            return isinstance(module, replaces)
        return is_activation(module) and not _is_gate(module)

    count = replace_modules(network, wanted, lambda _: activation())
    try:
        left = NetworkGraph(network).functional_activations()
    except ConfigurationError:
        left = []
    if left:
        warnings.warn(
            f"{len(left)} activations of {type(network).__name__} are called as functions ({', '.join(sorted(set(left)))}) and "
            "stay as they are.",
            stacklevel=2,
        )
    return count


def _is_gate(module: nn.Module) -> bool:
    if isinstance(module, GATES):
        return not isinstance(module, nn.ReLU6)
    return _kind(module) in {gate.__name__.lower() for gate in GATES}


def _kind(module: nn.Module) -> str:
    return type(module).__name__.lower().removesuffix("me").removesuffix("jit")  # timm's have such endings
