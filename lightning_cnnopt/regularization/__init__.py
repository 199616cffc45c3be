"""What the loss is charged for, and what weights are held to."""

from lightning_cnnopt.regularization.activities import ActivityL1, ActivityL2, ActivityPenalty
from lightning_cnnopt.regularization.callback import ConstrainWeights, DecayWeights, PenalizeActivations, PenalizeWeights
from lightning_cnnopt.regularization.constraints import Constraint, MaxNorm, ProximalL1, UnitNorm
from lightning_cnnopt.regularization.functional import (
    group_lasso,
    l1,
    l2,
    max_norm_,
    orthogonality,
    soft_threshold_,
    sparsity,
    unit_norm_,
)
from lightning_cnnopt.regularization.penalties import L1, L2, ElasticNet, GroupLasso, Orthogonal, Penalty

__all__ = [
    "L1",
    "L2",
    "ActivityL1",
    "ActivityL2",
    "ActivityPenalty",
    "ConstrainWeights",
    "Constraint",
    "DecayWeights",
    "ElasticNet",
    "GroupLasso",
    "MaxNorm",
    "Orthogonal",
    "PenalizeActivations",
    "PenalizeWeights",
    "Penalty",
    "ProximalL1",
    "UnitNorm",
    "group_lasso",
    "l1",
    "l2",
    "max_norm_",
    "orthogonality",
    "soft_threshold_",
    "sparsity",
    "unit_norm_",
]
