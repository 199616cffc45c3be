"""What the loss is charged for, and what weights are held to."""

from lightning_cnnopt.regularization.callback import ConstrainWeights, PenalizeWeights
from lightning_cnnopt.regularization.constraints import Constraint, MaxNorm
from lightning_cnnopt.regularization.functional import l1, l2, max_norm_
from lightning_cnnopt.regularization.penalties import L1, L2, Penalty

__all__ = [
    "L1",
    "L2",
    "ConstrainWeights",
    "Constraint",
    "MaxNorm",
    "PenalizeWeights",
    "Penalty",
    "l1",
    "l2",
    "max_norm_",
]
