"""How the learning rate follows the batch size."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

Rule = Literal["linear", "sqrt"]


def rate_scale(batch_size: int, base_batch_size: int, rule: Rule = "linear") -> float:
    """Return the factor that takes a rate tuned at ``base_batch_size`` to ``batch_size``.

    Linear, B / B₀, keeps the step per sample of SGD (Goyal et al., 2017); the square root, √(B / B₀), keeps the noise of an
    adaptive optimizer (Malladi et al., 2022).

    Example:
        >>> rate_scale(1024, 256), rate_scale(1024, 256, "sqrt")
        (4.0, 2.0)
    """
    ratio = batch_size / base_batch_size
    return ratio if rule == "linear" else math.sqrt(ratio)


def ramp(progress: float, scale: float, duration: float) -> float:
    """Return the gradual warmup from 1 to ``scale`` over ``duration``, as a factor of the base rate.

    Example:
        >>> [ramp(p, 4.0, 0.1) for p in (0.0, 0.05, 0.1, 0.5)]
        [1.0, 2.5, 4.0, 4.0]
    """
    return scale if progress >= duration - 1e-9 else 1 + (scale - 1) * progress / duration


def to_channels_last(network: nn.Module) -> int:
    """Lay the weights of 2d convolutions out as (N, H, W, C), in place; shapes, values and names stay.

    A convolution whose weights lie so computes so, whatever its input's layout, and its output passes it on. Vectorized and
    tensor-core kernels want it.

    Args:
        network: Changed in place.

    Returns:
        How many convolutions there are whose layout was another.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> to_channels_last(net), to_channels_last(net)
        (1, 0)
        >>> net(torch.zeros(2, 3, 8, 8)).is_contiguous(memory_format=torch.channels_last)
        True
    """
    count = sum(
        not module.weight.is_contiguous(memory_format=torch.channels_last)
        for module in network.modules()
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d))
    )
    network.to(memory_format=torch.channels_last)
    return count
