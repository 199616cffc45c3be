"""Exact copies: flips, whole-pixel shifts and crops, and any chain of them as one copy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lightning_cnnopt.augmentation.functional.layout import check_images, chosen, crossed, like

PaddingMode = Literal["constant", "reflect"]


def horizontal_flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Mirror left and right where ``flipped`` (N,) is true.

    Example:
        >>> horizontal_flip(torch.tensor([[[[1, 2]]], [[[3, 4]]]]), torch.tensor([True, False])).flatten().tolist()
        [2, 1, 3, 4]
    """
    return Placement.whole(images).flipped(columns=flipped).copy(images)


def vertical_flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Mirror top and bottom where ``flipped`` (N,) is true."""
    return Placement.whole(images).flipped(rows=flipped).copy(images)


def shift(images: Tensor, down: Tensor, right: Tensor, mode: PaddingMode = "constant") -> Tensor:
    """Move each image by whole pixels, an exact copy; what comes in is 0, or the image reflected at its border.

    Args:
        images: (N, C, H, W).
        down: (N,) whole pixels down; negative for up.
        right: (N,) whole pixels to the right; negative for left.
        mode: What comes in from outside.

    Example:
        >>> shift(torch.tensor([[[[1, 2, 3]]]]), torch.tensor([0]), torch.tensor([1])).flatten().tolist()
        [0, 1, 2]
    """
    return crop(images, -down, -right, images.shape[-2:], mode)


def crop(
    images: Tensor, top: Tensor, left: Tensor, size: tuple[int, int] | torch.Size, mode: PaddingMode = "constant"
) -> Tensor:
    """Return a window of each image, an exact copy; where it reaches outside it shows 0, or the image reflected.

    Args:
        images: (N, C, H, W).
        top: (N,) the first row of each window; negative above the image.
        left: (N,) the first column of each window.
        size: Height and width of the windows.
        mode: What is outside.

    Example:
        >>> images = torch.arange(9).view(1, 1, 3, 3)
        >>> crop(images, torch.tensor([1]), torch.tensor([1]), (2, 2)).tolist()
        [[[[4, 5], [7, 8]]]]
    """
    return Placement.whole(images).cropped(top, left, (size[0], size[1]), mode == "reflect").copy(images)


@dataclass(frozen=True)
class Axis:
    """Where the rows, or the columns, of each result come from: place i shows place ``sign * i + start`` of the image.

    Args:
        sign: (N,) 1, or -1 where it is mirrored.
        start: (N,) what place 0 shows.
        first: (N,) the first place that shows something of the image.
        last: (N,) the place behind the last one that does.
        size: How many places there are.
    """

    sign: Tensor
    start: Tensor
    first: Tensor
    last: Tensor
    size: int

    @classmethod
    def whole(cls, count: int, size: int) -> Axis:
        """Return the axis that copies everything where it is."""
        zeros = torch.zeros(count, dtype=torch.long)
        return cls(zeros + 1, zeros, zeros, zeros + size, size)

    def flipped(self, where: Tensor) -> Axis:
        """Return this axis, mirrored where ``where`` (N,) is true."""
        return Axis(
            torch.where(where, -self.sign, self.sign),
            torch.where(where, self.start + self.sign * (self.size - 1), self.start),
            torch.where(where, self.size - self.last, self.first),
            torch.where(where, self.size - self.first, self.last),
            self.size,
        )

    def cropped(self, begin: Tensor, size: int, reflect: bool) -> Axis:
        """Return ``size`` places of this axis from ``begin`` (N,) on."""
        first, last = (torch.zeros_like(begin), torch.full_like(begin, size))
        if not reflect:
            first, last = ((bound - begin).clamp(0, size) for bound in (self.first, self.last))
        return Axis(self.sign, self.start + self.sign * begin, first, last, size)

    def is_full(self) -> bool:
        """Return whether every place shows something of the image."""
        return bool((self.first <= 0).all()) and bool((self.last >= self.size).all())

    def inside(self) -> Tensor:
        """Return (N, size), whether a place shows something of the image."""
        places = torch.arange(self.size)
        return (places >= self.first[:, None]) & (places < self.last[:, None])

    def sources(self, length: int, reflect: bool) -> Tensor:
        """Return (N, size), which of the image's ``length`` places each one shows."""
        places = self.sign[:, None] * torch.arange(self.size) + self.start[:, None]
        if reflect and length > 1:
            folded = places.remainder(2 * (length - 1))
            return torch.where(folded >= length, 2 * (length - 1) - folded, folded)
        return places.clamp(0, length - 1)


@dataclass(frozen=True)
class Placement:
    """A chain of flips, whole-pixel shifts and crops of a batch, its own for each sample, that is one exact copy.

    Every method but :meth:`copy` returns the chain with one more step. What a step moves out of sight stays out of sight, as
    if the steps were taken one by one.

    Example:
        >>> images = torch.arange(4).view(1, 1, 1, 4)
        >>> chain = Placement.whole(images).shifted(torch.tensor([0]), torch.tensor([1])).flipped(columns=torch.tensor([True]))
        >>> chain.copy(images).flatten().tolist()
        [2, 1, 0, 0]
    """

    rows: Axis
    columns: Axis
    source: tuple[int, int]
    reflect: bool = False

    @classmethod
    def whole(cls, images: Tensor) -> Placement:
        """Return the chain of no steps, for images (N, C, H, W)."""
        return cls.of(len(images), (images.shape[-2], images.shape[-1]))

    @classmethod
    def of(cls, count: int, size: tuple[int, int]) -> Placement:
        """Return the chain of no steps, for ``count`` images of height and width ``size``."""
        return cls(Axis.whole(count, size[0]), Axis.whole(count, size[1]), size)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.rows.sign)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the result."""
        return self.rows.size, self.columns.size

    def flipped(self, rows: Tensor | None = None, columns: Tensor | None = None) -> Placement:
        """Mirror top and bottom where ``rows`` (N,), left and right where ``columns`` (N,) is true."""
        return replace(
            self,
            rows=self.rows if rows is None else self.rows.flipped(rows.cpu().bool()),
            columns=self.columns if columns is None else self.columns.flipped(columns.cpu().bool()),
        )

    def shifted(self, down: Tensor, right: Tensor, reflect: bool = False) -> Placement:
        """Move by whole pixels."""
        return self.cropped(-down, -right, self.size, reflect)

    def cropped(self, top: Tensor, left: Tensor, size: tuple[int, int], reflect: bool = False) -> Placement:
        """Take a window. Only a whole image can be reflected at its border, so that has to be the first step but for flips."""
        return replace(
            self,
            rows=self.rows.cropped(top.cpu(), size[0], reflect),
            columns=self.columns.cropped(left.cpu(), size[1], reflect),
            reflect=self.reflect or reflect,
        )

    def matrices(self) -> Tensor:
        """Return (N, 3, 3), from pixels of the result to those of the image, both counted from the centre."""
        rows, columns = self.rows, self.columns
        matrices = torch.zeros(len(rows.sign), 3, 3)
        matrices[:, 0, 0], matrices[:, 1, 1], matrices[:, 2, 2] = columns.sign.float(), rows.sign.float(), 1.0
        for place, axis, length in ((0, columns, self.source[1]), (1, rows, self.source[0])):
            matrices[:, place, 2] = axis.start + (axis.sign * (axis.size - 1) - (length - 1)) / 2
        return matrices

    def copy(self, images: Tensor) -> Tensor:
        """Return the result for images (N, C, H, W) of any type; they are not written to."""
        check_images(images, any_type=True)
        if images.numel() == 0:
            return images.new_zeros(*images.shape[:2], *self.size)
        if self.reflect or images.device.type != "cpu":
            return like(self._gathered(images), images)
        return like(self._blanked(self._windows(images.contiguous())), images)

    def _gathered(self, images: Tensor) -> Tensor:
        count, channels, height, width = images.shape
        rows = self.rows.sources(height, self.reflect).to(images.device, non_blocking=True)
        columns = self.columns.sources(width, self.reflect).to(images.device, non_blocking=True)
        index = (rows[:, :, None] * width + columns[:, None, :]).view(count, 1, -1)
        copied = images.flatten(2).gather(2, index.expand(-1, channels, -1)).view(count, channels, *self.size)
        return self._blanked(copied)

    def _windows(self, images: Tensor) -> Tensor:
        """Copy each window as one run of memory, from its first pixel to its last; what is outside is any pixel near by."""
        count, channels, height, width = images.shape
        out_height, out_width = self.size
        top, left = (
            torch.where(axis.sign > 0, axis.start, length - 1 - axis.start)
            for axis, length in ((self.rows, height), (self.columns, width))
        )
        mirrored, shown = self._mirrored(images)
        first = (shown * channels * height + top) * width + left
        length = (channels - 1) * height * width + (out_height - 1) * width + out_width
        all_there_is = images.numel() + sum(part.numel() for part in mirrored)
        before, after = max(0, -int(first.min())), max(0, int(first.max()) + length - all_there_is)
        memory = images.reshape(-1)
        if mirrored or before or after:  # put together once: what is allocated anew has to be paged in
            parts = [memory, *(part.reshape(-1) for part in mirrored)]
            memory = torch.cat([memory.new_zeros(before), *parts, memory.new_zeros(after)])
        runs = memory.as_strided((len(memory) - length + 1, length), (1, 1)).index_select(0, first + before)
        strides = (length, height * width, width, 1)
        return runs.as_strided((count, channels, out_height, out_width), strides).contiguous()

    def _mirrored(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return mirrored copies of the images that need it, and (N,) which of the images and the copies each result shows."""
        copies, shown, behind = [], torch.arange(len(images)), len(images)
        for where, dims in (
            ((self.rows.sign > 0) & (self.columns.sign < 0), (-1,)),
            ((self.rows.sign < 0) & (self.columns.sign > 0), (-2,)),
            ((self.rows.sign < 0) & (self.columns.sign < 0), (-2, -1)),
        ):
            places = where.nonzero().flatten()
            if len(places):
                shown[places] = torch.arange(behind, behind + len(places))
                behind += len(places)
                copies.append(chosen(images, places).flip(dims))
        return copies, shown

    def _blanked(self, copied: Tensor) -> Tensor:
        """Return what was copied with 0 where nothing of the image is."""
        if self.rows.is_full() and self.columns.is_full():
            return copied
        inside = crossed(self.rows.inside().to(copied.device), self.columns.inside().to(copied.device))
        if copied.dtype == torch.uint8:  # products of bytes cost less than a choice between two tensors
            return copied.mul_(inside.view(torch.uint8))
        return copied.masked_fill_(~inside, 0)
