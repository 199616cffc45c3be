"""The schedule of the learning rate on any LightningModule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.rates import RateCallback
from lightning_cnnopt.core.schedule import Schedule, TrainingLength, progress_of, steps_done


class ScheduleLearningRate(RateCallback):
    """Applies a schedule to the learning rate of any LightningModule, every optimizer step.

    Every group of every optimizer is multiplied, so the ratios between groups stay. Lightning steps the scheduler, saves
    and restores it, and ``LearningRateMonitor`` sees it. Under manual optimization, where Lightning steps no scheduler, it is
    stepped once a batch. On an :class:`~lightning_cnnopt.ImageClassifier` its argument ``schedule`` does the same.

    Under ``precision="16-mixed"`` a step that the gradient scaler skips still counts as progress.

    Args:
        schedule: The schedule; the factor 1 is the optimizer's own rate.

    Raises:
        ConfigurationError: If the LightningModule has a scheduler of its own, training has no length, or the schedule reacts
            to validations and there are none.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_cnnopt.learning_rate import Cosine, Warmup
        >>> callback = ScheduleLearningRate(Warmup(Cosine(), duration="1ep"))
        >>> trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)
    """

    single = True

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self._bound: Schedule | None = None
        self._restored: dict[str, Any] | None = None

    @override
    def make_factor(self, trainer: Trainer, length: TrainingLength) -> Callable[[float], float]:
        """Return the schedule, its durations turned into fractions of this training."""
        if self.schedule.reacts and (reason := _never_validates(trainer)) is not None:
            raise ConfigurationError(
                f"{self.schedule!r} reacts to validations, and this run has none ({reason}), so it would never act. Validate "
                "(val_size, limit_val_batches, check_val_every_n_epoch), or take a function of progress, such as Cosine."
            )
        self._length = length
        self._bound = self.schedule.bind(length)
        if self._restored is not None:
            self._bound.load_state_dict(self._restored)
            self._restored = None
        return self._bound.factor

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or self._bound is None or trainer.state.fn != TrainerFn.FITTING:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self._bound.observe(metrics, progress_of(trainer, self._length, steps_done(trainer)))
        for scheduler in self.schedulers:
            scheduler.refresh()

    @override
    def state_dict(self) -> dict[str, Any]:
        return (self._bound or self.schedule).state_dict()

    @override
    def resume(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict


def _never_validates(trainer: Trainer) -> str | None:
    epochs, every = trainer.max_epochs, trainer.check_val_every_n_epoch
    if trainer.limit_val_batches == 0:
        return "limit_val_batches=0"
    if not trainer.enable_validation:
        return "no validation data, or no validation_step"
    if trainer.val_dataloaders is not None and sum(trainer.num_val_batches) == 0:
        return "its validation data has no samples"
    if every is not None and epochs is not None and 0 <= epochs < every:
        return f"check_val_every_n_epoch={every}, max_epochs={epochs}"
    return None
