from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.schedule import TrainingLength
from lightning_cnnopt.learning_rate import CosineRestarts, CounterCycle, Cyclic, OneCycle
from tests.learning_rate.oracles import RATE, TOTALS, our_values, torch_values

CYCLES = [
    {"pct_start": pct_start, "anneal_strategy": anneal, "three_phase": three_phase}
    for pct_start in (0.3, 0.45)
    for anneal in ("cos", "linear")
    for three_phase in (False, True)
]


@pytest.mark.parametrize("total", TOTALS)
@pytest.mark.parametrize(("first", "t_mult"), [(1, 1), (7, 1), (5, 2), (10, 3), (300, 2), (5000, 1)])
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine_restarts_are_torchs_warm_restarts(total, first, t_mult, final):
    def make(optimizer):
        return lr_scheduler.CosineAnnealingWarmRestarts(optimizer, first, t_mult, eta_min=RATE * final)

    ours = our_values(CosineRestarts(f"{first}st", t_mult, final), total)
    assert ours == pytest.approx(torch_values(make, total), rel=1e-9, abs=1e-12)


def test_the_default_restarts_end_with_a_whole_cycle():
    schedule = CosineRestarts()
    assert [round(schedule.factor(p), 9) for p in (0, 1 / 7, 3 / 7)] == [1, 1, 1]
    assert schedule.factor(1 - 1e-5) == pytest.approx(0, abs=1e-6)


@given(t_mult=st.floats(1, 4), period=st.floats(0.01, 1), progress=st.floats(0, 1))
def test_restarts_stay_between_their_ends(t_mult, period, progress):
    assert 0.1 <= CosineRestarts(period, t_mult, final=0.1).factor(progress) <= 1


@pytest.mark.parametrize("total", [1, 2, 5, 7, 100, 997])  # of 10 and 0.3 torch makes a part of 0 / 0
@pytest.mark.parametrize("arguments", CYCLES, ids=str)
@pytest.mark.parametrize(("div_factor", "final_div_factor"), [(25.0, 1e4), (10.0, 1.0)])
def test_one_cycle_is_torchs(total, arguments, div_factor, final_div_factor):
    def make(optimizer):
        return lr_scheduler.OneCycleLR(
            optimizer, RATE, total, div_factor=div_factor, final_div_factor=final_div_factor, **arguments
        )

    ours = our_values(OneCycle(div_factor=div_factor, final_div_factor=final_div_factor, **arguments), total)
    assert ours == pytest.approx(torch_values(make, total), rel=1e-9)


@pytest.mark.parametrize("total", [7, 100, 997])
@pytest.mark.parametrize("arguments", CYCLES, ids=str)
def test_the_counter_cycle_is_the_momentum_of_torchs_one_cycle(total, arguments):
    def make(optimizer):
        return lr_scheduler.OneCycleLR(optimizer, RATE, total, base_momentum=0.8, max_momentum=0.96, **arguments)

    ours = our_values(CounterCycle(low=0.8 / 0.96, **arguments), total, base=0.96)
    assert ours == pytest.approx(torch_values(make, total, "momentum"), rel=1e-9)


@pytest.mark.parametrize("total", [1, 3, 10, 1000])
@pytest.mark.parametrize("pct_start", ["1st", 0.1, "1ep", 1.0])
def test_one_cycle_has_its_peak_once_and_ends_at_the_least(total, pct_start):
    values = our_values(OneCycle(pct_start), total, base=1.0)
    assert max(values) <= 1
    assert values[-1] == min(values) or pct_start in (1.0, "1st", "1ep")
    assert all(math.isfinite(value) for value in values)


def test_a_cycle_whose_rise_is_the_first_step_begins_at_its_peak():
    assert our_values(OneCycle("1st"), 10, base=1.0)[0] == 1.0


def test_a_cycle_from_nothing():
    assert OneCycle(div_factor=math.inf).factor(0.0) == 0.0


@pytest.mark.parametrize("total", TOTALS)
@pytest.mark.parametrize(("up", "down"), [(10, None), (1, 1), (5, 15), (30, 7), (2000, None)])
@pytest.mark.parametrize("mode", ["triangular", "triangular2", "exp_range"])
def test_cyclic_is_torchs(total, up, down, mode):
    def make(optimizer):
        return lr_scheduler.CyclicLR(optimizer, 0.2 * RATE, RATE, up, down, mode, gamma=0.999)

    gamma = 0.999 ** (up + (down or up))
    schedule = Cyclic(f"{up}st", None if down is None else f"{down}st", 0.2, mode, gamma)
    assert our_values(schedule, total) == pytest.approx(torch_values(make, total), rel=1e-9)


def test_cyclic_from_zero_mirrors_torchs_momentum():
    def make(optimizer):
        return lr_scheduler.CyclicLR(optimizer, 0.2 * RATE, RATE, 10, 20, base_momentum=0.8, max_momentum=0.9)

    factors = our_values(Cyclic("10st", "20st", low=0.0), 100, base=1.0)
    assert [0.9 + (0.8 - 0.9) * factor for factor in factors] == pytest.approx(torch_values(make, 100, "momentum"), rel=1e-9)


@pytest.mark.parametrize("schedule", [OneCycle("60st", three_phase=True), CounterCycle(pct_start="11ep")], ids=repr)
def test_a_rise_longer_than_the_training_is_refused_when_that_is_known(schedule):
    with pytest.raises(ConfigurationError, match=r"pct_start='.*longer than the training"):
        schedule.bind(TrainingLength(100, 10))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: CosineRestarts("0ep"), "period='0ep' must be longer than nothing"),
        (lambda: CosineRestarts(t_mult=0.5), "t_mult=0.5"),
        (lambda: CosineRestarts(final=-0.1), "final=-0.1"),
        (lambda: OneCycle(3), "OneCycle: pct_start=3.*'3ep'"),
        (lambda: OneCycle(0.6, three_phase=True), "OneCycle: pct_start=0.6 is twice, with three_phase, longer"),
        (lambda: OneCycle(div_factor=0.5), "div_factor=0.5"),
        (lambda: OneCycle(final_div_factor=0), "final_div_factor=0"),
        (lambda: OneCycle(anneal_strategy="cosine"), "anneal_strategy='cosine' is unknown.*'cos'"),
        (lambda: CounterCycle(1.5), "low=1.5"),
        (lambda: CounterCycle(pct_start="1 epoch"), "CounterCycle: pct_start='1 epoch'"),
        (lambda: Cyclic(0.0), "up=0.0 must be longer than nothing"),
        (lambda: Cyclic(down="0st"), "down='0st' must be longer than nothing"),
        (lambda: Cyclic(low=2.0), "low=2.0"),
        (lambda: Cyclic(mode="triangle"), "mode='triangle' is unknown.*'triangular'"),
        (lambda: Cyclic(gamma=0.0), "gamma=0.0"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(make, name):
    with pytest.raises(ConfigurationError, match=name):
        make()
