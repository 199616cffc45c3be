"""Techniques that make convolutional networks train faster and better, as parts for PyTorch Lightning.

Names are imported when they are first used, so ``import lightning_cnnopt`` is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lightning_cnnopt._version import __version__

if TYPE_CHECKING:
    from lightning_cnnopt.architecture import ConvNet
    from lightning_cnnopt.core import CnnoptError
    from lightning_cnnopt.data import Digits, FashionMNIST, ImageDataModule, ImageFolder, ResidentLoader, TensorData
    from lightning_cnnopt.module import ImageClassifier

_LAZY = {
    "CnnoptError": "core",
    "ConvNet": "architecture",
    "Digits": "data",
    "FashionMNIST": "data",
    "ImageClassifier": "module",
    "ImageDataModule": "data",
    "ImageFolder": "data",
    "ResidentLoader": "data",
    "TensorData": "data",
}

__all__ = [
    "CnnoptError",
    "ConvNet",
    "Digits",
    "FashionMNIST",
    "ImageClassifier",
    "ImageDataModule",
    "ImageFolder",
    "ResidentLoader",
    "TensorData",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"lightning_cnnopt.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'lightning_cnnopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
