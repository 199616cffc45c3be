"""Running a network in another mode, and leaving it in the one that it was in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def modes_kept(network: nn.Module) -> Iterator[None]:
    """Put back whether each module of a network was in training; some may differ from the network, such as frozen ones.

    Example:
        >>> network = nn.Sequential(nn.Dropout().eval(), nn.Dropout())
        >>> with modes_kept(network):
        ...     _ = network.eval()
        >>> [module.training for module in network]
        [False, True]
    """
    modes = {module: module.training for module in network.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
