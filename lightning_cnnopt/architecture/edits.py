"""Edits of any network that belong to its architecture."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from lightning_cnnopt.architecture.functional import add_squeeze_excite
from lightning_cnnopt.core.errors import check_range
from lightning_cnnopt.core.spec import factory_of
from lightning_cnnopt.core.surgery import Edit


class SqueezeExcite(Edit):
    """Adds squeeze-and-excitation to every block of a network; see :func:`add_squeeze_excite`.

    Args:
        reduction: Divides the channels in the bottleneck. 16 in the paper.
        min_channels: Blocks with fewer channels are left alone.
        activation: The activation of the bottleneck.

    Example:
        >>> import torchvision
        >>> SqueezeExcite()(torchvision.models.resnet18())
        8
    """

    looks_for = "convolutions with enough channels"

    def __init__(self, reduction: int = 16, min_channels: int = 16, activation: Callable[[], nn.Module] = nn.ReLU) -> None:
        check_range("SqueezeExcite", "reduction", reduction, 1)
        check_range("SqueezeExcite", "min_channels", min_channels, 1)
        self.reduction = reduction
        self.min_channels = min_channels
        self.activation = activation

    def apply(self, network: nn.Module) -> int:
        """Add the layers and return how many there are."""
        return add_squeeze_excite(network, self.reduction, self.min_channels, factory_of(self.activation, nn.Module))
