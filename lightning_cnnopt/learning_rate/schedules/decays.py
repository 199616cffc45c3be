"""Schedules that fall, in steps or smoothly, and the one that does nothing."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_cnnopt.core.errors import ConfigurationError, check_range
from lightning_cnnopt.core.schedule import DurationLike, Schedule, check_length, parse_duration
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


class Polynomial(Schedule):
    """A power of what is left of training: f = final + (1 - final) · (1 - progress) ** power. A line for power 1.

    Equals torch's ``PolynomialLR`` with ``total_iters`` the number of optimizer steps.

    Args:
        power: 1 is a line; 2 falls faster at first and flattens.
        final: Factor at the end.

    Example:
        >>> Polynomial().factor(0.25), Polynomial(power=2.0).factor(0.5)
        (0.75, 0.25)
    """

    def __init__(self, power: float = 1.0, final: float = 0.0) -> None:
        check_range("Polynomial", "power", power, 0, low_open=True)
        check_range("Polynomial", "final", final, 0)
        self.power = power
        self.final = final

    def factor(self, progress: float) -> float:
        """Return the factor at ``progress``."""
        return functional.polynomial(progress, self.power, self.final)


class Exponential(Schedule):
    """Falls smoothly, by ``gamma`` over every ``period``: f = gamma ** (progress / period).

    With ``period="1st"`` it equals torch's ``ExponentialLR``. torch's stepped once an epoch is a staircase: that is
    :class:`Step` with ``period="1ep"``.

    Args:
        gamma: Factor over a period. A hundredth over the whole training by default.
        period: A fraction of training, ``"1ep"``, ``"100st"``.

    Example:
        >>> round(Exponential(gamma=0.01).factor(0.5), 6)
        0.1
    """

    durations = ("period",)

    def __init__(self, gamma: float = 0.01, period: DurationLike = 1.0) -> None:
        check_range("Exponential", "gamma", gamma, 0, low_open=True)
        check_length("Exponential", "period", period)
        self.gamma = gamma
        self.period = period

    def factor(self, progress: float) -> float:
        """Return the factor at ``progress``."""
        return functional.exponential(progress, self.gamma, self.fraction("period"))


class InverseTime(Schedule):
    """Falls as one over time: f = (1 + gamma · progress / period) ** -power.

    Args:
        gamma: How fast; after one period the factor is (1 + gamma) ** -power. By default a tenth at the end of training.
        period: A fraction of training, ``"1ep"``, ``"100st"``.
        power: 1 is inverse time, the decay for which stochastic approximation has its proofs; ½ the inverse square root.

    Reference:
        Robbins & Monro, 1951; Bottou, "Stochastic Gradient Descent Tricks", 2012.

    Example:
        >>> InverseTime(gamma=1.0, period=0.25).factor(0.75)
        0.25
    """

    durations = ("period",)

    def __init__(self, gamma: float = 9.0, period: DurationLike = 1.0, power: float = 1.0) -> None:
        check_range("InverseTime", "gamma", gamma, 0)
        check_length("InverseTime", "period", period)
        check_range("InverseTime", "power", power, 0, low_open=True)
        self.gamma = gamma
        self.period = period
        self.power = power

    def factor(self, progress: float) -> float:
        """Return the factor at ``progress``."""
        return functional.inverse_time(progress, self.gamma, self.fraction("period"), self.power)


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
        check_length("Step", "period", period)
        check_range("Step", "gamma", gamma, 0, low_open=True)
        self.period = period
        self.gamma = gamma

    def factor(self, progress: float) -> float:
        """Return the factor at ``progress``."""
        return functional.step(progress, self.fraction("period"), self.gamma)


class MultiStep(Schedule):
    """Multiplies the rate by ``gamma`` at each of the ``milestones``.

    Equals torch's ``MultiStepLR``.

    Args:
        milestones: When: fractions of training, ``"60ep"``, ``"500st"``, from the start. At half and three quarters by
            default, as in "Deep Residual Learning" on CIFAR.
        gamma: Factor of each drop.

    Example:
        >>> MultiStep([0.5, 0.75], gamma=0.5).factor(0.8)
        0.25
    """

    durations = ("milestones",)

    def __init__(self, milestones: Sequence[DurationLike] = (0.5, 0.75), gamma: float = 0.1) -> None:
        if isinstance(milestones, str) or not list(milestones):
            raise ConfigurationError(f"MultiStep: milestones={milestones!r} must be a list of at least one duration.")
        for milestone in milestones:
            parse_duration(milestone, "MultiStep: milestones")
        check_range("MultiStep", "gamma", gamma, 0, low_open=True)
        self.milestones = list(milestones)
        self.gamma = gamma

    def factor(self, progress: float) -> float:
        """Return the factor at ``progress``."""
        return functional.multi_step(progress, self.fractions("milestones"), self.gamma)
