"""Selecting parameters, and the one builder of optimizer groups."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from itertools import compress
from typing import Any

from torch import nn
from torch.optim import Optimizer

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


def split_off(optimizer: Optimizer, group: dict[str, Any], leave: Sequence[bool], suffix: str) -> dict[str, Any]:
    """Move some parameters of a group of ``optimizer`` into a new group with the same options, and return that.

    What the optimizer knows of each parameter stays. Names of parameters go with them, and the name of the new group, where
    the old one has a name, ends in ``suffix``: ``LearningRateMonitor`` wants names to differ.

    Args:
        optimizer: Changed in place.
        group: One of its ``param_groups``; at least one parameter has to stay.
        leave: For each of its parameters, whether it goes.
        suffix: What is added to the name.

    Example:
        >>> import torch
        >>> weight, bias = nn.Linear(2, 2).parameters()
        >>> optimizer = torch.optim.SGD([weight, bias], lr=0.1, momentum=0.9)
        >>> new = split_off(optimizer, optimizer.param_groups[0], [False, True], "_biases")
        >>> new["momentum"], [len(group["params"]) for group in optimizer.param_groups]
        (0.9, [1, 1])
    """
    lists = {name: group[name] for name in ("params", "param_names") if name in group}
    moved = {name: list(compress(values, leave)) for name, values in lists.items()}
    group.update({name: [v for v, goes in zip(values, leave, strict=True) if not goes] for name, values in lists.items()})
    named = list(zip(moved["param_names"], moved["params"], strict=True)) if "param_names" in moved else moved["params"]
    options = {name: value for name, value in group.items() if name not in lists}
    if "name" in options:
        options["name"] = f"{options['name']}{suffix}"
    optimizer.add_param_group({**options, "params": named})
    return optimizer.param_groups[-1]
