"""Weights of classes from their frequencies."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from lightning_cnnopt.core.errors import DataError

Scheme = Literal["balanced", "sqrt"]


def class_weights(counts: Tensor, scheme: Scheme = "balanced") -> Tensor:
    """Return a weight per class, scaled so that the mean over samples is 1.

    ``"balanced"`` is N / (C · nᶜ), as in scikit-learn: every class counts the same. ``"sqrt"`` is proportional to 1 / √nᶜ,
    between that and no weighting.

    Args:
        counts: (C,) samples of each class.
        scheme: How weights follow counts.

    Raises:
        DataError: If a class has no samples.

    Example:
        >>> import torch
        >>> class_weights(torch.tensor([90, 10]))
        tensor([0.5556, 5.0000])
    """
    if (counts <= 0).any():
        empty = (counts <= 0).nonzero().flatten().tolist()
        raise DataError(f"Classes {empty} have no training samples, so they have no weight.")
    counts = counts.double()
    weights = 1 / counts if scheme == "balanced" else counts.rsqrt()
    return (weights * counts.sum() / (weights * counts).sum()).float()


def positive_weights(counts: Tensor, total: int) -> Tensor:
    """Return for each label what a positive counts against a negative, (N - n) / n: for ``BCEWithLogitsLoss``.

    Example:
        >>> import torch
        >>> positive_weights(torch.tensor([10, 50]), 100)
        tensor([9., 1.])
    """
    if (counts <= 0).any():
        empty = (counts <= 0).nonzero().flatten().tolist()
        raise DataError(f"Labels {empty} have no positive training samples, so they have no weight.")
    if (counts > total).any():
        raise DataError(f"A label has {int(counts.max())} positive samples, and there are total={total} in all.")
    return ((total - counts).double() / counts).float()
