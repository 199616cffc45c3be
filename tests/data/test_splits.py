from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_cnnopt.core.errors import ConfigurationError, DataError
from lightning_cnnopt.data import Digits, TensorData
from lightning_cnnopt.data.splits import held_out_fold
from tests.data.test_datamodule import colours


@settings(max_examples=40, deadline=None)
@given(folds=st.integers(2, 6), count=st.integers(36, 90), seed=st.integers(0, 3))
def test_folds_are_disjoint_stratified_and_together_all(folds, count, seed):
    targets = torch.arange(count) % 3
    parts = [held_out_fold(targets, folds, fold, seed, "Data") for fold in range(folds)]
    assert sorted(torch.cat(parts).tolist()) == list(range(count))
    counts = torch.stack([targets[part].bincount(minlength=3) for part in parts])
    assert (counts.amax(0) - counts.amin(0)).max() <= 1
    assert all(torch.equal(part, part.sort().values) for part in parts)


def test_a_fold_validates_and_the_others_train():
    whole = colours(val_size=0).train_set
    seen = []
    for fold in range(4):
        data = colours(folds=4, fold=fold, val_size=0.5)
        both = torch.cat([data.train_set.places, data.val_set.places])
        assert sorted(both.tolist()) == list(range(len(whole)))
        assert torch.bincount(data.val_set.targets).tolist() == [5, 5, 5]
        seen += data.val_set.places.tolist()
    assert sorted(seen) == list(range(60))


def test_folds_follow_their_own_seed_and_not_the_runs():
    torch.manual_seed(0)
    first = colours(folds=3).val_set.places
    torch.manual_seed(1)
    assert torch.equal(first, colours(folds=3).val_set.places)
    assert not torch.equal(first, colours(folds=3, split_seed=1).val_set.places)


@pytest.mark.parametrize(
    ("arguments", "validates"), [({}, True), ({"val_size": 0}, False), ({"val_size": 0, "folds": 3}, True)]
)
def test_a_data_module_says_whether_it_validates(arguments, validates):
    data = colours(**arguments)
    assert data.has_validation is validates is (data.val_set is not None)


def test_a_data_module_says_whether_it_has_a_test_split():
    images, targets = torch.zeros(4, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])
    assert Digits().has_test
    assert not TensorData(train_images=images, train_targets=targets).has_test
    assert TensorData(train_images=images, train_targets=targets, test_images=images, test_targets=targets).has_test


def test_labels_that_are_not_exclusive_are_cut_into_folds_too():
    images = torch.randint(0, 256, (20, 1, 4, 4), dtype=torch.uint8)
    targets = torch.randint(0, 2, (20, 3))
    parts = [
        TensorData(train_images=images, train_targets=targets, task="multilabel", folds=4, fold=fold).val_set
        for fold in range(4)
    ]
    assert sorted(torch.cat([part.places for part in parts]).tolist()) == list(range(20))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"folds": 1}, "folds=1 is out of range"),
        ({"folds": 3, "fold": 3}, "fold=3 is out of range; expected 0 <= fold <= 2"),
        ({"folds": 3, "fold": -1}, "fold=-1"),
        ({"fold": 1}, "fold=1 without folds="),
    ],
)
def test_arguments_that_can_not_be_right_are_refused(arguments, said):
    with pytest.raises(ConfigurationError, match=said):
        Digits(**arguments)


def test_a_class_smaller_than_the_folds_is_said_and_shared_out_as_far_as_it_goes():
    images = torch.randint(0, 256, (30, 1, 4, 4), dtype=torch.uint8)
    targets = (torch.arange(30) < 3).long()
    with pytest.warns(UserWarning, match="least populated class in y has only 3 members, which is less than n_splits=4"):
        parts = [
            TensorData(train_images=images, train_targets=targets, folds=4, fold=fold).val_set.targets for fold in range(4)
        ]
    assert sorted(int(part.sum()) for part in parts) == [0, 1, 1, 1]


def test_more_folds_than_samples_are_refused():
    images = torch.randint(0, 256, (6, 1, 4, 4), dtype=torch.uint8)
    data = TensorData(train_images=images, train_targets=torch.arange(6) % 2, folds=4)
    with pytest.raises(DataError, match=r"6 training samples of 2 classes can't be shared out to folds=4: n_splits=4"):
        _ = data.val_set
