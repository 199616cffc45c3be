"""A resident loader serves part of a set, from where the set is, and says what a resume with other ranks is."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import move_data_to_device

from lightning_cnnopt.core.errors import DataError
from lightning_cnnopt.data import ResidentLoader
from tests.data.mapping import is_mapped
from tests.data.test_datamodule import colours
from tests.data.test_resident import as_rank, epoch, flat, loader_of  # noqa: F401 - a fixture
from tests.lightning_tools import Foreign, quiet_trainer


def mapped_file(path, count=40, width=8):
    images = np.random.default_rng(0).integers(0, 256, (count, 1, 4, width)).astype(np.uint8)
    images.tofile(path)
    return images, torch.from_numpy(np.memmap(path, np.uint8, mode="c", shape=images.shape))


def test_a_part_of_a_set_is_served_like_a_copy_of_it():
    images, targets = torch.rand(30, 1, 3, 3), torch.arange(30)
    places = torch.tensor([29, 3, 5, 5, 12, 0, 8])
    for arguments in ({}, {"shuffle": True}, {"shuffle": True, "weights": torch.arange(1.0, 8)}, {"with_index": True}):
        part = ResidentLoader(images, targets, 2, places=places, seed=1, **arguments)
        copy = ResidentLoader(images[places], targets[places], 2, seed=1, **arguments)
        assert len(part) == len(copy)
        for ours, theirs in zip(part, copy, strict=True):
            ours, theirs = (batch.values() if isinstance(batch, dict) else batch for batch in (ours, theirs))
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("places", "said"),
    [
        (
            torch.ones(5, dtype=torch.bool),
            r"places of torch.bool and shape \(5,\); expected \(M,\) whole numbers.* mask.nonzero",
        ),
        (torch.ones(12, dtype=torch.bool), r"places of torch.bool"),
        (torch.arange(5.0), r"places of torch.float32"),
        (torch.zeros(2, 2).long(), r"shape \(2, 2\)"),
        (torch.tensor([3, 12]), "places run from 3 to 12; of 12 samples they have to be from 0 to 11"),
        (torch.tensor([-1, 2], dtype=torch.int32), "places run from -1 to 2"),
    ],
)
def test_places_that_are_none_are_refused(places, said):
    with pytest.raises(DataError, match=said):
        loader_of(12, places=places)


def test_a_mapped_file_is_not_copied(tmp_path):
    images, mapped = mapped_file(tmp_path / "images.bin")
    targets = torch.arange(40)
    loader = ResidentLoader(mapped, targets, 8, shuffle=True, places=torch.arange(10, 30))
    assert loader.images.data_ptr() == mapped.data_ptr()
    assert loader.targets.data_ptr() == targets.data_ptr()
    assert loader.images.flatten(1).data_ptr() == mapped.data_ptr()
    assert is_mapped(loader.images, tmp_path / "images.bin")
    for batch, chosen in loader:
        assert np.array_equal(batch.numpy(), images[chosen])
        assert not is_mapped(batch, tmp_path / "images.bin")
        batch.zero_()
    assert np.array_equal(np.fromfile(tmp_path / "images.bin", np.uint8).reshape(images.shape), images)


def test_a_foreign_data_module_serves_a_mapped_file(tmp_path):
    _, mapped = mapped_file(tmp_path / "images.bin", width=4)

    class Other(LightningDataModule):
        def train_dataloader(self):
            return ResidentLoader(mapped, torch.arange(40) % 3, 8, shuffle=True, repeats=2)

    class Noting(Foreign):
        def training_step(self, batch, batch_idx):
            self.count = getattr(self, "count", 0) + len(batch[0].flatten(1).unique(dim=0))
            return super().training_step((batch[0] / 255, batch[1]), batch_idx)

    module = Noting()
    quiet_trainer(max_epochs=1).fit(module, Other())
    assert module.count == 20


def test_all_of_a_batch_is_where_the_images_are():
    images = torch.zeros(12, 1, 4, 4, device="meta")
    for arguments in ({}, {"places": torch.arange(8)}, {"shuffle": True}, {"with_index": True}):
        loader = ResidentLoader(images, torch.arange(12), 4, **arguments)
        for batch in loader:
            values = batch.values() if isinstance(batch, dict) else batch
            assert {value.device.type for value in values} == {"meta"}


def test_what_is_moved_is_moved_once_and_only_what_is_served():
    loader = ResidentLoader(torch.zeros(12, 1, 4, 4), torch.arange(12), 4, places=torch.arange(8), device="meta")
    assert loader.images.device.type == loader.targets.device.type == "meta"
    assert len(loader.images) == 8
    assert len(list(loader)) == 2
    stays = torch.zeros(12, 1, 4, 4)
    assert ResidentLoader(stays, torch.arange(12), 4, device="cpu").images.data_ptr() == stays.data_ptr()


def test_a_data_module_keeps_its_splits_on_the_trainers_device():
    data = colours(on_device=True, normalize=False)
    data.trainer = quiet_trainer()
    moved = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
    assert [loader.images.device for loader in moved] == [data.trainer.strategy.root_device] * 3
    plain = colours(normalize=False)
    for ours, theirs in zip(data.train_dataloader(), plain.train_dataloader(), strict=True):
        assert torch.equal(ours[0], theirs[0])


@pytest.mark.gpu
def test_on_a_gpu_the_order_is_that_of_the_cpu_and_there_is_nothing_to_transfer():
    images, targets = torch.randint(0, 256, (50, 3, 4, 4), dtype=torch.uint8), torch.arange(50)
    arguments = {"batch_size": 8, "shuffle": True, "seed": 3, "places": torch.arange(5, 45), "repeats": 2}
    here = ResidentLoader(images, targets, **arguments)
    there = ResidentLoader(images, targets, device="cuda", **arguments)
    given = ResidentLoader(images.cuda(), targets, **arguments)
    for cpu, moved, on_gpu in zip(here, there, given, strict=True):
        for batch in (moved, on_gpu):
            assert all(value.is_cuda for value in batch)
            assert all(torch.equal(a, b.cpu()) for a, b in zip(cpu, batch, strict=True))
            after = move_data_to_device(batch, torch.device("cuda"))
            assert [value.data_ptr() for value in after] == [value.data_ptr() for value in batch]


@pytest.mark.gpu
def test_on_a_gpu_a_data_module_trains_from_there():
    class Noting(Foreign):
        def training_step(self, batch, batch_idx):
            assert batch[0].is_cuda
            return super().training_step((batch[0][:, :1, :4, :4], batch[1]), batch_idx)

    quiet_trainer(accelerator="gpu", max_epochs=2).fit(Noting(), colours(on_device=True, batch_size=8))


def resumed(as_rank, before, after, taken=3, count=96):  # noqa: F811
    """Return the global batches of an epoch cut after some, resumed with other ranks, and those of the next epoch."""

    def loaders(ranks, batch_size, state=None):
        made = []
        for rank in range(ranks):
            loader = loader_of(count, batch_size, seed=5 if state is None else 77)
            if state is not None:
                loader.load_state_dict(state)
            made.append((rank, ranks, loader))
        return made

    def together(made, limit=None):
        parts = []
        for rank, ranks, loader in made:
            as_rank(rank, ranks)
            going, batches = iter(loader), []
            while limit is None or len(batches) < limit:
                batch = next(going, None)
                if batch is None:
                    break
                batches.append(batch[1].tolist())
            parts.append(batches)
        return [flat(part[i] for part in parts) for i in range(len(parts[0]))]

    first = loaders(*before)
    taken_batches = together(first, taken)
    as_rank(0, before[0])
    second = loaders(*after, state=first[0][2].state_dict())
    return taken_batches, together(second), together(second)


@pytest.mark.parametrize("after", [(1, 16), (2, 8), (4, 4), (8, 2)])
def test_resumed_with_other_ranks_and_the_same_global_batch_the_very_next_batches_come(as_rank, after):  # noqa: F811
    as_rank(0, 1)
    whole = loader_of(96, 16, seed=5)
    first, second = epoch(whole), epoch(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        taken, rest, following = resumed(as_rank, (2, 8), after)
    assert taken + rest == first
    assert following == second


@pytest.mark.parametrize("after", [(1, 8), (4, 8)])
def test_with_another_global_batch_it_is_said_and_the_epochs_after_are_whole_and_in_order(as_rank, after):  # noqa: F811
    as_rank(0, 1)
    whole = loader_of(96, 16, seed=5)
    epoch(whole)
    second = flat(epoch(whole))
    size = after[0] * after[1]
    with pytest.warns(
        UserWarning, match=f"global batch had 16 samples and this one has {size}.* A batch_size of {16 / after[0]:g}"
    ):
        taken, rest, following = resumed(as_rank, (2, 8), after, taken=2)
    assert sorted(flat(following)) == list(range(96))
    assert flat(following) == second
    assert len(rest) == 96 // size - len(taken), "as many batches as Lightning counts"


@pytest.mark.parametrize("count", [90, 100, 40])
def test_with_another_number_of_samples_it_is_said_and_the_epochs_after_are_whole(count):
    cut = loader_of(96, 16)
    going = iter(cut)
    for _ in range(4):
        next(going)
    loader = loader_of(200, places=torch.arange(count), batch_size=16)
    loader.load_state_dict(cut.state_dict())
    with pytest.warns(
        UserWarning, match=rf"data had 96 samples and these have {count}, so what is left .* after it are whole\."
    ):
        epoch(loader)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sorted(flat(epoch(loader))) == list(range(count))


@pytest.mark.parametrize("taken", [0, 4])
def test_nothing_is_said_of_another_number_of_samples_where_nothing_is_left_of_an_epoch(taken):
    cut = loader_of(96, 16)
    going = iter(cut)
    for _ in range(taken):
        next(going)
    loader = loader_of(90, 16)
    loader.load_state_dict(cut.state_dict())
    if taken:
        loader.end_epoch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sorted(flat(epoch(loader))) == list(range(90))


def test_a_state_of_an_earlier_version_goes_on():
    loader = loader_of(22)
    next(iter(loader))
    state = loader.state_dict()
    del state["batch"], state["samples"]
    for count, rest in ((22, 5), (30, 7)):
        other = loader_of(count, seed=9)
        other.load_state_dict(state)
        assert len(epoch(other)) == rest
