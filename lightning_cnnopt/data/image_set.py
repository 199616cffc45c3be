"""Images with their targets: what a split of a data set is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_cnnopt.core.batch import to_float
from lightning_cnnopt.core.errors import DataError


@dataclass
class ImageSet:
    """Images with their targets.

    Args:
        images: (N, C, H, W), uint8, or floats in [0, 1].
        targets: (N,) classes; (N,) zeros and ones for a binary task; (N, labels) zeros and ones for labels.
    """

    images: Tensor
    targets: Tensor

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.images)

    def __getitem__(self, index: Any) -> ImageSet:
        """Return the samples at ``index``."""
        return ImageSet(self.images[index], self.targets[index])


def check_set(data: ImageSet, owner: str, num_classes: int | None) -> None:
    """Raise if a split can't be used.

    Args:
        data: The split.
        owner: What it is, for the message.
        num_classes: Number of classes, where targets are single labels.

    Raises:
        DataError: If it is empty, targets are missing, or labels are out of range.
    """
    if len(data) == 0:
        raise DataError(f"{owner} is empty.")
    if len(data.targets) != len(data):
        raise DataError(f"{owner} has {len(data)} images and {len(data.targets)} targets.")
    if num_classes is not None:
        low, high = int(data.targets.min()), int(data.targets.max())
        if low < 0 or high >= num_classes:
            before, _, split = owner.partition(": ")
            raise DataError(
                f"{before}: labels of {split} run from {low} to {high}; with {num_classes} classes they have to be from 0 to "
                f"{num_classes - 1}."
            )


def channel_statistics(images: Tensor, owner: str) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel, for pixels in [0, 1].

    Raises:
        DataError: If a channel is constant.
    """
    channels = images.shape[1]
    # one pass in blocks: a float copy of a large set would not fit beside it
    total, squares, count = torch.zeros(channels).double(), torch.zeros(channels).double(), 0
    for block in images.split(4096):
        pixels = to_float(block).double().transpose(0, 1).flatten(1)
        total, squares, count = total + pixels.sum(1), squares + pixels.square().sum(1), count + pixels.shape[1]
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    if (std < 1e-6).any():
        raise DataError(f"{owner}: channel {int(std.argmin())} is constant over the training set.")
    return [round(v, 6) for v in mean.tolist()], [round(v, 6) for v in std.tolist()]
