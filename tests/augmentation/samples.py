"""Images that the tests of this room share."""

from __future__ import annotations

import torch


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images_of(count=5, channels=3, height=9, width=12, dtype=torch.uint8, seed=0):
    images = torch.randint(0, 256, (count, channels, height, width), generator=seeded(seed), dtype=torch.uint8)
    return images if dtype == torch.uint8 else images.to(dtype) / 255


def distinct(count, height=9, width=9):
    """Images whose every pixel has another value, so that a copy tells where it came from."""
    return torch.arange(height * width, dtype=torch.float64).view(1, 1, height, width).repeat(count, 1, 1, 1) + 1


def levels_apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the greatest difference, in levels of 255."""
    if ours.dtype == torch.uint8:
        return float((ours.int() - theirs.int()).abs().max())
    return float((ours - theirs).abs().max()) * 255
