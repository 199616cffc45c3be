"""Averages of weights, as functions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def ema_decay(updates: int, decay: float, warmup: bool = True) -> float:
    """Return the decay of the next update: min(decay, (1 + n) / (10 + n)) after n updates, or ``decay`` itself.

    The warmup keeps the first, bad weights from staying in the average (the rule of TensorFlow's
    ``ExponentialMovingAverage``).

    Example:
        >>> ema_decay(0, 0.999), ema_decay(90, 0.999), ema_decay(10**6, 0.999)
        (0.1, 0.91, 0.999)
    """
    return min(decay, (1 + updates) / (10 + updates)) if warmup else decay


@torch.no_grad()
def ema_update_(averages: Sequence[Tensor], values: Sequence[Tensor], decay: float) -> None:
    """Move averages towards values: a ← decay · a + (1 - decay) · v, for all tensors in a few kernels.

    Tensors of integers (counters) are copied.

    Example:
        >>> average = torch.zeros(2)
        >>> ema_update_([average], [torch.ones(2)], 0.75)
        >>> average
        tensor([0.2500, 0.2500])
    """
    pairs = list(zip(averages, values, strict=True))
    floats = [pair for pair in pairs if pair[0].is_floating_point()]
    counters = [pair for pair in pairs if not pair[0].is_floating_point()]
    if floats:
        torch._foreach_lerp_([a for a, _ in floats], [v for _, v in floats], 1 - decay)
    if counters:
        torch._foreach_copy_([a for a, _ in counters], [v for _, v in counters])
