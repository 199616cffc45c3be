from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.schedule import TrainingLength
from lightning_cnnopt.learning_rate import (
    Constant,
    Cosine,
    CosineRestarts,
    Cyclic,
    Exponential,
    MultiStep,
    OneCycle,
    Plateau,
    Polynomial,
    Sequence,
    Step,
    Trapezoid,
    Warmup,
)
from tests.learning_rate.oracles import RATE, our_values, torch_values


def in_sequence(makes, milestones):
    def make(optimizer):
        return lr_scheduler.SequentialLR(optimizer, [one(optimizer) for one in makes], milestones)

    return make


@pytest.mark.parametrize("total", [7, 10, 100, 997])
@pytest.mark.parametrize("warm", [1, 3, 5])
@pytest.mark.parametrize("start", [1e-3, 0.5, 1.0])
def test_warmup_in_front_of_cosine_is_torchs_linear_then_cosine(total, warm, start):
    parts = [
        lambda o: lr_scheduler.LinearLR(o, start_factor=start, total_iters=warm),
        lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=total - warm),
    ]
    expected = torch_values(in_sequence(parts, [warm]), total)
    assert our_values(Warmup(Cosine(), f"{warm}st", start), total) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("total", [10, 100, 997])
def test_warmup_in_front_of_step_counts_the_periods_from_its_end(total):
    parts = [
        lambda o: lr_scheduler.LinearLR(o, start_factor=0.2, total_iters=4),
        lambda o: lr_scheduler.StepLR(o, 3, 0.9),
    ]
    expected = torch_values(in_sequence(parts, [4]), total)
    assert our_values(Warmup(Step("3st", 0.9), "4st", 0.2), total) == pytest.approx(expected, rel=1e-6)


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


@pytest.mark.parametrize(
    "behind",
    [
        MultiStep(["10st", "50st"]),
        Exponential(0.9, "5st"),
        Polynomial(2.0),
        CosineRestarts("30st", 1),
        OneCycle("40st", anneal_strategy="linear"),
        Cyclic("15st"),
        Trapezoid("5st", "40st"),
        Sequence([Constant(), Polynomial()], ["45st"]),
    ],
    ids=repr,
)
def test_behind_a_warmup_every_schedule_is_what_it_is_in_a_training_of_the_rest(behind):
    ours = our_values(Warmup(behind, "10st", 0.5), 100)
    assert ours[10:] == pytest.approx(our_values(behind, 90), rel=1e-9)
    assert ours[:10] == pytest.approx([(0.5 + 0.05 * step) * our_values(behind, 90)[0] for step in range(10)])


@pytest.mark.parametrize("duration", ["5ep", "50st", "900st", 1.0])
def test_a_warmup_as_long_as_the_training_is_refused(duration):
    with pytest.raises(ConfigurationError, match="takes all of the training"):
        Warmup(Cosine(), duration).bind(TrainingLength(50, 10))


@pytest.mark.parametrize("total", [30, 100, 997])
def test_a_sequence_is_torchs_with_the_boundaries_as_milestones(total):
    parts = [
        lambda o: lr_scheduler.LinearLR(o, start_factor=0.1, total_iters=5),
        lambda o: lr_scheduler.ExponentialLR(o, 0.97),
        lambda o: lr_scheduler.StepLR(o, 3, 0.5),
    ]
    expected = torch_values(in_sequence(parts, [8, 20]), total)
    schedules = [Warmup(Constant(), "5st", 0.1), Exponential(0.97, "1st"), Step("3st", 0.5)]
    assert our_values(Sequence(schedules, ["8st", "20st"]), total) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("boundaries", [["20st", "60st"], [0.2, 0.6], ["2ep", "60st"], ["2ep", 0.6]])
def test_each_part_of_a_sequence_is_the_schedule_over_the_length_of_the_part(boundaries):
    parts = [Polynomial(final=0.5), Cosine(), OneCycle("10st")]
    ours = our_values(Sequence(parts, boundaries), 100)
    assert ours[:20] == pytest.approx(our_values(parts[0], 20), rel=1e-9)
    assert ours[20:60] == pytest.approx(our_values(parts[1], 40), rel=1e-9)
    assert ours[60:] == pytest.approx(our_values(parts[2], 40), rel=1e-9)


def test_sequences_nest():
    inner = Sequence([Constant(), Polynomial()], ["10st"])
    ours = our_values(Sequence([Cosine(), inner], [0.7]), 100)
    assert ours[:70] == pytest.approx(our_values(Cosine(), 70), rel=1e-9)
    assert ours[70:] == pytest.approx(our_values(inner, 30), rel=1e-9)


@pytest.mark.parametrize(
    ("boundaries", "length", "said"),
    [
        ([0.6, 0.3], None, r"0\.3 is not after 0\.6.*Cosine"),
        ([0.5, 0.5], None, r"0\.5 is not after 0\.5"),
        (["5ep", "3ep"], None, "'3ep' is not after '5ep'"),
        ([0.0, 0.5], None, r"0\.0 is not after the start of training"),
        ([0.5, 1.0], None, r"1\.0 is not before the end of training.*Polynomial"),
        (["20st", 0.1], (100, 10), r"0\.1 is not after '20st'"),
        (["2ep", "12ep"], (100, 10), "'12ep' is not before the end of training"),
        (["2ep", "100st"], (100, 10), "'100st' is not before the end of training"),
    ],
)
def test_parts_that_overlap_or_exceed_the_training_are_refused_by_name(boundaries, length, said):
    parts = [Constant(), Cosine(), Polynomial()]
    with pytest.raises(ConfigurationError, match=said):
        Sequence(parts, boundaries).bind(TrainingLength(*length) if length else TrainingLength(1000, 10))
    if length is None:  # of one unit: known before any training is
        with pytest.raises(ConfigurationError, match=said):
            Sequence(parts, boundaries)


@pytest.mark.parametrize("shape", ["linear", "cosine", "sqrt"])
@pytest.mark.parametrize("total", [10, 100, 997])
def test_a_trapezoid_rises_stays_and_falls(shape, total):
    warm, decay = total // 10 + 1, total // 4
    ours = our_values(Trapezoid(f"{warm}st", f"{decay}st", start=0.1, final=0.05, shape=shape), total, base=1.0)
    falls = {
        "linear": lambda share: 1 - share,
        "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
        "sqrt": lambda share: 1 - math.sqrt(share),
    }
    for step, value in enumerate(ours):
        done = step - (total - decay)
        if step < warm:
            expected = 0.1 + 0.9 * step / warm
        else:
            expected = 0.05 + 0.95 * falls[shape](done / decay) if done > 0 else 1.0
        assert value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("total", [20, 100])
def test_a_linear_trapezoid_is_torchs_three_schedulers(total):
    parts = [
        lambda o: lr_scheduler.LinearLR(o, start_factor=0.1, total_iters=5),
        lambda o: lr_scheduler.ConstantLR(o, factor=1.0),
        lambda o: lr_scheduler.LinearLR(o, start_factor=1.0, end_factor=0.0, total_iters=10),
    ]
    expected = torch_values(in_sequence(parts, [5, total - 10]), total)
    assert our_values(Trapezoid("5st", "10st", start=0.1), total) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_a_warmup_and_a_decay_that_meet_make_a_triangle():
    triangle = Trapezoid(0.25, 0.75, start=0.0)
    assert [triangle.factor(p) for p in (0, 0.125, 0.25, 0.625, 1)] == pytest.approx([0, 0.5, 1, 0.5, 0])


@pytest.mark.parametrize(("warmup", "decay"), [("60st", "50st"), (0.6, "50st"), ("7ep", 0.5)])
def test_a_warmup_that_overlaps_the_decay_is_refused_when_the_length_is_known(warmup, decay):
    with pytest.raises(ConfigurationError, match=f"warmup={warmup!r} and decay={decay!r} overlap"):
        Trapezoid(warmup, decay).bind(TrainingLength(100, 10))


def drops(schedule):
    state = schedule.state_dict()
    return state.get("factor", state.get("1", {}).get("factor"))


@pytest.mark.parametrize(
    "make",
    [lambda plateau: Warmup(plateau, 0.5, 0.0), lambda plateau: Sequence([Constant(), plateau], [0.5])],
    ids=["Warmup", "Sequence"],
)
def test_a_part_takes_in_the_validations_of_its_own_time_and_keeps_its_state(make):
    def fresh():
        return make(Plateau("m", gamma=0.5, patience=0)).bind(TrainingLength(100, 10))

    schedule = fresh()
    for progress in (0.1, 0.2, 0.4):
        schedule.observe({"m": 1.0}, progress)
    assert drops(schedule) == 1.0
    for progress in (0.6, 0.8, 0.9):
        schedule.observe({"m": 1.0}, progress)
    assert drops(schedule) == 0.25
    assert schedule.factor(0.9) == 0.25
    again = fresh()
    assert drops(again) == 1.0
    again.load_state_dict(schedule.state_dict())
    assert again.factor(0.9) == 0.25


def test_plateau_behind_a_warmup_multiplies_its_line():
    schedule = Warmup(Plateau("m", gamma=0.5, patience=0), 0.5, start=0.0)
    for _ in range(3):
        schedule.observe({"m": 1.0})
    assert [schedule.factor(p) for p in (0.25, 0.75)] == [0.125, 0.25]
    assert schedule.bind(TrainingLength(100, 10)).factor(0.75) == 1.0  # bound to a training of its own, it starts anew


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: Warmup(Cosine(), "1 epoch"), "duration='1 epoch'"),
        (lambda: Warmup(Cosine(), 0.1, 2.0), "start=2.0"),
        (lambda: Sequence([Cosine()], []), r"boundaries=\[\].*at least two; got 1"),
        (lambda: Sequence([Cosine(), Cosine()], [0.3, 0.6]), r"boundaries=\[0.3, 0.6\].*one duration fewer.*got 2"),
        (lambda: Sequence([Cosine(), Cosine()], 0.5), "boundaries=0.5 has to hold"),
        (lambda: Sequence([Cosine(), Cosine()], ["half"]), "Sequence: boundaries='half'"),
        (lambda: Trapezoid(0.6, 0.5), "warmup=0.6 and decay=0.5 overlap"),
        (lambda: Trapezoid(start=-0.1), "start=-0.1"),
        (lambda: Trapezoid(final=1.5), "final=1.5"),
        (lambda: Trapezoid(shape="square"), "shape='square' is unknown"),
        (lambda: Trapezoid("long"), "Trapezoid: warmup='long'"),
    ],
)
def test_arguments_that_cant_be_right_are_refused_by_name(make, name):
    with pytest.raises(ConfigurationError, match=name):
        make()


def test_rates_of_a_sequence_start_at_the_optimizers_own():
    assert our_values(Sequence([Constant(), Cosine()], [0.5]), 10)[0] == RATE
