"""Transforms that leave parts of an image out."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from lightning_cnnopt.augmentation import functional
from lightning_cnnopt.augmentation.transforms.base import Transform, check_interval, draw_places, draw_windows, happens
from lightning_cnnopt.core.errors import ConfigurationError, check_range


class Erasing(Transform):
    """Fills a random rectangle of an image: random erasing.

    The area is drawn from U(scale), its width over its height log-uniformly; of ten draws the first is taken that is
    not larger than the image, and an image for which there is none stays as it is.

    Args:
        p: Probability for each image.
        scale: Interval of the rectangle's area, as a fraction of the image's.
        ratio: Interval of its width over its height.
        value: What it is filled with, 0 for black and 1 for white.

    Reference:
        Zhong et al., "Random Erasing Data Augmentation", 2020.

    Example:
        >>> Erasing(p=1.0, scale=(0.25, 0.25), ratio=(1.0, 1.0))(torch.ones(1, 1, 8, 8)).mean().item()
        0.75
    """

    def __init__(
        self,
        p: float = 0.5,
        scale: tuple[float, float] = (0.02, 0.33),
        ratio: tuple[float, float] = (0.3, 3.3),
        value: float = 0.0,
    ) -> None:
        check_range("Erasing", "p", p, 0, 1)
        check_interval("Erasing", "scale", scale, 0.0001, 1)
        check_interval("Erasing", "ratio", ratio, 0.01)
        check_range("Erasing", "value", value, 0, 1)
        self.p = p
        self.scale = scale
        self.ratio = ratio
        self.value = value

    @override
    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the images, some of them with a rectangle filled."""
        return functional.erase(images, *self.windows(len(images), (images.shape[-2], images.shape[-1]), generator), self.value)

    def windows(
        self, count: int, size: tuple[int, int], generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw the first row, the first column, the height and the width of each rectangle; 0 by 0 where there is none."""
        height, width, found = draw_windows(count, size, self.scale, self.ratio, generator)
        wanted = found & happens(count, self.p, generator)
        top, left = draw_places(height, size[0], generator), draw_places(width, size[1], generator)
        height, width = (torch.where(wanted, length, 0.0) for length in (height, width))
        return top, left, height, width


class ColOut(Transform):
    """Leaves a fraction of the rows and columns out of each image, drawn for each: fewer pixels to train on.

    Args:
        rows: Fraction of the rows that is left out. 0.15.
        columns: Fraction of the columns that is left out. 0.15.

    Raises:
        ConfigurationError: If nothing would be left.

    Reference:
        MosaicML, Composer, "ColOut", 2021.

    Example:
        >>> ColOut()(torch.zeros(2, 3, 20, 20, dtype=torch.uint8)).shape
        torch.Size([2, 3, 17, 17])
    """

    def __init__(self, rows: float = 0.15, columns: float = 0.15) -> None:
        check_range("ColOut", "rows", rows, 0, 1, high_open=True)
        check_range("ColOut", "columns", columns, 0, 1, high_open=True)
        self.rows = rows
        self.columns = columns

    @override
    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the smaller images."""
        kept = [
            _chosen(len(images), side, round(side * (1 - fraction)), generator)
            for side, fraction in ((images.shape[-2], self.rows), (images.shape[-1], self.columns))
        ]
        if min(places.shape[1] for places in kept) == 0:
            raise ConfigurationError(f"{self!r} leaves nothing of an image of {tuple(images.shape[-2:])}.")
        return functional.select(images, *kept)


def _chosen(count: int, length: int, kept: int, generator: torch.Generator | None) -> Tensor:
    """Draw ``kept`` of ``length`` places for each sample, ascending."""
    return torch.rand(count, length, generator=generator).argsort(1)[:, :kept].sort(1).values
