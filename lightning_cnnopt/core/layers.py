"""Making layers from what a user gave."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from torch import nn

from lightning_cnnopt.core.spec import factory_of

_CHANNELS = ("num_features", "num_channels", "normalized_shape")


class _Normalization(Protocol):
    """Makes a normalization layer from a number of channels: a class, a ``functools.partial`` of one, or a function.

    The number is given under the name that the class has for it, ``num_features`` or ``num_channels``, so
    ``partial(nn.GroupNorm, num_groups=8)`` is one, too; or as the only positional argument of a function.
    """

    def __call__(self, *, num_features: int, num_channels: int, normalized_shape: int) -> nn.Module:
        """Return the layer."""


NormalizationFactory: TypeAlias = _Normalization | Callable[..., nn.Module]
"""The first form tells the command line which arguments are filled in, by name; the second, type checkers what is accepted."""


def make_normalization(normalization: Any, channels: int) -> nn.Module:
    """Return a normalization layer for ``channels``.

    Args:
        normalization: A normalization factory, or a spec or a name of one.
        channels: What it normalizes.

    Example:
        >>> make_normalization(functools.partial(nn.GroupNorm, num_groups=2), 8)
        GroupNorm(2, 8, eps=1e-05, affine=True...)
    """
    factory = factory_of(normalization, nn.Module)
    fixed = factory.keywords if isinstance(factory, functools.partial) else {}
    for name in _CHANNELS:
        if name in inspect.signature(factory).parameters and name not in fixed:
            return factory(**{name: channels})
    return factory(channels)
