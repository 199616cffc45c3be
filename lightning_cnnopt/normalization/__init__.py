"""Normalization layers, and their swap in any network."""

from lightning_cnnopt.normalization.edits import SwapNormalization
from lightning_cnnopt.normalization.functional import ghost_batch_norm, swap_normalization
from lightning_cnnopt.normalization.layers import GhostBatchNorm2d

__all__ = ["GhostBatchNorm2d", "SwapNormalization", "ghost_batch_norm", "swap_normalization"]
