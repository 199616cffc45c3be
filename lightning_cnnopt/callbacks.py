"""Every callback by name, collected from the rooms."""

from __future__ import annotations

import importlib

from lightning.pytorch import Callback

ROOMS = (
    "core",
    "architecture",
    "initialization",
    "regularization",
    "activation",
    "normalization",
    "dropout",
    "learning_rate",
    "augmentation",
    "parallel",
    "optimizers",
    "imbalance",
    "analysis",
)
"""The rooms whose exports are collected."""

__all__: list[str] = []

for _room in ROOMS:
    _module = importlib.import_module(f"lightning_cnnopt.{_room}")
    for _name in _module.__all__:
        _object = getattr(_module, _name)
        if isinstance(_object, type) and issubclass(_object, Callback):
            globals()[_name] = _object
            __all__ += [_name]

del importlib
