from __future__ import annotations

import math
from datetime import timedelta

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback
from torch.utils.data import DataLoader, IterableDataset

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.schedule import (
    Schedule,
    TrainingLength,
    fraction_of,
    parse_duration,
    progress_of,
    steps_of,
)
from tests.lightning_tools import Foreign, RecordRates, plain_loader, quiet_trainer


class ReadLength(Callback):
    def on_train_start(self, trainer, pl_module):
        self.length = TrainingLength.of(trainer)


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(1, 4, 4), 0


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        (0.3, (0.3, "fraction")),
        (0, (0.0, "fraction")),
        (1, (1.0, "fraction")),
        ("5ep", (5, "epochs")),
        (".5ep", (0.5, "epochs")),
        (" 500 st ", (500, "steps")),
        ("90s", (90, "seconds")),
        ("10min", (600, "seconds")),
        ("1.5h", (5400, "seconds")),
    ],
)
def test_each_spelling_of_a_duration_has_its_amount_and_unit(duration, expected):
    assert parse_duration(duration) == expected


@pytest.mark.parametrize("duration", ["", "ep", "5", "-5ep", "5 epochs", "5m", "1e3st", "nan", "ep5", True, None])
def test_what_is_no_duration_is_refused_by_name_and_value_with_the_right_spellings(duration):
    with pytest.raises(ConfigurationError, match="warmup") as caught:
        parse_duration(duration, "warmup")
    assert repr(duration) in str(caught.value)
    assert all(spelling in str(caught.value) for spelling in ("'5ep'", "'500st'", "'10min'", "0.3"))


@pytest.mark.parametrize("duration", [5, 1.01, -0.1, math.nan, math.inf])
def test_a_number_that_is_no_fraction_is_refused_and_told_how_epochs_and_steps_are_written(duration):
    with pytest.raises(ConfigurationError, match=r"no fraction of training.*ep'.*st'"):
        parse_duration(duration, "warmup")


@given(
    steps=st.integers(1, 10**6),
    per_epoch=st.integers(1, 10**4),
    seconds=st.floats(1, 1e6),
    share=st.floats(0, 1, width=32),
)
def test_a_duration_in_any_unit_is_its_share_of_training_and_never_more_than_all(steps, per_epoch, seconds, share):
    length = TrainingLength(steps, per_epoch, seconds)
    assert fraction_of(share, length) == share
    assert fraction_of(f"{int(share * steps)}st", length) == pytest.approx(int(share * steps) / steps)
    assert fraction_of("1ep", length) == pytest.approx(min(1, per_epoch / steps))
    assert fraction_of(f"{2 * steps}st", length) == 1
    assert fraction_of("1s", length) == pytest.approx(1 / seconds)


def test_steps_and_epochs_longer_than_training_keep_their_length_as_steps():
    length = TrainingLength(steps=100, steps_per_epoch=10)
    assert [steps_of(d, length) for d in (0.5, "3ep", "20ep", "7st", "700st")] == [50, 30, 200, 7, 700]


def test_only_fractions_need_no_length():
    assert fraction_of(0.2) == 0.2
    with pytest.raises(ConfigurationError, match=r"period='5ep' needs the length of training"):
        fraction_of("5ep", name="period")


def test_a_time_needs_a_limit_of_time():
    with pytest.raises(ConfigurationError, match="max_time"):
        fraction_of("10min", TrainingLength(100, 10))


@pytest.mark.parametrize("duration", ["5ep", "10st"])
def test_steps_are_no_share_of_a_training_that_only_time_ends(duration):
    with pytest.raises(ConfigurationError, match="only time ends"):
        fraction_of(duration, TrainingLength(math.inf, 10, 60.0))


def test_epochs_are_no_share_of_a_training_on_data_without_a_length():
    with pytest.raises(ConfigurationError, match=r"1ep.*length"):
        fraction_of("1ep", TrainingLength(100, math.inf))


@pytest.mark.parametrize("steps", [0, -1])
def test_a_training_without_steps_is_refused(steps):
    with pytest.raises(ConfigurationError, match="at least one step"):
        TrainingLength(steps, 10)


def test_a_part_keeps_the_epochs_as_they_are():
    part = TrainingLength(1000, 100, 60.0).part(0.75)
    assert (part.steps, part.steps_per_epoch, part.seconds) == (750, 100, 45)


def test_a_slope_longer_than_training_is_not_cut():
    length = TrainingLength(100, 10, 60.0)
    assert fraction_of("250st", length, cut=False) == 2.5
    assert fraction_of("120s", length, cut=False) == 2
    assert fraction_of("250st", length) == fraction_of("120s", length) == 1


class Slopes(Schedule):
    durations = ("one", "several", "absent")

    def __init__(self, one="3ep", several=("10st", 0.5), absent=None):
        self.one, self.several, self.absent = one, several, absent

    def factor(self, progress):
        return self.fraction("one") + sum(self.fractions("several"))


def test_binding_turns_every_duration_of_a_schedule_into_a_fraction_lists_included():
    bound = Slopes().bind(TrainingLength(20, 10))
    assert (bound.one, bound.several, bound.absent) == (1.5, [0.5, 0.5], None)
    assert bound.factor(0.0) == 2.5
    with pytest.raises(ConfigurationError, match=r"one='3ep'.*bind"):
        Slopes().factor(0.0)
    with pytest.raises(ConfigurationError, match=r"several=\('10st', 0.5\).*bind"):
        Slopes(one=0.5).factor(0.0)


def test_a_duration_that_cannot_be_bound_is_named_with_its_schedule():
    with pytest.raises(ConfigurationError, match=r"Slopes: one='3ep' counts epochs"):
        Slopes().bind(TrainingLength(20, math.inf))


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_epochs": 3},
        {"max_epochs": 3, "accumulate_grad_batches": 4},
        {"max_steps": 5},
        {"max_steps": 50, "max_epochs": 2},
        {"max_epochs": 2, "limit_train_batches": 3},
        {"max_epochs": 2, "limit_train_batches": 5, "accumulate_grad_batches": 2},
    ],
)
def test_the_length_read_off_a_trainer_is_the_number_of_optimizer_steps_it_takes(arguments):
    read, steps = ReadLength(), RecordRates()
    trainer = quiet_trainer(read, steps, **arguments)
    trainer.fit(Foreign(), plain_loader(20, 2))
    assert read.length.steps == len(steps.rates)
    batches = arguments.get("limit_train_batches", 10)
    assert read.length.steps_per_epoch == math.ceil(batches / arguments.get("accumulate_grad_batches", 1))


def test_data_without_a_length_has_the_length_of_max_steps():
    read = ReadLength()
    quiet_trainer(read, max_steps=4).fit(Foreign(), DataLoader(Endless(), batch_size=2))
    assert read.length.steps == 4
    assert math.isinf(read.length.steps_per_epoch)


def test_data_without_a_length_and_no_max_steps_has_no_length():
    with pytest.raises(ConfigurationError, match="max_steps or max_time"):
        quiet_trainer(ReadLength(), max_epochs=2).fit(Foreign(), DataLoader(Endless(), batch_size=2))


def test_max_epochs_of_minus_one_without_an_end_has_no_length():
    with pytest.raises(ConfigurationError, match="max_steps or max_time"):
        quiet_trainer(ReadLength(), max_epochs=-1).fit(Foreign(), plain_loader())


def test_max_time_alone_gives_a_length_in_seconds():
    read = ReadLength()
    trainer = quiet_trainer(read, max_time=timedelta(minutes=2), limit_train_batches=1)
    trainer.fit_loop.epoch_loop.max_steps = -1

    class Stop(Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.should_stop = True

    trainer.callbacks.append(Stop())
    trainer.fit(Foreign(), plain_loader())
    assert math.isinf(read.length.steps)
    assert read.length.seconds == pytest.approx(120, abs=1)
    assert 0 <= progress_of(trainer, read.length, 10**9) < 0.5
