"""Making layers from what a user gave."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeAlias

from torch import nn

from lightning_cnnopt.core.errors import ConfigurationError, check_range, did_you_mean
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


def make_normalization(normalization: Any, channels: int, layer: str | None = None, beside: Iterable[int] = ()) -> nn.Module:
    """Return a normalization layer for ``channels``.

    Args:
        normalization: A normalization factory, or a spec or a name of one.
        channels: What it normalizes.
        layer: What the place is called in an error.
        beside: Channels of the other layers that are made with it.

    Raises:
        ConfigurationError: If no layer can be made for so many channels; for groups that don't divide them, with those that do.

    Example:
        >>> make_normalization(functools.partial(nn.GroupNorm, num_groups=2), 8)
        GroupNorm(2, 8, eps=1e-05, affine=True...)
    """
    factory = factory_of(normalization, nn.Module)
    fixed = factory.keywords if isinstance(factory, functools.partial) else {}
    groups = fixed.get("num_groups")
    where = "a layer" if layer is None else f"layer {layer!r}"
    if groups is not None:
        check_range("Normalization", "num_groups", groups, 1)
        if channels % groups:
            raise ConfigurationError(
                f"num_groups={groups} does not divide the {channels} channels of {where}; {_divisors(channels, beside)}."
            )
    try:
        for name in _CHANNELS:
            if name in inspect.signature(factory).parameters and name not in fixed:
                return factory(**{name: channels})
        return factory(channels)
    except ValueError as error:
        fitting = f"; {_divisors(channels, beside)}" if "num_groups" in str(error) else ""
        raise ConfigurationError(
            f"No normalization can be made for the {channels} channels of {where}: {error}{fitting}."
        ) from error


def layer_classes(owner: str, argument: str, names: Sequence[str]) -> tuple[type[nn.Module], ...]:
    """Return the layer classes of these names: of ``torch.nn``, or by their import path.

    Raises:
        ConfigurationError: If there is no such class, with the nearest of ``torch.nn``.

    Example:
        >>> layer_classes("Swap", "replaces", ["ReLU"])
        (<class 'torch.nn.modules.activation.ReLU'>,)
    """
    found: list[type[nn.Module]] = []
    for name in names:
        cls = factory_of(name, nn.Module) if "." in name else getattr(nn, name, None)
        if not isinstance(cls, type) or not issubclass(cls, nn.Module):
            raise ConfigurationError(f"{owner}: {argument}={name!r} is no class of torch.nn.{did_you_mean(name, vars(nn))}")
        found.append(cls)
    return tuple(found)


def _divisors(channels: int, beside: Iterable[int]) -> str:
    common = math.gcd(channels, *beside)
    fitting = ", ".join(str(number) for number in range(1, common + 1) if common % number == 0)
    return f"{'these do' if common == channels else 'these do, in every layer'}: {fitting}"
