"""The operations that policies choose from, a different one for each sample of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lightning_cnnopt.augmentation.functional import layout
from lightning_cnnopt.augmentation.functional.colours import Recolouring
from lightning_cnnopt.augmentation.functional.filters import sharpness
from lightning_cnnopt.augmentation.functional.levels import autocontrast, equalize, posterize, solarize
from lightning_cnnopt.augmentation.functional.warps import Interpolation, affine_matrices, warp

OPERATIONS = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "saturation",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)
"""What :func:`operate` can do, and the operations of RandAugment and TrivialAugment, in their order."""

_GEOMETRIC = OPERATIONS[1:6]


def operate(
    images: Tensor,
    chosen: Tensor,
    magnitude: Tensor,
    operations: Sequence[str] = OPERATIONS,
    interpolation: Interpolation = "bilinear",
) -> Tensor:
    """Change each image by an operation of its own; together the samples of one kind are one pass.

    Magnitudes are torchvision's: the tangent of a shear about the upper left corner, pixels of a shift (cut to whole ones),
    degrees of a turn counter-clockwise; what is added to the factor 1 of brightness, saturation, contrast and sharpness; the
    bits that posterize keeps; the threshold of solarize, white being 1.

    Args:
        images: (N, C, H, W).
        chosen: (N,) which of ``operations`` each image goes through.
        magnitude: (N,).
        operations: Names of :data:`OPERATIONS`.
        interpolation: Of those that resample.

    Example:
        >>> images = torch.full((2, 1, 2, 2), 200, dtype=torch.uint8)
        >>> operate(images, torch.tensor([0, 1]), torch.tensor([0.0, 0.5]), ("identity", "solarize"))[:, 0, 0, 0].tolist()
        [200, 55]
    """
    layout.check_images(images)
    if images.numel() == 0:
        return images.clone()
    given = images.contiguous()
    changed, parts = [chosen.new_empty(0)], []
    for names, change in _TOGETHER.items():
        numbers = torch.tensor([operations.index(name) for name in names if name in operations])
        places = torch.isin(chosen, numbers).nonzero().flatten()
        if len(places):
            here, drawn = chosen[places], magnitude[places]
            magnitudes = {name: torch.where(here == operations.index(name), drawn, 0.0) for name in names if name in operations}
            parts.append(change(layout.chosen(given, places), magnitudes, interpolation))
            changed.append(places)
    return layout.like(layout.replaced(given, torch.cat(changed), parts), images)


def _moved(images: Tensor, magnitude: Mapping[str, Tensor], interpolation: Interpolation) -> Tensor:
    still = torch.zeros(len(images))
    shear_x, shear_y, right, down, turn = (magnitude.get(name, still) for name in _GEOMETRIC)
    tangents = torch.stack([shear_x, shear_y], 1)
    corner = torch.tensor([-images.shape[-1] / 2, -images.shape[-2] / 2])
    # each image has only one of them, and only a shear is about the corner
    about = torch.where(tangents.any(1, keepdim=True), corner, 0.0)
    shifted, sheared = torch.stack([right, down], 1).trunc(), tangents.atan() * (180 / math.pi)
    return warp(images, affine_matrices(-turn, shifted, shear=sheared, centre=about), None, interpolation)


def _recoloured(images: Tensor, magnitude: Mapping[str, Tensor], interpolation: Interpolation) -> Tensor:
    colours, same = Recolouring(images), torch.zeros(len(images))
    contrast, brightness, saturation = (1 + magnitude.get(name, same) for name in ("contrast", "brightness", "saturation"))
    colours = colours.contrast(contrast).brightness(brightness)
    return (colours.saturation(saturation) if "saturation" in magnitude else colours).apply()


_TOGETHER: dict[tuple[str, ...], Callable[[Tensor, Mapping[str, Tensor], Interpolation], Tensor]] = {
    _GEOMETRIC: _moved,
    ("brightness", "saturation", "contrast"): _recoloured,
    ("sharpness",): lambda images, magnitude, _: sharpness(images, 1 + magnitude["sharpness"]),
    ("posterize",): lambda images, magnitude, _: posterize(images, magnitude["posterize"]),
    ("solarize",): lambda images, magnitude, _: solarize(images, magnitude["solarize"]),
    ("autocontrast",): lambda images, *_: autocontrast(images, torch.ones(len(images), dtype=torch.bool)),
    ("equalize",): lambda images, *_: equalize(images, torch.ones(len(images), dtype=torch.bool)),
}
"""What does the operations that are one pass, given the magnitude of each, 0 for another's samples."""
