from __future__ import annotations

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler as torch_schedulers

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.schedule import Schedule, TrainingLength
from lightning_cnnopt.core.spec import build, to_spec
from lightning_cnnopt.learning_rate import Constant, Cosine, Plateau, Step, Warmup

TOTALS = [1, 7, 10, 100, 997]
PURE = [Constant(), Cosine(), Cosine(0.1), Step(0.25, 0.5), Warmup(Cosine(), 0.1), Warmup(Step(0.3, 0.1), 0.2, 0.0)]


def optimizer_of_rate(rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1)], lr=rate)


def torch_rates(optimizer: torch.optim.Optimizer, scheduler: torch_schedulers.LRScheduler, total: int) -> list[float]:
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def our_rates(schedule: Schedule, rate: float, total: int) -> list[float]:
    bound = schedule.bind(TrainingLength(total, max(1, total // 10)))
    return [rate * bound.factor(step / total) for step in range(total)]


@pytest.mark.parametrize("total", TOTALS)
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_cosine_is_torchs_cosine_annealing_over_all_steps(total, final):
    optimizer = optimizer_of_rate(0.3)
    scheduler = torch_schedulers.CosineAnnealingLR(optimizer, T_max=total, eta_min=0.3 * final)
    expected = torch_rates(optimizer, scheduler, total)
    assert our_rates(Cosine(final), 0.3, total) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("total", TOTALS)
@pytest.mark.parametrize("period", [1, 3, 10, 30, 250, 2000])
@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.5])
def test_step_is_torchs_step_at_every_step(total, period, gamma):
    if gamma ** (total / period) > 1e100:
        gamma = 0.99
    optimizer = optimizer_of_rate(0.3)
    expected = torch_rates(optimizer, torch_schedulers.StepLR(optimizer, period, gamma), total)
    assert our_rates(Step(f"{period}st", gamma), 0.3, total) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("total", [7, 10, 100, 997])
@pytest.mark.parametrize("warm", [1, 3, 5])
@pytest.mark.parametrize("start", [1e-3, 0.5, 1.0])
def test_warmup_in_front_of_cosine_is_torchs_linear_then_cosine(total, warm, start):
    optimizer = optimizer_of_rate(0.3)
    parts = [
        torch_schedulers.LinearLR(optimizer, start_factor=start, total_iters=warm),
        torch_schedulers.CosineAnnealingLR(optimizer, T_max=total - warm),
    ]
    expected = torch_rates(optimizer, torch_schedulers.SequentialLR(optimizer, parts, [warm]), total)
    ours = our_rates(Warmup(Cosine(), f"{warm}st", start), 0.3, total)
    assert ours == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("total", [10, 100, 997])
def test_warmup_in_front_of_step_counts_the_periods_from_its_end(total):
    optimizer = optimizer_of_rate(0.3)
    parts = [
        torch_schedulers.LinearLR(optimizer, start_factor=0.2, total_iters=4),
        torch_schedulers.StepLR(optimizer, 3, 0.9),
    ]
    expected = torch_rates(optimizer, torch_schedulers.SequentialLR(optimizer, parts, [4]), total)
    assert our_rates(Warmup(Step("3st", 0.9), "4st", 0.2), 0.3, total) == pytest.approx(expected, rel=1e-6)


@given(progress=st.floats(0, 1), duration=st.floats(0.01, 0.99), start=st.floats(0, 1))
def test_warmup_is_a_line_from_start_to_one_and_then_what_is_behind_it(progress, duration, start):
    factor = Warmup(Cosine(), duration, start).factor(progress)
    if progress < duration:
        assert factor == pytest.approx(start + (1 - start) * progress / duration, abs=1e-6)
    else:
        assert factor == pytest.approx(0.5 * (1 + math.cos(math.pi * (progress - duration) / (1 - duration))), abs=1e-6)


def test_a_warmup_of_nothing_changes_nothing():
    points = [i / 20 for i in range(21)]
    assert [Warmup(Cosine(), 0.0).factor(p) for p in points] == [Cosine().factor(p) for p in points]


def test_warmups_nest():
    bound = Warmup(Warmup(Constant(), "10st", 0.5), "10st", 0.0).bind(TrainingLength(100, 10))
    assert [bound.factor(step / 100) for step in (0, 5, 10, 15, 20, 99)] == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])


@pytest.mark.parametrize("duration", ["5ep", "50st", "900st", 1.0])
def test_a_warmup_as_long_as_the_training_is_refused(duration):
    with pytest.raises(ConfigurationError, match="takes all of the training"):
        Warmup(Cosine(), duration).bind(TrainingLength(50, 10))


@pytest.mark.parametrize("schedule", PURE, ids=repr)
def test_a_schedule_is_a_pure_function_of_progress(schedule):
    points = [i / 97 for i in range(98)]
    expected = {p: schedule.factor(p) for p in points}
    random.Random(0).shuffle(points)
    assert {p: schedule.factor(p) for p in points} == expected
    assert schedule.state_dict() == {}
    schedule.observe({"val_loss": 1.0})
    assert all(schedule.factor(p) == expected[p] for p in points)


@pytest.mark.parametrize("schedule", [*PURE, Plateau("val_acc", "max"), Warmup(Plateau(), "2ep")], ids=repr)
def test_a_schedule_is_rebuilt_from_its_spec(schedule):
    assert build(to_spec(schedule), Schedule) == schedule


@pytest.mark.parametrize("schedule", [Step("5ep"), Warmup(Cosine(), "500st")])
def test_a_duration_that_is_no_fraction_needs_binding(schedule):
    with pytest.raises(ConfigurationError, match="bind"):
        schedule.factor(0.5)


def test_binding_leaves_the_schedule_itself_as_it_was():
    schedule = Warmup(Step("3ep"), "1ep")
    before = to_spec(schedule)
    schedule.bind(TrainingLength(100, 10))
    assert to_spec(schedule) == before


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Cosine(-0.1), "final"),
        (lambda: Step("0st"), "period"),
        (lambda: Step(0.5, 0.0), "gamma"),
        (lambda: Step("five"), "period"),
        (lambda: Warmup(Cosine(), "1 epoch"), "duration"),
        (lambda: Warmup(Cosine(), 0.1, 2.0), "start"),
        (lambda: Plateau(mode="lower"), "mode"),
        (lambda: Plateau(gamma=1.0), "gamma"),
        (lambda: Plateau(patience=-1), "patience"),
        (lambda: Plateau(minimum=2.0), "minimum"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(make, name):
    with pytest.raises(ConfigurationError, match=name):
        make()


@settings(max_examples=60, deadline=None)
@given(
    metrics=st.lists(st.floats(-10, 10, allow_nan=False), min_size=1, max_size=25),
    mode=st.sampled_from(["min", "max"]),
    gamma=st.sampled_from([0.1, 0.5, 0.9]),
    patience=st.integers(0, 4),
    threshold=st.sampled_from([0.0, 1e-4, 0.2]),
    cooldown=st.integers(0, 3),
    minimum=st.sampled_from([0.0, 0.01]),
    cut=st.integers(0, 25),
)
def test_plateau_is_torchs_on_any_metrics_and_continues_from_its_state(
    metrics, mode, gamma, patience, threshold, cooldown, minimum, cut
):
    optimizer = optimizer_of_rate(1.0)
    oracle = torch_schedulers.ReduceLROnPlateau(
        optimizer, mode, gamma, patience, threshold, cooldown=cooldown, min_lr=minimum, eps=0.0
    )
    arguments = ("val", mode, gamma, patience, threshold, cooldown, minimum)
    schedule = Plateau(*arguments)
    for index, metric in enumerate(metrics):
        if index == cut:
            state = schedule.state_dict()
            schedule = Plateau(*arguments)
            schedule.load_state_dict(state)
        schedule.observe({"val": metric, "other": -metric})
        oracle.step(metric)
        assert schedule.factor(random.random()) == optimizer.param_groups[0]["lr"]


def test_plateau_names_the_metric_that_was_not_logged():
    with pytest.raises(ConfigurationError, match=r"monitor='val_los'.*\['val_loss'\]"):
        Plateau("val_los").observe({"val_loss": 1.0})


def test_plateau_behind_a_warmup_is_driven_and_saved_through_it():
    schedule = Warmup(Plateau("m", gamma=0.5, patience=0), 0.5, start=0.0)
    for _ in range(3):
        schedule.observe({"m": 1.0})
    assert [schedule.factor(p) for p in (0.25, 0.75)] == [0.125, 0.25]
    again = Warmup(Plateau("m", gamma=0.5, patience=0), 0.5, start=0.0)
    again.load_state_dict(schedule.state_dict())
    assert again.factor(0.75) == 0.25
    assert again.bind(TrainingLength(100, 10)).factor(0.75) == 1.0  # bound to a training of its own, it starts anew
