"""Class weights and class frequencies for the criterion of any LightningModule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from typing_extensions import override

from lightning_cnnopt.core.callback import TechniqueCallback
from lightning_cnnopt.core.errors import ConfigurationError, check_choice, check_range
from lightning_cnnopt.core.schedule import (
    DurationLike,
    TrainingLength,
    fraction_of,
    parse_duration,
    progress_of,
    steps_done,
)
from lightning_cnnopt.imbalance.criteria import LDAM, CountedCriterion, FocalLoss, LogitAdjustment
from lightning_cnnopt.imbalance.functional import Scheme, class_weights, positive_weights
from lightning_cnnopt.imbalance.layers import CosineLinear

_WEIGHTED = (nn.CrossEntropyLoss, nn.NLLLoss, nn.BCEWithLogitsLoss, nn.MultiMarginLoss, FocalLoss, LDAM)


class ClassWeights(TechniqueCallback):
    """Weighs the classes in the training loss by their frequencies; evaluation keeps the plain loss.

    The criterion is a child of the LightningModule with an argument ``weight`` (``CrossEntropyLoss``, ``NLLLoss``,
    ``FocalLoss``, ``LDAM``) or ``pos_weight`` (``BCEWithLogitsLoss``). It stays the same object, and nothing is added to the
    checkpoint. ``ClassWeights("effective", start=0.8)`` beside ``LDAM`` is the deferred re-weighting of its paper.

    Args:
        scheme: ``"balanced"``, N / (C · nᶜ), ``"sqrt"``, in proportion to 1 / √nᶜ, or ``"effective"``, to one over the
            effective number of samples; see :func:`~lightning_cnnopt.imbalance.class_weights`. Labels of
            ``BCEWithLogitsLoss`` are always balanced.
        counts: Samples of each class in the training set; by default read from our data module.
        total: Samples in all, for labels that are not exclusive.
        beta: β of the effective number. 0.999, within the paper's 0.9 to 0.9999.
        start: From when on: a fraction of training, epochs, steps or time; see
            :data:`~lightning_cnnopt.core.schedule.DurationLike`. From the first step by default.

    Raises:
        ConfigurationError: If no criterion takes weights, it has some already, the counts are unknown, or the data module
            draws samples by the same frequencies.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[ClassWeights(counts=[900, 100])], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        scheme: Scheme = "balanced",
        counts: Sequence[int] | None = None,
        total: int | None = None,
        beta: float = 0.999,
        start: DurationLike = 0.0,
    ) -> None:
        check_choice("ClassWeights", "scheme", scheme, get_args(Scheme))
        check_range("ClassWeights", "beta", beta, 0, 1, high_open=True)
        parse_duration(start, "ClassWeights: start")
        self.scheme: Scheme = scheme
        self.counts = None if counts is None else list(counts)
        self.total = total
        self.beta = beta
        self.start = start
        self._length: TrainingLength | None = None
        self._begin = 0.0
        self._criterion: nn.Module | None = None
        self._name = "weight"
        self._weights: Tensor | None = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._criterion, self._name = _weighted_criterion(pl_module)
        counts, total = self.counts, self.total
        datamodule: Any = getattr(trainer, "datamodule", None)
        _refuse_sampling(datamodule, "ClassWeights")
        if counts is None and hasattr(datamodule, "class_counts"):
            counts, total = datamodule.class_counts(), getattr(datamodule, "num_train_samples", total)
        if counts is None:
            raise ConfigurationError("ClassWeights: the data module states no class counts; pass counts=.")
        tensor = torch.as_tensor(counts)
        if self._name == "pos_weight":
            if total is None:
                raise ConfigurationError("ClassWeights: labels that are not exclusive need total=, the number of samples.")
            weights = positive_weights(tensor, total)
        else:
            weights = class_weights(tensor, self.scheme, self.beta)
        self._weights = weights.to(pl_module.device)
        self._length = TrainingLength.of(trainer) if self.start else None
        self._begin = fraction_of(self.start, self._length, "ClassWeights: start")
        if self._begin >= 1:
            rank_zero_warn(f"{self!r} weighs nothing: this training ends before start={self.start!r}.")
        self._apply(trainer)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._length is not None:
            self._apply(trainer)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._set(None)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._weights is not None:
            self._apply(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._forget()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._forget()

    def _forget(self) -> None:
        # a validation that follows the training must not put the weights back
        self._set(None)
        self._criterion = self._weights = None

    def _apply(self, trainer: Trainer) -> None:
        has_begun = self._length is None or progress_of(trainer, self._length, steps_done(trainer)) >= self._begin
        self._set(self._weights if has_begun else None)

    def _set(self, weights: Tensor | None) -> None:
        # not persistent: the state of the module keeps the keys that it has without this technique
        if self._criterion is not None and self._criterion._buffers[self._name] is not weights:
            self._criterion.register_buffer(self._name, weights, persistent=False)


class BindClassCounts(TechniqueCallback):
    """Tells a criterion how frequent the classes are, when a fit starts: ``LogitAdjustment`` and ``LDAM`` go by that.

    ``ImageClassifier`` brings it along where its criterion wants it. The frequencies are those of the data module's training
    set, or ``counts``; criteria that were given theirs keep them.

    Args:
        counts: Training samples of each class; by default ``class_counts()`` of the data module.

    Raises:
        ConfigurationError: If the frequencies are unknown or of labels that are not exclusive, the data module draws samples
            by them already, or the scale of ``LDAM`` is not that of the network's ``CosineHead``.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[BindClassCounts([900, 100])], logger=False, enable_checkpointing=False)
    """

    single = True

    def __init__(self, counts: Sequence[int] | None = None) -> None:
        self.counts = None if counts is None else list(counts)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        criteria = [child for child in pl_module.modules() if isinstance(child, CountedCriterion)]
        if not criteria:
            rank_zero_warn(
                f"BindClassCounts changed nothing: {type(pl_module).__name__} has no criterion that goes by the frequencies of "
                "the classes, such as LogitAdjustment or LDAM, as a child."
            )
        datamodule: Any = getattr(trainer, "datamodule", None)
        for criterion in criteria:
            if isinstance(criterion, LogitAdjustment):
                _refuse_sampling(datamodule, "LogitAdjustment")
            if isinstance(criterion, LDAM):
                _check_scale(criterion, pl_module)
            if criterion.counts is not None and not criterion.is_bound:
                continue
            counts = self.counts
            if counts is None and hasattr(datamodule, "class_counts"):
                counts = datamodule.class_counts()
                if getattr(datamodule, "task", "multiclass") != "multiclass":
                    raise ConfigurationError(
                        f"{type(criterion).__name__} goes by the frequencies of classes that are exclusive, and the data "
                        f"module has task={datamodule.task!r}."
                    )
            if counts is None:
                raise ConfigurationError(
                    f"{type(criterion).__name__}: the data module states no class counts; pass counts=, to it or to "
                    "BindClassCounts."
                )
            criterion.bind(counts, pl_module.device)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # whoever called eval() on a module and fits it again
        plain = [c for c in pl_module.modules() if isinstance(c, CountedCriterion) and not c.training]
        if plain:
            rank_zero_warn(f"{plain[0]!r} is in evaluation mode, where it is plain cross entropy; call train() on it.")


def _refuse_sampling(datamodule: Any, owner: str) -> None:
    if getattr(datamodule, "sampling", None) in get_args(Scheme):
        raise ConfigurationError(
            f"{owner} and data.sampling={datamodule.sampling!r} make up for the same frequencies, and both together for too "
            "much; keep one."
        )


def _check_scale(criterion: LDAM, module: nn.Module) -> None:
    scales = {child.scale for child in module.modules() if isinstance(child, CosineLinear)}
    if scales and scales != {criterion.scale}:
        raise ConfigurationError(
            f"LDAM has scale={criterion.scale:g}, and the head is CosineLinear(scale={min(scales):g}): its margins would not "
            "be in the unit of the logits. Give both the same."
        )
    if not scales and criterion.scale != 1:
        rank_zero_warn(
            f"{criterion!r} takes margins for cosines, and {type(module).__name__} has no CosineLinear: they are up to "
            f"{criterion.scale * criterion.max_margin:g} in its logits. Add the edit CosineHead(scale={criterion.scale:g}), "
            "unless the last layer gives scaled cosines of its own."
        )


def _weighted_criterion(module: nn.Module) -> tuple[nn.Module, str]:
    found: list[tuple[nn.Module, str]] = []
    for child in module.modules():
        if isinstance(child, _WEIGHTED):
            found += [(child, name) for name in ("pos_weight", "weight") if name in child._buffers][:1]
    if not found:
        raise ConfigurationError(
            f"ClassWeights: {type(module).__name__} has no criterion that takes weights, such as "
            "nn.CrossEntropyLoss() as a child; a "
            "functional loss has to be given its weights where it is called."
        )
    if len(found) > 1:
        raise ConfigurationError(
            f"ClassWeights: {type(module).__name__} has {len(found)} criteria that take weights; one is expected."
        )
    criterion, name = found[0]
    if criterion._buffers[name] is not None:
        raise ConfigurationError(f"ClassWeights: {criterion!r} has a {name} already; take one of the two away.")
    return criterion, name
