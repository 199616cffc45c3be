"""Weights of classes from their frequencies, and draws by weight."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from lightning_cnnopt.core.errors import ConfigurationError, DataError

Scheme = Literal["balanced", "sqrt", "effective"]


def class_weights(counts: Tensor, scheme: Scheme = "balanced", beta: float = 0.999) -> Tensor:
    """Return a weight per class, scaled so that the mean over samples is 1.

    ``"balanced"`` is N / (C · nᶜ), as in scikit-learn: every class counts the same. ``"sqrt"`` is proportional to 1 / √nᶜ,
    between that and no weighting. ``"effective"`` is proportional to one over the effective number of samples,
    (1 - βⁿ) / (1 - β): balanced among classes of far fewer than 1 / (1 - β) samples, equal among those of far more.

    Args:
        counts: (C,) samples of each class.
        scheme: How weights follow counts.
        beta: β of the effective number, from 0 (no weighting) to below 1 (balanced).

    Raises:
        DataError: If a class has no samples.

    Reference:
        Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", 2019.

    Example:
        >>> class_weights(torch.tensor([90, 10]))
        tensor([0.5556, 5.0000])
    """
    if (counts <= 0).any():
        empty = (counts <= 0).nonzero().flatten().tolist()
        raise DataError(f"Classes {empty} have no training samples, so they have no weight.")
    counts = counts.double()
    if scheme == "balanced":
        weights = 1 / counts
    elif scheme == "sqrt":
        weights = counts.rsqrt()
    else:
        weights = 1 / effective_number(counts, beta)
    return (weights * counts.sum() / (weights * counts).sum()).float()


def sample_weights(targets: Tensor, num_classes: int, scheme: Scheme = "balanced", beta: float = 0.999) -> Tensor:
    """Return how often to draw each sample in proportion to the others, by the frequency of its class.

    ``"balanced"`` draws every class as often as every other, ``"sqrt"`` in proportion to √nᶜ, ``"effective"`` in proportion to
    nᶜ over its effective number.

    Args:
        targets: (N,) classes.
        num_classes: Number of classes.
        scheme: As for :func:`class_weights`.
        beta: β of the effective number.

    Returns:
        (N,) weights with the mean 1.

    Raises:
        DataError: If the targets are no single labels, or a class has no samples.

    Example:
        >>> sample_weights(torch.tensor([0, 0, 0, 1]), 2)
        tensor([0.6667, 0.6667, 0.6667, 2.0000])
    """
    if targets.ndim != 1 or targets.is_floating_point():
        raise DataError(
            f"Samples are drawn by their class, and targets of shape {tuple(targets.shape)} and type {targets.dtype} are no "
            "single labels."
        )
    return class_weights(torch.bincount(targets, minlength=num_classes), scheme, beta)[targets]


def effective_number(counts: Tensor, beta: float = 0.999) -> Tensor:
    """Return the effective number of samples of each class, (1 - βⁿ) / (1 - β), in double precision.

    Example:
        >>> effective_number(torch.tensor([1, 2, 10**9]), 0.5)
        tensor([1.0000, 1.5000, 2.0000], dtype=torch.float64)
    """
    if beta == 0:
        return torch.ones_like(counts, dtype=torch.float64)
    return -torch.expm1(counts.double() * math.log(beta)) / (1 - beta)


def positive_weights(counts: Tensor, total: int) -> Tensor:
    """Return for each label what a positive counts against a negative, (N - n) / n: for ``BCEWithLogitsLoss``.

    Example:
        >>> positive_weights(torch.tensor([10, 50]), 100)
        tensor([9., 1.])
    """
    if (counts <= 0).any():
        empty = (counts <= 0).nonzero().flatten().tolist()
        raise DataError(f"Labels {empty} have no positive training samples, so they have no weight.")
    if (counts > total).any():
        raise DataError(f"A label has {int(counts.max())} positive samples, and there are total={total} in all.")
    return ((total - counts).double() / counts).float()


def cumulated_weights(owner: str, weights: Tensor) -> Tensor:
    """Return the running sums of weights of samples, for :func:`draw_by_weight`.

    They are in double precision: the sums of single ones would not tell the samples of a large set apart.

    Args:
        owner: Whose weights they are, for the error.
        weights: (N,), how often each sample is drawn in proportion to the others.

    Raises:
        ConfigurationError: If they are not of one dimension, not finite, negative, or all 0.

    Example:
        >>> cumulated_weights("Example", torch.tensor([1.0, 2.0]))
        tensor([1., 3.], dtype=torch.float64)
    """
    if weights.ndim != 1:
        raise ConfigurationError(f"{owner}: weights of shape {tuple(weights.shape)}; expected (N,), one for each sample.")
    if not bool((torch.isfinite(weights) & (weights >= 0)).all()) or not bool(weights.any()):
        raise ConfigurationError(f"{owner}: weights have to be finite and not negative, and one of them above 0.")
    return weights.double().cumsum(0)


def draw_by_weight(cumulated: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Return ``count`` samples, drawn with replacement, each as likely as its weight says.

    Args:
        cumulated: (N,), see :func:`cumulated_weights`. N has no limit; ``torch.multinomial`` takes 2²⁴ at most.
        count: How many.
        generator: What draws.

    Returns:
        (count,) places of the samples.

    Example:
        >>> draw_by_weight(cumulated_weights("Example", torch.tensor([0.0, 1.0, 0.0])), 3)
        tensor([1, 1, 1])
    """
    draws = torch.rand(count, dtype=torch.float64, generator=generator)
    # a draw that is a sample's end belongs to the next one of any weight, and the end of all is no draw, which rounding could
    # make of one
    end = cumulated[-1]
    points = (draws * end).clamp_max(torch.nextafter(end, torch.zeros_like(end)))
    return torch.searchsorted(cumulated, points, right=True)
