"""Transforms of colour."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from lightning_cnnopt.augmentation.functional.colours import Recolouring
from lightning_cnnopt.augmentation.transforms.base import ColourStep, LinearColour, happens, uniform
from lightning_cnnopt.core.errors import check_range


class _ByFactor(LinearColour):
    """Changes colour by a factor from U(max(0, 1 - strength), 1 + strength)."""

    def __init__(self, strength: float = 0.4, p: float = 1.0) -> None:
        check_range(type(self).__name__, "strength", strength, 0)
        check_range(type(self).__name__, "p", p, 0, 1)
        self.strength = strength
        self.p = p

    def _factor(self, count: int, generator: torch.Generator | None) -> Tensor:
        drawn = uniform(count, max(0.0, 1 - self.strength), 1 + self.strength, generator)
        return drawn if self.p == 1 else torch.where(happens(count, self.p, generator), drawn, 1.0)


class Brightness(_ByFactor):
    """Multiplies all levels of an image by a factor from U(max(0, 1 - strength), 1 + strength).

    Args:
        strength: How far the factor goes from 1. 0.4, as for ImageNet since He et al., 2016.
        p: Probability for each image.

    Example:
        >>> Brightness(0.0)(torch.ones(1, 1, 1, 2)).tolist()
        [[[[1.0, 1.0]]]]
    """

    @override
    def recolour(self, colours: Recolouring, generator: torch.Generator | None = None) -> Recolouring:
        return colours.brightness(self._factor(len(colours.images), generator))


class Contrast(_ByFactor):
    """Multiplies the distance from an image's mean grey by a factor from U(max(0, 1 - strength), 1 + strength).

    Args:
        strength: How far the factor goes from 1. 0.4, as for ImageNet since He et al., 2016.
        p: Probability for each image.
    """

    @override
    def recolour(self, colours: Recolouring, generator: torch.Generator | None = None) -> Recolouring:
        return colours.contrast(self._factor(len(colours.images), generator))


class Saturation(_ByFactor):
    """Multiplies the distance of each pixel from its own grey by a factor from U(max(0, 1 - strength), 1 + strength).

    Images of one channel stay as they are.

    Args:
        strength: How far the factor goes from 1. 0.4, as for ImageNet since He et al., 2016.
        p: Probability for each image.

    Raises:
        DataError: For images of neither one channel nor three.
    """

    @override
    def recolour(self, colours: Recolouring, generator: torch.Generator | None = None) -> Recolouring:
        return colours.saturation(self._factor(len(colours.images), generator))


class Greyscale(LinearColour):
    """Makes an image grey, with as many channels as it had.

    Args:
        p: Probability for each image. 0.2, as in SimCLR (Chen et al., 2020).

    Raises:
        DataError: For images of neither one channel nor three.
    """

    def __init__(self, p: float = 0.2) -> None:
        check_range("Greyscale", "p", p, 0, 1)
        self.p = p

    @override
    def recolour(self, colours: Recolouring, generator: torch.Generator | None = None) -> Recolouring:
        return colours.saturation((~happens(len(colours.images), self.p, generator)).float())


class Inversion(LinearColour):
    """Turns black to white and white to black.

    Args:
        p: Probability for each image.
    """

    def __init__(self, p: float = 0.5) -> None:
        check_range("Inversion", "p", p, 0, 1)
        self.p = p

    @override
    def recolour(self, colours: Recolouring, generator: torch.Generator | None = None) -> Recolouring:
        return colours.inverted(happens(len(colours.images), self.p, generator))


class Hue(ColourStep):
    """Turns the hue of an image by a part of the circle from U(-strength, strength); saturation and value stay.

    Images of one channel stay as they are.

    Args:
        strength: Greatest part of a full circle, at most 0.5. 0.1.
        p: Probability for each image.

    Raises:
        DataError: For images of neither one channel nor three.
    """

    def __init__(self, strength: float = 0.1, p: float = 1.0) -> None:
        check_range("Hue", "strength", strength, 0, 0.5)
        check_range("Hue", "p", p, 0, 1)
        self.strength = strength
        self.p = p

    @override
    def recolour(self, colours: Recolouring, generator: torch.Generator | None = None) -> Recolouring:
        count = len(colours.images)
        shift = uniform(count, -self.strength, self.strength, generator)
        return colours.hue(shift if self.p == 1 else torch.where(happens(count, self.p, generator), shift, 0.0))
