"""Progress, durations, and the base class of a schedule.

A schedule is a function of progress in [0, 1] to a factor. That one decision makes it right under ``max_steps``,
``max_epochs``, accumulation and resume, and lets one schedule drive any quantity.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from typing_extensions import Self

from lightning_cnnopt.core.callback import callbacks_of
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.spec import Configurable

DurationLike: TypeAlias = "float | str"
"""A fraction of training (``0.3``), epochs (``"5ep"``), optimizer steps (``"500st"``) or time (``"10min"``)."""

_SECONDS = {"s": 1, "min": 60, "h": 3600}


@dataclass(frozen=True)
class TrainingLength:
    """How long a training is.

    Args:
        steps: Optimizer steps in all; ``inf`` when only time ends it.
        steps_per_epoch: Optimizer steps in an epoch; ``inf`` for data without a length.
        seconds: The limit of time, where there is one.
    """

    steps: float
    steps_per_epoch: float
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.steps <= 0:
            raise ConfigurationError(
                "Training has no optimizer steps (max_epochs=0, max_steps=0, or no training batches), so nothing that is a "
                "fraction of it can be placed. Give it a length of at least one step."
            )

    @classmethod
    def of(cls, trainer: Trainer) -> TrainingLength:
        """Return the length of a trainer's fit. Call it from ``on_train_start`` on; earlier, loaders lose their position.

        Raises:
            ConfigurationError: If training has no end, no step, or a length that can't be known.
        """
        try:
            steps = float(trainer.estimated_stepping_batches)
        except MisconfigurationException as error:
            raise ConfigurationError(f"The length of training can't be known: {error}") from error
        if steps == -1:  # what Lightning gives for data without a length
            steps = math.inf
        seconds = _time_limit(trainer)
        if math.isinf(steps) and seconds is None:
            raise ConfigurationError(
                "Training has no known end (max_epochs=-1, or data without a length), so no schedule fits it: "
                "set max_steps or max_time."
            )
        optimizers = _optimizers_per_step(trainer)
        if 0 < trainer.max_steps <= steps:
            steps = trainer.max_steps / optimizers
        per_epoch = trainer.num_training_batches / trainer.accumulate_grad_batches
        return cls(steps, math.ceil(per_epoch) if math.isfinite(per_epoch) else math.inf, seconds)

    def part(self, fraction: float) -> TrainingLength:
        """Return the length of a part that is ``fraction`` of this one."""
        seconds = None if self.seconds is None else self.seconds * fraction
        return TrainingLength(self.steps * fraction, self.steps_per_epoch, seconds)


def fraction_of(
    duration: DurationLike, length: TrainingLength | None = None, name: str = "duration", cut: bool = True
) -> float:
    """Return a duration as a fraction of training, at most 1.

    Args:
        duration: ``0.3``, ``"5ep"``, ``"500st"`` or ``"10min"`` (``s``, ``min``, ``h``).
        length: The training it is part of; needed for all but fractions.
        name: What the duration is called in an error.
        cut: Whether what is longer than the training counts as all of it. A slope, for one, must not become steeper by that.

    Raises:
        ConfigurationError: If it is none of these, negative, or needs a length that is not there.

    Example:
        >>> length = TrainingLength(steps=1000, steps_per_epoch=100)
        >>> fraction_of("3ep", length), fraction_of("50st", length), fraction_of(0.2)
        (0.3, 0.05, 0.2)
    """
    amount, unit = parse_duration(duration, name)
    if unit == "fraction":
        return amount
    if length is None:
        raise ConfigurationError(f"{name}={duration!r} needs the length of training: bind the schedule, or give a fraction.")
    if unit == "seconds":
        if length.seconds is None:
            raise ConfigurationError(
                f"{name}={duration!r} is a time, and training has no limit of time: set the Trainer's max_time."
            )
        share = amount / length.seconds
    elif math.isinf(length.steps):
        raise ConfigurationError(
            f"{name}={duration!r} counts steps, and only time ends this training: give a time or a fraction."
        )
    else:
        share = steps_of(duration, length, name) / length.steps
    return min(1.0, share) if cut else share


def steps_of(duration: DurationLike, length: TrainingLength, name: str = "duration") -> float:
    """Return a duration as optimizer steps; unlike a fraction, it may be longer than the training.

    Args:
        duration: ``0.3``, ``"5ep"`` or ``"500st"``.
        length: The training it is part of.
        name: What the duration is called in an error.

    Raises:
        ConfigurationError: If it can't be counted in steps.

    Example:
        >>> steps_of("20ep", TrainingLength(steps=1000, steps_per_epoch=100))
        2000.0
    """
    amount, unit = parse_duration(duration, name)
    if unit == "steps":
        return amount
    if unit == "epochs":
        if math.isinf(length.steps_per_epoch):
            raise ConfigurationError(f"{name}={duration!r} counts epochs, and the training data has no length: give steps.")
        return amount * length.steps_per_epoch
    if math.isinf(length.steps):
        raise ConfigurationError(f"{name}={duration!r} has no number of steps when only time ends the training: give steps.")
    return fraction_of(duration, length, name) * length.steps


def parse_duration(
    duration: DurationLike, name: str = "duration"
) -> tuple[float, Literal["fraction", "epochs", "steps", "seconds"]]:
    """Return the amount and the unit of a duration.

    Raises:
        ConfigurationError: If it is no duration.

    Example:
        >>> parse_duration("1.5h")
        (5400.0, 'seconds')
    """
    if isinstance(duration, (int, float)) and not isinstance(duration, bool):
        if 0 <= duration <= 1:
            return float(duration), "fraction"
        raise ConfigurationError(
            f"{name}={duration!r} is no fraction of training (0 to 1); write {duration:g} epochs as '{duration:g}ep' and "
            f"{duration:g} steps as '{duration:g}st'."
        )
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(ep|st|s|min|h)\s*", str(duration))
    if not match:
        raise ConfigurationError(
            f"{name}={duration!r} is no duration; expected a fraction (0.3), '5ep', '500st', '90s', '10min' or '2h'."
        )
    amount, unit = float(match[1]), match[2]
    if unit == "ep":
        return amount, "epochs"
    if unit == "st":
        return amount, "steps"
    return amount * _SECONDS[unit], "seconds"


def check_length(owner: str, name: str, duration: DurationLike) -> None:
    """Raise unless ``duration`` is a duration, and longer than nothing.

    Args:
        owner: The class whose argument it is.
        name: The argument.
        duration: What was given.

    Raises:
        ConfigurationError: If it is not.

    Example:
        >>> check_length("Step", "period", "0ep")
        Traceback (most recent call last):
        ...
        lightning_cnnopt.core.errors.ConfigurationError: Step: period='0ep' must be longer than nothing.
    """
    if parse_duration(duration, f"{owner}: {name}")[0] <= 0:
        raise ConfigurationError(f"{owner}: {name}={duration!r} must be longer than nothing.")


class Schedule(Configurable, ABC):
    """Base of schedules: a function of progress to a factor.

    Subclasses keep their arguments under their names, list those that are durations, or lists of them, in
    :attr:`durations`, and implement :meth:`factor`, where :meth:`fraction` reads one.
    """

    durations: ClassVar[tuple[str, ...]] = ()

    @property
    def reacts(self) -> bool:
        """Whether it needs the metrics of validations, by default if it has an :meth:`observe` of its own."""
        return type(self).observe is not Schedule.observe

    @abstractmethod
    def factor(self, progress: float) -> float:
        """Return the factor at ``progress`` in [0, 1]."""

    def bind(self, length: TrainingLength) -> Self:
        """Return this schedule with every duration turned into a fraction of ``length``, above 1 where it is longer."""
        bound = type(self)(**{name: getattr(self, name) for name in self.init_args()})
        for name in self.durations:
            value, label = getattr(self, name), f"{type(self).__name__}: {name}"
            if isinstance(value, (list, tuple)):
                setattr(bound, name, [fraction_of(item, length, label, cut=False) for item in value])
            elif value is not None:
                setattr(bound, name, fraction_of(value, length, label, cut=False))
        return bound

    def fraction(self, name: str) -> float:
        """Return the duration in attribute ``name`` as a fraction of training.

        Raises:
            ConfigurationError: If it is epochs, steps or time, and :meth:`bind` was not called.
        """
        return self.fractions(name)[0]

    def fractions(self, name: str) -> list[float]:
        """Return the durations in attribute ``name``, one or a list of them, as fractions of training.

        Raises:
            ConfigurationError: As :meth:`fraction` does.
        """
        value = getattr(self, name)
        durations = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(item, str) for item in durations):
            raise ConfigurationError(
                f"{self!r}: {name}={value!r} needs the length of training; call bind(TrainingLength(…)) first."
            )
        return list(durations)

    def observe(self, metrics: dict[str, float], progress: float = 1.0) -> None:
        """Take in the metrics of a validation at ``progress``. Only schedules that react to them do anything."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a schedule that reacts to metrics has learnt; empty for pure ones."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`."""


def progress_of(trainer: Trainer, length: TrainingLength, step: int) -> float:
    """Return how much of training is done at optimizer step ``step``: of its steps or of its time, whichever is further."""
    progress = min(1.0, step / length.steps)
    if length.seconds is not None:
        progress = max(progress, *(min(1.0, timer.time_elapsed() / length.seconds) for timer in _timers(trainer)))
    return progress


def steps_done(trainer: Trainer) -> int:
    """Return the optimizer steps so far; under manual optimization with several optimizers, those of one of them."""
    return trainer.global_step // _optimizers_per_step(trainer)


def _optimizers_per_step(trainer: Trainer) -> int:
    # under manual optimization Lightning's global_step counts the steps of every optimizer
    return 1 if trainer.lightning_module.automatic_optimization else max(1, len(trainer.optimizers))


def _timers(trainer: Trainer) -> list[Timer]:
    return [callback for callback in callbacks_of(trainer) if isinstance(callback, Timer)]


def _time_limit(trainer: Trainer) -> float | None:
    limits = [
        timer.time_elapsed() + remaining for timer in _timers(trainer) if (remaining := timer.time_remaining()) is not None
    ]
    return min(limits, default=None)
