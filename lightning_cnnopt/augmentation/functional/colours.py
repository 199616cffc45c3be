"""Colour transforms: those that are linear in a pixel as one matrix per sample, and the hue, in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cnnopt.augmentation.functional.layout import (
    at_once,
    chosen,
    from_levels,
    highest_level,
    to_levels,
    where_changed,
)
from lightning_cnnopt.core.errors import ConfigurationError, DataError

LUMA = (0.2989, 0.587, 0.114)
"""Shares of red, green and blue in grey (ITU-R BT.601), as torchvision and PIL take them."""


@dataclass
class Recolouring:
    """A chain of changes of colour of a batch, its own for each sample: linear ones, y = M · x + b, and the hue behind them.

    Every method but :meth:`apply` takes one more step and returns the chain. Linear steps are one matrix; what they make is cut
    off at black and white once, where steps taken one by one cut off after each.

    Args:
        images: (N, C, H, W), what is to be changed; the mean grey of each, which contrast turns about, is taken from it.

    Example:
        >>> images = torch.full((1, 3, 2, 2), 0.5)
        >>> Recolouring(images).brightness(torch.tensor([0.5])).inverted(torch.tensor([True])).apply().unique().tolist()
        [0.75]
    """

    images: Tensor

    def __post_init__(self) -> None:
        count, channels = self.images.shape[:2]
        self._scale = torch.ones(count, 1, 1, dtype=torch.float32)  # of all channels alike, as long as none goes into another
        self._matrix: Tensor | None = None
        self._offset = torch.zeros(count, channels, 1, dtype=torch.float32)
        self._turn = torch.zeros(count, dtype=torch.float32)
        self._is_closed = False

    def brightness(self, factor: Tensor) -> Recolouring:
        """Multiply by ``factor`` (N,)."""
        return self._scaled(factor)

    def contrast(self, factor: Tensor) -> Recolouring:
        """Multiply the distance from the mean grey of each image by ``factor`` (N,)."""
        factor = factor.float()
        turned = (factor != 1).nonzero().flatten()
        if len(turned) and self.images.numel():
            mean = factor.new_zeros(len(factor), 1, 1)
            mean[turned] = self._mean_grey(turned)
            self._scaled(factor)
            self._offset = self._offset + (1 - factor.view(-1, 1, 1)) * mean
        return self

    def saturation(self, factor: Tensor) -> Recolouring:
        """Multiply the distance of each pixel from its own grey by ``factor`` (N,); 0 makes grey images."""
        self._check_open()
        channels = self.images.shape[1]
        if channels == 1:
            return self
        _check_colours("saturation", channels)
        factor = factor.view(-1, 1, 1).float()
        eye, luma = torch.eye(3, dtype=torch.float32), torch.tensor(LUMA, dtype=torch.float32)
        step = factor * eye + (1 - factor) * luma.expand(3, 3)
        matrix = self._scale * eye if self._matrix is None else self._matrix
        self._matrix, self._offset = step @ matrix, step @ self._offset
        return self

    def inverted(self, where: Tensor) -> Recolouring:
        """Turn black to white where ``where`` (N,) is true."""
        self._scaled(1 - 2 * where.float())
        self._offset = self._offset + where.view(-1, 1, 1).float()
        return self

    def hue(self, shift: Tensor) -> Recolouring:
        """Turn the hue by ``shift`` (N,) of a full circle, saturation and value kept. It has to be the last step.

        Raises:
            ConfigurationError: By whatever step comes behind it.
        """
        self._check_open()
        channels = self.images.shape[1]
        if channels > 1:
            _check_colours("hue", channels)
            self._turn = shift.cpu()
        self._is_closed = True
        return self

    def apply(self) -> Tensor:
        """Return the changed images, in the type of the given ones; bytes are rounded down, but for hues."""
        images = self.images
        matrix = self._scale if self._matrix is None else self._matrix
        mixed = (matrix != torch.eye(matrix.shape[-1])).flatten(1).any(1) | self._offset.flatten(1).any(1)
        turned = self._turn != 0
        if torch.equal(mixed, turned):
            return where_changed(images, mixed, lambda part, places: self._changed(part, places, mixes=True, turns=True))
        if mixed.any():
            images = where_changed(images, mixed, lambda part, places: self._changed(part, places, mixes=True))
        if turned.any() or images is self.images:
            images = where_changed(images, turned, lambda part, places: self._changed(part, places, turns=True))
        return images

    def _changed(self, part: Tensor, places: Tensor, *, mixes: bool = False, turns: bool = False) -> Tensor:
        if mixes and not turns and part.dtype == torch.uint8 and self._only_inverts(places):
            return part.bitwise_not()
        levels = to_levels(part).flatten(2)
        if mixes:
            levels = self._mixed(levels, places, part)
            if turns and part.dtype == torch.uint8:
                levels.floor_()
        if turns:
            levels = _turned(levels, self._turn[places])
        return from_levels(levels.view(len(part), -1, *part.shape[2:]), part, down=not turns).expand(part.shape)

    def _mixed(self, levels: Tensor, places: Tensor, part: Tensor) -> Tensor:
        """Return (n, C, pixels) after the linear steps, cut off; of one channel where all would be alike."""
        top = highest_level(part)
        # bytes are rounded down: what is a whole level but for the error of a float has to stay one
        shift = self._offset[places] * top + (1e-3 if part.dtype == torch.uint8 else 0.0)
        factor = (self._scale if self._matrix is None else self._matrix)[places]
        if self._matrix is not None and all((rows == rows[:, :1]).all() for rows in (factor, shift)):
            factor, shift = factor[:, :1], shift[:, :1]
        factor, shift = factor.to(levels), shift.to(levels)
        mixed = levels.mul_(factor).add_(shift) if self._matrix is None else torch.baddbmm(shift, factor, levels)
        return mixed.clamp_(0, top)

    def _only_inverts(self, places: Tensor) -> bool:
        return self._matrix is None and bool((self._scale[places] == -1).all() and (self._offset[places] == 1).all())

    def _check_open(self) -> None:
        if self._is_closed:
            raise ConfigurationError(
                "Recolouring: no step comes behind the hue; begin another chain with what apply() returns."
            )

    def _scaled(self, factor: Tensor) -> Recolouring:
        self._check_open()
        factor = factor.view(-1, 1, 1).float()
        self._scale = self._scale * factor
        self._matrix = None if self._matrix is None else self._matrix * factor
        self._offset = self._offset * factor
        return self

    def _mean_grey(self, places: Tensor) -> Tensor:
        """Return (n, 1, 1), the mean of what the chain makes of the images at ``places``, in grey, with white as 1."""
        return torch.cat([self._mean_grey_of(some) for some in places.split(at_once(self.images))])

    def _mean_grey_of(self, places: Tensor) -> Tensor:
        channels, top = self.images.shape[1], highest_level(self.images)
        # summed in one order, whatever the layout
        levels = to_levels(chosen(self.images, places).contiguous()).flatten(2)
        scale, offset = self._scale[places], self._offset[places]
        given = self._matrix is None and bool((scale == 1).all()) and not offset.any()
        if given and channels == 3 and self.images.dtype == torch.uint8:
            # of an image as it is torchvision takes the mean of greys that it rounded down
            red, green, blue = levels.unbind(1)
            grey = (LUMA[0] * red).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2]).floor_()
            return grey.mean(1).cpu().float().view(-1, 1, 1) / top
        luma = torch.tensor(LUMA if channels == 3 else [1 / channels] * channels, dtype=torch.float32).view(1, -1)
        means = levels.mean(2, keepdim=True).cpu().float() / top
        return luma @ ((means * scale if self._matrix is None else self._matrix[places] @ means) + offset)


def hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of each image by ``shift`` (N,) of a full circle, saturation and value kept; grey images stay as they are.

    Example:
        >>> hue(torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1), torch.tensor([1 / 3])).flatten().round().tolist()
        [0.0, 1.0, 0.0]
    """
    return Recolouring(images).hue(shift).apply()


def _turned(levels: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of (n, 3, pixels), which are written to, by ``shift`` (n,) of a circle.

    Between the least and the greatest of a pixel's channels, as 0 and 1, the hue in sixths of the circle from red on is
    ± (1 + green + blue - red), with the sign of green - blue; and of a hue h red is |h - 3| - 1, green 2 - |h - 2| and blue
    2 - |h - 4|, cut off at 0 and 1. No pixel is looked up or chosen by a condition, which take longer than all of this.
    """
    red, green, blue = levels.unbind(1)
    spread = torch.maximum(torch.maximum(red, green), blue)
    least = torch.minimum(torch.minimum(red, green), blue)
    spread.sub_(least)
    sixths = (green + blue).sub_(red).sub_(least).div_(spread.clamp_min(1e-9)).add_(1).copysign_(green - blue)
    circle = sixths.div_(6).add_(shift.to(levels).view(-1, 1))
    sixths = circle.sub_(circle.floor()).mul_(6)
    centre, slope, height = (levels.new_tensor(values).view(3, 1) for values in ((3, 2, 4), (1, -1, -1), (-1, 2, 2)))
    shares = torch.sub(sixths.unsqueeze(1), centre, out=levels).abs_().mul_(slope).add_(height).clamp_(0, 1)
    return torch.addcmul(least.unsqueeze(1), shares, spread.unsqueeze(1), out=levels)


def _check_colours(what: str, channels: int) -> None:
    if channels != 3:
        raise DataError(f"The {what} of images is changed for 3 channels (1 is left as it is); got {channels}.")
