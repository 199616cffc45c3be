"""Weights with a structure, by name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from lightning_cnnopt.core.errors import ConfigurationError, check_range
from lightning_cnnopt.core.pretrained import is_pretrained
from lightning_cnnopt.initialization.functional import dirac_, prior_bias_, zero_gamma_
from lightning_cnnopt.initialization.initializers.base import Initializer


class Dirac(Initializer):
    """Lets every convolution start as the identity on its first channels; see :func:`dirac_`.

    Filters beyond the number of input channels, and linear layers, stay as they are: put it behind one that draws them,
    ``initializer: [Kaiming, Dirac]``.

    Reference:
        Zagoruyko & Komodakis, "DiracNets", 2017.

    Example:
        >>> net = nn.Sequential(*[nn.Conv2d(3, 3, 3, padding=1) for _ in range(50)])
        >>> _ = Dirac()(net)
        >>> images = torch.rand(1, 3, 8, 8)
        >>> torch.equal(net(images), images)
        True
    """

    looks_for = "convolution"

    def __init__(self) -> None:
        pass

    def choose(self, network: nn.Module, layers: dict[str, nn.Module], sample: Tensor | None) -> dict[str, nn.Module]:
        """Return the convolutions; a transposed one has no identity of this form."""
        del network, sample
        return {name: layer for name, layer in layers.items() if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d))}

    def draw(
        self, network: nn.Module, layers: dict[str, nn.Module], sample: Tensor | None, generator: torch.Generator | None
    ) -> None:
        """Set the first filters of each."""
        for layer in layers.values():
            dirac_(layer)


class ZeroGamma(Initializer):
    """Lets every residual branch start as nothing, by a scale of zero in its last normalization; see :func:`zero_gamma_`.

    Put it behind one that draws the weights: ``initializer: [Kaiming, ZeroGamma]``.

    Reference:
        Goyal et al., "Accurate, Large Minibatch SGD", 2017, section 5.1.

    Example:
        >>> import torchvision
        >>> len(ZeroGamma()(torchvision.models.resnet50()))
        16
    """

    def __init__(self) -> None:
        pass

    @torch.no_grad()
    def __call__(self, network: nn.Module, sample: Tensor | None = None, generator: torch.Generator | None = None) -> list[str]:
        """Set the scales and return the names of the layers."""
        del sample, generator
        norms = {name: module for name, module in network.named_modules() if not is_pretrained(module)}
        touched = zero_gamma_(network, norms)
        if not touched:
            rank_zero_warn(
                f"{self!r} initialized nothing: {type(network).__name__} has no residual branch that ends in a normalization "
                "with a scale of its own to start."
            )
        return touched

    def draw(
        self, network: nn.Module, layers: dict[str, nn.Module], sample: Tensor | None, generator: torch.Generator | None
    ) -> None:
        """Set the scales; convolutions and linear layers stay as they are."""
        self(network)


class PriorBias(Initializer):
    """Sets the bias of the last layer to what predicts the frequencies of the classes before anything is learnt.

    log πᶜ for single labels, log (π / (1 - π)) for others; see :func:`prior_bias_`. The first steps then need not learn them,
    which they would at the cost of the rare classes. The other layers stay as they are: put it behind one that draws them,
    ``initializer: [Kaiming, PriorBias]``.

    Args:
        counts: Training samples of each class, or positive ones of each label; by default read from our data module.
        total: All training samples, for labels that are not exclusive.

    Raises:
        ConfigurationError: If the counts are nowhere to be found, or the network has no such layer.

    Reference:
        Lin et al., "Focal Loss for Dense Object Detection", 2017, section 3.3.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 2))
        >>> PriorBias([90, 10])(net)
        ['0']
        >>> net[0].bias.softmax(0)
        tensor([0.9000, 0.1000], grad_fn=<SoftmaxBackward0>)
    """

    def __init__(self, counts: Sequence[int] | None = None, total: int | None = None) -> None:
        for count in counts or ():
            check_range("PriorBias", "counts", count, 1)
        if total is not None:
            check_range("PriorBias", "total", total, 1)
        self.counts = None if counts is None else list(counts)
        self.total = total
        self.needs_counts = counts is None
        self.looks_for = f"last layer with a bias for each of {len(self.counts or [])} classes"

    def bind(self, counts: Sequence[int], total: int | None = None) -> Initializer:
        """Return the same with the frequencies of the classes, unless it has some."""
        return self if self.counts is not None else PriorBias(counts, total)

    def choose(self, network: nn.Module, layers: dict[str, nn.Module], sample: Tensor | None) -> dict[str, nn.Module]:
        """Return the last layer with a bias for each class."""
        del network, sample
        if self.counts is None:
            raise ConfigurationError("PriorBias: the frequencies of the classes are unknown; pass counts=.")
        fitting = [n for n, layer in layers.items() if isinstance(b := layer.bias, Tensor) and b.numel() == len(self.counts)]
        return {name: layers[name] for name in fitting[-1:]}

    def draw(
        self, network: nn.Module, layers: dict[str, nn.Module], sample: Tensor | None, generator: torch.Generator | None
    ) -> None:
        """Set the bias; the weights stay as they are."""
        assert self.counts is not None
        for layer in layers.values():
            prior_bias_(layer, self.counts, self.total)
