"""Normalization layers, their swap in any network, and the statistics of batch normalization."""

from lightning_cnnopt.normalization.callback import FoldBatchNorm, FreezeStatistics, PreciseBN
from lightning_cnnopt.normalization.edits import StandardizeWeights, SwapNormalization
from lightning_cnnopt.normalization.functional import (
    fold_batch_norm,
    ghost_batch_norm,
    precise_statistics,
    rms_norm_2d,
    standardize_weight,
    standardize_weights,
    swap_normalization,
)
from lightning_cnnopt.normalization.layers import GhostBatchNorm2d, RMSNorm2d, StandardizedConv2d

__all__ = [
    "FoldBatchNorm",
    "FreezeStatistics",
    "GhostBatchNorm2d",
    "PreciseBN",
    "RMSNorm2d",
    "StandardizeWeights",
    "StandardizedConv2d",
    "SwapNormalization",
    "fold_batch_norm",
    "ghost_batch_norm",
    "precise_statistics",
    "rms_norm_2d",
    "standardize_weight",
    "standardize_weights",
    "swap_normalization",
]
