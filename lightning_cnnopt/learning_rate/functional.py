"""Schedules as functions of progress in [0, 1] to a factor."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import Literal

Anneal = Literal["cos", "linear"]
CycleMode = Literal["triangular", "triangular2", "exp_range"]
DecayShape = Literal["linear", "cosine", "sqrt"]

# Progress is step / total, so a boundary such as 30 of 100 steps at a period of 10 arrives as 2.9999999999999996 periods
_ROUNDING = 1e-9


def cosine(progress: float, final: float = 0.0) -> float:
    """Return final + (1 - final) · ½ (1 + cos(π · progress)).

    Reference:
        Loshchilov & Hutter, "SGDR", 2017.

    Example:
        >>> cosine(0.0), cosine(0.5), cosine(1.0, final=0.1)
        (1.0, 0.5, 0.1)
    """
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def step(progress: float, period: float, gamma: float = 0.1) -> float:
    """Return gamma ** floor(progress / period).

    Example:
        >>> [step(p, 0.3, 0.5) for p in (0.0, 0.3, 0.6)]
        [1.0, 0.5, 0.25]
    """
    return float(gamma ** math.floor(progress / period + _ROUNDING))


def multi_step(progress: float, milestones: Sequence[float], gamma: float = 0.1) -> float:
    """Return gamma ** (number of milestones reached).

    Example:
        >>> [multi_step(p, [0.5, 0.75], 0.5) for p in (0.0, 0.5, 0.75)]
        [1.0, 0.5, 0.25]
    """
    return float(gamma ** bisect.bisect_right(sorted(milestones), progress + _ROUNDING))


def exponential(progress: float, gamma: float, period: float = 1.0) -> float:
    """Return gamma ** (progress / period).

    Example:
        >>> [round(exponential(p, 0.01), 6) for p in (0.0, 0.5, 1.0)]
        [1.0, 0.1, 0.01]
    """
    return float(gamma ** (progress / period))


def inverse_time(progress: float, gamma: float, period: float = 1.0, power: float = 1.0) -> float:
    """Return (1 + gamma · progress / period) ** -power.

    Reference:
        Robbins & Monro, 1951; Bottou, "Stochastic Gradient Descent Tricks", 2012.

    Example:
        >>> [inverse_time(p, 3.0) for p in (0.0, 1.0)]
        [1.0, 0.25]
    """
    return float((1 + gamma * progress / period) ** -power)


def polynomial(progress: float, power: float = 1.0, final: float = 0.0) -> float:
    """Return final + (1 - final) · (1 - progress) ** power; a line for power 1.

    Example:
        >>> polynomial(0.5), polynomial(0.5, power=2.0), polynomial(1.0, final=0.1)
        (0.5, 0.25, 0.1)
    """
    return float(final + (1 - final) * max(0.0, 1 - progress) ** power)


def cosine_restarts(progress: float, period: float, t_mult: float = 1.0, final: float = 0.0) -> float:
    """Return :func:`cosine` over cycles: the first as long as ``period``, each ``t_mult`` times as long as the one before.

    Reference:
        Loshchilov & Hutter, "SGDR", 2017.

    Example:
        >>> [round(cosine_restarts(p, 0.2, t_mult=2.0), 6) for p in (0.0, 0.1, 0.2, 0.4)]
        [1.0, 0.5, 1.0, 0.5]
    """
    periods = progress / period
    if t_mult == 1:
        begin, duration = float(math.floor(periods + _ROUNDING)), 1.0
    else:
        cycle = math.floor(math.log1p((periods + _ROUNDING) * (t_mult - 1)) / math.log(t_mult) + _ROUNDING)
        begin, duration = (t_mult**cycle - 1) / (t_mult - 1), t_mult**cycle
    return cosine(within(periods, begin, begin + duration), final)


def one_cycle(
    progress: float,
    pct_start: float = 0.3,
    initial: float = 1 / 25,
    final: float = 1 / 25e4,
    anneal_strategy: Anneal = "cos",
    three_phase: bool = False,
    step: float = 0.0,
) -> float:
    """Return a rise from ``initial`` to 1 over ``pct_start`` and a fall to ``final``.

    With ``three_phase`` the fall to ``initial`` mirrors the rise, and the rest goes on to ``final``.

    Args:
        progress: In [0, 1].
        pct_start: Where the peak is.
        initial: Factor at the start.
        final: Factor at the end.
        anneal_strategy: Half cosines or lines between these points.
        three_phase: Whether the fall has two parts.
        step: Progress of one optimizer step. Each part ends at the last step that belongs to it, as in torch, so that the
            last step of training has the factor ``final``; 0 for the limit of many steps.

    Reference:
        Smith & Topin, "Super-Convergence", 2018.

    Example:
        >>> [round(one_cycle(p, 0.25, 0.1, 0.0, "linear"), 6) for p in (0.0, 0.125, 0.25, 0.625, 1.0)]
        [0.1, 0.55, 1.0, 0.5, 0.0]
    """
    points = [(0.0, initial), (pct_start - step, 1.0)]
    if three_phase:
        points.append((2 * pct_start - 2 * step, initial))
    points.append((1 - step, final))
    for index, (end, after) in enumerate(points[1:], 1):
        if progress <= end + _ROUNDING or index == len(points) - 1:
            begin, before = points[index - 1]
            share = 1.0 if end - begin <= 0 else min(1.0, (progress - begin) / (end - begin))
            return after + (before - after) * (1 - share if anneal_strategy == "linear" else cosine(share))
    return final


def trapezoid(
    progress: float,
    warmup_share: float,
    decay_share: float,
    start: float = 0.0,
    final: float = 0.0,
    shape: DecayShape = "linear",
) -> float:
    """Return a line from ``start`` to 1, then 1, then a decay to ``final`` over the last ``decay_share``.

    The decay is a line, half a cosine, or 1 - √(share of the decay that is done).

    Reference:
        Hägele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations", 2024.

    Example:
        >>> [round(trapezoid(p, 0.2, 0.4), 6) for p in (0.0, 0.1, 0.2, 0.6, 0.8, 1.0)]
        [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]
    """
    left = 1 - progress
    if decay_share <= 0 or left >= decay_share - _ROUNDING:
        return warmup(progress, warmup_share, start)
    share = 1 - left / decay_share
    falls = {"linear": 1 - share, "cosine": cosine(share), "sqrt": 1 - math.sqrt(share)}
    return final + (1 - final) * falls[shape]


def cyclic(
    progress: float,
    up: float,
    down: float,
    low: float = 0.25,
    mode: CycleMode = "triangular",
    gamma: float = 0.5,
) -> float:
    """Return triangles between ``low`` and 1: up over ``up``, down over ``down``, and again.

    The height of cycle n = 0, 1, … is 1 - low (``"triangular"``), halves with each cycle (``"triangular2"``), or shrinks at
    every step, by ``gamma`` over a cycle (``"exp_range"``).

    Reference:
        Smith, "Cyclical Learning Rates for Training Neural Networks", 2017.

    Example:
        >>> [round(cyclic(p, 0.2, 0.2, low=0.5), 6) for p in (0.0, 0.1, 0.2, 0.3, 0.4)]
        [0.5, 0.75, 1.0, 0.75, 0.5]
    """
    cycles = progress / (up + down)
    cycle = math.floor(cycles + _ROUNDING)
    here = max(0.0, cycles - cycle) * (up + down)
    height = here / up if here <= up else max(0.0, (up + down - here) / down)
    scale = {"triangular": 1.0, "triangular2": 0.5**cycle, "exp_range": gamma**cycles}
    return low + (1 - low) * height * scale[mode]


def warmup(progress: float, duration: float, start: float = 0.0) -> float:
    """Return the line from ``start`` at 0 to 1 at ``duration``, and 1 from there on.

    Example:
        >>> [round(warmup(p, 0.2, 0.5), 3) for p in (0.0, 0.1, 0.2, 0.9)]
        [0.5, 0.75, 1.0, 1.0]
    """
    if duration <= 0 or progress >= duration - _ROUNDING:
        return 1.0
    return start + (1 - start) * progress / duration


def within(progress: float, begin: float, end: float = 1.0) -> float:
    """Return the progress of a part of training that runs from ``begin`` to ``end``: 0 before it, 1 after it.

    Example:
        >>> [round(within(p, 0.2, 0.6), 6) for p in (0.1, 0.4, 0.9)]
        [0.0, 0.5, 1.0]
    """
    if progress <= begin or end <= begin:
        return 0.0
    return min(1.0, (progress - begin) / (end - begin))


def part_at(progress: float, boundaries: Sequence[float]) -> int:
    """Return which of the parts between ``boundaries`` training is in: 0 before the first one.

    Example:
        >>> [part_at(p, [0.2, 0.6]) for p in (0.0, 0.2, 0.5, 0.6)]
        [0, 1, 1, 2]
    """
    return bisect.bisect_right(boundaries, progress + _ROUNDING)


def smooth(values: Sequence[float], width: int) -> list[float]:
    """Return weighted means of each value and its neighbours, up to ``width`` on either side, at weights that fall as a line.

    It looks as far forward as backward, and less far near an end, so that neither a slope nor a minimum is moved.

    Example:
        >>> smooth([0.0, 0.0, 4.0, 0.0, 0.0], width=1)
        [0.0, 1.0, 2.0, 1.0, 0.0]
    """
    means = []
    for index in range(len(values)):
        reach = min(width, index, len(values) - 1 - index)
        weights = [reach + 1 - abs(offset) for offset in range(-reach, reach + 1)]
        near = values[index - reach : index + reach + 1]
        means.append(sum(w * v for w, v in zip(weights, near, strict=True)) / sum(weights))
    return means


def descent(values: Sequence[float], first: int) -> tuple[int, int] | None:
    """Return where ``values`` leave their first level for good, and where their minimum is; ``None`` if they never fall.

    Left is the level where a twentieth of the whole fall is done: what comes before is noise around it, and not a descent.

    Args:
        values: What falls.
        first: How many of them make the first level, as their mean.

    Example:
        >>> descent([3.0, 3.1, 2.9, 3.0, 2.0, 1.0, 0.5, 8.0], first=4)
        (3, 6)
    """
    level, end = sum(values[:first]) / first, min(range(len(values)), key=values.__getitem__)
    left = level - (level - values[end]) / 20
    if end < first or values[end] >= left:
        return None
    return max((i for i in range(end) if values[i] >= left), default=0), end


def steepest(values: Sequence[float]) -> int:
    """Return the index at which ``values``, which stand at equal distances, fall fastest.

    Example:
        >>> steepest([5.0, 4.9, 3.0, 1.0, 0.9])
        2
    """
    last = len(values) - 1
    slopes = [(values[min(last, i + 1)] - values[max(0, i - 1)]) / (min(last, i + 1) - max(0, i - 1)) for i in range(last + 1)]
    return min(range(last + 1), key=slopes.__getitem__)


def valley(values: Sequence[float]) -> int:
    """Return the index in the middle of the longest descent: of the longest subsequence in which each value is less.

    Single values that go up do not interrupt a descent. The rule of fastai's ``valley``.

    Example:
        >>> valley([3.0, 3.1, 2.9, 2.0, 2.1, 1.0, 0.5, 8.0])
        3
    """
    lengths, starts = [1] * len(values), list(range(len(values)))
    for index, value in enumerate(values):
        for earlier in range(index):
            if value < values[earlier] and lengths[earlier] >= lengths[index]:
                lengths[index], starts[index] = lengths[earlier] + 1, starts[earlier]
    end = max(range(len(values)), key=lengths.__getitem__)
    return (starts[end] + end) // 2
