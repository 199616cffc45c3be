"""Draws by weight in the resident loader, and long tails."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from scipy.stats import chisquare

from lightning_cnnopt import Digits, ImageClassifier
from lightning_cnnopt.core.errors import ConfigurationError, DataError
from lightning_cnnopt.data import long_tail
from lightning_cnnopt.imbalance import sample_weights
from tests.data.test_resident import as_rank, epoch, flat, loader_of  # noqa: F401 - a fixture
from tests.lightning_tools import quiet_trainer

WEIGHTS = torch.tensor([0.0, 1.0, 0.0, 2.0, 5.0, 0.0])


def test_samples_are_drawn_as_their_weights_say():
    loader = loader_of(6, weights=WEIGHTS)
    drawn = torch.tensor([sample for _ in range(600) for sample in flat(epoch(loader))])
    counts = drawn.bincount(minlength=6)
    assert counts[WEIGHTS == 0].sum() == 0
    expected = WEIGHTS[WEIGHTS > 0] / WEIGHTS.sum() * len(drawn)
    assert chisquare(counts[WEIGHTS > 0].numpy(), expected.double().numpy()).pvalue > 1e-3


def test_a_balanced_draw_takes_every_class_as_often():
    targets = torch.tensor([0] * 900 + [1] * 90 + [2] * 10)
    weights = sample_weights(targets, 3)
    assert weights.double().mean() == pytest.approx(1, abs=1e-6)
    per_class = torch.zeros(3).double().index_add_(0, targets, weights.double())
    assert torch.allclose(per_class, torch.full((3,), 1000 / 3).double(), rtol=1e-5)
    loader = loader_of(1000, 100, weights=weights)
    drawn = targets[torch.tensor([sample for _ in range(20) for sample in flat(epoch(loader))])].bincount()
    assert chisquare(drawn.numpy()).pvalue > 1e-3


def test_samples_of_a_set_of_a_hundred_million_can_still_be_told_apart():
    # cumulated in single precision, the steps behind 2²⁴ would be lost; torch.multinomial refuses so many
    loader = loader_of(4, weights=torch.tensor([2.0**30, 1.0, 2.0**30, 1.0]))
    assert loader._cumulated.diff().tolist() == [1.0, 2.0**30, 1.0]


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_one_draw_whatever_their_number(ranks, as_rank):  # noqa: F811
    whole = flat(epoch(loader_of(60, 4 * ranks, weights=torch.arange(60.0))))
    parts = []
    for rank in range(ranks):
        as_rank(rank, ranks)
        parts.append(epoch(loader_of(60, 4, weights=torch.arange(60.0))))
    together = [sample for batches in zip(*parts, strict=True) for batch in batches for sample in batch]
    assert together == whole
    assert len(set(whole)) < 60, "drawn with replacement"


def test_a_draw_goes_on_in_mid_epoch_and_between_epochs():
    loader = loader_of(40, weights=torch.arange(40.0))
    epoch(loader)
    going = iter(loader)
    for _ in range(3):
        next(going)
    state = loader.state_dict()
    expected = [[targets.tolist() for _, targets in going], epoch(loader)]
    fresh = loader_of(40, weights=torch.arange(40.0), seed=7)
    fresh.load_state_dict(state)
    assert [epoch(fresh), epoch(fresh)] == expected


@pytest.mark.parametrize(
    ("weights", "arguments", "error", "said"),
    [
        (torch.ones(3), {}, DataError, r"weights of shape \(3,\) for 6 samples"),
        (torch.ones(6), {"shuffle": False}, ConfigurationError, "shuffle=True"),
        (-torch.ones(6), {}, ConfigurationError, "not negative"),
        (torch.full((6,), torch.nan), {}, ConfigurationError, "finite"),
        (torch.zeros(6), {}, ConfigurationError, "one of them above 0"),
    ],
    ids=["count", "order", "negative", "nan", "zero"],
)
def test_weights_that_can_not_be_right_are_refused(weights, arguments, error, said):
    with pytest.raises(error, match=said):
        loader_of(6, weights=weights, **arguments)


def test_labels_that_are_not_exclusive_are_refused():
    with pytest.raises(DataError, match="no single labels"):
        sample_weights(torch.zeros(4, 3), 3)
    with pytest.raises(DataError, match=r"Classes \[1\] have no training samples"):
        sample_weights(torch.tensor([0, 2]), 3)


def test_the_data_module_draws_for_training_alone():
    data = Digits(long_tail=20, sampling="balanced", batch_size=32)
    counts = data.class_counts()
    assert max(counts) > 10 * min(counts)
    loader = data.train_dataloader()
    drawn = torch.cat([targets for _ in range(8) for _, targets in loader]).bincount(minlength=10)
    assert chisquare(drawn.numpy()).pvalue > 1e-3
    evaluated = torch.cat([targets for _, targets in data.val_dataloader()]).bincount()
    assert evaluated.min() > 0.8 * evaluated.max()
    with pytest.raises(ConfigurationError, match="sampling='often' is unknown; expected one of 'balanced', 'sqrt'"):
        Digits(sampling="often")


def test_a_run_that_draws_resumes_to_the_same_bits(tmp_path):
    def parts():
        torch.manual_seed(3)
        data = Digits(sampling="balanced", long_tail=10, batch_size=32)
        return ImageClassifier(**data.model_args()), data

    model, data = parts()
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1)
    quiet_trainer(keep, max_steps=7).fit(model, data)
    expected = model.state_dict()
    model, data = parts()
    torch.manual_seed(9)
    quiet_trainer(keep, max_steps=7).fit(model, data, ckpt_path=keep.best_model_path)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_to_overfit_batches_leaves_the_drawing_out_and_says_so():
    data = Digits(sampling="balanced")
    with pytest.warns(UserWarning, match="samples come in their order, so sampling='balanced' is left out"):
        quiet_trainer(overfit_batches=1).fit(ImageClassifier(**data.model_args()), data)


def test_a_long_tail_follows_its_formula_and_its_seed():
    targets = torch.arange(5000) % 10
    kept = long_tail(targets, 100)
    assert targets[kept].bincount().tolist() == [round(500 * 100 ** (-j / 9)) for j in range(10)]
    assert torch.equal(kept, kept.unique())
    assert torch.equal(kept, long_tail(targets, 100))
    assert not torch.equal(kept, long_tail(targets, 100, seed=1))
    assert torch.equal(long_tail(targets, 1), torch.arange(5000))


def test_long_tails_that_can_not_be_are_refused():
    with pytest.raises(DataError, match="leaves none of class 1"):
        long_tail(torch.arange(30) % 3, 1000)
    with pytest.raises(DataError, match="single labels"):
        long_tail(torch.zeros(4, 3), 10)
    with pytest.raises(ConfigurationError, match=r"long_tail=0\.5"):
        Digits(long_tail=0.5)
