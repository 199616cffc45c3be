"""Schedules by name. Each is a function of progress in [0, 1] to a factor of the optimizer's own rate."""

from lightning_cnnopt.learning_rate.schedules.compound import Sequence, Trapezoid, Warmup
from lightning_cnnopt.learning_rate.schedules.cycles import CosineRestarts, CounterCycle, Cyclic, OneCycle
from lightning_cnnopt.learning_rate.schedules.decays import (
    Constant,
    Cosine,
    Exponential,
    InverseTime,
    MultiStep,
    Polynomial,
    Step,
)
from lightning_cnnopt.learning_rate.schedules.plateau import Plateau

__all__ = [
    "Constant",
    "Cosine",
    "CosineRestarts",
    "CounterCycle",
    "Cyclic",
    "Exponential",
    "InverseTime",
    "MultiStep",
    "OneCycle",
    "Plateau",
    "Polynomial",
    "Sequence",
    "Step",
    "Trapezoid",
    "Warmup",
]
