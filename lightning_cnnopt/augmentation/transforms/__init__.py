"""Transforms that draw their parameters per sample."""

from lightning_cnnopt.augmentation.transforms.base import ExactCopy, Geometric, LinearColour, Transform
from lightning_cnnopt.augmentation.transforms.colours import Brightness, Contrast, Greyscale, Hue, Inversion, Saturation
from lightning_cnnopt.augmentation.transforms.copies import (
    HorizontalFlip,
    PaddedCrop,
    RandomWindow,
    Translation,
    VerticalFlip,
)
from lightning_cnnopt.augmentation.transforms.filters import GaussianBlur, GaussianNoise, Sharpness
from lightning_cnnopt.augmentation.transforms.geometric import Affine, Perspective, ResizedCrop, Rotation, Shear, Zoom
from lightning_cnnopt.augmentation.transforms.levels import AutoContrast, Equalize, Posterize, Solarize
from lightning_cnnopt.augmentation.transforms.missing import ColOut, Erasing

__all__ = [
    "Affine",
    "AutoContrast",
    "Brightness",
    "ColOut",
    "Contrast",
    "Equalize",
    "Erasing",
    "ExactCopy",
    "GaussianBlur",
    "GaussianNoise",
    "Geometric",
    "Greyscale",
    "HorizontalFlip",
    "Hue",
    "Inversion",
    "LinearColour",
    "PaddedCrop",
    "Perspective",
    "Posterize",
    "RandomWindow",
    "ResizedCrop",
    "Rotation",
    "Saturation",
    "Sharpness",
    "Shear",
    "Solarize",
    "Transform",
    "Translation",
    "VerticalFlip",
    "Zoom",
]
