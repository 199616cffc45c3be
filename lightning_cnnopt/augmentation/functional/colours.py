"""Colour transforms: those that are linear in a pixel as one matrix per sample, and the hue."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_cnnopt.augmentation.functional.layout import (
    chosen,
    from_levels,
    highest_level,
    per_sample,
    to_levels,
    where_changed,
)
from lightning_cnnopt.core.errors import DataError

LUMA = (0.2989, 0.587, 0.114)
"""Shares of red, green and blue in grey (ITU-R BT.601), as torchvision and PIL take them."""


@dataclass
class Recolouring:
    """A chain of linear changes of colour of a batch, its own for each sample, that is one matrix: y = M · x + b.

    Every method but :meth:`apply` takes one more step and returns the chain. Levels are cut off at black and white once, at
    the end; steps taken one by one cut off after each.

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
        self._scale = torch.ones(count, 1, 1)  # of all channels alike, as long as none goes into another
        self._matrix: Tensor | None = None
        self._offset = torch.zeros(count, channels, 1)

    def brightness(self, factor: Tensor) -> Recolouring:
        """Multiply by ``factor`` (N,)."""
        return self._scaled(factor)

    def contrast(self, factor: Tensor) -> Recolouring:
        """Multiply the distance from the mean grey of each image by ``factor`` (N,)."""
        factor = factor.float()
        turned = (factor != 1).nonzero().flatten()
        if len(turned) and self.images.numel():
            mean = torch.zeros(len(factor), 1, 1)
            mean[turned] = self._mean_grey(turned)
            self._scaled(factor)
            self._offset = self._offset + (1 - factor.view(-1, 1, 1)) * mean
        return self

    def saturation(self, factor: Tensor) -> Recolouring:
        """Multiply the distance of each pixel from its own grey by ``factor`` (N,); 0 makes grey images."""
        channels = self.images.shape[1]
        if channels == 1:
            return self
        _check_colours("saturation", channels)
        factor = factor.view(-1, 1, 1).float()
        step = factor * torch.eye(3) + (1 - factor) * torch.tensor(LUMA).expand(3, 3)
        matrix = self._scale * torch.eye(3) if self._matrix is None else self._matrix
        self._matrix, self._offset = step @ matrix, step @ self._offset
        return self

    def inverted(self, where: Tensor) -> Recolouring:
        """Turn black to white where ``where`` (N,) is true."""
        self._scaled(1 - 2 * where.float())
        self._offset = self._offset + where.view(-1, 1, 1).float()
        return self

    def apply(self) -> Tensor:
        """Return the changed images, in the type of the given ones; uint8 is rounded down, as torchvision does."""
        images = self.images
        matrix = self._scale if self._matrix is None else self._matrix
        changed = (matrix != torch.eye(matrix.shape[-1])).flatten(1).any(1) | self._offset.flatten(1).any(1)

        def recoloured(part: Tensor, places: Tensor) -> Tensor:
            levels, top = to_levels(part), highest_level(part)
            flat = levels.flatten(2)
            # bytes are rounded down: what is a whole level but for the error of a float has to stay one
            shift = self._offset * top + (1e-3 if part.dtype == torch.uint8 else 0.0)
            factor, offset = (t[places].to(flat.device, flat.dtype) for t in (matrix, shift))
            mixed = flat.mul_(factor).add_(offset) if self._matrix is None else torch.baddbmm(offset, factor, flat)
            return from_levels(mixed.clamp_(0, top).view(part.shape), part, down=True)

        return where_changed(images, changed, recoloured)

    def _scaled(self, factor: Tensor) -> Recolouring:
        factor = factor.view(-1, 1, 1).float()
        self._scale = self._scale * factor
        self._matrix = None if self._matrix is None else self._matrix * factor
        self._offset = self._offset * factor
        return self

    def _mean_grey(self, places: Tensor) -> Tensor:
        """Return (n, 1, 1), the mean of what the chain makes of the images at ``places``, in grey, with white as 1."""
        channels, top = self.images.shape[1], highest_level(self.images)
        luma = (torch.tensor(LUMA) if channels == 3 else torch.full((channels,), 1 / channels)).view(1, -1)
        # summed in one order, whatever the layout
        levels = to_levels(chosen(self.images, places).contiguous()).flatten(2)
        scale, offset = self._scale[places], self._offset[places]
        means = levels.mean(2, keepdim=True).cpu().float() / top
        mean = luma @ ((means * scale if self._matrix is None else self._matrix[places] @ means) + offset)
        if self._matrix is None and channels == 3 and self.images.dtype == torch.uint8:
            # of an image as it is torchvision takes the mean of greys that it rounded down
            grey = torch.matmul(luma.to(levels), levels).floor_().mean(2, keepdim=True).cpu().float() / top
            unchanged = (scale == 1) & (offset == 0).all(1, keepdim=True)
            mean = torch.where(unchanged, grey, mean)
        return mean


def hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of each image by ``shift`` (N,) of a full circle, saturation and value kept; grey images stay as they are.

    Example:
        >>> hue(torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1), torch.tensor([1 / 3])).flatten().round().tolist()
        [0.0, 1.0, 0.0]
    """
    channels = images.shape[1]
    if channels == 1 or images.numel() == 0:
        return images.clone()
    _check_colours("hue", channels)

    def turned(part: Tensor, places: Tensor) -> Tensor:
        levels = to_levels(part)
        red, green, blue = levels.unbind(1)
        value, least = levels.amax(1), levels.amin(1)
        spread = value - least
        safe = torch.where(spread == 0, torch.ones_like(spread), spread)
        # the hue in sixths of the circle, from the colour that is strongest
        sixths = torch.where(
            value == red,
            (green - blue) / safe,
            torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
        )
        sixths.add_(per_sample(6 * shift[places].to(sixths.dtype), sixths))
        for channel, place in enumerate((5.0, 3.0, 1.0)):
            distance = (sixths + place).remainder_(6)
            share = torch.minimum(distance, 4 - distance).clamp_(0, 1)
            torch.addcmul(value, spread, share, value=-1, out=levels[:, channel])
        return from_levels(levels, part)

    return where_changed(images, shift != 0, turned)


def _check_colours(what: str, channels: int) -> None:
    if channels != 3:
        raise DataError(f"The {what} of images is changed for 3 channels (1 is left as it is); got {channels}.")
