"""Images with their targets: what a split of a data set is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_cnnopt.core.batch import to_float
from lightning_cnnopt.core.errors import DataError

_BLOCK = 2**20
"""Values that are measured at a time."""


class ImageSet:
    """Images with their targets, or some of them: a part refers to the whole and copies nothing.

    So both parts of a split, and the processes that map one file into their memory, share one copy of the images.

    Args:
        images: (N, C, H, W), uint8, or floats in [0, 1].
        targets: (N,) classes; (N,) zeros and ones for a binary task; (N, labels) zeros and ones for labels.
        places: (M,) which of them are meant; all by default.

    Attributes:
        whole_images: The images of the whole, as given.
        whole_targets: Its targets.
        places: Which of them are meant; ``None`` for all.

    Example:
        >>> whole = ImageSet(torch.zeros(10, 1, 8, 8), torch.arange(10))
        >>> part = whole[torch.tensor([7, 2])]
        >>> len(part), part.targets.tolist(), part.whole_images is whole.images
        (2, [7, 2], True)
    """

    def __init__(self, images: Tensor, targets: Tensor, places: Tensor | None = None) -> None:
        self.whole_images = images
        self.whole_targets = targets
        self.places = places

    @property
    def images(self) -> Tensor:
        """The images that are meant; of a part a copy, made anew each time."""
        return self.whole_images if self.places is None else self.whole_images[self.places]

    @property
    def targets(self) -> Tensor:
        """Their targets."""
        return self.whole_targets if self.places is None else self.whole_targets[self.places]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.whole_images if self.places is None else self.places)

    def __getitem__(self, index: Any) -> ImageSet:
        """Return the samples at ``index``, a slice or a tensor of places or of booleans."""
        kind = torch.int32 if len(self.whole_images) < 2**31 else torch.int64  # each process holds them
        if self.places is not None:
            places = self.places[index]
        elif isinstance(index, slice):
            places = torch.arange(*index.indices(len(self)), dtype=kind)
        else:
            places = torch.arange(len(self), dtype=kind)[index]
        return ImageSet(self.whole_images, self.whole_targets, places)

    def to(self, device: torch.device | str) -> ImageSet:
        """Return the samples that are meant on another device; images that are there already are not copied."""
        device = torch.empty(0, device=device).device  # "cuda" is one of several
        if self.whole_images.device == device:
            return ImageSet(self.whole_images, self.whole_targets.to(device), self.places)
        return ImageSet(self.images.to(device), self.targets.to(device))


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


def channel_statistics(data: ImageSet, owner: str) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel, for pixels in [0, 1].

    Raises:
        DataError: If a channel is constant.
    """
    channels = data.whole_images.shape[1]
    total, squares, count = torch.zeros(channels).double(), torch.zeros(channels).double(), 0
    # one pass in blocks: a float copy of a large set would not fit beside it
    step = max(1, _BLOCK // data.whole_images[:1].numel())
    for begin in range(0, len(data), step):
        images = data[begin : begin + step].images.cpu()
        for channel, pixels in enumerate(images.unbind(1)):
            if images.dtype == torch.uint8:  # by how often there is each level, which is exact
                levels = torch.bincount(pixels.flatten(), minlength=256).double()
                values, times = torch.arange(256).double() / 255, levels
            else:
                values, times = to_float(pixels).double().flatten(), torch.ones(()).double()
            total[channel] += (values * times).sum()
            squares[channel] += (values.square() * times).sum()
        count += images[:, 0].numel()
    return statistics_of(total, squares, count, owner)


def statistics_of(total: Tensor, squares: Tensor, count: int, owner: str) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel from sums over its pixels.

    Args:
        total: Sum of the pixels of each channel, in [0, 1], as doubles.
        squares: Sum of their squares.
        count: How many pixels of a channel are in them.
        owner: Whose they are, for the message.

    Raises:
        DataError: If a channel is constant.
    """
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    if (std < 1e-6).any():
        raise DataError(f"{owner}: channel {int(std.argmin())} is constant over the training set.")
    return [round(v, 6) for v in mean.tolist()], [round(v, 6) for v in std.tolist()]
