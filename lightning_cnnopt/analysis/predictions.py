"""Predictions as a table."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from typing_extensions import override

from lightning_cnnopt.core.callback import TechniqueCallback
from lightning_cnnopt.core.randomness import gather


class WritePredictions(TechniqueCallback, BasePredictionWriter):
    """Writes ``predictions.csv``: for each image its index or file, the predicted class and its probability.

    Under DDP the parts of all ranks are put in order and written once. Of labels that are not exclusive, every one whose
    probability is above a half is written, separated by ``;``, with their probabilities likewise.

    Args:
        path: File to write; by default ``predictions.csv`` in the Trainer's ``log_dir``.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[WritePredictions("out.csv")], logger=False, enable_checkpointing=False)
    """

    def __init__(self, path: str | None = None) -> None:
        BasePredictionWriter.__init__(self, write_interval="epoch")
        self.path = path

    @override
    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        parts = [part for part in predictions if part]
        probabilities = torch.cat([part["probabilities"].float().cpu() for part in parts]) if parts else torch.zeros(0, 1)
        index = (
            torch.cat([part["index"].cpu() for part in parts])
            if parts and "index" in parts[0]
            else torch.arange(len(probabilities))
        )
        every = gather((index, probabilities))
        path = Path(self.path or os.path.join(trainer.log_dir or trainer.default_root_dir, "predictions.csv"))
        if trainer.is_global_zero:
            index, probabilities = torch.cat([i for i, _ in every]), torch.cat([p for _, p in every])
            order = index.argsort()
            files = getattr(getattr(trainer, "datamodule", None), "files", None)
            self._write(path, index[order], probabilities[order], pl_module, files)
            rank_zero_info(f"Predictions of {len(index)} images: {path}")

    def _write(
        self, path: Path, index: Tensor, probabilities: Tensor, module: LightningModule, files: Sequence[str] | None
    ) -> None:
        task = getattr(module, "task", "multiclass")
        names = getattr(module, "class_names", None) or [str(i) for i in range(max(2, probabilities.shape[1]))]
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.part")
        with temporary.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["file" if files else "index", "class", "probability"])
            for position, row in zip(index.tolist(), probabilities, strict=True):
                writer.writerow([files[position] if files else position, *_answer(row, task, names)])
        os.replace(temporary, path)


def _answer(row: Tensor, task: str, names: Sequence[str]) -> tuple[str, str]:
    if task == "multiclass":
        best = int(row.argmax())
        return names[best], f"{float(row[best]):.6f}"
    if task == "binary":
        positive = float(row.reshape(-1)[0])
        return names[-1 if positive > 0.5 else 0], f"{max(positive, 1 - positive):.6f}"
    chosen = [i for i, value in enumerate(row.tolist()) if value > 0.5]
    return ";".join(names[i] for i in chosen), ";".join(f"{float(row[i]):.6f}" for i in chosen)
