from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from lightning_cnnopt.core.errors import ConfigurationError, DataError
from lightning_cnnopt.data import Digits, FashionMNIST, TensorData

# Digits


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


# Fashion-MNIST


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


@pytest.fixture
def fashion(tmp_path):
    """A root with tiny files in Fashion-MNIST's layout, and what they hold."""
    generator, held = np.random.default_rng(0), {}
    for split, count in (("train", 40), ("test", 20)):
        held[split, "images"] = generator.integers(0, 256, (count, 28, 28))
        held[split, "labels"] = np.arange(count) % 10
    for key, array in held.items():
        write_idx(tmp_path / "FashionMNIST" / "raw" / NAMES[key], array)
    return tmp_path, held


def test_fashion_mnist_reads_what_the_files_hold(fashion):
    root, held = fashion
    data = FashionMNIST(str(root), val_size=0)
    for part, split in ((data.train_set, "train"), (data.test_set, "test")):
        assert np.array_equal(part.images[:, 0].numpy(), held[split, "images"])
        assert np.array_equal(part.targets.numpy(), held[split, "labels"])
        assert part.images.dtype == torch.uint8
        assert part.images.shape[1:] == (1, 28, 28)
    assert len(data.class_names) == data.num_classes == 10
    assert data.class_names[9] == "Ankle boot"


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


# TensorData


def arrays(count=30, shape=(8, 8), classes=3, dtype=np.uint8):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, *shape))
    return (images / 255).astype(dtype) if np.issubdtype(dtype, np.floating) else images.astype(dtype), np.arange(
        count
    ) % classes


@pytest.mark.parametrize("as_type", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(8, 9), (1, 8, 9), (3, 8, 9), (5, 8, 9)])
def test_arrays_in_memory_are_taken_as_they_are(as_type, dtype, shape):
    images, targets = arrays(shape=shape, dtype=dtype)
    data = TensorData(train_images=as_type(images), train_targets=as_type(targets), val_size=0)
    expected = torch.as_tensor(images).view(30, -1, 8, 9)
    assert torch.allclose(data.train_set.images.double(), expected.double())
    assert data.train_set.images.dtype == (torch.uint8 if dtype == np.uint8 else torch.float32)
    assert data.train_set.targets.tolist() == targets.tolist()
    assert (data.num_classes, data.in_channels, data.image_size) == (3, shape[0] if len(shape) == 3 else 1, (8, 9))


def test_an_npz_file_is_the_same_as_its_arrays(tmp_path):
    images, targets = arrays()
    np.savez(
        tmp_path / "data.npz",
        train_images=images,
        train_targets=targets,
        test_images=images[:6],
        test_targets=targets[:6],
    )
    data = TensorData(str(tmp_path / "data.npz"), val_size=0)
    assert np.array_equal(data.train_set.images[:, 0].numpy(), images)
    assert np.array_equal(data.test_set.targets.numpy(), targets[:6])


def test_an_npz_file_that_is_missing_damaged_pickled_or_incomplete_is_named(tmp_path):
    missing, damaged, pickled, empty = (tmp_path / f"{name}.npz" for name in ("missing", "damaged", "pickled", "empty"))
    images, targets = arrays()
    np.savez(damaged, train_images=images, train_targets=targets)
    damaged.write_bytes(damaged.read_bytes()[:-100])
    np.savez(pickled, train_images=np.array([{}], dtype=object), train_targets=targets)
    np.savez(empty, train_images=images)
    for path, message in (
        (missing, "missing"),
        (damaged, "damaged"),
        (pickled, "plain arrays"),
        (empty, "train_targets is missing"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            TensorData(str(path))
        assert str(path) in str(caught.value)


def test_path_and_arrays_together_are_refused():
    with pytest.raises(ConfigurationError, match="not both"):
        TensorData("data.npz", train_images=arrays()[0])


def test_images_with_channels_last_are_refused_and_told_how_to_turn():
    images, targets = arrays(shape=(8, 9, 3))
    with pytest.raises(DataError, match=r"channels-last; pass images.transpose\(0, 3, 1, 2\)"):
        TensorData(train_images=images, train_targets=targets)
    data = TensorData(train_images=images.transpose(0, 3, 1, 2), train_targets=targets, val_size=0)
    assert torch.equal(data.train_set.images[4, 2], torch.as_tensor(images[4, :, :, 2]))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.full((30, 8, 8), 255.0), r"in \[0, 1\]; these run from 255 to 255"),
        (np.full((30, 8, 8), -0.1), "from -0.1"),
        (np.full((30, 8, 8), np.nan), "nan"),
        (np.zeros((30, 8, 8), dtype=np.int64), "int64"),
        (np.zeros((30, 64), dtype=np.uint8), r"\(30, 64\)"),
        (np.zeros((0, 8, 8), dtype=np.uint8), "empty"),
    ],
)
def test_images_of_another_shape_kind_or_range_are_refused(images, message):
    with pytest.raises(DataError, match=message):
        TensorData(train_images=images, train_targets=np.zeros(len(images), dtype=int))


@pytest.mark.parametrize("given", ["train_images", "train_targets", "test_images"])
def test_a_missing_array_is_named(given):
    images, targets = arrays()
    parts = {"train_images": images, "train_targets": targets, "test_images": images}
    missing = {"train_images": "train_targets", "train_targets": "train_images", "test_images": "test_targets"}[given]
    kept = {given: parts[given]} if given != "test_images" else parts
    with pytest.raises(DataError, match=f"{missing} is missing"):
        TensorData(**kept)


@pytest.mark.parametrize(("task", "columns"), [("multiclass", None), ("binary", None), ("multilabel", 2)])
@pytest.mark.parametrize("surplus", [-1, 1])
@pytest.mark.parametrize("val_size", [0, 0.2])
def test_as_many_targets_as_images_are_needed(task, columns, surplus, val_size):
    targets = np.arange(30 + surplus) % 2
    if columns:
        targets = np.stack([targets] * columns, 1)
    with pytest.raises(DataError, match=f"30 images and {30 + surplus} targets"):
        _ = TensorData(train_images=arrays()[0], train_targets=targets, task=task, val_size=val_size).train_set


@pytest.mark.parametrize(
    ("targets", "names", "message"),
    [
        (np.arange(30) % 4, ["a", "b", "c"], "from 0 to 3; with 3 classes"),
        (np.arange(30) % 3 - 1, None, "from -1 to 1"),
        ((np.arange(30) % 3).astype(float), None, "integers"),
        (np.eye(3)[np.arange(30) % 3].astype(int), None, "integers"),
    ],
)
def test_labels_out_of_range_or_of_another_kind_are_refused(targets, names, message):
    with pytest.raises(DataError, match=message):
        _ = TensorData(train_images=arrays()[0], train_targets=targets, class_names=names, val_size=0).train_set


def test_labels_of_the_test_split_are_checked_too():
    images, targets = arrays()
    data = TensorData(train_images=images, train_targets=targets, test_images=images, test_targets=targets + 1, val_size=0)
    with pytest.raises(DataError, match="test split run from 1 to 3"):
        _ = data.test_set


def test_names_say_how_many_classes_there_are_even_without_samples():
    images, targets = arrays()
    data = TensorData(train_images=images, train_targets=targets, class_names=["a", "b", "c", "d"], val_size=0)
    assert data.num_classes == 4
    assert data.class_counts() == [10, 10, 10, 0]


def test_binary_targets():
    images, targets = arrays(classes=2)
    data = TensorData(train_images=images, train_targets=targets, task="binary", val_size=0.2)
    assert data.num_classes == 1
    assert data.train_set.targets.dtype == torch.float32
    assert data.class_counts() == [12]
    assert data.class_names == ["0", "1"]
    assert float(data.val_set.targets.mean()) == 0.5
    with pytest.raises(DataError, match="zeros and ones"):
        TensorData(train_images=images, train_targets=targets + 1, task="binary")


def test_targets_of_several_labels():
    images, _ = arrays()
    labels = np.random.default_rng(0).integers(0, 2, (30, 4))
    data = TensorData(train_images=images, train_targets=labels, task="multilabel", val_size=0)
    assert data.num_classes == 4
    assert data.class_counts() == labels.sum(0).tolist()
    for wrong in (labels * 2, labels[:, 0]):
        with pytest.raises(DataError, match="zeros and ones"):
            TensorData(train_images=images, train_targets=wrong, task="multilabel")


def test_without_a_test_split_the_error_says_so():
    images, targets = arrays()
    with pytest.raises(DataError, match="no test split"):
        _ = TensorData(train_images=images, train_targets=targets).test_set


def test_an_unknown_task_is_refused():
    with pytest.raises(ConfigurationError, match="Did you mean 'multilabel'"):
        TensorData(train_images=arrays()[0], train_targets=arrays()[1], task="multi-label")
