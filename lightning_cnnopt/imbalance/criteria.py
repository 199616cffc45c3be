"""Criteria for imbalanced classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss
from typing_extensions import override

from lightning_cnnopt.core.errors import ConfigurationError, check_range
from lightning_cnnopt.imbalance.functional import focal_loss, label_distribution_aware_margin_loss, log_prior, margins


class FocalLoss(nn.Module):
    """The softmax focal loss, -(1 - p)^γ · log p of the true class; see :func:`~lightning_cnnopt.imbalance.focal_loss`.

    It is the same in evaluation. For labels that are not exclusive take :class:`SigmoidFocalLoss`.

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

    tasks: ClassVar[tuple[str, ...]] = ("multiclass",)
    """The tasks of an ``ImageClassifier`` that it is a loss for."""

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
        weight = None if self.weight is None else self.weight.tolist()
        return f"gamma={self.gamma}, weight={weight}, label_smoothing={self.label_smoothing}"


class SigmoidFocalLoss(nn.Module):
    """The focal loss of labels that are not exclusive: the mean of ``torchvision.ops.sigmoid_focal_loss`` over them.

    -α · (1 - p)^γ · log p of a label that is there, and -(1 - α) · p^γ · log(1 - p) of one that is not. It is the same in
    evaluation.

    Args:
        alpha: α, the weight of the positives; that of the negatives is 1 - α. ``None`` for no weights. 0.25 is the paper's,
            tuned together with its γ.
        gamma: γ; 2 is the paper's, 0 without α is ``BCEWithLogitsLoss``.

    Shapes:
        logits and targets from 0 to 1, both (N,) or (N, L) → ()

    Reference:
        Lin, Goyal, Girshick, He & Dollár, "Focal Loss for Dense Object Detection", 2017.

    Example:
        >>> SigmoidFocalLoss(alpha=None, gamma=0)(torch.zeros(2, 3), torch.ones(2, 3))
        tensor(0.6931)
    """

    tasks: ClassVar[tuple[str, ...]] = ("binary", "multilabel")
    """The tasks of an ``ImageClassifier`` that it is a loss for."""

    def __init__(self, alpha: float | None = 0.25, gamma: float = 2.0) -> None:
        if alpha is not None:
            check_range("SigmoidFocalLoss", "alpha", alpha, 0, 1)
        check_range("SigmoidFocalLoss", "gamma", gamma, 0)
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma

    @override
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        alpha = -1 if self.alpha is None else self.alpha
        return sigmoid_focal_loss(logits, targets, alpha, self.gamma, reduction="mean")

    @override
    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, gamma={self.gamma}"


class CountedCriterion(nn.Module):
    """Base of criteria that go by the frequencies of the classes in training, and are plain in evaluation.

    The frequencies are given, or :class:`~lightning_cnnopt.imbalance.BindClassCounts` reads them from the data module when a
    fit starts; ``ImageClassifier`` brings it along. They are in no checkpoint: a resumed run reads its data again, and
    evaluation needs none.

    Args:
        counts: Training samples of each class.
    """

    tasks: ClassVar[tuple[str, ...]] = ("multiclass",)
    """The tasks of an ``ImageClassifier`` that it is a loss for."""

    counts: Tensor | None
    terms: Tensor | None
    """(C,) what :meth:`terms_of` made of the frequencies, once: in a training step nothing waits for the device."""
    is_bound = False
    """Whether the frequencies came from a data module, and another fit may bring others."""

    def __init__(self, counts: Sequence[int] | None = None) -> None:
        super().__init__()
        self.register_buffer("counts", None, persistent=False)
        self.register_buffer("terms", None, persistent=False)
        if counts is not None:
            for count in counts:
                check_range(type(self).__name__, "counts", count, 1)
            self.bind(counts)
            self.is_bound = False

    def terms_of(self, counts: Tensor) -> Tensor:
        """Return what the loss goes by, one number for each class."""
        raise NotImplementedError

    def bind(self, counts: Sequence[int], device: torch.device | str | None = None) -> None:
        """Set the training samples of each class."""
        empty = [label for label, count in enumerate(counts) if count < 1]
        if empty:
            raise ConfigurationError(
                f"{type(self).__name__}: classes {empty} have no training samples, so they have no frequency to go by."
            )
        self.counts = torch.as_tensor(counts)
        self.terms = self.terms_of(self.counts).to(device)
        self.counts = self.counts.to(device)
        self.is_bound = True

    def known_terms(self) -> Tensor:
        """Return :attr:`terms`.

        Raises:
            ConfigurationError: If the frequencies are not known.
        """
        if self.terms is None:
            raise ConfigurationError(
                f"{type(self).__name__} does not know how frequent the classes are: pass counts=, or attach BindClassCounts to "
                "a Trainer whose data module states class_counts()."
            )
        return self.terms

    @override
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.terms is not None and logits.shape[1:] != self.terms.shape:  # in evaluation, too: it is tried out there first
            raise ConfigurationError(
                f"{type(self).__name__} has counts of {len(self.terms)} classes, and the logits are of shape "
                f"{tuple(logits.shape)}; expected (N, {len(self.terms)})."
            )
        return self.training_loss(logits, targets) if self.training else self.plain_loss(logits, targets)

    def training_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss that is trained on."""
        raise NotImplementedError

    def plain_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the cross entropy that evaluation compares runs by."""
        return F.cross_entropy(logits, targets)

    @override
    def extra_repr(self) -> str:
        return f"counts={None if self.counts is None or self.is_bound else self.counts.tolist()}"


class LogitAdjustment(CountedCriterion):
    """Cross entropy of logits + τ · log π, with the frequencies π of the classes; plain cross entropy in evaluation.

    Args:
        tau: τ; 1 is consistent with the mean of the classes' accuracies, 0 adjusts nothing.
        counts: Training samples of each class; by default read from the data module.
        label_smoothing: Share of the target that goes to all classes alike; in evaluation, too, as torch has it.

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
    def terms_of(self, counts: Tensor) -> Tensor:
        return log_prior(counts)

    @override
    def training_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.plain_loss(logits + self.tau * self.known_terms(), targets)

    @override
    def plain_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)

    @override
    def extra_repr(self) -> str:
        return f"tau={self.tau}, {super().extra_repr()}, label_smoothing={self.label_smoothing}"


class LDAM(CountedCriterion):
    """Label-distribution-aware margins: rare classes have to be recognized by a wider margin, in proportion to n^(-1/4).

    In training, ``scale`` · Δ is taken off the true class's logit, with Δ = ``max_margin`` · (n_min / n)^(1/4); in evaluation
    it is plain cross entropy. Of targets that are probabilities it is the expectation over them.

    The paper measures margins in cosines and multiplies all by 30. That is ``scale=30`` behind the edit
    :class:`~lightning_cnnopt.imbalance.CosineHead`, whose logits are 30 times cosines. Its deferred re-weighting is
    ``ClassWeights("effective", start=0.8)``.

    Args:
        max_margin: Of the rarest class; 0.5 is the paper's.
        scale: How many logits a margin of 1 is: that of a ``CosineHead``, or 1 for an ordinary layer, whose margins are then in
            logits.
        counts: Training samples of each class; by default read from the data module.

    Shapes:
        logits (N, C), targets (N,) classes or (N, C) probabilities → ()

    Reference:
        Cao, Wei, Gaidon, Arechiga & Ma, "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", 2019.

    Example:
        >>> criterion = LDAM(counts=[16, 1], max_margin=0.4)
        >>> criterion(torch.tensor([[0.2, 0.0]]), torch.tensor([0]))
        tensor(0.6931)
    """

    weight: Tensor | None

    def __init__(self, max_margin: float = 0.5, scale: float = 1.0, counts: Sequence[int] | None = None) -> None:
        check_range("LDAM", "max_margin", max_margin, 0)
        check_range("LDAM", "scale", scale, 0, low_open=True)
        super().__init__(counts)
        self.max_margin = max_margin
        self.scale = scale
        self.register_buffer("weight", None, persistent=False)  # ClassWeights sets it

    @override
    def terms_of(self, counts: Tensor) -> Tensor:
        return margins(counts, 1.0)

    @override
    def training_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        widths = self.scale * self.max_margin * self.known_terms()
        return label_distribution_aware_margin_loss(logits, targets, widths, self.weight)

    @override
    def plain_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(logits, targets, weight=self.weight)

    @override
    def extra_repr(self) -> str:
        return f"max_margin={self.max_margin}, scale={self.scale}, {super().extra_repr()}"
