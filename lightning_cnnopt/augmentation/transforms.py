"""Transforms that draw their parameters per sample."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from lightning_cnnopt.augmentation import functional
from lightning_cnnopt.core.errors import ConfigurationError, check_choice, check_range
from lightning_cnnopt.core.spec import Configurable


class Transform(Configurable, ABC):
    """Base of transforms: calling one returns changed images, each sample by its own draw.

    A transform holds no state: the draws come from the generator it is given.
    """

    @abstractmethod
    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the transformed images.

        Args:
            images: (N, C, H, W), uint8 or float, on any device; not written to.
            generator: A generator on the CPU; by default torch's own.
        """


class HorizontalFlip(Transform):
    """Mirrors left and right.

    Args:
        p: Probability for each image.

    Example:
        >>> HorizontalFlip(p=1.0)(torch.tensor([[[[1, 2]]]])).tolist()
        [[[[2, 1]]]]
    """

    def __init__(self, p: float = 0.5) -> None:
        check_range("HorizontalFlip", "p", p, 0, 1)
        self.p = p

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the images, some of them mirrored."""
        return functional.horizontal_flip(images, torch.rand(len(images), generator=generator) < self.p)


class VerticalFlip(Transform):
    """Mirrors top and bottom.

    Args:
        p: Probability for each image.
    """

    def __init__(self, p: float = 0.5) -> None:
        check_range("VerticalFlip", "p", p, 0, 1)
        self.p = p

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the images, some of them mirrored."""
        return functional.vertical_flip(images, torch.rand(len(images), generator=generator) < self.p)


class Rotation(Transform):
    """Turns each image by an angle from U(-degrees, degrees), bilinear, with 0 outside.

    Args:
        degrees: Greatest angle. 15.
    """

    def __init__(self, degrees: float = 15.0) -> None:
        check_range("Rotation", "degrees", degrees, 0, 180)
        self.degrees = degrees

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the turned images."""
        return functional.rotate(images, (torch.rand(len(images), generator=generator) * 2 - 1) * self.degrees)


class PaddedCrop(Transform):
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
        check_range("PaddedCrop", "padding", padding, 0)
        check_choice("PaddedCrop", "mode", mode, ("constant", "reflect"))
        self.padding = padding
        self.mode = mode

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the shifted images."""
        if self.mode == "reflect" and self.padding >= min(images.shape[-2:]):
            raise ConfigurationError(
                f"PaddedCrop: padding={self.padding} reflects more than an image of {tuple(images.shape[-2:])} has."
            )
        down, right = torch.randint(-self.padding, self.padding + 1, (2, len(images)), generator=generator)
        return functional.shift(images, down, right, self.mode)


class Translation(Transform):
    """Shifts each image by whole pixels, up to a fraction of its sides, with 0 coming in.

    Args:
        fraction: Greatest shift as a fraction of height and of width; rounded to whole pixels. 0.1.
    """

    def __init__(self, fraction: float = 0.1) -> None:
        check_range("Translation", "fraction", fraction, 0, 1)
        self.fraction = fraction

    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the shifted images."""
        if max(round(self.fraction * side) for side in images.shape[-2:]) == 0:
            warnings.warn(f"{self!r} moves nothing: of {tuple(images.shape[-2:])} pixels that is none.", stacklevel=2)
        down, right = (
            torch.randint(-most, most + 1, (len(images),), generator=generator)
            for most in (round(self.fraction * side) for side in images.shape[-2:])
        )
        return functional.shift(images, down, right)
