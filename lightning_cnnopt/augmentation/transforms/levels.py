"""Transforms of single levels and of the histogram."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from lightning_cnnopt.augmentation import functional
from lightning_cnnopt.augmentation.transforms.base import Transform, check_interval, happens, uniform
from lightning_cnnopt.core.errors import check_range


class Posterize(Transform):
    """Keeps the highest bits of each level, their number drawn for each image.

    Args:
        bits: Interval of the number, both ends included, of 8 bits in all.
        p: Probability for each image.

    Example:
        >>> Posterize((1, 1), p=1.0)(torch.tensor([[[[255, 127]]]], dtype=torch.uint8)).flatten().tolist()
        [128, 0]
    """

    reads_levels = True

    def __init__(self, bits: tuple[int, int] = (4, 7), p: float = 0.5) -> None:
        check_interval("Posterize", "bits", bits, 0, 8, whole=True)
        check_range("Posterize", "p", p, 0, 1)
        self.bits = bits
        self.p = p

    @override
    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the images in fewer levels."""
        bits = torch.randint(self.bits[0], self.bits[1] + 1, (len(images),), generator=generator)
        return functional.posterize(images, torch.where(happens(len(images), self.p, generator), bits, 8))


class Solarize(Transform):
    """Inverts what is at a threshold or above, the threshold drawn for each image.

    Args:
        threshold: Interval it is drawn from, 0 for black and 1 for white.
        p: Probability for each image.
    """

    reads_levels = True

    def __init__(self, threshold: tuple[float, float] = (0.5, 1.0), p: float = 0.5) -> None:
        check_interval("Solarize", "threshold", threshold, 0, 1)
        check_range("Solarize", "p", p, 0, 1)
        self.threshold = threshold
        self.p = p

    @override
    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the solarized images."""
        threshold = uniform(len(images), *self.threshold, generator)
        return functional.solarize(images, torch.where(happens(len(images), self.p, generator), threshold, 2.0))


class AutoContrast(Transform):
    """Spreads each channel of an image from black to white.

    Args:
        p: Probability for each image.
    """

    reads_levels = True

    def __init__(self, p: float = 0.5) -> None:
        check_range("AutoContrast", "p", p, 0, 1)
        self.p = p

    @override
    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the images with all of the contrast there is."""
        return functional.autocontrast(images, happens(len(images), self.p, generator))


class Equalize(Transform):
    """Makes all levels of each channel of an image about equally frequent.

    Args:
        p: Probability for each image.
    """

    reads_levels = True

    def __init__(self, p: float = 0.5) -> None:
        check_range("Equalize", "p", p, 0, 1)
        self.p = p

    @override
    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the images with flat histograms."""
        return functional.equalize(images, happens(len(images), self.p, generator))
