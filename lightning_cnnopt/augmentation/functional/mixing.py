"""Mixing samples with each other."""

from __future__ import annotations

import torch
from torch import Tensor


def mix(values: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    """Return share · values + (1 - share) · values[partner].

    Args:
        values: (N, …) floats: images, or targets as probabilities.
        partner: (N,) whom each sample is mixed with.
        share: (N,) or a scalar, in [0, 1].

    Example:
        >>> mix(torch.tensor([[0.0], [1.0]]), torch.tensor([1, 0]), torch.tensor([0.75, 1.0])).flatten().tolist()
        [0.25, 1.0]
    """
    share = share.to(values.device, values.dtype).view(-1, *[1] * (values.ndim - 1))
    return torch.lerp(values[partner.to(values.device)], values, share)
