from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lightning_cnnopt.core.errors import DataError
from lightning_cnnopt.data import KMNIST, MNIST, FashionMNIST
from tests.data.mapping import is_mapped


def write_idx(path: Path, array: np.ndarray) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


NAMES = {
    ("train", "images"): "train-images-idx3-ubyte",
    ("train", "labels"): "train-labels-idx1-ubyte",
    ("test", "images"): "t10k-images-idx3-ubyte",
    ("test", "labels"): "t10k-labels-idx1-ubyte",
}


def write(root: Path, name: str) -> dict:
    """Write tiny files in the layout of one of the sets, and return what they hold."""
    generator, held = np.random.default_rng(0), {}
    for split, count in (("train", 40), ("test", 20)):
        held[split, "images"] = generator.integers(0, 256, (count, 28, 28))
        held[split, "labels"] = np.arange(count) % 10
    for key, array in held.items():
        write_idx(root / name / "raw" / NAMES[key], array)
    return held


@pytest.fixture
def fashion(tmp_path):
    """A root with tiny files in Fashion-MNIST's layout, and what they hold."""
    held = write(tmp_path, "FashionMNIST")
    return tmp_path, held


@pytest.mark.parametrize("kind", [MNIST, FashionMNIST, KMNIST])
def test_a_set_is_what_torchvision_reads_of_the_same_files(kind, tmp_path):
    held = write(tmp_path, kind.__name__)
    data = kind(str(tmp_path), val_size=0)
    for part, split in ((data.train_set, "train"), (data.test_set, "test")):
        theirs = getattr(torchvision.datasets, kind.__name__)(tmp_path, train=split == "train")
        assert torch.equal(part.images[:, 0], theirs.data)
        assert torch.equal(part.targets, theirs.targets)
        assert np.array_equal(part.images[:, 0].numpy(), held[split, "images"])
        assert part.images.dtype == torch.uint8
    assert len(data.class_names) == data.num_classes == 10
    assert data.class_names[9] == {"MNIST": "9", "FashionMNIST": "Ankle boot", "KMNIST": "wo"}[kind.__name__]
    assert (data.in_channels, data.image_size) == (1, (28, 28))


def test_images_are_mapped_and_neither_split_nor_loader_copies_them(fashion):
    root, _ = fashion
    data = FashionMNIST(str(root), val_size=10, batch_size=4)
    path = root / "FashionMNIST" / "raw" / NAMES["train", "images"]
    loaders = data.train_dataloader(), data.val_dataloader()
    assert all(is_mapped(loader.images, path) for loader in loaders)
    assert loaders[0].images.data_ptr() == loaders[1].images.data_ptr() == data.train_set.whole_images.data_ptr()
    assert loaders[0].images.flatten(1).data_ptr() == loaders[0].images.data_ptr()
    before = path.read_bytes()
    for images, _ in loaders[0]:
        images.zero_()
    data.train_set.whole_images.zero_()  # private: nothing is written back
    assert path.read_bytes() == before


@pytest.mark.parametrize("key", NAMES)
def test_a_missing_file_is_named_with_what_to_do(fashion, key):
    path = fashion[0] / "FashionMNIST" / "raw" / NAMES[key]
    path.unlink()
    data = FashionMNIST(str(fashion[0]), val_size=0)
    with pytest.raises(DataError, match="download") as caught:
        _ = (data.train_set, data.test_set)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("key", NAMES)
@pytest.mark.parametrize("keep", [0, 3, 7, 12, -1])
def test_a_truncated_file_is_named(fashion, key, keep):
    path = fashion[0] / "FashionMNIST" / "raw" / NAMES[key]
    path.write_bytes(path.read_bytes()[:keep])
    data = FashionMNIST(str(fashion[0]), val_size=0)
    with pytest.raises(DataError, match="damaged or truncated") as caught:
        _ = (data.train_set, data.test_set)
    assert str(path) in str(caught.value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    junk=st.binary(min_size=0, max_size=40),
    magic=st.sampled_from([b"", b"\0\0\x08\x03", b"\0\0\x0b\x03", b"\x1f\x8b\x08\0"]),
)
def test_a_file_that_holds_anything_else_is_named(fashion, junk, magic):
    path = fashion[0] / "FashionMNIST" / "raw" / NAMES["train", "images"]
    path.write_bytes(magic + junk)
    with pytest.raises(DataError, match=str(path.parent)):
        _ = FashionMNIST(str(fashion[0]), val_size=0).train_set


def test_images_and_labels_of_different_number_are_refused(fashion):
    write_idx(fashion[0] / "FashionMNIST" / "raw" / NAMES["train", "labels"], np.arange(39) % 10)
    with pytest.raises(DataError, match="40 images and 39 labels"):
        _ = FashionMNIST(str(fashion[0]), val_size=0).train_set


def test_labels_that_are_no_class_are_refused(fashion):
    write_idx(fashion[0] / "FashionMNIST" / "raw" / NAMES["train", "labels"], np.arange(40) % 11)
    with pytest.raises(DataError, match="0 to 10"):
        _ = FashionMNIST(str(fashion[0]), val_size=0).train_set


def test_a_download_that_fails_says_where_to(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise RuntimeError("Error downloading")

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", refuse)
    with pytest.raises(DataError, match="could not be downloaded"):
        FashionMNIST(str(tmp_path), download=True).prepare_data()


def test_images_of_another_size_are_refused(fashion):
    write_idx(fashion[0] / "FashionMNIST" / "raw" / NAMES["train", "images"], np.zeros((40, 27, 28)))
    with pytest.raises(DataError, match="27x28; those of FashionMNIST are of 28x28"):
        _ = FashionMNIST(str(fashion[0])).train_set


def test_a_download_is_torchvisions(monkeypatch, tmp_path):
    called = []
    monkeypatch.setattr("torchvision.datasets.KMNIST", lambda root, download: called.append((root, download)))
    KMNIST(str(tmp_path)).prepare_data()
    assert called == []
    KMNIST(str(tmp_path), download=True).prepare_data()
    assert called == [(str(tmp_path), True)]


@pytest.mark.large_data
def test_fashion_mnist_itself_is_what_torchvision_reads():
    root = os.environ["CNNOPT_DATA"]
    theirs, ours = torchvision.datasets.FashionMNIST(root), FashionMNIST(root, val_size=0).train_set
    assert torch.equal(ours.images[:, 0], theirs.data)
    assert torch.equal(ours.targets, theirs.targets)
