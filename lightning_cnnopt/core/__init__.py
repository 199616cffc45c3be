"""What two or more rooms need, and nothing else."""

from lightning_cnnopt.core.divergence import StopOnDivergence
from lightning_cnnopt.core.errors import CheckpointError, CnnoptError, ConfigurationError, DataError, DivergenceError
from lightning_cnnopt.core.pretrained import is_pretrained, mark_pretrained
from lightning_cnnopt.core.randomness import ResumeRandomState, Stream

__all__ = [
    "CheckpointError",
    "CnnoptError",
    "ConfigurationError",
    "DataError",
    "DivergenceError",
    "ResumeRandomState",
    "StopOnDivergence",
    "Stream",
    "is_pretrained",
    "mark_pretrained",
]
