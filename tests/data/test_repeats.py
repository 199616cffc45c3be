"""Repeated augmentation: each sample of a batch several times."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from lightning_cnnopt.augmentation import PaddedCrop
from lightning_cnnopt.core.errors import ConfigurationError, DataError
from lightning_cnnopt.data import ResidentLoader, resident
from tests.data.test_datamodule import colours
from tests.data.test_resident import epoch, flat, loader_of, parts_of
from tests.lightning_tools import Foreign, Killed, SaveAtBatch, assert_same_weights, quiet_trainer, weights_of


@settings(max_examples=120, deadline=None)
@given(
    distinct=st.integers(1, 6),
    repeats=st.integers(1, 4),
    ranks=st.integers(1, 4),
    count=st.integers(1, 70),
    drop_last=st.booleans(),
)
def test_every_sample_of_a_global_batch_is_in_it_so_often_and_in_no_other(distinct, repeats, ranks, count, drop_last):
    arguments = {"repeats": repeats, "training": True, "drop_last": drop_last}
    unit = ranks // torch.tensor(ranks).gcd(torch.tensor(repeats)).item()
    if count // repeats < unit:
        with pytest.raises(DataError, match="can't be shared out"):
            parts_of(count, distinct * repeats, ranks, **arguments)
        return
    parts = parts_of(count, distinct * repeats, ranks, **arguments)
    seen = []
    for batch in range(len(parts[0])):
        assert len({len(part[batch]) for part in parts}) == 1, "ranks take equal parts"
        counts = torch.tensor(flat([part[batch] for part in parts])).bincount()
        assert set(counts[counts > 0].tolist()) == {repeats}
        seen += counts.nonzero().flatten().tolist()
    assert len(set(seen)) == len(seen)
    if not drop_last:
        assert len(seen) == count // repeats - count // repeats % unit


def test_an_epoch_keeps_its_number_of_batches_and_takes_others_each_time():
    loader = loader_of(60, 12, repeats=3)
    assert len(loader) == len(loader_of(60, 12)) == 5
    taken = torch.tensor([sample for _ in range(300) for sample in set(flat(epoch(loader)))]).bincount(minlength=60)
    assert taken.sum() == 300 * 20
    assert chisquare(taken.numpy()).pvalue > 1e-3


def test_repeats_meet_in_different_ranks_before_they_meet_in_one():
    parts = parts_of(48, 6, 2, repeats=2)
    for first, second in zip(*parts, strict=True):
        assert len(set(first)) == len(first)
        assert sorted(first) == sorted(second)


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_global_batch_is_the_same_whatever_the_number_of_ranks(ranks):
    whole = parts_of(72, 12, 1, repeats=2)[0]
    parts = parts_of(72, 12 // ranks, ranks, repeats=2)
    assert [flat(part[i] for part in parts) for i in range(len(parts[0]))] == whole


def test_weighted_draws_are_repeated_too():
    weights = torch.tensor([0.0, 1.0, 3.0, 0.0])
    batches = [sample for _ in range(200) for sample in flat(epoch(loader_of(4, 4, repeats=2, weights=weights)))]
    assert set(batches) <= {1, 2}
    loader = loader_of(400, 40, repeats=4, weights=torch.arange(400.0))
    counts = torch.tensor(epoch(loader)[0]).bincount()
    assert set((counts % 4).tolist()) == {0}


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_resumed_within_an_epoch_the_very_next_batch_comes(taken):
    loader = loader_of(50, 6, repeats=3)
    epoch(loader)
    going = iter(loader)
    for _ in range(taken):
        next(going)
    state = loader.state_dict()
    expected = [[targets.tolist() for _, targets in going], epoch(loader)]
    other = loader_of(50, 6, repeats=3, seed=9)
    other.load_state_dict(state)
    assert [epoch(other), epoch(other)] == expected


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"repeats": 0}, "repeats=0 is out of range"),
        ({"repeats": 2.0}, "repeats=2.0 is not a whole number"),
        ({"repeats": 3}, "batch_size=4 is no multiple of repeats=3"),
        ({"repeats": 2, "shuffle": False}, "repeats=2 is for training"),
    ],
)
def test_repeats_that_can_not_be_right_are_refused(arguments, said):
    with pytest.raises(ConfigurationError, match=said):
        loader_of(12, 4, **arguments)


def test_fewer_samples_than_repeats_are_refused():
    with pytest.raises(DataError, match="3 training samples, 4 times each, can't be shared out to 1 processes"):
        epoch(loader_of(3, 4, repeats=4))


def test_each_repeat_is_its_own_draw_of_the_augmentation():
    class Seeing(Foreign):
        seen = ()

        def training_step(self, batch, batch_idx):
            self.seen = batch[0]
            return super().training_step((batch[0][:, :1, :4, :4].float(), batch[1]), batch_idx)

        def validation_step(self, batch, batch_idx):
            pass

    module, data = Seeing(), colours(normalize=False, batch_size=48, repeats=8, augmentation=[PaddedCrop(2)])
    quiet_trainer(max_steps=1).fit(module, data)
    assert len(module.seen) == 48
    assert len(torch.unique(module.seen, dim=0)) > 30, "six samples, each eight times and each time another crop"


def test_a_run_resumes_to_the_same_bits(tmp_path):
    class Small(Foreign):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch[0][:, :1, :4, :4], batch[1]), batch_idx)

        def validation_step(self, batch, batch_idx):
            pass

    def run(*callbacks, ckpt_path=None, seed=4):
        torch.manual_seed(seed)
        module = Small()
        data = colours(batch_size=8, repeats=4, augmentation=[PaddedCrop(1)])
        quiet_trainer(*callbacks, max_epochs=3).fit(module, data, ckpt_path=ckpt_path)
        return weights_of(module)

    whole, path = run(), tmp_path / "cut.ckpt"
    for batches in (4, 6, 8):
        with pytest.raises(Killed):
            run(SaveAtBatch(batches, path))
        assert_same_weights(run(ckpt_path=str(path), seed=99), whole)


def test_evaluation_repeats_nothing():
    data = colours(repeats=4, batch_size=8)
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        assert isinstance(loader, ResidentLoader)
        assert loader.repeats == 1
    assert data.train_dataloader().repeats == 4
    assert resident.world_size() == 1
