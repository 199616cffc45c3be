"""Normalization as functions on tensors and networks."""

from lightning_cnnopt.normalization.functional.folding import fold_batch_norm
from lightning_cnnopt.normalization.functional.formulas import ghost_batch_norm, rms_norm_2d, standardize_weight
from lightning_cnnopt.normalization.functional.statistics import batch_norms, precise_statistics
from lightning_cnnopt.normalization.functional.swap import swap_normalization
from lightning_cnnopt.normalization.functional.weights import standardize_weights

__all__ = [
    "batch_norms",
    "fold_batch_norm",
    "ghost_batch_norm",
    "precise_statistics",
    "rms_norm_2d",
    "standardize_weight",
    "standardize_weights",
    "swap_normalization",
]
