"""Measuring an image classifier: what is logged of training, validation and test."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryCalibrationError,
    BinaryF1Score,
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassF1Score,
    MultilabelAccuracy,
    MultilabelF1Score,
)
from typing_extensions import override

from lightning_cnnopt.core.batch import read_batch
from lightning_cnnopt.core.callback import is_last_batch, is_logged
from lightning_cnnopt.core.randomness import gather
from lightning_cnnopt.core.replay import Replayable
from lightning_cnnopt.core.spec import call_with_known, factory_of

Task = Literal["multiclass", "binary", "multilabel"]


class MetricFactory(Protocol):
    """Makes a metric of torchmetrics; of the two arguments it is given those that it takes, by name."""

    def __call__(self, *, num_classes: int, num_labels: int) -> Metric:
        """Return the metric."""


def make_metrics(task: Task, num_classes: int, more: Mapping[str, MetricFactory]) -> MetricCollection:
    """Return accuracy, macro F1 and calibration error as far as they make sense for a task, the mean loss, and ``more``.

    Example:
        >>> sorted(make_metrics("multiclass", 10, {}))
        ['acc', 'acc_top5', 'ece', 'f1', 'loss']
    """
    chosen: dict[str, Metric]
    if task == "binary":
        chosen = {"acc": BinaryAccuracy(), "f1": BinaryF1Score(), "ece": BinaryCalibrationError()}
    elif task == "multilabel":
        chosen = {"acc": MultilabelAccuracy(num_classes), "f1": MultilabelF1Score(num_classes, average="macro")}
    else:
        chosen = {
            "acc": MulticlassAccuracy(num_classes, average="micro"),
            "f1": MulticlassF1Score(num_classes, average="macro"),
            "ece": MulticlassCalibrationError(num_classes),
        }
        if num_classes >= 10:
            chosen["acc_top5"] = MulticlassAccuracy(num_classes, top_k=5, average="micro")
    for name, metric in more.items():
        chosen[name] = call_with_known(factory_of(metric, Metric), num_classes=num_classes, num_labels=num_classes)
    return MetricCollection({"loss": MeanMetric(), **chosen}, compute_groups=False)


class MeasuredModule(Replayable):
    """Base of a LightningModule that classifies images: its evaluation steps, and what is logged of its training.

    A subclass makes :meth:`forward`, :meth:`loss` and :meth:`training_step`, which hands each batch to :meth:`add_up`, and
    sets ``task``, ``val_metrics`` and ``test_metrics``.
    """

    task: Task
    val_metrics: MetricCollection
    test_metrics: MetricCollection

    def __init__(self) -> None:
        super().__init__()
        self._sums: Tensor | None = None  # of this epoch: loss, right answers, samples
        self._restored_sums: list[Tensor | None] | None = None

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the task's loss."""
        raise NotImplementedError

    def charged(self) -> Tensor | None:
        """Return what the weights are charged beside the loss; ``None`` for nothing."""
        return None

    @torch.no_grad()
    def add_up(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Take a training batch into the epoch's loss and accuracy: three numbers on the device, read at log intervals."""
        count = len(targets)
        step = torch.stack([loss.detach().float() * count, self._correct(logits, targets), loss.new_tensor(count).float()])
        self._sums = step if self._sums is None else self._sums + step

    @override
    def on_train_start(self) -> None:
        sums = self._restored_sums if self.trainer.ckpt_path is not None else None
        if self.trainer.fit_loop.epoch_loop.restarted_on_train_batch_end and is_last_batch(self.trainer):
            sums = None  # Lightning takes that epoch for over and begins the next one, without on_train_epoch_start
        mine = sums[self.global_rank] if sums is not None and self.global_rank < len(sums) else None
        self._sums = None if mine is None else mine.to(self.device)

    @override
    def on_train_epoch_start(self) -> None:
        self._sums = None  # a run resumed in mid-epoch, which goes on with the sums of its checkpoint, does not come here

    @override
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if is_logged(self.trainer, batch_idx):
            self._log_training(sync=False)

    @override
    def on_train_epoch_end(self) -> None:
        self._log_training(sync=True)
        self._sums = None

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate(batch, self.val_metrics)

    @override
    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return self._evaluate(batch, self.test_metrics)

    @override
    def on_validation_epoch_end(self) -> None:
        self._log_metrics(self.val_metrics)

    @override
    def on_test_epoch_end(self) -> None:
        self._log_metrics(self.test_metrics)

    @override
    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        named = isinstance(batch, Mapping) and "index" in batch
        images = batch["image"] if named else batch[0] if isinstance(batch, (tuple, list)) else batch
        logits = self(images)
        result = {"probabilities": logits.softmax(1) if self.task == "multiclass" else logits.sigmoid()}
        return {"index": batch["index"], **result} if named else result

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["train_sums"] = gather(self._sums)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._restored_sums = checkpoint.get("train_sums")

    def _correct(self, logits: Tensor, targets: Tensor) -> Tensor:
        if self.task == "multiclass":
            labels = targets if targets.ndim == 1 else targets.argmax(1)
            return (logits.argmax(1) == labels).sum().float()
        return ((logits.view_as(targets) > 0) == (targets > 0.5)).float().mean() * len(targets)

    def _log_training(self, sync: bool) -> None:
        if self._sums is None:
            return
        loss, correct, count = self._sums
        self.log_dict({"train_loss": loss / count, "train_acc": correct / count}, prog_bar=True, sync_dist=sync)
        charge = self.charged()
        if charge is not None:
            self.log("train_penalty", charge)

    def _evaluate(self, batch: Any, metrics: MetricCollection) -> dict[str, Tensor]:
        images, targets = read_batch(batch)
        if len(images) == 0:  # a rank whose part of the last batch is empty
            return {}
        logits = self(images)
        for name, metric in metrics.items(keep_base=True):
            if name == "loss":
                metric.update(self.loss(logits, targets), weight=len(targets))
            elif self.task == "multiclass":
                metric.update(logits, targets)
            else:
                metric.update(logits.view_as(targets).sigmoid(), targets.long())
        return {"logits": logits, "targets": targets}

    def _log_metrics(self, metrics: MetricCollection) -> None:
        values = metrics.compute()
        metrics.reset()
        shown = {name for name in values if name.endswith(("_loss", "_acc"))}
        # every rank holds the same values already; Lightning can't know and asks for the mean
        self.log_dict({name: value for name, value in values.items() if name in shown}, prog_bar=True, sync_dist=True)
        self.log_dict({name: value for name, value in values.items() if name not in shown}, sync_dist=True)
