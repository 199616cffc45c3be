"""What a run leaves behind for people: what was derived, curves, augmented images, a confusion matrix."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix
from typing_extensions import override

from lightning_cnnopt.analysis.classes import class_report
from lightning_cnnopt.analysis.plots import plot_classes, plot_confusion, plot_curves, plot_images, save_figure
from lightning_cnnopt.analysis.training_images import augmentations_of, captions_of
from lightning_cnnopt.architecture import WeightsRecord
from lightning_cnnopt.augmentation import Augmentation
from lightning_cnnopt.core.batch import read_batch
from lightning_cnnopt.core.callback import TechniqueCallback, callbacks_of, is_logged
from lightning_cnnopt.core.rates import FactorLR
from lightning_cnnopt.core.surgery import applied_edits
from lightning_cnnopt.data import ImageDataModule


class RunReport(TechniqueCallback):
    """Leaves a run's derived values and pictures in its directory, and says where everything is.

    Written are ``resolved.yaml`` (what was derived and so stands in no config), ``curves.png`` (loss, accuracy and learning
    rate), ``augmentation.png`` (training images before and after), ``confusion_val.png`` or ``confusion_test.png``, and
    ``classes_val.csv`` and ``.png`` or those of the test (recall, precision and F1 of each class; a test prints them). Works
    with any LightningModule; confusion and classes need one whose evaluation steps return ``logits`` and ``targets``, as
    ``ImageClassifier`` does.

    Args:
        directory: Where to write; by default the Trainer's ``log_dir``.
        images: How many augmented images are shown; 0 for none.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[RunReport()], logger=False, enable_checkpointing=False)
    """

    looks_on = True

    def __init__(self, directory: str | None = None, images: int = 10) -> None:
        self.directory = directory
        self.images = images
        self.history: dict[str, list[tuple[float, float]]] = {}
        """Points (optimizer step, value) by metric."""
        self._confusion: MulticlassConfusionMatrix | None = None
        self._steps_per_epoch = 1.0
        self._folder = Path()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._folder = Path(self.directory or trainer.log_dir or trainer.default_root_dir)  # every rank takes part in log_dir

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._steps_per_epoch = max(1.0, float(trainer.num_training_batches) / trainer.accumulate_grad_batches)
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        directory = self._folder
        directory.mkdir(parents=True, exist_ok=True)
        derived = resolved_values(trainer, pl_module)
        text = yaml.safe_dump(derived, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
        (directory / "resolved.yaml").write_text(text)
        rank_zero_info(
            f"Derived, and written to {directory / 'resolved.yaml'}:\n" + "".join(f"  {line}\n" for line in text.splitlines())
        )
        augmentations = augmentations_of(trainer)
        if self.images > 0 and augmentations:
            self._draw_augmentation(trainer, augmentations[0], directory)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if is_logged(trainer, batch_idx) and trainer.optimizers:
            self._note(trainer, "lr", float(trainer.optimizers[0].param_groups[0]["lr"]))

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, value in trainer.callback_metrics.items():
            if name.endswith(("_loss", "_acc")):
                self._note(trainer, name, float(value))

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(pl_module)
        if trainer.sanity_checking:
            self._confusion = None

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._count(outputs)

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._draw_confusion(trainer, pl_module, "val")

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(pl_module)

    @override
    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._count(outputs)

    @override
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw_confusion(trainer, pl_module, "test")

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # only here is it known which validation was the last: EarlyStopping, max_time and max_steps end a training, too
        self._draw_confusion(trainer, pl_module, "val")
        if trainer.is_global_zero and self.history and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            save_figure(plot_curves(self.history, self._steps_per_epoch), self._folder / "curves.png")

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"history": {name: [list(point) for point in points] for name, points in self.history.items()}}

    @override
    def resume(self, state_dict: dict[str, Any]) -> None:
        self.history = {name: [(x, y) for x, y in points] for name, points in state_dict["history"].items()}

    def _note(self, trainer: Trainer, name: str, value: float) -> None:
        points = self.history.setdefault(name, [])
        if not points or points[-1][0] < trainer.global_step:
            points.append((trainer.global_step, value))

    def _start(self, pl_module: LightningModule) -> None:
        self._confusion = None
        num_classes = getattr(pl_module, "num_classes", 0)
        if getattr(pl_module, "task", "multiclass") == "multiclass" and num_classes > 1:
            self._confusion = MulticlassConfusionMatrix(num_classes).to(pl_module.device)

    def _count(self, outputs: Any) -> None:
        if self._confusion is not None and isinstance(outputs, dict) and {"logits", "targets"} <= set(outputs):
            self._confusion.update(outputs["logits"].argmax(1), outputs["targets"])

    def _draw_confusion(self, trainer: Trainer, pl_module: LightningModule, split: str) -> None:
        if self._confusion is None:
            return
        with warnings.catch_warnings():  # every rank takes part in it, one that had no sample as well
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric")
            counts = self._confusion.compute().cpu()
        if counts.any() and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            names = getattr(pl_module, "class_names", None) or [str(index) for index in range(len(counts))]
            accuracy = counts.diag().sum() / counts.sum()
            figure = plot_confusion(counts, names, f"{split}: {int(counts.sum())} images, accuracy {float(accuracy):.2%}")
            save_figure(figure, self._folder / f"confusion_{split}.png")
            self._report_classes(trainer, counts, names, split)

    def _report_classes(self, trainer: Trainer, confusion: Tensor, names: list[str], split: str) -> None:
        class_counts: Any = getattr(getattr(trainer, "datamodule", None), "class_counts", None)
        trained = class_counts() if callable(class_counts) else None
        report = class_report(confusion, names, trained)
        report.write_csv(self._folder / f"classes_{split}.csv")
        if trainer.state.fn in ("validate", "test"):
            print(report.table(f"{split}, class by class"))
        recall = [result.recall for result in report.classes]
        save_figure(plot_classes(names, recall, trained, f"{split}: recall"), self._folder / f"classes_{split}.png")

    def _draw_augmentation(self, trainer: Trainer, augmentation: Augmentation, directory: Path) -> None:
        data = getattr(trainer, "datamodule", None)
        if not isinstance(data, ImageDataModule):
            return
        count = len(data.train_set)
        # spread out: those of folders come class by class
        chosen = data.train_set[torch.linspace(0, count - 1, min(self.images, count)).long()]
        # a stream of its own: looking changes no draw of the training
        preview = Augmentation(augmentation.transforms, augmentation.mixing, augmentation.num_classes)
        preview.stream.name = "preview"
        rows = {"original": chosen.images}
        captions = {"original": captions_of(chosen.targets, data.class_names, data.task)}
        for index in range(3):
            row = f"epoch {index + 1}"
            images, targets = read_batch(preview([chosen.images, chosen.targets], epoch=index))
            rows[row] = images
            if augmentation.mixing is not None:
                captions[row] = captions_of(targets, data.class_names, data.task)
        save_figure(plot_images(rows, captions), directory / "augmentation.png")


def resolved_values(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """Return what a run derived from data, Trainer and machine, as builtins, in the order to be read in."""
    data: Any = getattr(trainer, "datamodule", None)
    values: dict[str, Any] = {}
    if data is not None:
        values["data"] = {"class": type(data).__name__}
        for name in (
            "num_classes",
            "in_channels",
            "image_size",
            "class_names",
            "task",
            "num_train_samples",
        ):
            if hasattr(data, name):
                value = getattr(data, name)
                values["data"][name] = list(value) if isinstance(value, tuple) else value
        if hasattr(data, "pixel_statistics"):
            values["data"]["mean"], values["data"]["std"] = data.pixel_statistics()
        if callable(getattr(data, "class_counts", None)):
            values["data"]["class_counts"] = data.class_counts()
    network = getattr(pl_module, "network", pl_module)
    values["network"] = {
        "class": type(network).__name__,
        "parameters": sum(p.numel() for p in pl_module.parameters()),
        "trainable": sum(p.numel() for p in pl_module.parameters() if p.requires_grad),
        "edits": [repr(edit) for edit in applied_edits(network)],
    }
    record = getattr(network, "weights_record", None)
    if isinstance(record, WeightsRecord):
        values["network"]["weights"] = record.to_dict()
    batch_size = getattr(trainer.train_dataloader, "batch_size", None)
    values["training"] = {
        "steps": trainer.estimated_stepping_batches,
        "batches_per_epoch": trainer.num_training_batches,
        "batch_size": batch_size,
        "processes": trainer.world_size,
        "accumulated": trainer.accumulate_grad_batches,
        "global_batch_size": None if batch_size is None else batch_size * trainer.world_size * trainer.accumulate_grad_batches,
        "precision": str(trainer.precision),
        "device": str(pl_module.device),
        "optimizer": [_describe(optimizer) for optimizer in trainer.optimizers],
        "rate_factors": sorted(
            {n for c in trainer.lr_scheduler_configs if isinstance(c.scheduler, FactorLR) for n in c.scheduler.factors}
        ),
        "callbacks": [type(callback).__name__ for callback in callbacks_of(trainer)],
    }
    return values


def locations(trainer: Trainer, directory: Path) -> list[tuple[str, Path]]:
    """Return what there is in a run's directory, to be told at its end."""
    found: list[tuple[str, Path]] = []
    checkpoint = trainer.checkpoint_callback
    if isinstance(checkpoint, ModelCheckpoint):
        found += [
            (label, Path(path))
            for label, path in (
                ("best checkpoint", checkpoint.best_model_path),
                ("last checkpoint", checkpoint.last_model_path),
            )
            if path
        ]
    files = {
        "config": "config.yaml",
        "derived values": "resolved.yaml",
        "metrics": "metrics.csv",
        "predictions": "predictions.csv",
        "activation counts": "activations.csv",
        "profile": "profile.csv",
        "profile, drawn": "profile.png",
        "curves": "curves.png",
        "augmented images": "augmentation.png",
        "what training sees": "training_images.png",
        "classes (validation)": "classes_val.csv",
        "classes (validation), drawn": "classes_val.png",
        "classes (test)": "classes_test.csv",
        "classes (test), drawn": "classes_test.png",
        "confusion matrix (validation)": "confusion_val.png",
        "confusion matrix (test)": "confusion_test.png",
    }
    found += [(label, directory / name) for label, name in files.items() if (directory / name).exists()]
    if any(directory.glob("events.out.tfevents.*")):
        found.append(("TensorBoard", directory))
    return found


def _describe(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    groups = [
        {
            "name": group.get("name", str(index)),
            "tensors": len(group["params"]),
            "initial_lr": float(group.get("initial_lr", group["lr"])),
        }
        for index, group in enumerate(optimizer.param_groups)
    ]
    return {"class": type(optimizer).__name__, "groups": groups}
