"""Transforms that resample."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from lightning_cnnopt.augmentation.functional.warps import (
    Interpolation,
    Outside,
    affine_matrices,
    perspective_matrices,
    rotation_matrices,
    window_matrices,
)
from lightning_cnnopt.augmentation.transforms.base import (
    Geometric,
    check_interval,
    draw_places,
    draw_windows,
    uniform,
)
from lightning_cnnopt.core.errors import check_range, sides_of


class Rotation(Geometric):
    """Turns each image by an angle from U(-degrees, degrees) about its centre.

    Args:
        degrees: Greatest angle. 15.
        p: Probability for each image.
        interpolation: ``"bilinear"`` or ``"nearest"``.
        outside: What comes in from outside: ``"zeros"``, the image's ``"border"``, or its ``"reflection"``.
    """

    def __init__(
        self,
        degrees: float = 15.0,
        p: float = 1.0,
        interpolation: Interpolation = "bilinear",
        outside: Outside = "zeros",
    ) -> None:
        check_range("Rotation", "degrees", degrees, 0, 180)
        super().__init__(p, interpolation, outside)
        self.degrees = degrees

    @override
    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator | None = None) -> Tensor:
        return rotation_matrices(uniform(count, -self.degrees, self.degrees, generator))


class Zoom(Geometric):
    """Makes what each image shows larger or smaller about its centre, by a factor from U(low, high), alike in both directions.

    Args:
        factor: The interval (low, high); above 1 things become larger.
        p: Probability for each image.
        interpolation: ``"bilinear"`` or ``"nearest"``.
        outside: What comes in from outside: ``"zeros"``, the image's ``"border"``, or its ``"reflection"``.
    """

    def __init__(
        self,
        factor: tuple[float, float] = (0.9, 1.1),
        p: float = 1.0,
        interpolation: Interpolation = "bilinear",
        outside: Outside = "zeros",
    ) -> None:
        check_interval("Zoom", "factor", factor, 0.01)
        super().__init__(p, interpolation, outside)
        self.factor = factor

    @override
    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator | None = None) -> Tensor:
        return affine_matrices(torch.zeros(count), scale=uniform(count, *self.factor, generator))


class Shear(Geometric):
    """Shears each image about its centre, by angles from U(-degrees, degrees) along x and U(-vertical, vertical) along y.

    Args:
        degrees: Greatest angle along x. 10.
        vertical: Greatest angle along y.
        p: Probability for each image.
        interpolation: ``"bilinear"`` or ``"nearest"``.
        outside: What comes in from outside: ``"zeros"``, the image's ``"border"``, or its ``"reflection"``.
    """

    def __init__(
        self,
        degrees: float = 10.0,
        vertical: float = 0.0,
        p: float = 1.0,
        interpolation: Interpolation = "bilinear",
        outside: Outside = "zeros",
    ) -> None:
        check_range("Shear", "degrees", degrees, 0, 90, high_open=True)
        check_range("Shear", "vertical", vertical, 0, 90, high_open=True)
        super().__init__(p, interpolation, outside)
        self.degrees = degrees
        self.vertical = vertical

    @override
    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator | None = None) -> Tensor:
        angles = [uniform(count, -most, most, generator) for most in (self.degrees, self.vertical)]
        return affine_matrices(torch.zeros(count), shear=torch.stack(angles, 1))


class Affine(Geometric):
    """A turn, a shift, a zoom and a shear of each image, each by its own draw, as one matrix.

    Args:
        degrees: Greatest angle of the turn.
        translate: Greatest shift, as a fraction of width and height. Not rounded to whole pixels.
        scale: Interval (low, high) of the zoom's factor.
        shear: Greatest angle of the shear along x.
        p: Probability for each image.
        interpolation: ``"bilinear"`` or ``"nearest"``.
        outside: What comes in from outside: ``"zeros"``, the image's ``"border"``, or its ``"reflection"``.

    Example:
        >>> Affine(degrees=10, translate=0.1)(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).dtype
        torch.uint8
    """

    def __init__(
        self,
        degrees: float = 0.0,
        translate: float = 0.0,
        scale: tuple[float, float] = (1.0, 1.0),
        shear: float = 0.0,
        p: float = 1.0,
        interpolation: Interpolation = "bilinear",
        outside: Outside = "zeros",
    ) -> None:
        check_range("Affine", "degrees", degrees, 0, 180)
        check_range("Affine", "translate", translate, 0, 1)
        check_interval("Affine", "scale", scale, 0.01)
        check_range("Affine", "shear", shear, 0, 90, high_open=True)
        super().__init__(p, interpolation, outside)
        self.degrees = degrees
        self.translate = translate
        self.scale = scale
        self.shear = shear

    @override
    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator | None = None) -> Tensor:
        angle = uniform(count, -self.degrees, self.degrees, generator)
        moved = torch.stack(
            [uniform(count, -self.translate, self.translate, generator) * side for side in (size[1], size[0])], 1
        )
        factor = uniform(count, *self.scale, generator)
        shear = uniform(count, -self.shear, self.shear, generator)
        return affine_matrices(angle, moved, factor, torch.stack([shear, torch.zeros(count)], 1))


class Perspective(Geometric):
    """Looks at each image from the side: every corner moves inwards by its own draw.

    Args:
        distortion: Farthest that a corner moves, as a fraction of half of each side. 0.3.
        p: Probability for each image.
        interpolation: ``"bilinear"`` or ``"nearest"``.
        outside: What comes in from outside: ``"zeros"``, the image's ``"border"``, or its ``"reflection"``.
    """

    def __init__(
        self,
        distortion: float = 0.3,
        p: float = 0.5,
        interpolation: Interpolation = "bilinear",
        outside: Outside = "zeros",
    ) -> None:
        check_range("Perspective", "distortion", distortion, 0, 1, high_open=True)
        super().__init__(p, interpolation, outside)
        self.distortion = distortion

    @override
    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator | None = None) -> Tensor:
        corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]) * torch.tensor([size[1], size[0]]) / 2
        inwards = 1 - self.distortion * torch.rand(count, 4, 2, generator=generator)
        return perspective_matrices(corners.expand(count, 4, 2), corners * inwards)


class ResizedCrop(Geometric):
    """Crops a part of each image, of a random size and shape, and resamples it: the crop of Inception training.

    The area is drawn from U(scale), the ratio of width to height log-uniformly, and rounded to whole pixels; of ten draws the
    first is taken that fits, or else the largest part in the middle with a ratio that is allowed.

    Where the part is as large as the result or smaller, the inside equals torchvision's ``resized_crop``, bilinear, within a
    grey level; at its edge that repeats the outermost pixels, and this looks at what is really beside them. Where it is larger,
    it is less smooth than with ``antialias=True`` there: see :func:`~lightning_cnnopt.augmentation.warp`.

    Args:
        size: Height and width of the result, or one number for both; by default those of the images.
        scale: Interval of the part's area, as a fraction of the image's.
        ratio: Interval of width over height.
        p: Probability for each image; others are resampled as a whole.
        interpolation: ``"bilinear"`` or ``"nearest"``.

    Reference:
        Szegedy et al., "Going Deeper with Convolutions", 2015.

    Example:
        >>> ResizedCrop(4)(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).shape
        torch.Size([2, 3, 4, 4])
    """

    def __init__(
        self,
        size: int | tuple[int, int] | None = None,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        p: float = 1.0,
        interpolation: Interpolation = "bilinear",
    ) -> None:
        check_interval("ResizedCrop", "scale", scale, 0.0001, 1)
        check_interval("ResizedCrop", "ratio", ratio, 0.01)
        super().__init__(p, interpolation, "border")
        if size is not None:
            sides_of("ResizedCrop", "size", size)
        self.size = size
        self.scale = scale
        self.ratio = ratio

    @override
    def result_size(self, size: tuple[int, int]) -> tuple[int, int]:
        return size if self.size is None else sides_of("ResizedCrop", "size", self.size)

    @override
    def draw(self, count: int, size: tuple[int, int], generator: torch.Generator | None = None) -> Tensor:
        return self._matrices(*self.windows(count, size, generator), size)

    @override
    def spared(self, count: int, size: tuple[int, int]) -> Tensor:
        height, width = (torch.full((count,), float(side)) for side in size)
        return self._matrices(0 * height, 0 * width, height, width, size)

    def windows(
        self, count: int, size: tuple[int, int], generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw the first row, the first column, the height and the width of each part, (count,) whole numbers."""
        height, width, found = draw_windows(count, size, self.scale, self.ratio, generator)
        bounded = min(max(size[1] / size[0], self.ratio[0]), self.ratio[1])
        largest = [max(1, round(side)) for side in (min(size[0], size[1] / bounded), min(size[1], size[0] * bounded))]
        height, width = (torch.where(found, drawn, float(side)) for drawn, side in zip((height, width), largest, strict=True))
        drawn = (draw_places(height, size[0], generator), draw_places(width, size[1], generator))
        top = torch.where(found, drawn[0], ((size[0] - height) / 2).floor())
        left = torch.where(found, drawn[1], ((size[1] - width) / 2).floor())
        return top, left, height, width

    def _matrices(self, top: Tensor, left: Tensor, height: Tensor, width: Tensor, size: tuple[int, int]) -> Tensor:
        return window_matrices(top, left, height, width, size, self.result_size(size))
