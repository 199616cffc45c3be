"""Scaling, pooling, and edits of the architecture of any network, as functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import SqueezeExcitation

from lightning_cnnopt.core.errors import ConfigurationError, check_range
from lightning_cnnopt.core.graph import NetworkGraph
from lightning_cnnopt.core.surgery import insert_after

# torchvision's name and timm's
_SQUEEZE_EXCITE_CLASSES = {"SqueezeExcitation", "SqueezeExcite", "SqueezeExciteCl", "SEModule", "EffectiveSEModule"}


class CompoundScaling(NamedTuple):
    """What one coefficient does to a network; see :func:`compound_scaling`."""

    width_factor: float
    depth_factor: float
    resolution_factor: float


def compound_scaling(phi: float, width: float = 1.1, depth: float = 1.2, resolution: float = 1.15) -> CompoundScaling:
    """Return the factors by which a network grows in width, depth and resolution together: each base to the power of φ.

    With the paper's bases one step of φ doubles the cost: depth · width² · resolution² ≈ 2. A negative φ shrinks.

    Args:
        phi: How many doublings of the cost.
        width: Base of the factor on channels.
        depth: Base of the factor on blocks.
        resolution: Base of the factor on the image's sides.

    Reference:
        Tan & Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", 2019.

    Example:
        >>> compound_scaling(2)
        CompoundScaling(width_factor=1.21..., depth_factor=1.44, resolution_factor=1.32...)
    """
    for name, base in (("width", width), ("depth", depth), ("resolution", resolution)):
        check_range("compound_scaling", name, base, 1)
    return CompoundScaling(width**phi, depth**phi, resolution**phi)


def round_channels(channels: float, divisor: int = 8) -> int:
    """Return the multiple of ``divisor`` nearest to ``channels``, at least ``divisor`` and at least 90% of ``channels``.

    Example:
        >>> round_channels(32 * 1.1), round_channels(10), round_channels(3)
        (32, 16, 8)
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded if rounded >= 0.9 * channels else rounded + divisor


def generalized_mean_pool(images: Tensor, p: Tensor | float, kernel_size: int | None = None, eps: float = 1e-6) -> Tensor:
    """Return (mean(xᵖ))^(1/p) over windows of side ``kernel_size``, or over the whole image.

    Args:
        images: (N, C, H, W); values below ``eps`` count as ``eps``.
        p: The exponent; 1 is the average, ∞ the maximum.
        kernel_size: Side of the windows, which do not overlap; ``None`` for the whole image.
        eps: Least value.

    Reference:
        Radenović, Tolias & Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", 2018.
    """
    powers = images.clamp(min=eps).pow(p)
    means = F.adaptive_avg_pool2d(powers, 1) if kernel_size is None else F.avg_pool2d(powers, kernel_size)
    return means.pow(1 / p)


def adapt_input_filters(filters: Tensor, channels: int) -> Tensor:
    """Return the filters of a first convolution for images of another number of channels, as timm adapts them.

    For one channel they are summed: a grey image then gives what it gave as three equal channels. For other numbers they are
    repeated in their order and multiplied by the old number over the new one, so that activations keep their scale.

    Args:
        filters: (out, in, kH, kW).
        channels: The new number of input channels.

    Example:
        >>> filters = torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1)
        >>> adapt_input_filters(filters, 1).flatten(), adapt_input_filters(filters, 4).flatten()
        (tensor([6.]), tensor([0.7500, 1.5000, 2.2500, 0.7500]))
    """
    old = filters.shape[1]
    if channels == old:
        return filters
    values = filters.float()
    if channels == 1:
        return values.sum(1, keepdim=True).to(filters.dtype)
    repeated = values.repeat(1, math.ceil(channels / old), 1, 1)[:, :channels]
    return (repeated * (old / channels)).to(filters.dtype)


def binomial_filter(size: int) -> Tensor:
    """Return the binomial coefficients of an odd number of taps, divided by their sum.

    Example:
        >>> binomial_filter(3)
        tensor([0.2500, 0.5000, 0.2500])
    """
    check_range("binomial_filter", "filter_size", size, 1)
    if size % 2 == 0:
        raise ConfigurationError(f"filter_size={size} is even, which would shift images by half a pixel; give an odd one.")
    return torch.tensor([math.comb(size - 1, tap) for tap in range(size)]) / 2 ** (size - 1)


def add_squeeze_excite(
    network: nn.Module,
    reduction: int = 16,
    min_channels: int = 16,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> int:
    """Let every block of a network weigh its channels: x · σ(W₂ δ(W₁ mean(x))).

    The layer goes to the end of each residual branch, before the addition, where the paper puts it; in a network without
    residual branches, behind each convolution with its normalization and activation. Branches that squeeze and excite
    already are left alone.

    Args:
        network: Changed in place.
        reduction: Divides the channels in the bottleneck. 16 in the paper.
        min_channels: Blocks with fewer channels are left alone.
        activation: δ, the activation of the bottleneck.

    Returns:
        How many layers were added.

    Reference:
        Hu, Shen & Sun, "Squeeze-and-Excitation Networks", 2018.

    Example:
        >>> import torchvision
        >>> add_squeeze_excite(torchvision.models.resnet18())
        8
    """
    modules = dict(network.named_modules())
    graph = NetworkGraph(network)
    branches = graph.residual_branches()
    if branches:
        places = {
            branch.end: _last_convolution(modules, branch.modules)
            for branch in branches
            if not any(_squeezes(name, modules) for name in branch.modules)
        }
    else:
        places = {
            graph.block_end(name): module
            for name, module in modules.items()
            if isinstance(module, nn.Conv2d) and not _squeezes(name, modules)
        }
    count = 0
    for place, convolution in places.items():
        if convolution is None or convolution.out_channels < min_channels or _squeezes(place, modules):
            continue
        channels = convolution.out_channels
        layer = SqueezeExcitation(channels, max(1, channels // reduction), activation=activation)
        insert_after(network, place, "squeeze_excite", layer)
        count += 1
    return count


def _last_convolution(modules: dict[str, nn.Module], names: tuple[str, ...]) -> nn.Conv2d | None:
    convolutions = [module for name in names if isinstance(module := modules[name], nn.Conv2d)]
    return convolutions[-1] if convolutions else None


def _squeezes(name: str, modules: dict[str, nn.Module]) -> bool:
    parts = name.split(".")
    around = [modules[".".join(parts[:end])] for end in range(1, len(parts) + 1)]
    return any(type(module).__name__ in _SQUEEZE_EXCITE_CLASSES for module in [*around, *modules[name].children()])
