"""Predictions as a table."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_cnnopt.core.callback import TechniqueCallback
from lightning_cnnopt.core.randomness import gather


class WritePredictions(TechniqueCallback, BasePredictionWriter):
    """Writes ``predictions.csv``: for each image its index or file, the predicted class and its probability.

    The index of an image is the one that ``predict_step`` returns as ``index``, or else its place in the data set, which
    Lightning knows for a plain ``DataLoader``. Under DDP the parts of all ranks are put in order; an image that a sampler gave
    to two ranks, to fill up, is written once. Where no index is known, rows are numbered as they come, rank by rank; with
    several ranks a warning says so.

    Of labels that are not exclusive, every one whose probability is above a half is written, separated by ``;``, with their
    probabilities likewise.

    Args:
        path: File to write; by default ``predictions.csv`` in the Trainer's ``log_dir``.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[WritePredictions("out.csv")], logger=False, enable_checkpointing=False)
    """

    looks_on = True

    def __init__(self, path: str | None = None) -> None:
        BasePredictionWriter.__init__(self, write_interval="epoch")
        self.path = path

    @override
    def write_on_epoch_end(
        self, trainer: Trainer, pl_module: LightningModule, predictions: Sequence[Any], batch_indices: Sequence[Any]
    ) -> None:
        rows = [part["probabilities"].float().cpu() for part in predictions if part]
        every = gather((_index(predictions, batch_indices), torch.cat(rows) if rows else torch.zeros(0, 1)))
        path = Path(self.path or os.path.join(trainer.log_dir or trainer.default_root_dir, "predictions.csv"))
        if trainer.is_global_zero:
            index, probabilities = _merge(every)
            files = getattr(getattr(trainer, "datamodule", None), "files", None)
            self._write(path, index, probabilities, pl_module, files)
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


def _index(predictions: Sequence[Any], batch_indices: Sequence[Any]) -> Tensor | None:
    """Return the numbers of the images of this rank's predictions, ``None`` where they are not known."""
    told = [part["index"].cpu() for part in predictions if part and "index" in part]
    if told:
        return torch.cat(told)
    batches = batch_indices[0] if batch_indices else []
    if len(batches) != len(predictions):
        return None
    return torch.tensor([i for part, batch in zip(predictions, batches, strict=True) if part for i in batch], dtype=torch.long)


def _merge(every: list[tuple[Tensor | None, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return numbers and probabilities of all ranks, in order; what a sampler gave to two ranks comes once."""
    probabilities = torch.cat([rows for _, rows in every if len(rows)] or [torch.zeros(0, 1)])
    known = [index for index, rows in every if index is not None and len(index) == len(rows)]
    if len(known) < len(every):
        if len(every) > 1:
            rank_zero_warn(
                "WritePredictions: which image a prediction belongs to is not known, so rows are numbered as they come, rank "
                "by rank. Return the number of each image as 'index' from predict_step."
            )
        return torch.arange(len(probabilities)), probabilities
    index = torch.cat(known)
    if len(every) == 1:
        order = index.argsort(stable=True)
    else:
        order = torch.from_numpy(np.unique(index.numpy(), return_index=True)[1])
    return index[order], probabilities[order]


def _answer(row: Tensor, task: str, names: Sequence[str]) -> tuple[str, str]:
    if task == "multiclass":
        best = int(row.argmax())
        return names[best], f"{float(row[best]):.6f}"
    if task == "binary":
        positive = float(row.reshape(-1)[0])
        return names[-1 if positive > 0.5 else 0], f"{max(positive, 1 - positive):.6f}"
    chosen = [i for i, value in enumerate(row.tolist()) if value > 0.5]
    return ";".join(names[i] for i in chosen), ";".join(f"{float(row[i]):.6f}" for i in chosen)
