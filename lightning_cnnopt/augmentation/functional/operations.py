"""The operations that policies choose from, a different one for each sample of a batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_cnnopt.augmentation.functional.colours import Recolouring
from lightning_cnnopt.augmentation.functional.filters import sharpness
from lightning_cnnopt.augmentation.functional.levels import autocontrast, equalize, posterize, solarize
from lightning_cnnopt.augmentation.functional.warps import Interpolation, affine_matrices, rotation_matrices, warp

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
    given, present = images, {operations[index] for index in chosen.unique().tolist()}

    def where(name: str) -> Tensor:
        return chosen == operations.index(name) if name in present else torch.zeros(len(chosen), dtype=torch.bool)

    def drawn(name: str, otherwise: float) -> Tensor:
        return torch.where(where(name), magnitude, otherwise)

    size = (images.shape[-2], images.shape[-1])
    if present.intersection(_GEOMETRIC):
        images = warp(images, _matrices({name: drawn(name, 0.0) for name in _GEOMETRIC}, size), None, interpolation)
    if present.intersection(("brightness", "saturation", "contrast")):
        factors = {name: 1 + drawn(name, 0.0) for name in ("contrast", "brightness", "saturation")}
        colours = Recolouring(images).contrast(factors["contrast"]).brightness(factors["brightness"])
        images = colours.saturation(factors["saturation"]).apply()
    if "sharpness" in present:
        images = sharpness(images, 1 + drawn("sharpness", 0.0))
    if "posterize" in present:
        images = posterize(images, drawn("posterize", 8.0))
    if "solarize" in present:
        images = solarize(images, drawn("solarize", 2.0))
    if "autocontrast" in present:
        images = autocontrast(images, where("autocontrast"))
    if "equalize" in present:
        images = equalize(images, where("equalize"))
    return images.clone() if images is given else images


def _matrices(magnitude: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
    """Return the matrix of each sample, of which at most one magnitude is not 0."""
    still = torch.zeros_like(magnitude["rotate"])
    shear = torch.stack([magnitude["shear_x"], magnitude["shear_y"]], 1).atan() * (180 / math.pi)
    moved = torch.stack([magnitude["translate_x"], magnitude["translate_y"]], 1).trunc()
    corner = (-size[1] / 2, -size[0] / 2)
    sheared = affine_matrices(still, shear=shear, centre=corner)
    return sheared @ affine_matrices(still, moved) @ rotation_matrices(magnitude["rotate"])
