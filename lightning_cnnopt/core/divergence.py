"""Stopping a run whose loss has left the finite numbers, before it overwrites what was good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_cnnopt.core.callback import TechniqueCallback, is_logged
from lightning_cnnopt.core.errors import DivergenceError

_MOST_BATCHES = 1000
"""After how many batches the loss is read at the latest: what is kept of each must not grow with an epoch."""


class StopOnDivergence(TechniqueCallback):
    """Stops training when the loss becomes NaN or infinite, and keeps such weights out of every checkpoint.

    The losses are kept on the device and read every ``log_every_n_steps`` steps (and 1,000 batches at the latest), at the end
    of each epoch, before each validation and before each checkpoint, so no step waits for the device. The error names the
    step, its epoch and its learning rate.
    :class:`~lightning_cnnopt.ImageClassifier` attaches it by itself.

    Raises:
        DivergenceError: On every rank at the same step, if the loss of any rank was bad.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[StopOnDivergence()], logger=False, enable_checkpointing=False)
    """

    looks_on = True

    def __init__(self) -> None:
        self._here = (0, 0, float("nan"))  # optimizer step, epoch and rate of the batch in progress
        self._recent: list[tuple[tuple[int, int, float], Tensor]] = []  # the same and the loss, of batches not looked at

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._recent = []

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        rate = float(trainer.optimizers[0].param_groups[0]["lr"]) if trainer.optimizers else float("nan")
        self._here = (trainer.global_step, trainer.current_epoch, rate)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            self._recent.append((self._here, loss.detach()))
        if is_logged(trainer, batch_idx) or (batch_idx + 1) % _MOST_BATCHES == 0:
            self._look(trainer)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look(trainer)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._look(trainer)

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not trainer.training and not trainer.validating and not trainer.sanity_checking:
            return
        self._look(trainer)
        bad = [
            name for name, value in pl_module.state_dict().items() if value.is_floating_point() and not value.isfinite().all()
        ]
        if bad:
            raise DivergenceError(
                f"After optimizer step {trainer.global_step} (epoch {trainer.current_epoch}) {bad[0]!r} and "
                f"{len(bad) - 1} more "
                f"tensors hold NaN or infinite values; this state was not saved.{_remedy(trainer)}"
            )

    def _look(self, trainer: Trainer) -> None:
        recent, self._recent = self._recent, []
        finite = torch.stack([loss.isfinite().all() for _, loss in recent]).tolist() if recent else []
        if trainer.strategy.reduce_boolean_decision(not all(finite), all=False):
            where = "on another rank"
            if not all(finite):
                step, epoch, rate = recent[finite.index(False)][0]
                where = f"at optimizer step {step} (epoch {epoch}), learning rate {rate:g}"
            raise DivergenceError(f"The training loss became NaN or infinite {where}.{_remedy(trainer)}")


def _remedy(trainer: Trainer) -> str:
    # while a checkpoint is being written its path counts as the best already; then the newest beside it is the good one
    path = getattr(trainer.checkpoint_callback, "best_model_path", "")
    kept = ""
    if path and (there := [p for p in Path(path).parent.glob("*.ckpt") if p.is_file()]):
        good = Path(path) if Path(path) in there else max(there, key=lambda p: p.stat().st_mtime)
        kept = f" The last good checkpoint is {good}."
    return f"{kept} Lower the learning rate, warm it up, or clip gradients (--trainer.gradient_clip_val 1.0)."
