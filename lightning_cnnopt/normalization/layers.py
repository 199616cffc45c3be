"""Normalization layers that torch lacks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_cnnopt.core.errors import check_range
from lightning_cnnopt.normalization.functional import ghost_batch_norm


class GhostBatchNorm2d(nn.BatchNorm2d):
    """Batch normalization over ghost batches: parts of the batch, each by its own statistics.

    Keeps the noise, and with it the generalization, of small batches when the batch is large. In training the running
    statistics move once per batch, towards the average over ghost batches; in evaluation it is plain BatchNorm, and its
    state is that of ``nn.BatchNorm2d``.

    Args:
        num_features: Channels.
        ghost_size: Samples in a ghost batch. 32, as in the paper's common setting of 32 to 128. A smaller batch is one part.
        eps: Added to the variance.
        momentum: Share of the new statistics in the running ones; ``None`` for their plain average.
        affine: Whether to scale and shift.

    Shapes:
        (N, C, H, W) → (N, C, H, W)

    Reference:
        Hoffer, Hubara & Soudry, 2017.

    Example:
        >>> GhostBatchNorm2d(4, ghost_size=2)(torch.randn(6, 4, 8, 8)).shape
        torch.Size([6, 4, 8, 8])
    """

    def __init__(
        self,
        num_features: int,
        ghost_size: int = 32,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
    ) -> None:
        check_range("GhostBatchNorm2d", "ghost_size", ghost_size, 1)
        super().__init__(num_features, eps, momentum, affine)
        self.ghost_size = ghost_size

    def forward(self, input: Tensor) -> Tensor:
        """Normalize by ghost batches in training, by the running statistics in evaluation."""
        self._check_input_dim(input)
        if not self.training or len(input) < 1.5 * self.ghost_size:
            return super().forward(input)
        output, mean, var = ghost_batch_norm(input, self.ghost_size, self.weight, self.bias, self.eps)
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            self.running_var.lerp_(var.to(self.running_var.dtype), share)
        return output

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{super().extra_repr()}, ghost_size={self.ghost_size}"
