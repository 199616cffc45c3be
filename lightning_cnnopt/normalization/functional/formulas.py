"""The formulas of normalization that torch has no function for."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def ghost_batch_norm(
    images: Tensor,
    ghost_size: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize each ghost batch by its own mean and variance.

    The batch is cut into round(N / ghost_size) parts of nearly equal size, at least one; a batch smaller than the ghost size
    is one part, and then this is plain batch normalization.

    Args:
        images: (N, C, H, W).
        ghost_size: Samples in a ghost batch.
        weight: (C,) scale.
        bias: (C,) shift.
        eps: Added to the variance.

    Returns:
        The normalized images, and mean and unbiased variance (C,) averaged over ghost batches by their sizes.

    Reference:
        Hoffer, Hubara & Soudry, "Train longer, generalize better", 2017.

    Example:
        >>> out, mean, var = ghost_batch_norm(torch.randn(8, 2, 4, 4), 4)
        >>> bool(out[:4].mean().abs() < 1e-6)
        True
    """
    count, channels = images.shape[:2]
    parts = max(1, round(count / ghost_size))
    # what batch_norm accepts: statistics in the dtype of scale and shift
    dtype = torch.promote_types(images.dtype, torch.float32) if weight is None else weight.dtype
    mean, var = (torch.zeros(channels, device=images.device, dtype=dtype) for _ in range(2))
    outputs = []
    for part in images.tensor_split(parts):
        share = len(part) / count
        part_mean, part_var = torch.zeros_like(mean), torch.ones_like(var)
        # momentum 1 makes batch_norm write the part's own statistics
        outputs.append(F.batch_norm(part, part_mean, part_var, weight, bias, training=True, momentum=1.0, eps=eps))
        mean, var = mean + share * part_mean, var + share * part_var
    return (outputs[0] if parts == 1 else torch.cat(outputs)), mean, var


def rms_norm_2d(images: Tensor, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """Divide every pixel's vector of channels by its root mean square: x / √(mean over channels of x² + ε) · weight.

    Args:
        images: (N, C, H, W).
        weight: (C,) scale.
        eps: ε; by default the machine epsilon of the dtype, as in ``torch.nn.functional.rms_norm``, which computes it.

    Reference:
        Zhang & Sennrich, "Root Mean Square Layer Normalization", 2019.

    Example:
        >>> bool(rms_norm_2d(torch.randn(2, 8, 4, 4)).square().mean(1).allclose(torch.ones(2, 4, 4)))
        True
    """
    return F.rms_norm(images.movedim(1, -1), images.shape[1:2], weight, eps).movedim(-1, 1)


def standardize_weight(weight: Tensor, eps: float = 1e-6) -> Tensor:
    """Bring every filter to mean 0 and variance 1: (w − mean) / √(variance + ε), each over all but the first dimension.

    Args:
        weight: (out_channels, …), the kernels of a convolution.
        eps: ε, added to the variance.

    Reference:
        Qiao et al., "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization", 2019.

    Example:
        >>> standardize_weight(torch.tensor([[[[1.0, 3.0]]]]))
        tensor([[[[-1.0000,  1.0000]]]])
    """
    return F.layer_norm(weight.flatten(1), [weight[0].numel()], eps=eps).view_as(weight)
