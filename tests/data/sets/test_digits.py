from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from lightning_cnnopt.data import Digits


def test_digits_are_all_of_scikit_learns_split_without_overlap():
    data = Digits()
    parts = [data.train_set, data.val_set, data.test_set]
    ours = torch.cat([part.images for part in parts]).flatten(1)
    labels = torch.cat([part.targets for part in parts])
    pixels, expected = load_digits(return_X_y=True)
    theirs = np.rint(pixels * 255 / 16).astype(int)
    assert sorted(map(tuple, np.c_[ours.numpy(), labels.numpy()].tolist())) == sorted(
        map(tuple, np.c_[theirs, expected].tolist())
    )
    assert ours.dtype == torch.uint8
    assert int(ours.max()) == 255


def test_digits_test_split_is_fixed_and_stratified():
    first, other = Digits(split_seed=0), Digits(split_seed=7)
    torch.manual_seed(123)
    assert torch.equal(first.test_set.images, other.test_set.images)
    assert not torch.equal(first.val_set.images, other.val_set.images)
    everything = np.bincount(load_digits().target)
    for part in (first.train_set, first.val_set, first.test_set):
        shares = torch.bincount(part.targets, minlength=10).numpy() / everything
        assert shares == pytest.approx([len(part) / everything.sum()] * 10, abs=0.02)
