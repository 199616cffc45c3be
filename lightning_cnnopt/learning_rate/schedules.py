"""Schedules by name. Each is a function of progress in [0, 1] to a factor of the optimizer's own rate."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_cnnopt.core.errors import ConfigurationError, check_choice, check_range
from lightning_cnnopt.core.schedule import DurationLike, Schedule, TrainingLength, parse_duration
from lightning_cnnopt.learning_rate import functional


class Constant(Schedule):
    """The factor 1: the optimizer's own rate.

    Example:
        >>> Constant().factor(0.7)
        1.0
    """

    def __init__(self) -> None:
        pass

    def factor(self, progress: float) -> float:
        """Return 1."""
        return 1.0


class Cosine(Schedule):
    """Half a cosine from 1 to ``final``: f = final + (1 - final) · ½ (1 + cos(π · progress)).

    Equals torch's ``CosineAnnealingLR`` with ``T_max`` the number of optimizer steps.

    Args:
        final: Factor at the end. 0, as in the paper.

    Reference:
        Loshchilov & Hutter, "SGDR", 2017.

    Example:
        >>> Cosine().factor(0.5)
        0.5
    """

    def __init__(self, final: float = 0.0) -> None:
        check_range("Cosine", "final", final, 0)
        self.final = final

    def factor(self, progress: float) -> float:
        """Return the factor at ``progress``."""
        return functional.cosine(progress, self.final)


class Step(Schedule):
    """Multiplies the rate by ``gamma`` after every ``period``: f = gamma ** floor(progress / period).

    Equals torch's ``StepLR``.

    Args:
        period: Duration between two drops: a fraction of training, ``"10ep"``, ``"500st"``.
        gamma: Factor of each drop.

    Example:
        >>> Step(period=0.25, gamma=0.5).factor(0.6)
        0.25
    """

    durations = ("period",)

    def __init__(self, period: DurationLike = 1 / 3, gamma: float = 0.1) -> None:
        if parse_duration(period, "Step: period")[0] <= 0:
            raise ConfigurationError(f"Step: period={period!r} must be longer than nothing.")
        check_range("Step", "gamma", gamma, 0, low_open=True)
        self.period = period
        self.gamma = gamma

    def factor(self, progress: float) -> float:
        """Return the factor at ``progress``."""
        return functional.step(progress, _bound(self, "period"), self.gamma)


class Warmup(Schedule):
    """A line from ``start`` to 1 over ``duration``, in front of any schedule.

    The schedule behind it starts when the warmup ends, and its fractions are fractions of what is left.

    Args:
        schedule: What follows.
        duration: Length of the warmup: a fraction of training, ``"5ep"``, ``"500st"``.
        start: Factor at the very first step. 0 makes that step a step of rate 0; 1e-3 is as good and wastes none.

    Reference:
        Goyal et al., "Accurate, Large Minibatch SGD", 2017.

    Example:
        >>> schedule = Warmup(Cosine(), duration=0.1, start=0.0)
        >>> [round(schedule.factor(p), 6) for p in (0.0, 0.05, 0.1, 0.55, 1.0)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """

    durations = ("duration",)

    def __init__(self, schedule: Schedule, duration: DurationLike = 0.05, start: float = 1e-3) -> None:
        parse_duration(duration, "Warmup: duration")
        check_range("Warmup", "start", start, 0, 1)
        self.schedule = schedule
        self.duration = duration
        self.start = start

    def bind(self, length: TrainingLength) -> Warmup:
        """Return this schedule with its durations as fractions; the inner one is bound to what is left."""
        bound = super().bind(length)
        assert isinstance(bound, Warmup)
        if float(bound.duration) >= 1:
            raise ConfigurationError(
                f"Warmup: duration={self.duration!r} takes all of the training; nothing is left for {self.schedule!r}."
            )
        bound.schedule = self.schedule.bind(length.after(float(bound.duration)))
        return bound

    def factor(self, progress: float) -> float:
        """Return the factor at ``progress``."""
        duration = _bound(self, "duration")
        line = functional.warmup(progress, duration, self.start)
        return line * self.schedule.factor(functional.rest(progress, duration))

    def observe(self, metrics: dict[str, float]) -> None:
        """Hand the metrics to the schedule behind."""
        self.schedule.observe(metrics)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the schedule behind."""
        return self.schedule.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Hand the state to the schedule behind."""
        self.schedule.load_state_dict(state)


class Plateau(Schedule):
    """Multiplies the rate by ``gamma`` when a metric has stopped improving. The one schedule that keeps state.

    torch's ``ReduceLROnPlateau`` makes the decision, after each validation.

    Args:
        monitor: Name of a logged metric.
        mode: ``"min"`` for a loss, ``"max"`` for an accuracy.
        gamma: Factor of each drop.
        patience: Validations without improvement that are tolerated.
        threshold: Relative change that counts as an improvement.
        cooldown: Validations after a drop that are not counted.
        minimum: Least factor.

    Example:
        >>> schedule = Plateau("val_loss", patience=0, gamma=0.5)
        >>> for loss in (1.0, 1.0, 1.0):
        ...     schedule.observe({"val_loss": loss})
        >>> schedule.factor(0.5)
        0.25
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        mode: Literal["min", "max"] = "min",
        gamma: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        cooldown: int = 0,
        minimum: float = 0.0,
    ) -> None:
        check_choice("Plateau", "mode", mode, ("min", "max"))
        check_range("Plateau", "gamma", gamma, 0, 1, low_open=True, high_open=True)
        check_range("Plateau", "patience", patience, 0)
        check_range("Plateau", "cooldown", cooldown, 0)
        check_range("Plateau", "threshold", threshold, 0)
        check_range("Plateau", "minimum", minimum, 0, 1)
        self.monitor = monitor
        self.mode = mode
        self.gamma = gamma
        self.patience = patience
        self.threshold = threshold
        self.cooldown = cooldown
        self.minimum = minimum
        # torch's scheduler works on an optimizer; one with a single group of rate 1 turns its rate into the factor
        self._optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        self._scheduler = ReduceLROnPlateau(
            self._optimizer, mode, gamma, patience, threshold, cooldown=cooldown, min_lr=minimum, eps=0.0
        )

    def factor(self, progress: float) -> float:
        """Return the product of the drops so far."""
        return float(self._optimizer.param_groups[0]["lr"])

    def observe(self, metrics: dict[str, float]) -> None:
        """Count an improvement, or the lack of one.

        Raises:
            ConfigurationError: If the monitored metric is not there.
        """
        if self.monitor not in metrics:
            raise ConfigurationError(
                f"Plateau: monitor={self.monitor!r} was not logged in validation; there are {sorted(metrics)}."
            )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            self._scheduler.step(metrics[self.monitor])

    def state_dict(self) -> dict[str, Any]:
        """Return the factor and torch's counters."""
        names: tuple[str, ...] = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")
        return {"factor": self.factor(0.0), **{name: getattr(self._scheduler, name) for name in names}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`."""
        if state:
            self._optimizer.param_groups[0]["lr"] = state["factor"]
            for name in set(state) - {"factor"}:
                setattr(self._scheduler, name, state[name])


def _bound(schedule: Schedule, name: str) -> float:
    value = getattr(schedule, name)
    amount, unit = parse_duration(value, f"{type(schedule).__name__}: {name}")
    if unit != "fraction":
        raise ConfigurationError(
            f"{schedule!r}: {name}={value!r} needs the length of training; call bind(TrainingLength(…)) first."
        )
    return amount
