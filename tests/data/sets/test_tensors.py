from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from lightning_cnnopt.core.errors import ConfigurationError, DataError
from lightning_cnnopt.data import TensorData
from tests.data.mapping import is_mapped


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


def test_a_folder_of_npy_files_is_mapped_and_not_read(tmp_path):
    images, targets = arrays(shape=(3, 8, 9))
    for name, array in {"train_images": images, "train_targets": targets, "test_images": images[:6]}.items():
        np.save(tmp_path / f"{name}.npy", array)
    np.save(tmp_path / "test_targets.npy", targets[:6])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = TensorData(str(tmp_path), val_size=0.2)
    assert np.array_equal(data.test_set.images.numpy(), images[:6])
    whole = data.load("train")
    assert np.array_equal(whole.images.numpy(), images)
    assert is_mapped(data.train_dataloader().images, tmp_path / "train_images.npy")
    assert is_mapped(data.val_dataloader().images, tmp_path / "train_images.npy")
    whole.images[0] = 7  # private: nothing is written back
    assert np.array_equal(np.load(tmp_path / "train_images.npy"), images)


@pytest.mark.parametrize("mode", ["c", "r"])
def test_an_array_that_is_mapped_already_is_not_copied(mode, tmp_path):
    images, targets = arrays(shape=(3, 8, 9))
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode=mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = TensorData(train_images=mapped, train_targets=targets, val_size=0.2, batch_size=4)
        loader = data.train_dataloader()
        assert next(iter(loader))[0].shape == (4, 3, 8, 9)
    assert loader.images.data_ptr() == data.val_dataloader().images.data_ptr() == mapped.ctypes.data


def test_a_folder_or_a_file_of_it_that_is_missing_or_damaged_is_named(tmp_path):
    images, targets = arrays()
    with pytest.raises(DataError, match="train_images is missing"):
        TensorData(str(tmp_path))
    np.save(tmp_path / "train_images.npy", images)
    with pytest.raises(DataError, match="train_targets is missing"):
        TensorData(str(tmp_path))
    np.save(tmp_path / "train_targets.npy", targets)
    for name, damage in (
        ("train_images.npy", lambda path: path.write_bytes(path.read_bytes()[:-100])),
        ("train_images.npy", lambda path: path.write_bytes(b"")),
        ("train_targets.npy", lambda path: np.save(path, np.array([{}], dtype=object))),
    ):
        path = tmp_path / name
        held = path.read_bytes()
        damage(path)
        with pytest.raises(DataError, match=r"damaged, or no \.npy file of a plain array") as caught:
            TensorData(str(tmp_path))
        assert str(path) in str(caught.value)
        path.write_bytes(held)
    with pytest.raises(DataError, match=r"nowhere is missing; expected an .npz file, or a folder of .npy files"):
        TensorData("nowhere")
