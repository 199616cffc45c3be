"""Mixing samples with each other."""

from __future__ import annotations

import torch
from torch import Tensor


def dirichlet(alpha: float, count: int, width: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw (count, width) from Dirichlet(alpha, …), with a generator of one's own, which ``torch.distributions`` does not take.

    Example:
        >>> draws = dirichlet(0.5, 4, 3, torch.Generator().manual_seed(0))
        >>> bool((draws.sum(1) - 1).abs().max() < 1e-6)
        True
    """
    # in double precision: for small alpha all draws of a row can be below the least float
    drawn = torch._standard_gamma(torch.full((width, count), alpha, dtype=torch.float64), generator=generator)
    drawn = drawn + torch.finfo(torch.float64).tiny
    return (drawn / drawn.sum(0)).float().T


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
