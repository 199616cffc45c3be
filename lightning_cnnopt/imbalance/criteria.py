"""Criteria for imbalanced classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from lightning_cnnopt.core.errors import ConfigurationError, check_range
from lightning_cnnopt.imbalance.functional import (
    focal_loss,
    label_distribution_aware_margin_loss,
    logit_adjustment,
    margins,
)


class FocalLoss(nn.Module):
    """The softmax focal loss, -(1 - p)^γ · log p of the true class; see :func:`~lightning_cnnopt.imbalance.focal_loss`.

    It is the same in evaluation. For labels that are not exclusive torchvision has ``ops.sigmoid_focal_loss``.

    Args:
        gamma: γ; 2 is the paper's, 0 is ``CrossEntropyLoss``.
        weight: Weights of the classes; :class:`~lightning_cnnopt.imbalance.ClassWeights` sets them, too.
        label_smoothing: Share of the target that goes to all classes alike.

    Shapes:
        logits (N, C), targets (N,) classes or (N, C) probabilities → ()

    Example:
        >>> FocalLoss(gamma=0)(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor(1.3863)
    """

    weight: Tensor | None

    def __init__(self, gamma: float = 2.0, weight: Sequence[float] | None = None, label_smoothing: float = 0.0) -> None:
        check_range("FocalLoss", "gamma", gamma, 0)
        check_range("FocalLoss", "label_smoothing", label_smoothing, 0, 1)
        super().__init__()
        self.gamma = gamma
        self.label_smoothing = label_smoothing
        self.register_buffer("weight", None if weight is None else torch.as_tensor(weight).float(), persistent=False)

    @override
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return focal_loss(logits, targets, self.gamma, self.weight, self.label_smoothing)

    @override
    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, label_smoothing={self.label_smoothing}"


class CountedCriterion(nn.Module):
    """Base of criteria that go by the frequencies of the classes in training, and are plain in evaluation.

    The frequencies are given, or :class:`~lightning_cnnopt.imbalance.BindClassCounts` reads them from the data module when a
    fit starts; ``ImageClassifier`` brings it along. They are in no checkpoint: a resumed run reads its data again, and
    evaluation needs none.

    Args:
        counts: Training samples of each class.
    """

    counts: Tensor | None
    is_bound = False
    """Whether the frequencies came from a data module, and another fit may bring others."""

    def __init__(self, counts: Sequence[int] | None = None) -> None:
        super().__init__()
        for count in () if counts is None else counts:
            check_range(type(self).__name__, "counts", count, 1)
        self.register_buffer("counts", None if counts is None else torch.as_tensor(counts), persistent=False)

    def bind(self, counts: Sequence[int], device: torch.device | str | None = None) -> None:
        """Set the training samples of each class."""
        empty = [label for label, count in enumerate(counts) if count < 1]
        if empty:
            raise ConfigurationError(
                f"{type(self).__name__}: classes {empty} have no training samples, so they have no frequency to go by."
            )
        self.counts = torch.as_tensor(counts, device=device)
        self.is_bound = True

    def known_counts(self) -> Tensor:
        """Return the training samples of each class.

        Raises:
            ConfigurationError: If they are not known.
        """
        if self.counts is None:
            raise ConfigurationError(
                f"{type(self).__name__} does not know how frequent the classes are: pass counts=, or attach BindClassCounts to "
                "a Trainer whose data module states class_counts()."
            )
        return self.counts


class LogitAdjustment(CountedCriterion):
    """Cross entropy of logits + τ · log π, with the frequencies π of the classes; plain cross entropy in evaluation.

    Args:
        tau: τ; see :func:`~lightning_cnnopt.imbalance.logit_adjustment`.
        counts: Training samples of each class; by default read from the data module.
        label_smoothing: Share of the target that goes to all classes alike.

    Shapes:
        logits (N, C), targets (N,) classes or (N, C) probabilities → ()

    Example:
        >>> criterion = LogitAdjustment(counts=[9, 1])
        >>> criterion(torch.zeros(1, 2), torch.tensor([1])), criterion.eval()(torch.zeros(1, 2), torch.tensor([1]))
        (tensor(2.3026), tensor(0.6931))
    """

    def __init__(self, tau: float = 1.0, counts: Sequence[int] | None = None, label_smoothing: float = 0.0) -> None:
        check_range("LogitAdjustment", "tau", tau, 0)
        check_range("LogitAdjustment", "label_smoothing", label_smoothing, 0, 1)
        super().__init__(counts)
        self.tau = tau
        self.label_smoothing = label_smoothing

    @override
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.training:
            logits = logit_adjustment(logits, self.known_counts(), self.tau)
        return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)

    @override
    def extra_repr(self) -> str:
        return f"tau={self.tau}, label_smoothing={self.label_smoothing}"


class LDAM(CountedCriterion):
    """Label-distribution-aware margins: rare classes have to be recognized by a wider margin, in proportion to n^(-1/4).

    In evaluation it is the plain cross entropy of ``scale`` · logits. The paper measures margins in cosines, which the last
    layer gives after the edit :class:`~lightning_cnnopt.imbalance.CosineHead`. For the logits of an ordinary layer, take
    ``scale=1`` and a margin in their unit. The paper's deferred re-weighting is ``ClassWeights("effective", start=0.8)``.

    Args:
        max_margin: Of the rarest class; 0.5 is the paper's.
        scale: Of the logits; 30 is the paper's, for cosines.
        counts: Training samples of each class; by default read from the data module.

    Shapes:
        logits (N, C), targets (N,) classes or (N, C) probabilities → ()

    Raises:
        ConfigurationError: In training, if ``scale`` is not 1 and the first logits are no cosines.

    Example:
        >>> criterion = LDAM(counts=[16, 1], max_margin=0.4, scale=10)
        >>> criterion(torch.tensor([[0.2, 0.0]]), torch.tensor([0]))
        tensor(0.6931)
    """

    weight: Tensor | None

    def __init__(self, max_margin: float = 0.5, scale: float = 30.0, counts: Sequence[int] | None = None) -> None:
        check_range("LDAM", "max_margin", max_margin, 0)
        check_range("LDAM", "scale", scale, 0, low_open=True)
        super().__init__(counts)
        self.max_margin = max_margin
        self.scale = scale
        self.register_buffer("weight", None, persistent=False)  # ClassWeights sets it
        self._has_looked = scale == 1

    @override
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        if not self.training:
            return F.cross_entropy(self.scale * logits, targets, weight=self.weight)
        if not self._has_looked:  # once, since it waits for the device
            self._has_looked = True
            most = float(logits.detach().abs().max())
            if most > 1.01:
                raise ConfigurationError(
                    f"LDAM: scale={self.scale:g} is for cosines, and the logits reach {most:.3g}. Add the edit CosineHead, or "
                    "give scale=1 and max_margin in the unit of the logits."
                )
        widths = margins(self.known_counts(), self.max_margin)
        return label_distribution_aware_margin_loss(logits, targets, widths, self.scale, self.weight)

    @override
    def extra_repr(self) -> str:
        return f"max_margin={self.max_margin}, scale={self.scale}"
