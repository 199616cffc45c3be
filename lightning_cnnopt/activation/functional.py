"""Swapping activations in any network."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from torch import nn

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.graph import NetworkGraph, is_activation
from lightning_cnnopt.core.surgery import replace_modules

GATES: tuple[type[nn.Module], ...] = (nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, nn.Hardtanh)
"""Bounded activations: in a modern network they gate (squeeze-and-excitation) and are left alone by default.

timm's own classes of these names count, too; ``nn.ReLU6``, which is an ``nn.Hardtanh`` in torch, does not.
"""


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
        ConfigurationError: If ``activation`` makes something else than a module.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.Sigmoid())
        >>> swap_activation(net, nn.GELU), net[1], net[3]
        (1, GELU(approximate='none'), Sigmoid())
    """
    new = activation()
    if not isinstance(new, nn.Module):
        raise ConfigurationError(f"swap_activation: {activation!r} makes a {type(new).__name__}; expected an activation layer.")

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
    names = {gate.__name__.lower() for gate in GATES}
    return type(module).__name__.lower().removesuffix("me").removesuffix("jit") in names
