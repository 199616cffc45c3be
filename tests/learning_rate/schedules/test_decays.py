from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.schedule import TrainingLength
from lightning_cnnopt.learning_rate import Constant, Cosine, Exponential, InverseTime, MultiStep, Polynomial, Step
from tests.learning_rate.oracles import RATE, TOTALS, our_values, torch_values


@pytest.mark.parametrize("total", TOTALS)
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine_is_torchs_cosine_annealing_over_all_steps(total, final):
    expected = torch_values(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=total, eta_min=RATE * final), total)
    # torch's multiplies from step to step and so gathers rounding errors
    assert our_values(Cosine(final), total) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("total", TOTALS)
@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_polynomial_is_torchs(total, power):
    expected = torch_values(lambda o: lr_scheduler.PolynomialLR(o, total_iters=total, power=power), total)
    assert our_values(Polynomial(power), total) == pytest.approx(expected, rel=1e-9)


@given(progress=st.floats(0, 1), final=st.floats(0, 2))
def test_polynomial_of_power_one_is_the_line_to_its_final_value(progress, final):
    assert Polynomial(final=final).factor(progress) == pytest.approx(1 + (final - 1) * progress)


@pytest.mark.parametrize("total", TOTALS)
@pytest.mark.parametrize("gamma", [0.97, 0.999, 1.001])
def test_exponential_over_single_steps_is_torchs(total, gamma):
    expected = torch_values(lambda o: lr_scheduler.ExponentialLR(o, gamma), total)
    assert our_values(Exponential(gamma, "1st"), total) == pytest.approx(expected, rel=1e-9)


@given(gamma=st.floats(1e-4, 2), period=st.floats(0.01, 1), progress=st.floats(0, 1))
def test_exponential_loses_its_factor_over_every_period(gamma, period, progress):
    schedule = Exponential(gamma, period)
    assert schedule.factor(0.0) == 1
    assert schedule.factor(progress + period) == pytest.approx(gamma * schedule.factor(progress), rel=1e-9)


@pytest.mark.parametrize("total", TOTALS)
@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_inverse_time_is_one_over_time(total, power):
    schedule = InverseTime(gamma=0.5, period="3st", power=power)
    formula = torch_values(lambda o: lr_scheduler.LambdaLR(o, lambda step: (1 + 0.5 * step / 3) ** -power), total)
    assert our_values(schedule, total) == pytest.approx(formula, rel=1e-9)


@pytest.mark.parametrize("total", TOTALS)
@pytest.mark.parametrize("period", [1, 3, 10, 30, 250, 2000])
@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.01])
def test_step_is_torchs_at_every_step(total, period, gamma):
    expected = torch_values(lambda o: lr_scheduler.StepLR(o, period, gamma), total)
    assert our_values(Step(f"{period}st", gamma), total) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("total", TOTALS)
@pytest.mark.parametrize("milestones", [[1], [3, 30], [30, 3], [10, 60, 90, 2000], [5, 5]])
def test_multi_step_is_torchs_at_every_step(total, milestones):
    expected = torch_values(lambda o: lr_scheduler.MultiStepLR(o, milestones, 0.3), total)
    ours = our_values(MultiStep([f"{milestone}st" for milestone in milestones], 0.3), total)
    assert ours == pytest.approx(expected, rel=1e-9)


def test_milestones_of_all_units_are_counted_from_the_start():
    bound = MultiStep(["60st", 0.8, "2ep"], 0.1).bind(TrainingLength(100, 10))
    factors = [bound.factor(step / 100) for step in range(100)]
    assert [step for step in range(1, 100) if not math.isclose(factors[step], factors[step - 1])] == [20, 60, 80]


def test_the_fixed_rate_is_fixed():
    assert our_values(Constant(), 50) == [RATE] * 50


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Cosine(-0.1), "final=-0.1"),
        (lambda: Polynomial(0.0), "power=0.0"),
        (lambda: Polynomial(final=-1), "final=-1"),
        (lambda: Exponential(0.0), "gamma=0.0"),
        (lambda: Exponential(0.5, "0st"), "period='0st' must be longer than nothing"),
        (lambda: InverseTime(-1.0), "gamma=-1.0"),
        (lambda: InverseTime(period=0.0), "period=0.0"),
        (lambda: InverseTime(power=0), "power=0"),
        (lambda: Step("0st"), "period='0st' must be longer than nothing"),
        (lambda: Step(0.5, 0.0), "gamma=0.0"),
        (lambda: Step("five"), "period='five'"),
        (lambda: MultiStep([]), r"milestones=\[\] must be a list"),
        (lambda: MultiStep("30ep"), "milestones='30ep' must be a list"),
        (lambda: MultiStep([30, 60]), "MultiStep: milestones=30.*'30ep'"),
        (lambda: MultiStep([0.5], gamma=-0.1), "gamma=-0.1"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(make, name):
    with pytest.raises(ConfigurationError, match=name):
        make()
