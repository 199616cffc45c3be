"""Dropping weights, in any network."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from torch import nn

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.dropout.layers import DropConnectConv2d, DropConnectLinear

_DROPPING: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: DropConnectLinear, nn.Conv2d: DropConnectConv2d}


def add_drop_connect(network: nn.Module, p: float, layers: Sequence[str] = ("Linear",)) -> int:
    """Let layers drop their weights in training, in place: y = (m · W / (1 − p)) x + b, each m 0 with probability p, else 1.

    There is one choice m for a batch, drawn anew in every pass. In evaluation all weights are used, which is the expected
    value. Layers that do so already get the new rate. The trained parameters and their names stay.

    Args:
        network: Changed in place.
        p: Probability of dropping a weight.
        layers: Shell patterns on the names of modules or of their classes; of what they match, the plain ``nn.Linear`` and
            ``nn.Conv2d`` are changed. By default the dense layers, as in the paper.

    Returns:
        How many layers drop weights now.

    Raises:
        ConfigurationError: If a pattern matches nothing.

    Reference:
        Wan et al., "Regularization of Neural Networks using DropConnect", 2013.

    Example:
        >>> import torchvision
        >>> add_drop_connect(torchvision.models.vgg11(num_classes=2), 0.5, ["classifier.[03]"])
        2
    """
    chosen: dict[nn.Module, None] = {}
    for pattern in layers:
        matched = [module for name, module in network.named_modules() if name and _matches(name, module, pattern)]
        if not matched and pattern not in {cls.__name__ for cls in _DROPPING}:
            known = sorted({type(module).__name__ for module in network.modules() if type(module) in _DROPPING})
            raise ConfigurationError(
                f"layers={pattern!r} matches no layer of {type(network).__name__}; what can drop weights are {known}."
            )
        chosen.update(dict.fromkeys(matched))
    count = 0
    for module in chosen:
        cls = _DROPPING.get(type(module))
        if cls is not None:
            # the class alone changes: parameters, hooks and what was inserted stay with the object
            module.__class__ = cls
        if isinstance(module, (DropConnectLinear, DropConnectConv2d)):
            module.p = p
            count += 1
    return count


def _matches(name: str, module: nn.Module, pattern: str) -> bool:
    classes = [cls.__name__ for cls in type(module).__mro__]
    return any(fnmatch.fnmatch(text, pattern) for text in (name, *classes))
