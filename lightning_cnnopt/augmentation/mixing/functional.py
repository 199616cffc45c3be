"""Mixing as pure functions: who is pasted where, and what that makes of the targets."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_cnnopt.augmentation.functional.missing import rectangles
from lightning_cnnopt.augmentation.functional.mixing import dirichlet
from lightning_cnnopt.core.batch import one_hot
from lightning_cnnopt.core.errors import DataError


def beta(alpha: float, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw (count,) from Beta(alpha, alpha), the first of two parts of a Dirichlet law, with a generator of one's own.

    Example:
        >>> draws = beta(0.2, 1000, torch.Generator().manual_seed(0))
        >>> bool(0.45 < draws.mean() < 0.55)
        True
    """
    return dirichlet(alpha, count, 2, generator)[:, 0]


def cut_boxes(share: Tensor, centre: Tensor, height: int, width: int) -> Tensor:
    """Return rectangles of the area 1 - share, clipped at the borders of the image.

    Sides are those of the image times √(1 - share), halves rounded down to whole pixels: what the paper's code and
    torchvision's ``CutMix`` cut.

    Args:
        share: (N,) what is to be left of an image, in [0, 1].
        centre: (N, 2) row and column of each centre, as fractions of the sides in [0, 1).
        height: Rows of the image.
        width: Columns of the image.

    Returns:
        (N, 4) whole pixels: first row, row behind the last, first column, column behind the last.

    Example:
        >>> cut_boxes(torch.tensor([0.75, 1.0]), torch.tensor([[0.0, 0.5], [0.5, 0.5]]), 8, 8).tolist()
        [[0, 2, 2, 6], [4, 4, 4, 4]]
    """
    half = 0.5 * (1 - share.double()).clamp_min(0).sqrt()
    row, column = (centre[:, 0] * height).long(), (centre[:, 1] * width).long()
    half_height, half_width = (half * height).long(), (half * width).long()
    return torch.stack(
        [
            (row - half_height).clamp_min(0),
            (row + half_height).clamp_max(height),
            (column - half_width).clamp_min(0),
            (column + half_width).clamp_max(width),
        ],
        1,
    )


def area_left(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return the share of each image, (N,), that its rectangle leaves.

    Example:
        >>> area_left(torch.tensor([[0, 2, 2, 6]]), 8, 8)
        tensor([0.8750])
    """
    top, bottom, left, right = boxes.unbind(1)
    return (1 - (bottom - top) * (right - left) / (height * width)).float()


def paste(images: Tensor, others: Tensor, boxes: Tensor) -> Tensor:
    """Return images with the pixels of others within rectangles, an exact copy.

    Args:
        images: (N, C, H, W).
        others: (N, C, H, W) of the same type.
        boxes: (N, 4), or (1, 4) for one rectangle for all, as of :func:`cut_boxes`.

    Example:
        >>> paste(torch.zeros(1, 1, 2, 3), torch.ones(1, 1, 2, 3), torch.tensor([[0, 1, 1, 3]])).flatten().tolist()
        [0.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    """
    top, bottom, left, right = boxes.unbind(1)
    within = rectangles(top, left, bottom - top, right - left, (images.shape[-2], images.shape[-1])).to(images.device)
    return torch.where(within, others, images)


def soft_targets(targets: Tensor, num_classes: int) -> Tensor:
    """Return targets as floats that can be mixed: (N, num_classes), or as they are for a binary task.

    Args:
        targets: (N,) classes, or (N, num_classes) probabilities or labels; zeros and ones of any shape for one class.
        num_classes: How many classes there are; 1 for a binary task.

    Raises:
        DataError: If they are of another shape, or classes are out of range.

    Example:
        >>> soft_targets(torch.tensor([1, 0]), 2).tolist(), soft_targets(torch.tensor([1, 0]), 1).tolist()
        ([[0.0, 1.0], [1.0, 0.0]], [1.0, 0.0])
    """
    if num_classes == 1:
        return targets if targets.is_floating_point() else targets.to(torch.get_default_dtype())
    if targets.ndim > 2 or (targets.ndim == 2 and targets.shape[1] != num_classes):
        raise DataError(
            f"Targets of shape {tuple(targets.shape)} can't be mixed: with num_classes={num_classes} they have to be classes "
            f"of shape (N,), or probabilities or labels of shape (N, {num_classes})."
        )
    if targets.ndim == 1 and targets.device.type == "cpu" and len(targets):  # elsewhere looking would wait for the device
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= num_classes:
            raise DataError(
                f"Targets run from {low} to {high}; to be mixed they have to be classes from 0 to {num_classes - 1}. A label "
                "that the criterion is to ignore can't be mixed: leave its images out."
            )
    return one_hot(targets, num_classes)
