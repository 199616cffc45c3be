"""Weights that are fitted to data, by name."""

from __future__ import annotations

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from lightning_cnnopt.core.errors import check_range
from lightning_cnnopt.initialization.functional import computation_order, lsuv_, orthogonal_, whiten_patches_
from lightning_cnnopt.initialization.initializers.base import Initializer


class LSUV(Initializer):
    """Layer-sequential unit variance: orthogonal weights, each layer then scaled so that its output has variance 1 on data.

    Args:
        tolerance: How far from 1 the variance may stay. 0.01; the paper stops at 0.1, one more step costs nothing.
        iterations: Most corrections per layer.

    Reference:
        Mishkin & Matas, "All you need is a good init", 2016.
    """

    needs_sample = True
    sample_size = 256

    def __init__(self, tolerance: float = 0.01, iterations: int = 10) -> None:
        check_range("LSUV", "tolerance", tolerance, 0, low_open=True)
        check_range("LSUV", "iterations", iterations, 1)
        self.tolerance = tolerance
        self.iterations = iterations

    def draw(
        self, network: nn.Module, layers: dict[str, nn.Module], sample: Tensor | None, generator: torch.Generator | None
    ) -> None:
        """Draw orthogonal weights and scale them layer by layer."""
        assert sample is not None
        for layer in layers.values():
            orthogonal_(layer, generator=generator)
        variances = lsuv_(network, sample, self.tolerance, self.iterations, layers)
        off = {name: variance for name, variance in variances.items() if abs(variance - 1) > self.tolerance}
        if off:
            name, variance = next(iter(off.items()))
            rank_zero_warn(
                f"{self!r}: {len(off)} layers kept another variance than 1, such as {name!r} with {variance:.3g}. A layer "
                "that computes its weight may undo every scale (spectral norm and standardization do)."
            )


class PatchWhitening(Initializer):
    """Sets the first convolution so that its outputs are uncorrelated on the training images; see :func:`whiten_patches_`.

    The other layers stay as they are: put it behind one that draws them, ``initializer: [Kaiming, PatchWhitening]``. In a
    :class:`~lightning_cnnopt.architecture.SpeedNet` those weights are then not trained.

    Args:
        eps: Added to the variances of the patches, for pixels in units of their standard deviation. 5e-4, airbench's.

    Reference:
        Page, "How to train your ResNet", 2018; Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024.
    """

    needs_sample = True
    sample_size = 2048
    looks_for = "2d convolution of groups=1 that takes the images"

    def __init__(self, eps: float = 5e-4) -> None:
        check_range("PatchWhitening", "eps", eps, 0)
        self.eps = eps

    def choose(self, network: nn.Module, layers: dict[str, nn.Module], sample: Tensor | None) -> dict[str, nn.Module]:
        """Return the first layer that is computed, if it is such a convolution."""
        assert sample is not None
        name, layer = next(iter(computation_order(network, sample[:2])), ("", None))
        fits = isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.in_channels == sample.shape[1]
        return {name: layers[name]} if fits else {}

    def draw(
        self, network: nn.Module, layers: dict[str, nn.Module], sample: Tensor | None, generator: torch.Generator | None
    ) -> None:
        """Set the filters from the patches of ``sample``."""
        assert sample is not None
        for layer in layers.values():
            whiten_patches_(layer, sample, self.eps)
