"""Batched transforms with parameters per sample, as pure functions.

All take images (N, C, H, W), uint8 or floats in [0, 1], on any device, and one parameter per sample, on the CPU; none writes to
its input, and all keep its type and layout in memory.
"""

from lightning_cnnopt.augmentation.functional.colours import Recolouring, hue
from lightning_cnnopt.augmentation.functional.copies import Placement, crop, horizontal_flip, shift, vertical_flip
from lightning_cnnopt.augmentation.functional.filters import gaussian_blur, gaussian_noise, sharpness
from lightning_cnnopt.augmentation.functional.levels import autocontrast, equalize, posterize, solarize
from lightning_cnnopt.augmentation.functional.missing import erase, rectangles, select
from lightning_cnnopt.augmentation.functional.mixing import mix
from lightning_cnnopt.augmentation.functional.operations import OPERATIONS, operate
from lightning_cnnopt.augmentation.functional.warps import (
    affine_matrices,
    perspective_matrices,
    rotate,
    rotation_matrices,
    warp,
    window_matrices,
)

__all__ = [
    "OPERATIONS",
    "Placement",
    "Recolouring",
    "affine_matrices",
    "autocontrast",
    "crop",
    "equalize",
    "erase",
    "gaussian_blur",
    "gaussian_noise",
    "horizontal_flip",
    "hue",
    "mix",
    "operate",
    "perspective_matrices",
    "posterize",
    "rectangles",
    "rotate",
    "rotation_matrices",
    "select",
    "sharpness",
    "shift",
    "solarize",
    "vertical_flip",
    "warp",
    "window_matrices",
]
