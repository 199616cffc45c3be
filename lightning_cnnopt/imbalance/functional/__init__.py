"""Weights of classes and samples, and losses for imbalanced classes: pure functions on tensors."""

from lightning_cnnopt.imbalance.functional.losses import (
    focal_loss,
    label_distribution_aware_margin_loss,
    log_prior,
    margins,
)
from lightning_cnnopt.imbalance.functional.weights import (
    Scheme,
    class_weights,
    cumulated_weights,
    draw_by_weight,
    effective_number,
    positive_weights,
    sample_weights,
)

__all__ = [
    "Scheme",
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
