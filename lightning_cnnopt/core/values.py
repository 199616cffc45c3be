"""Letting a schedule drive a quantity: the learning rate, or any other, through the one mechanism that is here."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from typing_extensions import override

from lightning_cnnopt.core.callback import TechniqueCallback
from lightning_cnnopt.core.errors import ConfigurationError, check_range
from lightning_cnnopt.core.schedule import Schedule, TrainingLength, progress_of, steps_done


class ScheduleCallback(TechniqueCallback):
    """Base of callbacks that follow a schedule: binds it to the training, shows it the validations, and keeps its state.

    Args:
        schedule: The schedule.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self._bound: Schedule | None = None
        self._restored: dict[str, Any] | None = None

    @abstractmethod
    def refresh(self, trainer: Trainer) -> None:
        """Apply the schedule once more, after a validation may have changed it."""

    def bind(self, trainer: Trainer, length: TrainingLength) -> Schedule:
        """Return the schedule, its durations turned into fractions of this training, with the state of a resumed run.

        Raises:
            ConfigurationError: If the schedule reacts to validations, and there are none.
        """
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
        return self._bound

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or self._bound is None or trainer.state.fn != TrainerFn.FITTING:
            return
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self._bound.observe(metrics, progress_of(trainer, self._length, steps_done(trainer)))
        self.refresh(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        return (self._bound or self.schedule).state_dict()

    @override
    def resume(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict


@dataclass(frozen=True)
class Driven:
    """One place that a schedule writes to.

    Args:
        base: Its value without the schedule.
        write: Writes a value.
    """

    base: float
    write: Callable[[float], None]


class ScheduleValue(ScheduleCallback):
    """Base of callbacks that let a schedule drive a quantity other than the learning rate.

    The value is written closed, as a function of progress, before the first batch of every optimizer step: the place's own
    value times the factor, or ``end + (start - end) · factor``, so that a schedule that falls from 1 to 0 goes from ``start``
    to ``end``. Subclasses say where the value stands.

    Args:
        schedule: The schedule.
        start: Value at the factor 1. Given together with ``end``, in place of the places' own values.
        end: Value at the factor 0.

    Raises:
        ConfigurationError: If only one of ``start`` and ``end`` is given, or a value is out of range.
    """

    quantity: ClassVar[str]
    """What is driven, for messages."""

    highest: ClassVar[float | None] = None
    """The least value that is too high; the lowest value is 0."""

    def __init__(self, schedule: Schedule, start: float | None = None, end: float | None = None) -> None:
        super().__init__(schedule)
        name = type(self).__name__
        for label, value in (("start", start), ("end", end)):
            if value is not None:
                check_range(name, label, value, 0, self.highest, high_open=True)
        if (start is None) != (end is None):
            raise ConfigurationError(f"{name}: start and end belong together; got start={start!r} and end={end!r}.")
        self.start = start
        self.end = end
        self._places: list[Driven] = []
        self._last_step = -1
        self._factor: float | None = None  # what was written last

    @abstractmethod
    def places(self, trainer: Trainer, pl_module: LightningModule) -> list[Driven]:
        """Return where the quantity stands. Called when training starts, also of a resumed run."""

    def values(self, factor: float) -> list[float]:
        """Return the value of each place at a factor of the schedule."""
        if self.start is not None and self.end is not None:
            return [self.end + (self.start - self.end) * factor] * len(self._places)
        return [place.base * factor for place in self._places]

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bind(trainer, TrainingLength.of(trainer))
        self._places = self.places(trainer, pl_module)
        if not self._places or (self.start is None and not any(place.base for place in self._places)):
            own = " that is not 0" if self._places else ""
            rank_zero_warn(f"{type(self).__name__} changes nothing: there is no {self.quantity}{own} in this training.")
        self._factor = None
        self.refresh(trainer)

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_step != self._last_step:  # not while gradients accumulate
            self.refresh(trainer)

    @override
    def refresh(self, trainer: Trainer) -> None:
        """Write the values of this step."""
        assert self._bound is not None
        self._last_step = trainer.global_step
        factor = self._bound.factor(progress_of(trainer, self._length, steps_done(trainer)))
        if factor == self._factor:
            return
        self._factor = factor
        values = self.values(factor)
        least, most = min(values, default=0.0), max(values, default=0.0)
        if least < 0 or (self.highest is not None and most >= self.highest):
            limit = "" if self.highest is None else f" and less than {self.highest:g}"
            raise ConfigurationError(
                f"{type(self).__name__}: {self.schedule!r} takes the {self.quantity} to {least if least < 0 else most:g} at "
                f"optimizer step {self._last_step}; expected at least 0{limit}."
            )
        for place, value in zip(self._places, values, strict=True):
            place.write(value)

    def restore(self) -> None:
        """Write the places' own values again."""
        for place in self._places:
            place.write(place.base)
        self._places = []


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
