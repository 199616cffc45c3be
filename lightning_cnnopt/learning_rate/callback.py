"""The schedule of the learning rate on any LightningModule."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from typing_extensions import override

from lightning_cnnopt.core.callback import TechniqueCallback
from lightning_cnnopt.core.schedule import FactorLR, Schedule, TrainingLength, multiply_rates, progress_of


class ScheduleLearningRate(TechniqueCallback):
    """Applies a schedule to the learning rate of any LightningModule, every optimizer step.

    Every group of every optimizer is multiplied, so the ratios between groups stay. Lightning steps the scheduler, saves
    and restores it, and ``LearningRateMonitor`` sees it. Under manual optimization, where Lightning steps no scheduler, it is
    stepped once a batch. On an :class:`~lightning_cnnopt.ImageClassifier` its argument ``schedule`` does the same.

    Under ``precision="16-mixed"`` a step that the gradient scaler skips still counts as progress.

    Args:
        schedule: The schedule; the factor 1 is the optimizer's own rate.

    Raises:
        ConfigurationError: If the LightningModule has a scheduler of its own, or training has no length.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_cnnopt.learning_rate import Cosine, Warmup
        >>> callback = ScheduleLearningRate(Warmup(Cosine(), duration="1ep"))
        >>> trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self._bound: Schedule | None = None
        self._schedulers: list[FactorLR] = []

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._schedulers = multiply_rates(trainer, type(self).__name__)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        length = TrainingLength.of(trainer)
        manual = not pl_module.automatic_optimization
        if manual:
            length = TrainingLength(
                length.steps * trainer.accumulate_grad_batches,
                length.steps_per_epoch * trainer.accumulate_grad_batches,
                length.seconds,
            )
        bound = self._bound = self.schedule.bind(length)
        for scheduler in self._schedulers:
            scheduler.factors[type(self).__name__] = lambda step: bound.factor(progress_of(trainer, length, step))
            scheduler.refresh()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not pl_module.automatic_optimization:
            for scheduler in self._schedulers:
                scheduler.step()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or self._bound is None:
            return
        self._bound.observe({name: float(value) for name, value in trainer.callback_metrics.items()})
        for scheduler in self._schedulers:
            scheduler.refresh()

    @override
    def state_dict(self) -> dict[str, Any]:
        return (self._bound or self.schedule).state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.schedule.load_state_dict(state_dict)
