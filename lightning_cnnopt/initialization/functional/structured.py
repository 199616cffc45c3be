"""Weights with a structure: matrices at the centre of a kernel, identities, zeros where a branch ends."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from lightning_cnnopt.core.errors import ConfigurationError, DataError
from lightning_cnnopt.core.graph import NetworkGraph, is_activation
from lightning_cnnopt.core.parameters import NORMALIZATION_LAYERS
from lightning_cnnopt.initialization.functional.draws import assign_, draw_


@torch.no_grad()
def delta_orthogonal_(layer: nn.Module, gain: float = 1.0, generator: torch.Generator | None = None) -> None:
    """Set a convolution to a random orthogonal matrix at the centre of its kernel, and zeros around it.

    With at least as many output as input channels the vector of every pixel keeps its length, times ``gain``, through any
    depth. With fewer none can, and the matrix has orthonormal rows. Each group of a grouped convolution has a matrix of its
    own; a linear layer is the matrix.

    Args:
        layer: A convolution, or a linear layer.
        gain: Multiplies the matrix.
        generator: Source of randomness.

    Reference:
        Xiao et al., "Dynamical Isometry and a Mean Field Theory of CNNs", 2018.

    Example:
        >>> layer = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        >>> delta_orthogonal_(layer)
        >>> images = torch.randn(1, 2, 5, 5)
        >>> bool(torch.allclose(layer(images).norm(dim=1), images.norm(dim=1), atol=1e-5))
        True
    """

    def fill(weight: Tensor) -> None:
        weight.zero_()
        for group in weight.chunk(getattr(layer, "groups", 1)):
            centre = group
            for size in reversed(weight.shape[2:]):
                centre = centre.select(-1, (size - 1) // 2)
            matrix = torch.empty(centre.shape, dtype=weight.dtype, device=weight.device)
            centre.copy_(nn.init.orthogonal_(matrix, gain, generator=generator))

    draw_(layer, fill, generator)


@torch.no_grad()
def dirac_(layer: nn.Module) -> None:
    """Set the first filters of a convolution to the identity; those beyond the number of its inputs stay as they are.

    A padded convolution of stride 1 then hands its input on in its first channels, through any depth. torch's own
    ``nn.init.dirac_`` writes zeros into the filters beyond, which are dead.

    Args:
        layer: A convolution. Each group of a grouped one hands its own inputs on.

    Reference:
        Zagoruyko & Komodakis, "DiracNets", 2017; the random rest: Jordan's airbench, 2024.

    Example:
        >>> layer = nn.Conv2d(2, 3, 3, padding=1, bias=False)
        >>> dirac_(layer)
        >>> images = torch.rand(1, 2, 4, 4)
        >>> torch.equal(layer(images)[:, :2], images)
        True
    """
    weight = layer.weight
    assert isinstance(weight, Tensor)
    value = weight.detach().clone()
    for group in value.chunk(getattr(layer, "groups", 1)):
        nn.init.dirac_(group[: group.shape[1]])
    assign_(layer, "weight", value)


@torch.no_grad()
def zero_gamma_(network: nn.Module, layers: Collection[str] | None = None) -> list[str]:
    """Set the scale of the last normalization of every residual branch to zero, so that the branch starts as nothing.

    A block is then the identity, and its gradient reaches the scale first. A branch whose last normalization is followed by
    an activation or a layer with weights is left alone: a scale of zero could never leave zero behind a ReLU.

    Args:
        network: Changed in place.
        layers: Names of the layers that may be set; by default all.

    Returns:
        Names of the layers that were set.

    Reference:
        Goyal et al., "Accurate, Large Minibatch SGD", 2017, section 5.1.

    Example:
        >>> import torchvision
        >>> len(zero_gamma_(torchvision.models.resnet18()))
        8
    """
    graph = NetworkGraph(network)
    touched = []
    for branch in graph.residual_branches():
        norms = [n for n in branch.modules if isinstance(network.get_submodule(n), NORMALIZATION_LAYERS)]
        if not norms:
            continue
        norm = network.get_submodule(norms[-1])
        holds_activation = any(is_activation(child) for child in norm.children())
        scale = getattr(norm, "weight", None)
        allowed = layers is None or norms[-1] in layers
        if allowed and isinstance(scale, nn.Parameter) and not holds_activation and graph.reaches_addition(norms[-1]):
            scale.zero_()
            touched.append(norms[-1])
    return touched


@torch.no_grad()
def prior_bias_(layer: nn.Module, counts: Sequence[int], total: int | None = None) -> None:
    """Set the bias of a last layer to what makes it predict the frequencies of the classes, before it has learnt anything.

    log πᶜ for the softmax over classes, πᶜ = nᶜ / N; log (π / (1 - π)) for labels that are not exclusive.

    Args:
        layer: The last layer, of one output for each class or label.
        counts: Samples of each class, or positive samples of each label.
        total: N, for labels that are not exclusive; ``None`` for classes.

    Raises:
        DataError: If a class has no samples, or a label is in none or all of them.
        ConfigurationError: If the layer has no bias, or another number of outputs.

    Reference:
        Lin et al., "Focal Loss for Dense Object Detection", 2017, section 3.3.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> prior_bias_(layer, [30, 10])
        >>> layer.bias.softmax(0)
        tensor([0.7500, 0.2500], grad_fn=<SoftmaxBackward0>)
    """
    frequencies = torch.tensor(list(counts), dtype=torch.float64)
    if not isinstance(layer.bias, Tensor) or layer.bias.numel() != len(counts):
        raise ConfigurationError(f"{layer!r} has no bias for each of the {len(counts)} classes whose counts are given.")
    shares = frequencies / (frequencies.sum() if total is None else total)
    odds = shares if total is None else shares / (1 - shares)
    if not (odds > 0).all() or not odds.isfinite().all():
        raise DataError(f"Of counts {list(counts)} one is of no samples or of all: the bias of such a class would be infinite.")
    assign_(layer, "bias", odds.log())
