"""Finding what drops something in a network."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

import torchvision
from torch import nn

from lightning_cnnopt.core.errors import ConfigurationError


def dropout_layers(network: nn.Module, layers: Sequence[str] | None = None) -> dict[str, tuple[nn.Module, str]]:
    """Return the layers of a network that drop something, by name, each with the attribute that holds its rate.

    Those are torch's dropouts, torchvision's ``StochasticDepth`` and ``DropBlock2d``, timm's ``DropPath`` and its kin, the
    networks of timm that drop by a function in front of their head (at the ``drop_rate`` they were made with), and the layers
    of this room; and every module with such an attribute (``p``, ``drop_prob`` or ``drop_rate``) that a pattern of ``layers``
    names. Other dropout that a network calls as a function is not found.

    Args:
        network: Where to look.
        layers: Shell patterns on the names of modules or of their classes, such as ``"StochasticDepth"`` or ``"head.*"``; by
            default all of them.

    Raises:
        ConfigurationError: If a pattern matches no such layer.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.2), torchvision.ops.StochasticDepth(0.1, "row"))
        >>> {name: attribute for name, (_, attribute) in dropout_layers(net).items()}
        {'1': 'p', '2': 'p'}
        >>> list(dropout_layers(net, ["StochasticDepth"]))
        ['2']
    """
    candidates = {name: (module, attribute) for name, module in network.named_modules() if (attribute := _rate_of(module))}
    if layers is None:
        return {name: place for name, place in candidates.items() if _drops(place[0])}
    chosen: dict[str, tuple[nn.Module, str]] = {}
    for pattern in layers:
        matched = {
            name: place
            for name, place in candidates.items()
            if fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(type(place[0]).__name__, pattern)
        }
        if not matched:
            known = sorted({type(module).__name__ for module, _ in candidates.values()})
            raise ConfigurationError(
                f"layers={pattern!r} matches no layer with a dropout rate in {type(network).__name__}; its layers with one are "
                f"of the classes {known}."
            )
        chosen.update(matched)
    return {name: place for name, place in candidates.items() if name in chosen}


def _rate_of(module: nn.Module) -> str | None:
    for attribute in ("p", "drop_prob", "drop_rate"):
        value = vars(module).get(attribute)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return attribute
    return None


def _drops(module: nn.Module) -> bool:
    if isinstance(module, (nn.modules.dropout._DropoutNd, torchvision.ops.StochasticDepth, torchvision.ops.DropBlock2d)):
        return True
    package = type(module).__module__
    by_function = package.startswith("timm.models") and vars(module).get("drop_rate", 0.0) > 0
    return by_function or package.startswith(("lightning_cnnopt.dropout", "timm.layers.drop"))
