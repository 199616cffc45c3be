"""Batched transforms with a draw per sample, and mixing."""

from lightning_cnnopt.augmentation.callback import AugmentBatches
from lightning_cnnopt.augmentation.functional import horizontal_flip, mix, rotate, shift, vertical_flip
from lightning_cnnopt.augmentation.mixing import Mixing, MixUp
from lightning_cnnopt.augmentation.pipeline import Augmentation
from lightning_cnnopt.augmentation.resizing import ScheduleImageSize, scaled_size
from lightning_cnnopt.augmentation.transforms import (
    HorizontalFlip,
    PaddedCrop,
    Rotation,
    Transform,
    Translation,
    VerticalFlip,
)

__all__ = [
    "AugmentBatches",
    "Augmentation",
    "HorizontalFlip",
    "MixUp",
    "Mixing",
    "PaddedCrop",
    "Rotation",
    "ScheduleImageSize",
    "Transform",
    "Translation",
    "VerticalFlip",
    "horizontal_flip",
    "mix",
    "rotate",
    "scaled_size",
    "shift",
    "vertical_flip",
]
