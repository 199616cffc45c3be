"""Changes of single levels, and of the histogram of an image."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as torchvision_functional

from lightning_cnnopt.augmentation.functional.layout import highest_level, per_sample, to_levels, where_changed


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest ``bits`` (N,) of each level, 0 to 8; 8 changes nothing.

    Example:
        >>> posterize(torch.tensor([[[[255, 127]]]], dtype=torch.uint8), torch.tensor([1])).flatten().tolist()
        [128, 0]
    """

    def kept(part: Tensor, places: Tensor) -> Tensor:
        wanted = bits[places].long()
        if part.dtype == torch.uint8:
            return part & per_sample((256 - 2 ** (8 - wanted)).to(torch.uint8), part)
        levels = per_sample((2**wanted).to(part.dtype), part)
        return torch.minimum((part * levels).floor_().clamp_min_(0), levels - 1).div_(levels)

    return where_changed(images, bits < 8, kept)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert what is at ``threshold`` (N,) or above, 0 for black and 1 for white; above 1 nothing changes.

    Example:
        >>> solarize(torch.tensor([[[[0.25, 0.75]]]]), torch.tensor([0.5])).flatten().tolist()
        [0.25, 0.25]
    """
    top = highest_level(images)

    def solarized(part: Tensor, places: Tensor) -> Tensor:
        limit = threshold[places].float() * top
        if part.dtype == torch.uint8:  # a byte is at the limit from the next whole level on; inverting it flips all its bits
            inverted = part >= per_sample(limit.ceil().clamp(0, 255).to(torch.uint8), part)
            return part ^ (inverted.view(torch.uint8) * 255)
        return torch.where(part >= per_sample(limit, part), 1 - part, part)

    return where_changed(images, threshold <= 1, solarized)


def autocontrast(images: Tensor, where: Tensor) -> Tensor:
    """Spread each channel from black to white, by torchvision's ``autocontrast``, where ``where`` (N,) is true."""
    return where_changed(images, where, lambda part, _: _by_channel(torchvision_functional.autocontrast, part))


def equalize(images: Tensor, where: Tensor) -> Tensor:
    """Make all levels of a channel about equally frequent, by torchvision's ``equalize``, where ``where`` (N,) is true."""
    return where_changed(images, where, lambda part, _: _by_channel(torchvision_functional.equalize, part))


def _by_channel(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    # as grey images, since torchvision takes one channel or three, and treats each by itself; bytes as bytes
    grey = (images if images.dtype == torch.uint8 else to_levels(images)).reshape(-1, 1, *images.shape[2:])
    return function(grey).view(images.shape).to(images.dtype)
