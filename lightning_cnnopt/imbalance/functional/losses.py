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


def logit_adjustment(logits: Tensor, counts: Tensor, tau: float = 1.0) -> Tensor:
    """Return logits + τ · log π, with the frequencies π of the classes, to be given to a loss in training.

    A network that is trained through it predicts as if all classes were as frequent, when its bare logits are taken.

    Args:
        logits: (N, C).
        counts: (C,) training samples of each class.
        tau: τ; 1 is consistent with the mean of the classes' accuracies, 0 adjusts nothing.

    Raises:
        DataError: If a class has no samples.

    Reference:
        Menon et al., "Long-tail learning via logit adjustment", 2021.

    Example:
        >>> logit_adjustment(torch.zeros(1, 2), torch.tensor([9, 1])).softmax(1)
        tensor([[0.9000, 0.1000]])
    """
    _check_counts(counts, logits.shape[1])
    prior = counts.double() / counts.sum()
    return logits + tau * prior.log().to(logits)


def margins(counts: Tensor, max_margin: float = 0.5) -> Tensor:
    """Return a margin for each class in proportion to n^(-1/4); that of the rarest class is ``max_margin``.

    Example:
        >>> margins(torch.tensor([16, 1]))
        tensor([0.2500, 0.5000])
    """
    _check_counts(counts, len(counts))
    return (max_margin * (counts.min() / counts.double()) ** 0.25).float()


def label_distribution_aware_margin_loss(
    logits: Tensor, targets: Tensor, margins: Tensor, scale: float = 30.0, weight: Tensor | None = None
) -> Tensor:
    """Return the cross entropy of ``scale`` · logits, after the margin of the true class was taken off its logit.

    Of targets that are probabilities it is the expectation over them.

    Args:
        logits: (N, C); cosines, or others with a ``scale`` of 1.
        targets: (N,) classes, or (N, C) probabilities.
        margins: (C,), see :func:`margins`.
        scale: Of the logits; the paper's is 30, for cosines.
        weight: (C,) weights of the classes.

    Reference:
        Cao, Wei, Gaidon, Arechiga & Ma, "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", 2019.

    Example:
        >>> logits, targets = torch.tensor([[0.5, 0.2]]), torch.tensor([0])
        >>> ours = label_distribution_aware_margin_loss(logits, targets, torch.tensor([0.3, 0.5]), scale=10)
        >>> bool(torch.isclose(ours, F.cross_entropy(torch.tensor([[2.0, 2.0]]), targets)))
        True
    """
    scaled, off = scale * logits, scale * margins.to(logits)
    logs = F.log_softmax(scaled, 1)
    # log of what the other classes sum to, for every class as the true one: 1 - p loses its digits for a p near 1, which one
    # class of an image can have at most
    top = scaled.argmax(1, keepdim=True)
    beside_top = scaled.scatter(1, top, -math.inf).logsumexp(1, keepdim=True) - scaled.logsumexp(1, keepdim=True)
    others = torch.log1p(-torch.exp(logs.clamp_max(-math.log(2)))).scatter(1, top, beside_top)
    own = logs - off
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


def _check_counts(counts: Tensor, classes: int) -> None:
    if counts.shape != (classes,):
        raise DataError(f"counts of shape {tuple(counts.shape)} for {classes} classes; expected one number for each.")
    if (counts <= 0).any():
        empty = (counts <= 0).nonzero().flatten().tolist()
        raise DataError(f"Classes {empty} have no training samples, so they have no frequency to adjust by.")
