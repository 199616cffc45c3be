"""Schedules as functions of progress in [0, 1] to a factor."""

from __future__ import annotations

import math

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


def warmup(progress: float, duration: float, start: float = 0.0) -> float:
    """Return the line from ``start`` at 0 to 1 at ``duration``, and 1 from there on.

    Example:
        >>> [round(warmup(p, 0.2, 0.5), 3) for p in (0.0, 0.1, 0.2, 0.9)]
        [0.5, 0.75, 1.0, 1.0]
    """
    if duration <= 0 or progress >= duration - _ROUNDING:
        return 1.0
    return start + (1 - start) * progress / duration


def rest(progress: float, duration: float) -> float:
    """Return the progress of what follows a part of length ``duration``, from 0 at its end to 1.

    Example:
        >>> round(rest(0.55, 0.1), 6)
        0.5
    """
    return 0.0 if progress <= duration or duration >= 1 else (progress - duration) / (1 - duration)
