"""Batched transforms with parameters per sample, as pure functions.

All take images (N, C, H, W), uint8 or float, on any device, and one parameter per sample; none writes to its input.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def horizontal_flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Mirror left and right where ``flipped`` (N,) is true.

    Example:
        >>> horizontal_flip(torch.tensor([[[[1, 2]]], [[[3, 4]]]]), torch.tensor([True, False])).flatten().tolist()
        [2, 1, 3, 4]
    """
    return torch.where(_per_sample(flipped, images), images.flip(-1), images)


def vertical_flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Mirror top and bottom where ``flipped`` (N,) is true."""
    return torch.where(_per_sample(flipped, images), images.flip(-2), images)


def shift(images: Tensor, down: Tensor, right: Tensor, mode: Literal["constant", "reflect"] = "constant") -> Tensor:
    """Move each image by whole pixels, an exact copy; what comes in is 0, or the image reflected at its border.

    Args:
        images: (N, C, H, W).
        down: (N,) whole pixels down; negative for up.
        right: (N,) whole pixels to the right; negative for left.
        mode: What comes in from outside.

    Example:
        >>> shift(torch.tensor([[[[1, 2, 3]]]]), torch.tensor([0]), torch.tensor([1])).flatten().tolist()
        [0, 1, 2]
    """
    count, channels, height, width = images.shape
    rows = torch.arange(height, device=images.device) - down.to(images.device)[:, None]
    columns = torch.arange(width, device=images.device) - right.to(images.device)[:, None]
    row_index, row_inside = _source(rows, height, mode)
    column_index, column_inside = _source(columns, width, mode)
    index = (row_index[:, :, None] * width + column_index[:, None, :]).view(count, 1, height * width)
    moved = images.flatten(2).gather(2, index.expand(-1, channels, -1)).view(images.shape)
    if mode == "reflect":
        return moved
    inside = (row_inside[:, :, None] & column_inside[:, None, :]).unsqueeze(1)
    return torch.where(inside, moved, torch.zeros((), dtype=images.dtype, device=images.device))


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Turn each image counter-clockwise about its centre, bilinear, with 0 outside.

    Equals torchvision's ``rotate`` with bilinear interpolation, sample by sample.

    Args:
        images: (N, C, H, W).
        degrees: (N,) angles.

    Example:
        >>> rotate(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor([90.0])).round().flatten().tolist()
        [2.0, 4.0, 1.0, 3.0]
    """
    if len(images) == 0:  # torch makes no grid for it
        return images.clone()
    radians = torch.deg2rad(degrees.to(images.device, torch.float32))
    height, width = images.shape[-2:]
    cos, sin, zero = radians.cos(), radians.sin(), torch.zeros_like(radians)
    # maps an output position to the input position it shows, in grid_sample's units of half the image's sides
    theta = torch.stack(
        [torch.stack([cos, -sin * height / width, zero], 1), torch.stack([sin * width / height, cos, zero], 1)], 1
    )
    floats = images.float() if not images.is_floating_point() else images
    grid = F.affine_grid(theta.to(floats.dtype), list(images.shape), align_corners=False)
    turned = F.grid_sample(floats, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return turned if images.is_floating_point() else turned.round_().clamp_(0, 255).to(images.dtype)


def mix(values: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    """Return share · values + (1 - share) · values[partner].

    Args:
        values: (N, …) floats: images, or targets as probabilities.
        partner: (N,) whom each sample is mixed with.
        share: (N,) or a scalar, in [0, 1].

    Example:
        >>> mix(torch.tensor([[0.0], [1.0]]), torch.tensor([1, 0]), torch.tensor([0.75, 1.0])).flatten().tolist()
        [0.25, 1.0]
    """
    share = share.to(values.device, values.dtype).view(-1, *[1] * (values.ndim - 1))
    return torch.lerp(values[partner.to(values.device)], values, share)


def _source(position: Tensor, size: int, mode: str) -> tuple[Tensor, Tensor]:
    inside = (position >= 0) & (position < size)
    if mode == "reflect" and size > 1:
        period = 2 * (size - 1)
        folded = position.remainder(period)
        return torch.where(folded >= size, period - folded, folded), inside
    return position.clamp(0, size - 1), inside


def _per_sample(mask: Tensor, images: Tensor) -> Tensor:
    return mask.to(images.device).view(-1, 1, 1, 1)
