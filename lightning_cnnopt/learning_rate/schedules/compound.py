"""Schedules that are made of parts."""

from __future__ import annotations

from collections import abc
from itertools import pairwise
from typing import Any

from typing_extensions import Self

from lightning_cnnopt.core.errors import ConfigurationError, check_choice, check_range
from lightning_cnnopt.core.schedule import DurationLike, Schedule, TrainingLength, parse_duration
from lightning_cnnopt.learning_rate import functional
from lightning_cnnopt.learning_rate.functional import DecayShape


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
        >>> from lightning_cnnopt.learning_rate import Cosine
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

    @property
    def reacts(self) -> bool:
        """Whether the schedule behind does."""
        return self.schedule.reacts

    def bind(self, length: TrainingLength) -> Self:
        """Return this schedule with its durations as fractions; the inner one is bound to what is left."""
        bound = super().bind(length)
        duration = bound.fraction("duration")
        if duration >= 1:
            raise ConfigurationError(
                f"Warmup: duration={self.duration!r} takes all of the training; nothing is left for {self.schedule!r}."
            )
        bound.schedule = self.schedule.bind(length.part(1 - duration))
        return bound

    def factor(self, progress: float) -> float:
        """Return the factor at ``progress``."""
        duration = self.fraction("duration")
        line = functional.warmup(progress, duration, self.start)
        return line * self.schedule.factor(functional.within(progress, duration))

    def observe(self, metrics: dict[str, float], progress: float = 1.0) -> None:
        """Hand the metrics to the schedule behind, once the warmup is over."""
        duration = self.fraction("duration")
        if functional.part_at(progress, [duration]) == 1:
            self.schedule.observe(metrics, functional.within(progress, duration))

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the schedule behind."""
        return self.schedule.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Hand the state to the schedule behind."""
        self.schedule.load_state_dict(state)


class Sequence(Schedule):
    """Schedules after one another, each over its own part of training, as if that part were all of it.

    Equals torch's ``SequentialLR`` with the boundaries as milestones, where each schedule is made for the length of its part.

    Args:
        schedules: What follows on what.
        boundaries: Where the second and each later one begins, from the start of training: fractions, ``"5ep"``,
            ``"500st"``. One fewer than there are schedules.

    Raises:
        ConfigurationError: If there are not as many boundaries as parts need, or parts overlap, are empty, or lie outside of
            the training.

    Example:
        >>> from lightning_cnnopt.learning_rate import Constant, Polynomial
        >>> schedule = Sequence([Constant(), Polynomial()], boundaries=[0.5])
        >>> [schedule.factor(p) for p in (0.25, 0.5, 0.75)]
        [1.0, 1.0, 0.5]
    """

    durations = ("boundaries",)

    def __init__(self, schedules: abc.Sequence[Schedule], boundaries: abc.Sequence[DurationLike]) -> None:
        given = isinstance(boundaries, (list, tuple)) and isinstance(schedules, (list, tuple))
        if not given or len(schedules) < 2 or len(boundaries) != len(schedules) - 1:
            raise ConfigurationError(
                f"Sequence: boundaries={boundaries!r} has to hold one duration fewer than there are schedules, of which there "
                f"have to be at least two; got {len(schedules)}."
            )
        self.schedules = list(schedules)
        self.boundaries = list(boundaries)
        units = {parse_duration(boundary, "Sequence: boundaries")[1] for boundary in boundaries}
        if len(units) == 1:  # boundaries in different units can be compared in a training only
            amounts = [parse_duration(boundary)[0] for boundary in boundaries]
            self._check_order(amounts, whole=1.0 if units == {"fraction"} else None)

    @property
    def reacts(self) -> bool:
        """Whether one of its schedules does."""
        return any(schedule.reacts for schedule in self.schedules)

    def bind(self, length: TrainingLength) -> Self:
        """Return this sequence, each schedule bound to its part."""
        bound = super().bind(length)
        boundaries = bound.fractions("boundaries")
        self._check_order(boundaries, whole=1.0)
        edges = pairwise([0.0, *boundaries, 1.0])
        bound.schedules = [
            schedule.bind(length.part(end - begin)) for schedule, (begin, end) in zip(self.schedules, edges, strict=True)
        ]
        return bound

    def factor(self, progress: float) -> float:
        """Return the factor at ``progress``."""
        index, here = self._place(progress)
        return self.schedules[index].factor(here)

    def observe(self, metrics: dict[str, float], progress: float = 1.0) -> None:
        """Hand the metrics to the schedule whose part it is."""
        index, here = self._place(progress)
        self.schedules[index].observe(metrics, here)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the schedules that have one."""
        return {str(index): state for index, schedule in enumerate(self.schedules) if (state := schedule.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Hand each schedule its state."""
        for index, schedule in enumerate(self.schedules):
            schedule.load_state_dict(state.get(str(index), {}))

    def _place(self, progress: float) -> tuple[int, float]:
        boundaries = self.fractions("boundaries")
        index = functional.part_at(progress, boundaries)
        edges = [0.0, *boundaries, 1.0]
        return index, functional.within(progress, edges[index], edges[index + 1])

    def _check_order(self, amounts: abc.Sequence[float], whole: float | None) -> None:
        for index, (amount, before) in enumerate(zip(amounts, [0.0, *amounts], strict=False)):
            boundary = self.boundaries[index]
            if amount <= before:
                earlier = f"{self.boundaries[index - 1]!r}" if index else "the start of training"
                raise ConfigurationError(
                    f"Sequence: boundaries={self.boundaries!r}: {boundary!r} is not after {earlier}, so "
                    f"{self.schedules[index]!r} has no part of its own. Boundaries count from the start of training and grow."
                )
            if whole is not None and amount >= whole:
                raise ConfigurationError(
                    f"Sequence: boundaries={self.boundaries!r}: {boundary!r} is not before the end of training, so nothing is "
                    f"left for {self.schedules[index + 1]!r}."
                )


class Trapezoid(Schedule):
    """Warmup, the full rate, and a decay at the end: f rises, stays at 1, and falls to ``final``.

    The middle may be as long as you like, so a training can be prolonged from a checkpoint before its decay. A warmup and a
    decay that meet make a triangle.

    Args:
        warmup: Length of the rise: a fraction of training, ``"5ep"``, ``"500st"``; 0 for none.
        decay: Length of the fall.
        start: Factor at the very first step.
        final: Factor at the end.
        shape: Of the fall: ``"linear"``, ``"cosine"``, or ``"sqrt"``, 1 - √(share of the decay that is done).

    Raises:
        ConfigurationError: If warmup and decay overlap.

    Reference:
        Hägele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations", 2024.

    Example:
        >>> schedule = Trapezoid(warmup=0.1, decay=0.5, start=0.0)
        >>> [round(schedule.factor(p), 6) for p in (0.0, 0.05, 0.1, 0.5, 0.75, 1.0)]
        [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]
    """

    durations = ("warmup", "decay")

    def __init__(
        self,
        warmup: DurationLike = 0.05,
        decay: DurationLike = 0.2,
        start: float = 1e-3,
        final: float = 0.0,
        shape: DecayShape = "linear",
    ) -> None:
        kinds = [parse_duration(warmup, "Trapezoid: warmup"), parse_duration(decay, "Trapezoid: decay")]
        check_range("Trapezoid", "start", start, 0, 1)
        check_range("Trapezoid", "final", final, 0, 1)
        check_choice("Trapezoid", "shape", shape, ("linear", "cosine", "sqrt"))
        self.warmup = warmup
        self.decay = decay
        self.start = start
        self.final = final
        self.shape: DecayShape = shape
        if all(unit == "fraction" for _, unit in kinds):
            self._check_parts(*(amount for amount, _ in kinds))

    def bind(self, length: TrainingLength) -> Self:
        """Return this schedule with its durations as fractions."""
        bound = super().bind(length)
        self._check_parts(bound.fraction("warmup"), bound.fraction("decay"))
        return bound

    def factor(self, progress: float) -> float:
        """Return the factor at ``progress``."""
        parts = self.fraction("warmup"), self.fraction("decay")
        return functional.trapezoid(progress, *parts, self.start, self.final, self.shape)

    def _check_parts(self, warmup: float, decay: float) -> None:
        if warmup + decay > 1 + 1e-9:
            raise ConfigurationError(
                f"Trapezoid: warmup={self.warmup!r} and decay={self.decay!r} overlap; together they are longer than training."
            )
