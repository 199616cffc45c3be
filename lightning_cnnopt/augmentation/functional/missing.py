"""Leaving parts of an image out: rectangles, rows and columns."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_cnnopt.augmentation.functional.layout import check_images, crossed, highest_level, like, where_changed


def rectangles(top: Tensor, left: Tensor, height: Tensor, width: Tensor, size: tuple[int, int]) -> Tensor:
    """Return (N, 1, *size), true inside the rectangle of each sample, as far as it is inside the image.

    Example:
        >>> one = torch.tensor([1])
        >>> rectangles(one, 0 * one, one, 2 * one, (2, 3)).int().tolist()
        [[[[0, 0, 0], [1, 1, 0]]]]
    """
    rows, columns = torch.arange(size[0]), torch.arange(size[1])
    in_rows = (rows >= top[:, None]) & (rows < (top + height)[:, None])
    in_columns = (columns >= left[:, None]) & (columns < (left + width)[:, None])
    return crossed(in_rows, in_columns)


def erase(images: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, value: float = 0.0) -> Tensor:
    """Fill a rectangle of each image; one of no height or width changes nothing.

    Args:
        images: (N, C, H, W).
        top: (N,) its first row.
        left: (N,) its first column.
        height: (N,) its rows.
        width: (N,) its columns.
        value: What it is filled with, 0 for black and 1 for white.

    Example:
        >>> one = torch.tensor([1])
        >>> erase(torch.ones(1, 1, 1, 3), 0 * one, one, one, one).flatten().tolist()
        [1.0, 0.0, 1.0]
    """
    size = (images.shape[-2], images.shape[-1])
    level = round(value * 255) if images.dtype == torch.uint8 else value * highest_level(images)

    def erased(part: Tensor, places: Tensor) -> Tensor:
        inside = rectangles(top[places], left[places], height[places], width[places], size).to(part.device)
        if part.dtype == torch.uint8:  # products of bytes cost less than a choice between two tensors
            bytes_inside = inside.view(torch.uint8)
            kept = part * (1 - bytes_inside)
            return kept.add_(bytes_inside * level) if level else kept
        return part.masked_fill(inside, level)

    # all of them if any: to go through those without a rectangle, too, costs less than to pick the others out
    return where_changed(images, ((height > 0) & (width > 0)).any().expand(len(images)), erased)


def select(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the rows and columns of each image that are named.

    Args:
        images: (N, C, H, W).
        rows: (N, h) places, in the order they are wanted.
        columns: (N, w) places.

    Returns:
        (N, C, h, w).

    Example:
        >>> select(torch.arange(6).view(1, 1, 2, 3), torch.tensor([[1]]), torch.tensor([[0, 2]])).flatten().tolist()
        [3, 5]
    """
    check_images(images, any_type=True)
    count, channels, _, width = images.shape
    index = (rows[:, :, None] * width + columns[:, None, :]).flatten(1).unsqueeze(1).to(images.device)
    chosen = images.flatten(2).gather(2, index.expand(-1, channels, -1))
    return like(chosen.view(count, channels, rows.shape[1], columns.shape[1]), images)
