"""Training on classes of very different frequency."""

from lightning_cnnopt.imbalance.callback import BindClassCounts, ClassWeights
from lightning_cnnopt.imbalance.criteria import LDAM, CountedCriterion, FocalLoss, LogitAdjustment, SigmoidFocalLoss
from lightning_cnnopt.imbalance.functional import (
    Scheme,
    class_weights,
    cumulated_weights,
    draw_by_weight,
    effective_number,
    focal_loss,
    label_distribution_aware_margin_loss,
    log_prior,
    margins,
    positive_weights,
    sample_weights,
)
from lightning_cnnopt.imbalance.layers import CosineHead, CosineLinear
from lightning_cnnopt.imbalance.sampling import WeightedSampler

__all__ = [
    "LDAM",
    "BindClassCounts",
    "ClassWeights",
    "CosineHead",
    "CosineLinear",
    "CountedCriterion",
    "FocalLoss",
    "LogitAdjustment",
    "Scheme",
    "SigmoidFocalLoss",
    "WeightedSampler",
    "class_weights",
    "cumulated_weights",
    "draw_by_weight",
    "effective_number",
    "focal_loss",
    "label_distribution_aware_margin_loss",
    "log_prior",
    "margins",
    "positive_weights",
    "sample_weights",
]
