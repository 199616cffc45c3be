"""Initializations by name."""

from lightning_cnnopt.initialization.initializers.base import Chain, Initializer, as_initializer
from lightning_cnnopt.initialization.initializers.fitted import LSUV, PatchWhitening
from lightning_cnnopt.initialization.initializers.random import (
    DeltaOrthogonal,
    Kaiming,
    Normal,
    RandomOrthogonal,
    TruncatedNormal,
    Uniform,
    XavierNormal,
    XavierUniform,
)
from lightning_cnnopt.initialization.initializers.structured import Dirac, PriorBias, ZeroGamma

__all__ = [
    "LSUV",
    "Chain",
    "DeltaOrthogonal",
    "Dirac",
    "Initializer",
    "Kaiming",
    "Normal",
    "PatchWhitening",
    "PriorBias",
    "RandomOrthogonal",
    "TruncatedNormal",
    "Uniform",
    "XavierNormal",
    "XavierUniform",
    "ZeroGamma",
    "as_initializer",
]
