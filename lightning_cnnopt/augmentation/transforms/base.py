"""The kinds of transforms: what can be fused with its neighbours says so by its base."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, get_args

import torch
from torch import Tensor
from typing_extensions import override

from lightning_cnnopt.augmentation.functional.colours import Recolouring
from lightning_cnnopt.augmentation.functional.copies import Placement
from lightning_cnnopt.augmentation.functional.warps import Interpolation, Outside, warp
from lightning_cnnopt.core.errors import ConfigurationError, check_choice, check_range
from lightning_cnnopt.core.spec import Configurable


class Transform(Configurable, ABC):
    """Base of transforms: calling one returns changed images, each sample by its own draw.

    A transform holds no state: the draws come from the generator it is given. A transform of your own may derive from this
    class and be anything, or from one of :class:`ExactCopy`, :class:`Geometric` and :class:`LinearColour`, and is then fused
    with neighbours of its kind.
    """

    reads_levels: ClassVar[bool] = False
    """Whether it takes 0 for black and 1 for white, so that :class:`Augment` refuses floats that are normalized already."""

    @abstractmethod
    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the transformed images.

        Args:
            images: (N, C, H, W), uint8, or floats in [0, 1], on any device; not written to.
            generator: A generator on the CPU; by default torch's own.
        """


class ExactCopy(Transform):
    """Base of transforms that move whole pixels: neighbours become one copy, and nothing is interpolated."""

    shows_all: ClassVar[bool] = False
    """Whether all of the image stays in sight, so that it makes no difference what is outside: a flip."""

    @property
    def reflects(self) -> bool:
        """Whether it shows the image reflected at its border, for which the image has to be whole: it begins a new copy."""
        return False

    @abstractmethod
    def place(self, placement: Placement, generator: torch.Generator | None = None) -> Placement:
        """Return a chain of copies with this one behind it, drawn anew for each sample."""

    @override
    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the moved images, exact copies."""
        return self.place(Placement.whole(images), generator).copy(images)


class Geometric(Transform):
    """Base of transforms that resample: neighbours multiply into one matrix for each sample, and resample once.

    Args:
        p: Probability for each image.
        interpolation: ``"bilinear"`` or ``"nearest"``.
        outside: What comes in from outside: ``"zeros"``, the image's ``"border"``, or its ``"reflection"``.
    """

    def __init__(self, p: float = 1.0, interpolation: Interpolation = "bilinear", outside: Outside = "zeros") -> None:
        check_range(type(self).__name__, "p", p, 0, 1)
        check_choice(type(self).__name__, "interpolation", interpolation, get_args(Interpolation))
        check_choice(type(self).__name__, "outside", outside, get_args(Outside))
        self.p = p
        self.interpolation: Interpolation = interpolation
        self.outside: Outside = outside

    @abstractmethod
    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator | None = None) -> Tensor:
        """Return a matrix for each of ``count`` images of height and width ``size``.

        Returns:
            (count, 3, 3), from pixels (x, y, 1) of the result to those of the image, counted from the centres.
        """

    def result_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of the result, for those of the image."""
        return size

    def spared(self, count: int, size: tuple[int, int]) -> Tensor:
        """Return the matrices, (count, 3, 3) or one for all, of images that ``p`` spares; the identity."""
        return torch.eye(3)

    def matrices(self, count: int, size: tuple[int, int], generator: torch.Generator | None = None) -> Tensor:
        """Return the matrices of :meth:`draw`, and those of :meth:`spared` for images that ``p`` spares."""
        drawn = self.draw(count, size, generator)
        if self.p == 1:
            return drawn
        return torch.where(happens(count, self.p, generator).view(-1, 1, 1), drawn, self.spared(count, size))

    @override
    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the resampled images."""
        size = (images.shape[-2], images.shape[-1])
        matrices = self.matrices(len(images), size, generator)
        return warp(images, matrices, self.result_size(size), self.interpolation, self.outside)


class ColourStep(Transform):
    """Base of transforms of colour: a linear one and its neighbour are one pass."""

    reads_levels = True

    @abstractmethod
    def recolour(self, colours: Recolouring, generator: torch.Generator | None = None) -> Recolouring:
        """Return a chain of changes of colour with this one behind it, drawn anew for each sample."""

    @override
    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the images in other colours."""
        return self.recolour(Recolouring(images), generator).apply()


class LinearColour(ColourStep):
    """Base of transforms that are linear in a pixel's colour: neighbours multiply into one matrix for each sample."""


def happens(count: int, p: float, generator: torch.Generator | None) -> Tensor:
    """Draw (count,) booleans that are true with probability ``p``."""
    return torch.rand(count, generator=generator) < p


def uniform(count: int, low: float, high: float, generator: torch.Generator | None) -> Tensor:
    """Draw (count,) floats from U(low, high)."""
    return torch.rand(count, generator=generator) * (high - low) + low


def draw_windows(
    count: int,
    size: tuple[int, int],
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the height and width of a part of each image: its area from U(scale), its ratio log-uniformly, in whole pixels.

    Of ten draws the first is taken that is not larger than the image.

    Args:
        count: How many images.
        size: Their height and width.
        scale: Interval of the area, as a fraction of the image's.
        ratio: Interval of width over height.
        generator: Of the draws.

    Returns:
        Heights (count,), widths (count,), and whether one of the draws fits; where none does, the lengths mean nothing.
    """
    tries = (count, 10)
    area = torch.rand(tries, generator=generator) * (scale[1] - scale[0]) + scale[0]
    low, high = math.log(ratio[0]), math.log(ratio[1])
    root = (torch.rand(tries, generator=generator) * (high - low) + low).div(2).exp()  # of the ratio
    side = (area * size[0] * size[1]).sqrt()
    height, width = (side / root).round(), (side * root).round()
    fits = (height >= 1) & (height <= size[0]) & (width >= 1) & (width <= size[1])
    first = fits.int().argmax(1, keepdim=True) if count else fits.new_zeros(0, 1, dtype=torch.long)
    return height.gather(1, first).squeeze(1), width.gather(1, first).squeeze(1), fits.any(1)


def draw_places(length: Tensor, side: int, generator: torch.Generator | None) -> Tensor:
    """Draw where parts of ``length`` (N,) whole pixels begin on a side, all places alike."""
    return (torch.rand(len(length), generator=generator) * (side - length + 1)).floor()


def check_interval(
    owner: str, name: str, interval: Sequence[float], low: float, high: float | None = None, *, whole: bool = False
) -> None:
    """Raise unless ``interval`` is two numbers within a range, the lower one first; whole ones, if ``whole``.

    Raises:
        ConfigurationError: Naming the argument.
    """
    is_pair = isinstance(interval, (list, tuple)) and len(interval) == 2
    for bound in interval if is_pair else ():
        check_range(owner, name, bound, low, high, whole=whole)
    if not is_pair or interval[0] > interval[1]:
        raise ConfigurationError(f"{owner}: {name}={interval!r}; expected two numbers, the lower one first.")
