"""Weighted draws for a DataLoader: one draw for all processes, by seed and epoch."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from scipy.stats import chisquare
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cnnopt.core.errors import ConfigurationError, DataError
from lightning_cnnopt.core.randomness import gather
from lightning_cnnopt.imbalance import WeightedSampler, sample_weights, sampling
from tests.lightning_tools import Foreign, assert_same_weights, quiet_trainer, samples, weights_of


@pytest.fixture
def as_rank(monkeypatch):
    def pretend(rank: int, ranks: int) -> None:
        monkeypatch.setattr(sampling, "rank", lambda: rank)
        monkeypatch.setattr(sampling, "world_size", lambda: ranks)

    return pretend


def test_every_class_comes_as_often():
    targets = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)
    sampler = WeightedSampler(sample_weights(targets, 3))
    drawn = []
    for epoch in range(20):
        sampler.set_epoch(epoch)
        drawn += list(sampler)
    assert len(drawn) == 20_000
    assert chisquare(targets[torch.tensor(drawn)].bincount().numpy()).pvalue > 1e-3


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("count", [60, 61])
def test_processes_share_one_draw(ranks, count, as_rank):
    as_rank(0, 1)
    alone = list(WeightedSampler(torch.arange(float(count)), seed=4))
    shares = []
    for rank in range(ranks):
        as_rank(rank, ranks)
        sampler = WeightedSampler(torch.arange(float(count)), seed=4)
        shares.append(list(sampler))
        assert len(shares[-1]) == len(sampler)
    batches = zip(*(torch.tensor(share[: 4 * (len(share) // 4)]).split(4) for share in shares), strict=True)
    for index, parts in enumerate(batches):
        assert sorted(torch.cat(parts).tolist()) == sorted(alone[4 * ranks * index : 4 * ranks * (index + 1)])
    assert [sample for group in zip(*shares, strict=True) for sample in group] == alone[: count - count % ranks]


def test_seed_and_epoch_make_the_draw_and_nothing_else():
    def draw(seed, epoch):
        sampler = WeightedSampler(torch.arange(50.0), seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    torch.manual_seed(1)
    first, state = draw(0, 3), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn from torch's generator"
    torch.manual_seed(2)
    assert draw(0, 3) == first
    assert draw(0, 4) != first
    assert draw(1, 3) != first


def test_a_run_resumed_at_the_end_of_an_epoch_ends_with_the_same_bits(tmp_path):
    def run(epochs, ckpt_path=None, *callbacks):
        module = Foreign()
        loader = DataLoader(TensorDataset(*samples(30)), batch_size=5, sampler=WeightedSampler(torch.arange(30.0)))
        quiet_trainer(*callbacks, max_epochs=epochs).fit(module, loader, ckpt_path=ckpt_path)
        return weights_of(module)

    expected = run(4)
    keep = ModelCheckpoint(tmp_path, save_last=True)
    run(2, None, keep)
    assert_same_weights(run(4, keep.last_model_path), expected)


class Seen(Callback):
    """Writes the samples that every process was given, epoch by epoch."""

    def __init__(self, path):
        self.path, self.samples = path, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.samples += batch[1].tolist()

    def on_train_end(self, trainer, pl_module):
        shares = gather(self.samples)
        if trainer.is_global_zero:
            torch.save(shares, self.path)


class Line(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_two_processes_of_lightning_share_one_draw(tmp_path):
    # any other sampler than a DistributedSampler Lightning wraps into one that shares it out a second time
    data = TensorDataset(torch.rand(13, 1), torch.arange(13))
    loader = DataLoader(data, batch_size=3, sampler=WeightedSampler(torch.arange(13.0), seed=3))
    trainer = quiet_trainer(Seen(tmp_path / "seen.pt"), max_epochs=2, devices=2, strategy="ddp_fork")
    trainer.fit(Line(), loader)
    expected = [[], []]
    for epoch in range(2):
        alone = WeightedSampler(torch.arange(13.0), seed=3)
        alone.set_epoch(epoch)
        draw = list(alone)[:12]
        expected = [before + draw[rank::2] for rank, before in enumerate(expected)]
    assert torch.load(tmp_path / "seen.pt") == expected


@pytest.mark.parametrize(
    ("weights", "said"),
    [([1.0, -1.0], "WeightedSampler: weights have to be finite"), ([0.0, 0.0], "above 0"), ([[1.0]], r"shape \(1, 1\)")],
)
def test_weights_that_can_not_be_right_are_refused(weights, said):
    with pytest.raises(ConfigurationError, match=said):
        WeightedSampler(weights)


def test_fewer_samples_than_processes_are_refused(as_rank):
    as_rank(0, 3)
    with pytest.raises(DataError, match="2 samples can't be shared out to 3 processes"):
        list(WeightedSampler([1.0, 1.0]))
