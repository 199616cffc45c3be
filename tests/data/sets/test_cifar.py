from __future__ import annotations

import pickle
import struct

import numpy as np
import pytest
import torch
import torchvision

from lightning_cnnopt.core.errors import DataError
from lightning_cnnopt.data import CIFAR10, CIFAR100

KINDS = {
    CIFAR10: ("cifar-10-batches-py", {"train": [f"data_batch_{n}" for n in range(1, 6)], "test": ["test_batch"]}, "labels"),
    CIFAR100: ("cifar-100-python", {"train": ["train"], "test": ["test"]}, "fine_labels"),
}


def pickled_by_python_2(pixels: np.ndarray, labels: list[int], key: str) -> bytes:
    """Return a batch as those that are published: protocol 2, with strings of bytes."""

    def string(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value

    def number(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    kind = b"cnumpy\ndtype\n" + string(b"u1") + b"K\x00K\x01\x87R(K\x03" + string(b"|") + b"NNN" + number(-1) * 2 + b"K\x00tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string(b"b") + b"\x87R"
    array = empty + b"(K\x01" + number(len(pixels)) + number(3072) + b"\x86" + kind + b"\x89" + string(pixels.tobytes()) + b"tb"
    listed = b"](" + b"".join(map(number, labels)) + b"e"
    names = b"](" + b"".join(string(b"%d.png" % n) for n in range(len(labels))) + b"e"
    items = [(b"data", array), (key.encode(), listed), (b"batch_label", string(b"a batch")), (b"filenames", names)]
    return b"\x80\x02}(" + b"".join(string(name) + value for name, value in items) + b"u."


def write(root, kind, as_python=2):
    folder, files, key = KINDS[kind]
    (root / folder).mkdir()
    generator = np.random.default_rng(0)
    for split in files.values():
        for name in split:
            pixels = generator.integers(0, 256, (20, 3072)).astype(np.uint8)
            labels = (np.arange(20) % kind.num_classes).tolist()
            held = pickled_by_python_2(pixels, labels, key)
            if as_python == 3:
                held = pickle.dumps({"data": pixels, key: labels}, protocol=4)
            (root / folder / name).write_bytes(held)
    meta = {"label_names" if kind is CIFAR10 else "fine_label_names": kind.class_names}
    (root / folder / ("batches.meta" if kind is CIFAR10 else "meta")).write_bytes(pickle.dumps(meta, protocol=2))
    return root / folder


def unchecked(monkeypatch, kind):
    """Return torchvision's class, which compares no checksums."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: True)
    return getattr(torchvision.datasets, kind.__name__)


@pytest.mark.parametrize("as_python", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_a_set_is_what_torchvision_reads_of_the_same_files(kind, as_python, tmp_path, monkeypatch):
    write(tmp_path, kind, as_python)
    data = kind(str(tmp_path), val_size=0)
    for part, train in ((data.train_set, True), (data.test_set, False)):
        theirs = unchecked(monkeypatch, kind)(tmp_path, train=train)
        assert np.array_equal(part.images.permute(0, 2, 3, 1).numpy(), theirs.data)
        assert part.targets.tolist() == theirs.targets
        assert part.images.dtype == torch.uint8
        assert theirs.classes == data.class_names
    assert len(data.class_names) == data.num_classes
    assert (data.in_channels, data.image_size) == (3, (32, 32))


def test_the_hundred_names_are_in_the_order_of_their_numbers():
    # the labels of CIFAR-100 are numbered in the order of the alphabet
    assert sorted(set(CIFAR100.class_names)) == CIFAR100.class_names
    assert len(CIFAR100.class_names) == 100


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_are_missing_or_damaged_are_named(kind, tmp_path):
    folder = write(tmp_path, kind)
    for name in [name for split in KINDS[kind][1].values() for name in split]:
        path = folder / name
        held = path.read_bytes()
        wrong = [b"", held[:10], held[:-1], held[: len(held) // 2], b"junk", pickle.dumps({}), pickle.dumps({"data": 3})]
        wrong += [pickled_by_python_2(np.zeros((2, 3072), np.uint8), [1], KINDS[kind][2])]
        for content in wrong:
            path.write_bytes(content)
            data = kind(str(tmp_path), val_size=0)
            with pytest.raises(DataError, match="damaged or truncated") as caught:
                _ = (data.train_set, data.test_set)
            assert str(path) in str(caught.value)
        path.unlink()
        data = kind(str(tmp_path), val_size=0)
        with pytest.raises(DataError, match="set download: true") as caught:
            _ = (data.train_set, data.test_set)
        assert str(path) in str(caught.value)
        path.write_bytes(held)


def test_a_file_that_would_run_something_is_refused_and_runs_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "written"), "w")

    folder = write(tmp_path, CIFAR10)
    (folder / "test_batch").write_bytes(pickle.dumps({"data": Evil()}))
    with pytest.raises(DataError, match="test_batch is damaged") as caught:
        _ = CIFAR10(str(tmp_path)).test_set
    assert "it names" in str(caught.value.__cause__)
    assert not (tmp_path / "written").exists()


def test_a_download_that_fails_says_where_to(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise RuntimeError("Error downloading")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", refuse)
    with pytest.raises(DataError, match=f"CIFAR10 could not be downloaded to '{tmp_path}'"):
        CIFAR10(str(tmp_path), download=True).prepare_data()
