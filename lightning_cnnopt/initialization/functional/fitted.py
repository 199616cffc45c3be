"""Weights that are fitted to data."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_cnnopt.core.errors import ConfigurationError, DataError
from lightning_cnnopt.core.graph import WEIGHTED_LAYERS
from lightning_cnnopt.core.modes import modes_kept
from lightning_cnnopt.initialization.functional.draws import assign_


@torch.no_grad()
def lsuv_(
    network: nn.Module,
    sample: Tensor,
    tolerance: float = 0.01,
    iterations: int = 10,
    layers: Collection[str] | None = None,
) -> dict[str, float]:
    """Scale every layer, in the order of computation, until its output on ``sample`` has variance 1.

    Weights are drawn orthogonal before; this is the second, data-driven half. The network runs in evaluation mode with
    dropout off, its BatchNorm statistics and the random state are left as they were.

    Args:
        network: Changed in place.
        sample: A batch of inputs as the network is fed: normalized floats.
        tolerance: How far from 1 the variance may stay.
        iterations: Most corrections per layer; one is enough but for numerical trouble.
        layers: Names of the layers to scale; by default all. The others count as they are.

    Returns:
        The variance of each layer's output afterwards, by name, in the order of computation.

    Raises:
        ConfigurationError: If a layer's output has no variance at all (a dead network, or a constant sample).

    Reference:
        Mishkin & Matas, "All you need is a good init", 2016.
    """
    with modes_kept(network):
        network.eval()
        order = [item for item in computation_order(network, sample) if layers is None or item[0] in layers]
        for name, layer in order:
            for _ in range(iterations):
                variance = _output_variance(network, layer, sample)
                if not 0 < variance < math.inf:
                    raise ConfigurationError(
                        f"LSUV: the output of {name!r} has variance {variance:g} on the sample, so no scale makes it 1."
                    )
                if abs(variance - 1) <= tolerance:
                    break
                assert isinstance(layer.weight, Tensor)
                assign_(layer, "weight", layer.weight / math.sqrt(variance))
        return {name: _output_variance(network, layer, sample) for name, layer in order}


@torch.no_grad()
def whiten_patches_(layer: nn.Module, images: Tensor, eps: float = 5e-4) -> None:
    """Set the filters of a first convolution so that its outputs on ``images`` are uncorrelated, of mean 0 and variance 1.

    With Σ = V diag(λ) Vᵀ the covariance of the patches that the layer sees, the filters are vᵢ / √(λᵢ + ε), by falling λᵢ, then
    the same with the other sign: an activation that cuts negative values off keeps both halves. Filters beyond twice the
    size of a patch stay as they are. The bias, where there is one, is set so that the outputs have mean 0.

    Args:
        layer: A 2d convolution with ``groups=1``.
        images: (N, C, H, W) normalized floats, as the layer is fed them.
        eps: ε, added to the variances; directions of hardly any variance (noise) are amplified by no more than 1/√ε.

    Raises:
        ConfigurationError: If the layer is another one, or takes other channels.
        DataError: If the images have fewer patches than a patch has values.

    Reference:
        Page, "How to train your ResNet", 2018; Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024.

    Example:
        >>> layer = nn.Conv2d(1, 8, 2)
        >>> images = torch.randn(64, 1, 8, 8)
        >>> whiten_patches_(layer, images)
        >>> maps = layer(images).transpose(0, 1).flatten(1)[:4]
        >>> bool(torch.allclose(torch.cov(maps), torch.eye(4), atol=0.01))
        True
    """
    if not isinstance(layer, nn.Conv2d) or layer.groups != 1 or layer.in_channels != images.shape[1]:
        raise ConfigurationError(f"{layer!r} can't whiten images of {images.shape[1]} channels; it takes a Conv2d of groups=1.")
    # every patch within the images, whatever the stride; what padding adds is no part of them
    kernel, dilation = (layer.kernel_size[0], layer.kernel_size[1]), (layer.dilation[0], layer.dilation[1])
    patches = F.unfold(images.double(), kernel, dilation).transpose(0, 1).flatten(1)
    size = patches.shape[0]
    if patches.shape[1] <= size:
        raise DataError(f"{patches.shape[1]} patches are too few for the covariance of {size} values; give more images.")
    variances, directions = torch.linalg.eigh(torch.cov(patches))
    filters = (directions * (variances + eps).rsqrt()).flip(1).T  # eigh's values rise
    filters = torch.cat([filters, -filters])[: layer.out_channels]
    value = layer.weight.detach().clone()
    value[: len(filters)] = filters.view(-1, *value.shape[1:]).to(value)
    assign_(layer, "weight", value)
    if layer.bias is not None:
        bias = layer.bias.detach().clone()
        bias[: len(filters)] = -(filters @ patches.mean(1)).to(bias)
        assign_(layer, "bias", bias)


class _Reached(Exception):
    pass


def _output_variance(network: nn.Module, layer: nn.Module, sample: Tensor) -> float:
    seen: list[float] = []

    def look(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        # the bias shifts each channel's mean and no scale of the weights changes that; variance is about the mean
        seen.append(float(output.float().var(unbiased=False)))
        raise _Reached

    handle = layer.register_forward_hook(look)
    try:
        network(sample)
    except _Reached:
        pass
    finally:
        handle.remove()
    return seen[0]


@torch.no_grad()
def computation_order(network: nn.Module, sample: Tensor) -> list[tuple[str, nn.Module]]:
    """Return the layers with weights in the order in which ``network`` runs them on ``sample``."""
    order: list[tuple[str, nn.Module]] = []

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if all(module is not known for _, known in order):
                order.append((name, module))

        return hook

    handles = [m.register_forward_pre_hook(note(n)) for n, m in network.named_modules() if isinstance(m, WEIGHTED_LAYERS)]
    try:
        network(sample)
    finally:
        for handle in handles:
            handle.remove()
    return order
