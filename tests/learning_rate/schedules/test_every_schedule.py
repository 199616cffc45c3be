from __future__ import annotations

import random

import pytest

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.schedule import Schedule, TrainingLength
from lightning_cnnopt.core.spec import build, to_spec
from lightning_cnnopt.learning_rate import (
    Constant,
    Cosine,
    CosineRestarts,
    CounterCycle,
    Cyclic,
    Exponential,
    InverseTime,
    MultiStep,
    OneCycle,
    Plateau,
    Polynomial,
    Sequence,
    Step,
    Trapezoid,
    Warmup,
)

PURE = [
    Constant(),
    Cosine(),
    Cosine(0.1),
    Polynomial(2.0, 0.1),
    Exponential(),
    InverseTime(),
    Step(0.25, 0.5),
    MultiStep(),
    CosineRestarts(),
    OneCycle(),
    CounterCycle(),
    Cyclic(mode="exp_range"),
    Trapezoid(),
    Warmup(Cosine(), 0.1),
    Warmup(Step(0.3, 0.1), 0.2, 0.0),
    Sequence([Warmup(Constant()), Cosine()], [0.5]),
]
TIMED = [
    Step("5ep"),
    MultiStep(["3ep", 0.5]),
    Exponential(0.9, "1ep"),
    InverseTime(1.0, "1ep"),
    CosineRestarts("2ep"),
    OneCycle("2ep"),
    CounterCycle(pct_start="20st"),
    Cyclic("1ep", "2ep"),
    Trapezoid("1ep", "20st"),
    Warmup(Cosine(), "50st"),
    Sequence([Constant(), Cosine()], ["3ep"]),
]


@pytest.mark.parametrize("schedule", PURE, ids=repr)
def test_a_schedule_is_a_pure_function_of_progress(schedule):
    points = [i / 97 for i in range(98)]
    expected = {p: schedule.factor(p) for p in points}
    random.Random(0).shuffle(points)
    assert {p: schedule.factor(p) for p in points} == expected
    assert schedule.state_dict() == {}
    schedule.observe({"val_loss": 1.0})
    assert all(schedule.factor(p) == expected[p] for p in points)


@pytest.mark.parametrize("schedule", [*PURE, *TIMED, Plateau("val_acc", "max"), Warmup(Plateau(), "2ep")], ids=repr)
def test_a_schedule_is_rebuilt_from_its_spec(schedule):
    assert build(to_spec(schedule), Schedule) == schedule


@pytest.mark.parametrize("schedule", TIMED, ids=repr)
def test_a_duration_that_is_no_fraction_needs_binding(schedule):
    with pytest.raises(ConfigurationError, match="bind"):
        schedule.factor(0.9)


@pytest.mark.parametrize("schedule", TIMED, ids=repr)
def test_binding_leaves_the_schedule_itself_as_it_was(schedule):
    before = to_spec(schedule)
    bound = schedule.bind(TrainingLength(100, 10))
    assert [bound.factor(step / 100) for step in range(101)]
    assert to_spec(schedule) == before


@pytest.mark.parametrize("schedule", PURE, ids=repr)
def test_a_training_that_only_time_ends_has_a_factor_everywhere(schedule):
    bound = schedule.bind(TrainingLength(float("inf"), float("inf"), 60.0))
    assert all(0 <= bound.factor(i / 50) <= 1 for i in range(51))
