"""Mixing images together with their targets."""

from lightning_cnnopt.augmentation.mixing.mixings import CutMix, Mixing, MixUp, MixUpOrCutMix
from lightning_cnnopt.augmentation.mixing.steps import StepDraws

__all__ = ["CutMix", "MixUp", "MixUpOrCutMix", "Mixing", "StepDraws"]
