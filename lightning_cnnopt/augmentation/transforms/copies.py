"""Transforms that move whole pixels."""

from __future__ import annotations

import warnings
from typing import Literal

import torch
from typing_extensions import override

from lightning_cnnopt.augmentation.functional.copies import Placement
from lightning_cnnopt.augmentation.transforms.base import ExactCopy, happens
from lightning_cnnopt.core.errors import ConfigurationError, check_choice, check_range, sides_of


class HorizontalFlip(ExactCopy):
    """Mirrors left and right.

    Args:
        p: Probability for each image.

    Example:
        >>> HorizontalFlip(p=1.0)(torch.tensor([[[[1, 2]]]])).tolist()
        [[[[2, 1]]]]
    """

    shows_all = True

    def __init__(self, p: float = 0.5) -> None:
        check_range("HorizontalFlip", "p", p, 0, 1)
        self.p = p

    @override
    def place(self, placement: Placement, generator: torch.Generator | None = None) -> Placement:
        return placement.flipped(columns=happens(len(placement), self.p, generator))


class VerticalFlip(ExactCopy):
    """Mirrors top and bottom.

    Args:
        p: Probability for each image.
    """

    shows_all = True

    def __init__(self, p: float = 0.5) -> None:
        check_range("VerticalFlip", "p", p, 0, 1)
        self.p = p

    @override
    def place(self, placement: Placement, generator: torch.Generator | None = None) -> Placement:
        return placement.flipped(rows=happens(len(placement), self.p, generator))


class PaddedCrop(ExactCopy):
    """Pads each image on every side and crops it back to its size at a random place: a shift by whole pixels.

    Args:
        padding: Pixels on every side. 4, as for 32×32 images since He et al., 2016.
        mode: ``"constant"`` pads with 0, ``"reflect"`` with the image itself.

    Raises:
        ConfigurationError: When reflecting more than the image has.

    Example:
        >>> PaddedCrop(2)(torch.zeros(3, 1, 8, 8, dtype=torch.uint8)).shape
        torch.Size([3, 1, 8, 8])
    """

    def __init__(self, padding: int = 4, mode: Literal["constant", "reflect"] = "constant") -> None:
        check_range("PaddedCrop", "padding", padding, 0, whole=True)
        check_choice("PaddedCrop", "mode", mode, ("constant", "reflect"))
        self.padding = padding
        self.mode = mode

    @property
    @override
    def reflects(self) -> bool:
        return self.mode == "reflect"

    @override
    def place(self, placement: Placement, generator: torch.Generator | None = None) -> Placement:
        if self.reflects and self.padding >= min(placement.size):
            raise ConfigurationError(f"PaddedCrop: padding={self.padding} reflects more than an image of {placement.size} has.")
        down, right = torch.randint(-self.padding, self.padding + 1, (2, len(placement)), generator=generator)
        return placement.shifted(down, right, self.reflects)


class RandomWindow(ExactCopy):
    """Crops each image to a smaller size at a random place.

    Args:
        size: Height and width, or one number for both.

    Raises:
        ConfigurationError: If an image is smaller.

    Example:
        >>> RandomWindow(6)(torch.zeros(3, 1, 8, 8, dtype=torch.uint8)).shape
        torch.Size([3, 1, 6, 6])
    """

    def __init__(self, size: int | tuple[int, int]) -> None:
        sides_of("RandomWindow", "size", size)
        self.size = size

    @override
    def place(self, placement: Placement, generator: torch.Generator | None = None) -> Placement:
        height, width = sides_of("RandomWindow", "size", self.size)
        most = (placement.size[0] - height, placement.size[1] - width)
        if min(most) < 0:
            raise ConfigurationError(f"RandomWindow: size={self.size!r} is larger than an image of {placement.size}.")
        top, left = (torch.randint(0, n + 1, (len(placement),), generator=generator) for n in most)
        return placement.cropped(top, left, (height, width))


class Translation(ExactCopy):
    """Shifts each image by whole pixels, up to a fraction of its sides, with 0 coming in.

    Args:
        fraction: Greatest shift as a fraction of height and of width; rounded to whole pixels. 0.1.
    """

    def __init__(self, fraction: float = 0.1) -> None:
        check_range("Translation", "fraction", fraction, 0, 1)
        self.fraction = fraction

    @override
    def place(self, placement: Placement, generator: torch.Generator | None = None) -> Placement:
        farthest = [round(self.fraction * side) for side in placement.size]
        if max(farthest) == 0:
            warnings.warn(f"{self!r} moves nothing: of {placement.size} pixels that is none.", stacklevel=2)
        down, right = (torch.randint(-most, most + 1, (len(placement),), generator=generator) for most in farthest)
        return placement.shifted(down, right)
