"""What makes a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

from torch import nn


class _Network(Protocol):
    """Makes a network from what the data says: a class, a ``functools.partial`` of one, or a function.

    Of the three arguments it is given those that it takes, by name.
    """

    def __call__(self, *, num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
        """Return the network."""


NetworkFactory: TypeAlias = _Network | Callable[..., nn.Module]
"""The first form tells the command line which arguments are filled in, by name; the second, type checkers what is accepted."""
