from __future__ import annotations

import math

import pytest
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.learning_rate import Cosine, ScheduleLearningRate
from lightning_cnnopt.parallel import ScaleRateWithBatchSize, ramp, rate_scale
from tests.lightning_tools import (
    Foreign,
    Killed,
    RecordRates,
    SaveAtBatch,
    plain_loader,
    quiet_trainer,
    resident_loader,
)


def recorded(*callbacks, loader=None, ckpt_path=None, **arguments) -> list[list[float]]:
    rates = RecordRates()
    quiet_trainer(*callbacks, rates, **arguments).fit(Foreign(), loader or plain_loader(), ckpt_path=ckpt_path)
    return rates.groups


@pytest.mark.parametrize("batch_size", [1, 64, 256, 1024])
def test_the_scale_is_the_ratio_of_batches_or_its_root(batch_size):
    assert rate_scale(batch_size, 256) == batch_size / 256
    assert rate_scale(batch_size, 256, "sqrt") ** 2 == pytest.approx(batch_size / 256)


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize(("rule", "law"), [("linear", lambda ratio: ratio), ("sqrt", math.sqrt)])
def test_every_group_is_scaled_by_the_global_batch_which_counts_accumulation(rule, law, accumulation):
    callback = ScaleRateWithBatchSize(base_batch_size=16, rule=rule)
    groups = recorded(callback, accumulate_grad_batches=accumulation)
    scale = law(2 * accumulation / 16)
    assert callback.scale == pytest.approx(scale)
    assert groups == [pytest.approx([0.1 * scale, 0.01 * scale])] * (6 // accumulation)


def test_the_number_of_processes_counts(monkeypatch):
    callback = ScaleRateWithBatchSize(base_batch_size=16)
    trainer = quiet_trainer(callback)
    monkeypatch.setattr(type(trainer), "world_size", property(lambda self: 4))
    trainer.fit(Foreign(), plain_loader())
    assert callback.scale == pytest.approx(2 * 4 / 16)


@pytest.mark.parametrize("scale_first", [True, False])
def test_with_a_schedule_the_two_multiply_in_any_order(scale_first):
    callbacks = [ScaleRateWithBatchSize(base_batch_size=8), ScheduleLearningRate(Cosine())]
    groups = recorded(*(callbacks if scale_first else callbacks[::-1]), max_epochs=2)
    assert [g[0] for g in groups] == pytest.approx([0.1 * 2 / 8 * Cosine().factor(step / 12) for step in range(12)])


def test_the_rate_climbs_from_that_of_the_base_batch_to_the_scaled_one_as_in_goyal():
    groups = recorded(ScaleRateWithBatchSize(base_batch_size=1, warmup="1ep"), max_epochs=2, loader=plain_loader(24, 4))
    assert [g[0] for g in groups] == pytest.approx([0.1 * (1 + 3 * min(1, step / 6)) for step in range(12)])


def test_the_ramp_starts_at_one_ends_at_the_scale_and_is_a_line():
    assert [ramp(p / 10, 5.0, 0.4) for p in range(6)] == pytest.approx([1, 2, 3, 4, 5, 5])
    assert ramp(0.0, 5.0, 0.0) == 5


def test_a_loader_that_states_no_batch_size_is_refused_unless_it_is_given():
    dataset = plain_loader().dataset
    loader = DataLoader(dataset, batch_sampler=BatchSampler(SequentialSampler(dataset), 2, drop_last=False))
    with pytest.raises(ConfigurationError, match="batch_size="):
        recorded(ScaleRateWithBatchSize(base_batch_size=8), loader=loader)
    groups = recorded(ScaleRateWithBatchSize(base_batch_size=8, batch_size=2), loader=loader)
    assert groups[0] == pytest.approx([0.025, 0.0025])


def test_resumed_in_its_warmup_the_rates_go_on_and_are_not_scaled_twice(tmp_path):
    def run(*callbacks, ckpt_path=None):
        scale = ScaleRateWithBatchSize(base_batch_size=1, warmup=0.5)
        schedule = ScheduleLearningRate(Cosine())
        return recorded(scale, schedule, *callbacks, loader=resident_loader(), ckpt_path=ckpt_path, max_epochs=3)

    whole, before, path = run(), RecordRates(), tmp_path / "cut.ckpt"
    with pytest.raises(Killed):
        run(before, SaveAtBatch(4, path))
    assert before.groups + run(ckpt_path=str(path)) == whole


def test_resumed_with_another_batch_it_goes_on_at_the_rate_of_the_new_one(tmp_path):
    path = tmp_path / "cut.ckpt"
    with pytest.raises(Killed):
        recorded(ScaleRateWithBatchSize(base_batch_size=8), SaveAtBatch(6, path), max_epochs=2)
    groups = recorded(ScaleRateWithBatchSize(base_batch_size=8), loader=plain_loader(12, 4), ckpt_path=str(path), max_epochs=2)
    assert groups[-1] == pytest.approx([0.05, 0.005])


class OwnScheduler(Foreign):
    def configure_optimizers(self):
        from torch.optim.lr_scheduler import ConstantLR

        optimizer = super().configure_optimizers()
        return [optimizer], [ConstantLR(optimizer)]


def test_a_scheduler_of_the_modules_own_is_named_and_refused():
    with pytest.raises(ConfigurationError, match=r"ScaleRateWithBatchSize .*ConstantLR"):
        quiet_trainer(ScaleRateWithBatchSize()).fit(OwnScheduler(), plain_loader())


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"base_batch_size": 0}, "base_batch_size=0"),
        ({"rule": "liner"}, "Did you mean 'linear'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"warmup": "5 epochs"}, "warmup"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(arguments, name):
    with pytest.raises(ConfigurationError, match=name):
        ScaleRateWithBatchSize(**arguments)
