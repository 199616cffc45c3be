"""Schedules that rise again."""

from __future__ import annotations

import math

from typing_extensions import Self

from lightning_cnnopt.core.errors import ConfigurationError, check_choice, check_range
from lightning_cnnopt.core.schedule import DurationLike, Schedule, TrainingLength, check_length, parse_duration
from lightning_cnnopt.learning_rate import functional
from lightning_cnnopt.learning_rate.functional import Anneal, CycleMode


class CosineRestarts(Schedule):
    """Half cosines from 1 to ``final``, one after another, each ``t_mult`` times as long as the one before.

    Equals torch's ``CosineAnnealingWarmRestarts``.

    Args:
        period: Length of the first cycle: a fraction of training, ``"10ep"``, ``"500st"``. With the defaults there are
            three, of a seventh, two and four sevenths of training, the last one complete.
        t_mult: How much longer each cycle is than the one before; 1 for equal ones.
        final: Factor at the end of each cycle.

    Reference:
        Loshchilov & Hutter, "SGDR", 2017.

    Example:
        >>> schedule = CosineRestarts(period=0.2, t_mult=2.0)
        >>> [round(schedule.factor(p), 6) for p in (0.0, 0.1, 0.2, 0.4, 0.6)]
        [1.0, 0.5, 1.0, 0.5, 1.0]
    """

    durations = ("period",)

    def __init__(self, period: DurationLike = 1 / 7, t_mult: float = 2.0, final: float = 0.0) -> None:
        check_length("CosineRestarts", "period", period)
        check_range("CosineRestarts", "t_mult", t_mult, 1)
        check_range("CosineRestarts", "final", final, 0)
        self.period = period
        self.t_mult = t_mult
        self.final = final

    def factor(self, progress: float) -> float:
        """Return the factor at ``progress``."""
        return functional.cosine_restarts(progress, self.fraction("period"), self.t_mult, self.final)


class _SingleCycle(Schedule):
    durations = ("pct_start",)
    _step = 0.0  # progress of one optimizer step, once the training is known

    def __init__(self, pct_start: DurationLike, anneal_strategy: Anneal, three_phase: bool) -> None:
        name = type(self).__name__
        amount, unit = parse_duration(pct_start, f"{name}: pct_start")
        check_choice(name, "anneal_strategy", anneal_strategy, ("cos", "linear"))
        self.pct_start = pct_start
        self.anneal_strategy: Anneal = anneal_strategy
        self.three_phase = three_phase
        if unit == "fraction":
            self._check_parts(amount)

    def bind(self, length: TrainingLength) -> Self:
        """Return this schedule for a training of ``length``; as torch's, it takes the last step at the end of the cycle."""
        bound = super().bind(length)
        self._check_parts(bound.fraction("pct_start"))
        bound._step = 0.0 if math.isinf(length.steps) else min(1.0, 1 / length.steps)
        return bound

    def _cycle(self, progress: float, initial: float, final: float) -> float:
        share = self.fraction("pct_start")
        return functional.one_cycle(progress, share, initial, final, self.anneal_strategy, self.three_phase, self._step)

    def _check_parts(self, share: float) -> None:
        if share > (0.5 if self.three_phase else 1.0):
            twice = " twice, with three_phase," if self.three_phase else ""
            raise ConfigurationError(
                f"{type(self).__name__}: pct_start={self.pct_start!r} is{twice} longer than the training it is a part of."
            )


class OneCycle(_SingleCycle):
    """One rise to the optimizer's own rate and a long fall to almost nothing.

    From 1 / ``div_factor`` to 1 over ``pct_start``, then to 1 / (``div_factor`` · ``final_div_factor``) at the last step.
    Equals torch's ``OneCycleLR`` with ``max_lr`` the optimizer's rate; the momentum that torch cycles with it is
    :class:`CounterCycle`, for ``ScheduleMomentum``.

    Args:
        pct_start: Length of the rise: a fraction of training, ``"5ep"``, ``"500st"``.
        div_factor: What the rate starts at is this many times smaller than its peak; ``inf`` to start from 0.
        final_div_factor: What it ends at is this many times smaller than what it started at.
        anneal_strategy: ``"cos"``, half cosines, or ``"linear"``, lines as in the paper.
        three_phase: Fall to the first rate as fast as it rose, and use the rest for the last fall, as in the paper.

    Raises:
        ConfigurationError: If the parts are longer than the training: with ``three_phase``, a ``pct_start`` over ½.

    Reference:
        Smith & Topin, "Super-Convergence", 2018.

    Example:
        >>> schedule = OneCycle(pct_start=0.25, div_factor=10.0, anneal_strategy="linear")
        >>> [round(schedule.factor(p), 6) for p in (0.0, 0.125, 0.25, 1.0)]
        [0.1, 0.55, 1.0, 1e-05]
    """

    def __init__(
        self,
        pct_start: DurationLike = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        anneal_strategy: Anneal = "cos",
        three_phase: bool = False,
    ) -> None:
        super().__init__(pct_start, anneal_strategy, three_phase)
        check_range("OneCycle", "div_factor", div_factor, 1, finite=False)
        check_range("OneCycle", "final_div_factor", final_div_factor, 0, low_open=True, finite=False)
        self.div_factor = div_factor
        self.final_div_factor = final_div_factor

    def factor(self, progress: float) -> float:
        """Return the factor at ``progress``."""
        initial = 1 / self.div_factor
        return self._cycle(progress, initial, initial / self.final_div_factor)


class CounterCycle(_SingleCycle):
    """The momentum that goes with :class:`OneCycle`: from 1 to ``low`` while the rate rises, and back while it falls.

    Equals the momentum of torch's ``OneCycleLR`` for ``ScheduleMomentum`` and an optimizer whose own momentum, or beta1, is
    torch's ``max_momentum``, 0.95; ``low`` is ``base_momentum`` / ``max_momentum``.

    Args:
        low: Factor where the rate has its peak.
        pct_start: As that of the :class:`OneCycle`.
        anneal_strategy: As that of the :class:`OneCycle`.
        three_phase: As that of the :class:`OneCycle`.

    Reference:
        Smith, "A Disciplined Approach to Neural Network Hyper-Parameters", 2018.

    Example:
        >>> schedule = CounterCycle(low=0.9, pct_start=0.25)
        >>> [round(schedule.factor(p), 6) for p in (0.0, 0.25, 1.0)]
        [1.0, 0.9, 1.0]
    """

    def __init__(
        self,
        low: float = 0.85 / 0.95,
        pct_start: DurationLike = 0.3,
        anneal_strategy: Anneal = "cos",
        three_phase: bool = False,
    ) -> None:
        check_range("CounterCycle", "low", low, 0, 1)
        super().__init__(pct_start, anneal_strategy, three_phase)
        self.low = low

    def factor(self, progress: float) -> float:
        """Return the factor at ``progress``."""
        return 1 - (1 - self.low) * self._cycle(progress, 0.0, 0.0)


class Cyclic(Schedule):
    """Triangles between ``low`` and the optimizer's own rate, over and over.

    Equals torch's ``CyclicLR`` with ``base_lr`` = ``low`` · ``max_lr`` and ``max_lr`` the optimizer's rate. For its momentum,
    give ``ScheduleMomentum`` the same triangles with ``low=0``, the lowest momentum as ``start`` and the highest as ``end``.

    Args:
        up: Duration of a rise: a fraction of training, ``"2ep"``, ``"500st"``. Five cycles in all by default.
        down: Duration of a fall; by default that of a rise.
        low: Factor at the bottom. A quarter, as Smith suggests.
        mode: ``"triangular"`` keeps the height, ``"triangular2"`` halves it after each cycle, ``"exp_range"`` lets it shrink
            at every step.
        gamma: What is left of the height after a cycle with ``"exp_range"``. torch's counts by step: its gamma to the power
            of the steps in a cycle.

    Reference:
        Smith, "Cyclical Learning Rates for Training Neural Networks", 2017.

    Example:
        >>> schedule = Cyclic(up=0.1, low=0.5, mode="triangular2")
        >>> [round(schedule.factor(p), 6) for p in (0.0, 0.1, 0.2, 0.3)]
        [0.5, 1.0, 0.5, 0.75]
    """

    durations = ("up", "down")

    def __init__(
        self,
        up: DurationLike = 0.1,
        down: DurationLike | None = None,
        low: float = 0.25,
        mode: CycleMode = "triangular",
        gamma: float = 0.5,
    ) -> None:
        check_length("Cyclic", "up", up)
        if down is not None:
            check_length("Cyclic", "down", down)
        check_range("Cyclic", "low", low, 0, 1)
        check_choice("Cyclic", "mode", mode, ("triangular", "triangular2", "exp_range"))
        check_range("Cyclic", "gamma", gamma, 0, 1, low_open=True)
        self.up = up
        self.down = down
        self.low = low
        self.mode: CycleMode = mode
        self.gamma = gamma

    def factor(self, progress: float) -> float:
        """Return the factor at ``progress``."""
        up = self.fraction("up")
        down = up if self.down is None else self.fraction("down")
        return functional.cyclic(progress, up, down, self.low, self.mode, self.gamma)
