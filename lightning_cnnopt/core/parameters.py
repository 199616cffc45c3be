"""Selecting parameters, and the one builder of optimizer groups."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from lightning_cnnopt.core.errors import ConfigurationError

NORMALIZATION_LAYERS: tuple[type[nn.Module], ...] = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)


def named_weights(
    network: nn.Module, include: Iterable[str] | None = None, frozen: bool = False
) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the weights that penalties, constraints and weight decay act on.

    By default those are the trainable parameters of two or more dimensions outside normalization layers: kernels and
    matrices, but no biases and no scales.

    Args:
        network: Where to look.
        include: Shell patterns on parameter names, such as ``"head.*"``; they replace the default rule.
        frozen: Whether to yield parameters that are not trainable now as well.

    Raises:
        ConfigurationError: If a pattern matches no parameter.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        >>> [name for name, _ in named_weights(net)]
        ['0.weight']
        >>> [name for name, _ in named_weights(net, ["*.bias"])]
        ['0.bias', '1.bias']
    """
    if include is not None:
        patterns = list(include)
        names = [name for name, _ in network.named_parameters()]
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                raise ConfigurationError(
                    f"parameters={pattern!r} matches none of {len(names)} parameters, such as {names[:3]}."
                )
        for name, parameter in network.named_parameters():
            if (frozen or parameter.requires_grad) and any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
                yield name, parameter
        return
    scales = {id(p) for m in network.modules() if isinstance(m, NORMALIZATION_LAYERS) for p in m.parameters(recurse=False)}
    for name, parameter in network.named_parameters():
        if (frozen or parameter.requires_grad) and parameter.ndim >= 2 and id(parameter) not in scales:
            yield name, parameter


def parameter_groups(network: nn.Module) -> list[dict[str, Any]]:
    """Return two optimizer groups: weights, with the optimizer's own weight decay; the rest, with none.

    Decay on biases and on the scales and shifts of normalization layers costs accuracy and regularizes nothing
    (He et al., "Bag of Tricks", 2019). Groups that would be empty are left out, and every parameter is in exactly one.

    Args:
        network: Whose trainable parameters are grouped.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        >>> [(group["name"], len(group["params"]), group.get("weight_decay")) for group in parameter_groups(net)]
        [('weights', 1, None), ('biases_and_norms', 3, 0.0)]
    """
    decayed = {id(parameter) for _, parameter in named_weights(network)}
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"name": "weights", "params": [p for p in trainable if id(p) in decayed]},
        {"name": "biases_and_norms", "params": [p for p in trainable if id(p) not in decayed], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
