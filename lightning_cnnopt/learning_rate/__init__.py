"""The schedules of the learning rate, and the callback that applies them."""

from lightning_cnnopt.core.schedule import Schedule, TrainingLength
from lightning_cnnopt.learning_rate.callback import ScheduleLearningRate
from lightning_cnnopt.learning_rate.functional import cosine, step, warmup
from lightning_cnnopt.learning_rate.schedules import Constant, Cosine, Plateau, Step, Warmup

__all__ = [
    "Constant",
    "Cosine",
    "Plateau",
    "Schedule",
    "ScheduleLearningRate",
    "Step",
    "TrainingLength",
    "Warmup",
    "cosine",
    "step",
    "warmup",
]
