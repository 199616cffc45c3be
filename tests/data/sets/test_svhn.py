from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from scipy.io import savemat

from lightning_cnnopt.core.errors import DataError
from lightning_cnnopt.data import SVHN


def write(root, count=30, compressed=True, **held):
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        pixels = generator.integers(0, 256, (32, 32, 3, count)).astype(np.uint8)
        labels = (np.arange(count) % 10 + 1).astype(np.uint8).reshape(-1, 1)  # 1 to 10, as published
        savemat(root / f"{split}_32x32.mat", {"X": pixels, "y": labels, **held}, do_compression=compressed)


@pytest.mark.parametrize("compressed", [True, False])
def test_a_set_is_what_torchvision_reads_of_the_same_files(compressed, tmp_path, monkeypatch):
    write(tmp_path, compressed=compressed)
    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", lambda path, md5: True)
    data = SVHN(str(tmp_path), val_size=0)
    for part, split in ((data.train_set, "train"), (data.test_set, "test")):
        theirs = torchvision.datasets.SVHN(tmp_path, split=split)
        assert np.array_equal(part.images.numpy(), theirs.data)
        assert part.targets.tolist() == theirs.labels.tolist()
        assert part.images.dtype == torch.uint8
        assert part.images.is_contiguous()
    assert sorted(set(data.train_set.targets.tolist())) == list(range(10))
    assert data.class_names == list("0123456789")


def test_files_that_are_missing_or_damaged_are_named(tmp_path):
    write(tmp_path)
    for split in ("train", "test"):
        path = tmp_path / f"{split}_32x32.mat"
        held = path.read_bytes()
        for content in (b"", held[:100], held[: len(held) // 2], b"junk" * 100):
            path.write_bytes(content)
            with pytest.raises(DataError, match="damaged or truncated") as caught:
                _ = SVHN(str(tmp_path)).load(split)
            assert str(path) in str(caught.value)
        path.unlink()
        with pytest.raises(DataError, match="set download: true") as caught:
            _ = SVHN(str(tmp_path)).load(split)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "held", [{"y": np.ones((29, 1))}, {"X": np.zeros((32, 32, 30), np.uint8)}, {"X": np.zeros((32, 32, 3, 30))}]
)
def test_a_file_of_other_arrays_is_named(held, tmp_path):
    write(tmp_path, **held)
    with pytest.raises(DataError, match=r"train_32x32\.mat is damaged"):
        _ = SVHN(str(tmp_path)).train_set


def test_a_label_that_is_no_digit_is_refused(tmp_path):
    write(tmp_path, y=np.arange(30) % 11 + 1)
    with pytest.raises(DataError, match="from 0 to 11; with 10 classes"):
        _ = SVHN(str(tmp_path)).train_set


def test_a_download_fetches_both_splits(monkeypatch, tmp_path):
    called = []
    monkeypatch.setattr("torchvision.datasets.SVHN", lambda root, split, download: called.append(split))
    SVHN(str(tmp_path), download=True).prepare_data()
    assert called == ["train", "test"]
