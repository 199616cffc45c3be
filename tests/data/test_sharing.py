"""One process of a machine loads a set and the others map it. What a worker finds is asserted there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from torch.multiprocessing.spawn import ProcessRaisedException

from lightning_cnnopt.core.errors import DataError
from lightning_cnnopt.core.randomness import gather
from lightning_cnnopt.data import CIFAR10, FashionMNIST, ImageDataModule, ImageSet, sharing
from tests.data.mapping import is_mapped
from tests.data.sets import test_cifar, test_idx
from tests.lightning_tools import Foreign, quiet_trainer

TWO = {"devices": 2, "strategy": "ddp_fork"}


class Counted(ImageDataModule):
    """Notes each call of ``load`` in a folder."""

    num_classes = 3
    in_channels = 1
    image_size = (4, 4)
    loads_once = True

    def __init__(self, notes, fails=False, **arguments):
        super().__init__(**arguments)
        self.notes, self.fails = Path(notes), fails

    def load(self, split):
        (self.notes / f"{split}-{os.getpid()}").touch()
        if self.fails:
            raise DataError("nothing can be read")
        images = torch.arange(33 * 16).remainder(251).to(torch.uint8).view(33, 1, 4, 4)
        return ImageSet(images, torch.arange(33) % 3)


class Look(Callback):
    """Has what every process holds compared in each."""

    def __init__(self, folder, shared=True):
        self.folder, self.shared = str(folder), shared

    def on_train_start(self, trainer, pl_module):
        data, expected = trainer.datamodule, Counted(Path(self.folder)).load("train")
        whole = data.train_set
        assert torch.equal(whole.whole_images, expected.images)
        assert torch.equal(whole.whole_targets, expected.targets)
        assert whole.whole_targets.dtype == torch.int64
        assert trainer.train_dataloader.images.data_ptr() == whole.whole_images.data_ptr()
        assert data.val_set.whole_images.data_ptr() == whole.whole_images.data_ptr()
        assert is_mapped(whole.whole_images, Path(self.folder) / "cnnopt-") is self.shared
        before = whole.whole_images.clone()
        gather(None)
        if trainer.global_rank == 0:
            whole.whole_images.zero_()  # by mistake
        gather(None)
        if trainer.global_rank == 1:
            assert torch.equal(whole.whole_images, before)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The temporary folder of the run; notes are taken elsewhere."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def notes_of(tmp_path):
    made = tmp_path / "notes"
    made.mkdir()
    return made


def fit(data, *callbacks):
    quiet_trainer(*callbacks, **TWO, max_epochs=1).fit(Foreign(), data)


def test_one_process_loads_and_both_hold_one_copy_and_no_file_is_left(tmp_path, folder):
    notes = notes_of(tmp_path)
    fit(Counted(notes, batch_size=4), Look(folder))
    assert len(list(notes.glob("train-*"))) == 1
    assert not list(folder.glob("cnnopt-*"))


def test_by_default_every_process_loads(tmp_path, folder):
    notes = notes_of(tmp_path)
    data = Counted(notes, batch_size=4)
    data.loads_once = False
    fit(data, Look(folder, shared=False))
    assert len(list(notes.glob("train-*"))) == 2


def test_one_process_alone_just_loads(tmp_path, folder):
    notes = notes_of(tmp_path)
    quiet_trainer(max_epochs=1).fit(Foreign(), Counted(notes, batch_size=4))
    assert [path.name for path in notes.iterdir()] == [f"train-{os.getpid()}"]


def test_where_there_is_no_room_every_process_loads_and_it_is_said(tmp_path, folder, monkeypatch):
    def full(data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sharing, "_write", full)
    notes, said = notes_of(tmp_path), tmp_path / "said"
    monkeypatch.setattr(sharing, "rank_zero_warn", said.write_text)
    fit(Counted(notes, batch_size=4), Look(folder, shared=False))
    assert len(list(notes.glob("train-*"))) == 2
    assert f"Processes [0, 1] of this training could not share one copy of the data ({folder}: No space" in said.read_text()


def test_a_file_that_can_not_be_written_whole_is_taken_away(folder, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "numpy", lambda self: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        sharing._write(ImageSet(torch.zeros(2, 1, 2, 2), torch.zeros(2)))
    assert not list(folder.iterdir())


def test_what_one_process_can_not_load_ends_all_of_them(tmp_path, folder):
    with pytest.raises(ProcessRaisedException, match="nothing can be read"):
        fit(Counted(notes_of(tmp_path), fails=True), Look(folder))


@pytest.mark.parametrize("targets", [torch.arange(5), torch.rand(5, 3), torch.arange(5).float()])
@pytest.mark.parametrize("images", [torch.rand(5, 3, 2, 5), torch.randint(0, 256, (5, 1, 3, 3), dtype=torch.uint8)])
def test_a_file_gives_back_what_was_written(folder, images, targets):
    name, kinds = sharing._write(ImageSet(images, targets))
    back = sharing._map(name, kinds)
    assert torch.equal(back.images, images)
    assert torch.equal(back.targets, targets)
    assert back.images.dtype == images.dtype
    assert is_mapped(back.images, Path(name))
    assert sharing._map(name + ".elsewhere", kinds) is None


class Kind(Callback):
    def __init__(self, path):
        self.path = path

    def on_train_start(self, trainer, pl_module):
        assert is_mapped(trainer.train_dataloader.images, self.path)


class Any(Foreign):
    def training_step(self, batch, batch_idx):
        return super().training_step((batch[0][:, :1, :4, :4], batch[1] % 3), batch_idx)


def test_files_that_are_pickled_are_loaded_once_and_those_of_idx_are_mapped_themselves(tmp_path, folder):
    test_cifar.write(tmp_path, CIFAR10)
    test_idx.write(tmp_path, "FashionMNIST")
    raw = tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    for data, path in (
        (CIFAR10(str(tmp_path), val_size=0), folder / "cnnopt-"),
        (FashionMNIST(str(tmp_path), val_size=0), raw),
    ):
        quiet_trainer(Kind(path), **TWO, max_epochs=1).fit(Any(), data)
