"""Multiplying the learning rate: one scheduler per optimizer, shared by every technique that has a factor to add."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import override

from lightning_cnnopt.core.callback import TechniqueCallback, callbacks_of
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.schedule import TrainingLength, progress_of, steps_done


class FactorLR(LRScheduler):
    """Rates of all groups times factors that are functions of the optimizer step: ``lr = base · f₁(t) · f₂(t) …``.

    Written closed, never ``lr *= f``, so that the ratio between groups is kept and resume is exact. Techniques that
    multiply the rate (a schedule, batch-size scaling) share one of these per optimizer.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.factors: dict[str, Callable[[int], float]] = {}
        """By technique, its factor of the optimizer step. The first one steps the scheduler where Lightning does not."""
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        """Return the rate of every group at this step."""
        factor = math.prod(f(self.last_epoch) for f in self.factors.values())
        return [base * factor for base in self.base_lrs]

    def refresh(self) -> None:
        """Write the rates of this step again, after a factor became known."""
        for group, rate in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            if hasattr(group["lr"], "fill_"):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        self._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """Return the position and the base rates; the factors are rebuilt by their techniques."""
        return {key: value for key, value in super().state_dict().items() if key != "factors"}


class RateCallback(TechniqueCallback):
    """Base of callbacks that multiply the learning rate by a function of progress, on any LightningModule.

    Every group of every optimizer is multiplied, so the ratios between groups stay. Lightning steps, saves and restores the
    scheduler, and ``LearningRateMonitor`` sees it. Under manual optimization, where Lightning steps no scheduler, it is
    stepped once a batch.
    """

    schedulers: list[FactorLR]

    @abstractmethod
    def make_factor(self, trainer: Trainer, length: TrainingLength) -> Callable[[float], float]:
        """Return the factor as a function of progress in [0, 1]."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.of_module and self not in getattr(pl_module, "own_callbacks", ()):
            # it drove a former module of this Trainer; the list is replaced, not changed, since Lightning is walking it
            trainer.callbacks = [callback for callback in callbacks_of(trainer) if callback is not self]  # type: ignore[attr-defined]

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        name = type(self).__name__
        if trainer.max_epochs == 0 or trainer.max_steps == 0:
            raise ConfigurationError(f"{name} needs a length of training: max_epochs and max_steps must not be 0.")
        self.schedulers = [_scheduler_of(trainer, optimizer, name) for optimizer in trainer.optimizers]
        for scheduler in self.schedulers:
            if name in scheduler.factors:
                raise ConfigurationError(f"Two callbacks apply {name}; keep one.")
            scheduler.factors[name] = lambda step: 1.0  # the length of training is known in on_train_start only

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        length = TrainingLength.of(trainer)
        factor = self.make_factor(trainer, length)
        for scheduler in self.schedulers:
            if trainer.ckpt_path is None:
                scheduler.last_epoch = steps_done(trainer)  # not 0 when the same Trainer goes on with a second fit
            scheduler.factors[type(self).__name__] = lambda step: factor(progress_of(trainer, length, step))
            scheduler.refresh()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not pl_module.automatic_optimization:
            for scheduler in self.schedulers:
                if next(iter(scheduler.factors)) == type(self).__name__:
                    scheduler.step()


def _scheduler_of(trainer: Trainer, optimizer: Optimizer, name: str) -> FactorLR:
    for config in trainer.lr_scheduler_configs:
        if config.scheduler.optimizer is optimizer:
            if isinstance(config.scheduler, FactorLR):
                return config.scheduler
            raise ConfigurationError(
                f"{name} sets the learning rate, and so does {type(config.scheduler).__name__} from configure_optimizers. "
                f"Keep one: return only the optimizer there, or take {name} away."
            )
    scheduler = FactorLR(optimizer)
    label = "lr" if len(trainer.optimizers) == 1 else f"lr-{trainer.optimizers.index(optimizer)}"
    trainer.lr_scheduler_configs.append(LRSchedulerConfig(scheduler, interval="step", name=label))
    return scheduler
