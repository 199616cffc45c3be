"""Normalization layers that torch lacks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_cnnopt.core.errors import check_range
from lightning_cnnopt.normalization.functional.formulas import ghost_batch_norm, rms_norm_2d, standardize_weight


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


class RMSNorm2d(nn.RMSNorm):
    """Root mean square normalization over the channels of each pixel; see :func:`rms_norm_2d`.

    ``nn.RMSNorm`` is for channels last. It has no shift and no statistics, and is the same in training and evaluation.

    Args:
        normalized_shape: Channels.
        eps: Added to the mean square; by default the machine epsilon of the dtype.
        elementwise_affine: Whether to scale.

    Shapes:
        (N, C, H, W) → (N, C, H, W)

    Reference:
        Zhang & Sennrich, 2019.

    Example:
        >>> RMSNorm2d(4)(torch.randn(2, 4, 8, 8)).shape
        torch.Size([2, 4, 8, 8])
    """

    def __init__(self, normalized_shape: int, eps: float | None = None, elementwise_affine: bool = True) -> None:
        check_range("RMSNorm2d", "normalized_shape", normalized_shape, 1)
        if eps is not None:
            check_range("RMSNorm2d", "eps", eps, 0)
        super().__init__(normalized_shape, eps, elementwise_affine)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize each pixel over its channels."""
        return rms_norm_2d(x, self.weight, self.eps)


class StandardizedConv2d(nn.Conv2d):
    """A convolution by standardized weights; see :func:`standardize_weight`.

    ``weight`` is the trained one, before standardization, so weights and names are those of ``nn.Conv2d``.
    :class:`StandardizeWeights` makes such layers of those of a network.

    Args:
        in_channels: Channels of the input.
        out_channels: Filters.
        kernel_size: Side of the kernels, or both sides.
        stride: Step of the kernel.
        padding: Rows and columns around the image, or ``"same"`` or ``"valid"``.
        dilation: Distance between the kernel's pixels.
        groups: Groups of channels that are convolved apart.
        bias: Whether there is one.
        eps: Added to the variance of a filter.

    Reference:
        Qiao et al., 2019.

    Example:
        >>> StandardizedConv2d(3, 8, 3)(torch.randn(2, 3, 8, 8)).shape
        torch.Size([2, 8, 6, 6])
    """

    eps: float

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        eps: float = 1e-6,
    ) -> None:
        check_range("StandardizedConv2d", "eps", eps, 0)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.eps = eps

    def standardized_weight(self) -> Tensor:
        """Return the weight that is convolved with."""
        return standardize_weight(self.weight, self.eps)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve by the standardized weight."""
        return self._conv_forward(input, self.standardized_weight(), self.bias)
