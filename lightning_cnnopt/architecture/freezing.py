"""Keeping parts of a network as they are."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import accumulate

from torch import Tensor, nn

from lightning_cnnopt.architecture.layers import HeldStatistics
from lightning_cnnopt.core.errors import ConfigurationError, did_you_mean
from lightning_cnnopt.core.parameters import NORMALIZATION_LAYERS

_HELD = "held_statistics"


def freeze(network: nn.Module, modules: Sequence[str] = ("*",), but: Sequence[str] = (), statistics: bool = True) -> int:
    """Keep parts of a network as they are: their parameters take no gradient, their normalization no new statistics.

    Running statistics would move in training even where no parameter does, and with them what the frozen part computes. So
    the normalization layers of a frozen part stay in evaluation mode, also when the network is switched to training.

    Args:
        network: Changed in place.
        modules: Shell patterns on the names of modules and parameters. A module's name stands for all that is in it.
        but: Patterns of what stays trainable all the same.
        statistics: Whether normalization layers of the frozen part keep their running statistics.

    Returns:
        How many layers were frozen that were not before.

    Raises:
        ConfigurationError: If a pattern matches nothing.

    Example:
        >>> import torchvision
        >>> network = torchvision.models.resnet18()
        >>> freeze(network, but=["layer4", "fc"])
        30
        >>> network.train().layer3[0].bn1.training, network.layer4[0].bn1.training
        (False, True)
    """
    named = dict(network.named_modules())
    names = [*(name for name in named if name), *(name for name, _ in network.named_parameters())]
    for argument, patterns in (("modules", modules), ("but", but)):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ConfigurationError(
                    f"Freeze: {argument}={pattern!r} matches no module and no parameter of {type(network).__name__}, whose "
                    f"parts are {', '.join(name for name, _ in network.named_children())}.{did_you_mean(pattern, names)}"
                )

    def is_frozen(name: str) -> bool:
        around = list(accumulate(name.split("."), "{}.{}".format)) if name else []
        return any(_matches(part, modules) for part in around) and not any(_matches(part, but) for part in around)

    frozen = set()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and is_frozen(name):
            parameter.requires_grad_(False)
            frozen.add(name.rpartition(".")[0])
    if statistics:
        layers = [name for name, module in named.items() if _has_statistics(module) and is_frozen(name)]
        held = getattr(network, _HELD, None)
        if held is None and layers:
            held = HeldStatistics(network)
            held.training = network.training
            network.add_module(_HELD, held)
        if held is not None:
            frozen.update(name for name in layers if name not in held.names)
            held.hold(layers)
    return len(frozen)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, NORMALIZATION_LAYERS) and isinstance(getattr(module, "running_mean", None), Tensor)
