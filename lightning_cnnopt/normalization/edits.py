"""Edits of normalization by name."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lightning_cnnopt.core.errors import check_range
from lightning_cnnopt.core.layers import NormalizationFactory, layer_classes
from lightning_cnnopt.core.spec import factory_of, without_defaults
from lightning_cnnopt.core.surgery import Edit
from lightning_cnnopt.normalization.functional import standardize_weights, swap_normalization


class SwapNormalization(Edit):
    """Replaces the normalization layers of a network; see :func:`swap_normalization`.

    Args:
        normalization: Makes the new layer from a number of channels: a class, a ``functools.partial`` of one, or its spec.
        replaces: Classes to replace: their names in ``torch.nn``, or import paths of others.

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
        layer_classes("SwapNormalization", "replaces", replaces)
        self.normalization = without_defaults(normalization)
        self.replaces = list(replaces)

    def apply(self, network: nn.Module) -> int:
        """Replace the layers and return how many there were."""
        return swap_normalization(network, self.normalization, layer_classes("SwapNormalization", "replaces", self.replaces))


class StandardizeWeights(Edit):
    """Lets the convolutions of a network standardize their weights; see :func:`standardize_weights`.

    Args:
        eps: Added to the variance of a filter; 1e-6, as in the networks that were trained with it (BiT, timm).

    Example:
        >>> import torchvision
        >>> StandardizeWeights()(torchvision.models.resnet18())
        20
    """

    looks_for = "convolutions that a normalization follows"

    def __init__(self, eps: float = 1e-6) -> None:
        check_range("StandardizeWeights", "eps", eps, 0)
        self.eps = eps

    def apply(self, network: nn.Module) -> int:
        """Change the convolutions and return how many there were."""
        return standardize_weights(network, self.eps)
