"""Losses for imbalanced classes, of single labels or of probabilities as targets."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_cnnopt.core.errors import DataError


def focal_loss(
    logits: Tensor, targets: Tensor, gamma: float = 2.0, weight: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Return the focal loss, -(1 - p)^γ · log p of the true class, its mean over the images.

    Well recognized images count less, hard ones keep their weight. γ = 0 is ``cross_entropy``, with the same weights, label
    smoothing and mean. Targets that are probabilities weigh the terms of the classes.

    Args:
        logits: (N, C).
        targets: (N,) classes, or (N, C) probabilities.
        gamma: γ, how fast an image loses weight as it gets recognized.
        weight: (C,) weights of the classes.
        label_smoothing: Share of the target that goes to all classes alike.

    Reference:
        Lin, Goyal, Girshick, He & Dollár, "Focal Loss for Dense Object Detection", 2017; here over a softmax.

    Example:
        >>> logits, targets = torch.tensor([[2.0, 0.0]]), torch.tensor([0])
        >>> p = logits.softmax(1)[0, 0]
        >>> bool(torch.isclose(focal_loss(logits, targets, gamma=1.0), -(1 - p) * p.log()))
        True
    """
    logs = F.log_softmax(logits, 1)
    # 1 - p of a p near 1, without losing its digits; the clamp keeps the slope of a power of 0 finite
    rest = -torch.expm1(logs.clamp_max(-torch.finfo(logs.dtype).tiny))
    return _mean(-logs if gamma == 0 else -(rest**gamma) * logs, targets, weight, label_smoothing)


def log_prior(counts: Tensor) -> Tensor:
    """Return log π, the log-frequency of each class.

    A loss that is given logits + τ · log π in training leaves bare logits that prefer no class for being frequent.

    Args:
        counts: (C,) training samples of each class.

    Raises:
        DataError: If a class has no samples.

    Reference:
        Menon et al., "Long-tail learning via logit adjustment", 2021.

    Example:
        >>> (torch.zeros(1, 2) + log_prior(torch.tensor([9, 1]))).softmax(1)
        tensor([[0.9000, 0.1000]])
    """
    _check_counts(counts)
    return (counts.double() / counts.sum()).log().float()


def margins(counts: Tensor, max_margin: float = 0.5) -> Tensor:
    """Return a margin for each class in proportion to n^(-1/4); that of the rarest class is ``max_margin``.

    Example:
        >>> margins(torch.tensor([16, 1]))
        tensor([0.2500, 0.5000])
    """
    _check_counts(counts)
    return (max_margin * (counts.min() / counts.double()) ** 0.25).float()


def label_distribution_aware_margin_loss(
    logits: Tensor, targets: Tensor, margins: Tensor, weight: Tensor | None = None
) -> Tensor:
    """Return the cross entropy after the margin of the true class was taken off its logit.

    Of targets that are probabilities it is the expectation over them.

    Args:
        logits: (N, C).
        targets: (N,) classes, or (N, C) probabilities.
        margins: (C,) in the unit of the logits; see :func:`margins`. The paper's logits are 30 times cosines, so that a margin
            of 0.5 in cosines is one of 15.
        weight: (C,) weights of the classes.

    Reference:
        Cao, Wei, Gaidon, Arechiga & Ma, "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", 2019.

    Example:
        >>> logits, targets = torch.tensor([[5.0, 2.0]]), torch.tensor([0])
        >>> ours = label_distribution_aware_margin_loss(logits, targets, torch.tensor([3.0, 5.0]))
        >>> bool(torch.isclose(ours, F.cross_entropy(torch.tensor([[2.0, 2.0]]), targets)))
        True
    """
    logs = F.log_softmax(logits, 1)
    # log of what the other classes sum to, for every class as the true one: 1 - p loses its digits for a p near 1, which one
    # class of an image can have at most
    top = logs.argmax(1, keepdim=True)
    beside_top = logs.scatter(1, top, -math.inf).logsumexp(1, keepdim=True)
    others = torch.log1p(-logs.exp().scatter(1, top, 0.0)).scatter(1, top, beside_top)
    own = logs - margins
    return _mean(torch.logaddexp(others, own) - own, targets, weight)


def _mean(losses: Tensor, targets: Tensor, weight: Tensor | None, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean, as torch's cross entropy has it, of (N, C) losses: what each class would cost, were it the true one."""
    count, classes = losses.shape
    if targets.ndim == 1:
        shares = F.one_hot(targets, classes).to(losses)
    elif targets.shape == losses.shape and targets.is_floating_point():
        shares = targets.to(losses)
    else:
        raise DataError(
            f"targets of shape {tuple(targets.shape)} and type {targets.dtype} for logits of shape {tuple(losses.shape)}; "
            "expected classes (N,) or probabilities (N, C)."
        )
    if label_smoothing:
        shares = (1 - label_smoothing) * shares + label_smoothing / classes
    weights = torch.ones(classes, device=losses.device, dtype=losses.dtype) if weight is None else weight.to(losses)
    total = (shares * weights * losses).sum()
    return total / (weights[targets].sum() if targets.ndim == 1 else count)


def _check_counts(counts: Tensor) -> None:
    if (counts <= 0).any():
        empty = (counts <= 0).nonzero().flatten().tolist()
        raise DataError(f"Classes {empty} have no training samples, so they have no frequency to go by.")
