"""The swap of normalization by name."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lightning_cnnopt.core.errors import ConfigurationError, did_you_mean
from lightning_cnnopt.core.layers import NormalizationFactory
from lightning_cnnopt.core.spec import factory_of, without_defaults
from lightning_cnnopt.core.surgery import Edit
from lightning_cnnopt.normalization.functional import swap_normalization


class SwapNormalization(Edit):
    """Replaces the normalization layers of a network; see :func:`swap_normalization`.

    Args:
        normalization: Makes the new layer from a number of channels: a class, a ``functools.partial`` of one, or its spec.
        replaces: Names of classes of ``torch.nn`` to replace.

    Example:
        >>> from functools import partial
        >>> import torchvision
        >>> from lightning_cnnopt.normalization import GhostBatchNorm2d
        >>> SwapNormalization(partial(GhostBatchNorm2d, ghost_size=16))(torchvision.models.resnet18())
        20
    """

    looks_for = "normalization layers"

    def __init__(self, normalization: NormalizationFactory, replaces: Sequence[str] = ("BatchNorm2d",)) -> None:
        factory_of(normalization, nn.Module)
        for name in replaces:
            if not hasattr(nn, name):
                raise ConfigurationError(
                    f"SwapNormalization: replaces={name!r} is no class of torch.nn.{did_you_mean(name, vars(nn))}"
                )
        self.normalization = without_defaults(normalization)
        self.replaces = list(replaces)

    def apply(self, network: nn.Module) -> int:
        """Replace the layers and return how many there were."""
        replaces = tuple(getattr(nn, name) for name in self.replaces)
        return swap_normalization(network, self.normalization, replaces)
