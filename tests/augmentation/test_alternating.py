from __future__ import annotations

import contextlib
import warnings
from collections import defaultdict

import pytest
import torch
from lightning.pytorch import LightningDataModule, seed_everything
from lightning.pytorch.callbacks import Callback
from scipy import stats
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_cnnopt import TensorData
from lightning_cnnopt.augmentation import AlternatingFlip, AugmentBatches, HorizontalFlip, MixUp, PaddedCrop
from lightning_cnnopt.augmentation.alternating import coins
from lightning_cnnopt.augmentation.pipeline import Augmentation
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.randomness import gather
from lightning_cnnopt.data import ResidentLoader
from tests.lightning_tools import Foreign, Killed, SaveAtBatch, quiet_trainer

COUNT = 48


def numbered(dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    """Images that are all different, whose number and way can be read off."""
    images = torch.randint(0, 256, (COUNT, 1, 4, 4), generator=torch.Generator().manual_seed(3))
    images[:, 0, 0, 0], images[:, 0, 0, -1] = torch.arange(COUNT), torch.arange(COUNT) + 100
    return images.to(dtype) if dtype == torch.uint8 else images.to(dtype) / 255


def read(images: torch.Tensor) -> list[tuple[int, bool]]:
    """Number of each image, and whether it is mirrored."""
    left = (images[:, 0, 0, 0].double() * (1 if images.dtype == torch.uint8 else 255)).round().long()
    return [(int(value) - 100 if value >= 100 else int(value), bool(value >= 100)) for value in left]


class Seen(Foreign):
    def __init__(self) -> None:
        super().__init__()
        self.batches: list[tuple[int, list[tuple[int, bool]]]] = []

    def training_step(self, batch, batch_idx):
        images, targets = batch
        self.batches.append((self.current_epoch, read(images)))
        return super().training_step((images.float(), targets), batch_idx)

    @property
    def epochs(self) -> dict[int, dict[int, bool]]:
        found: dict[int, dict[int, bool]] = defaultdict(dict)
        for epoch, samples in self.batches:
            for number, mirrored in samples:
                assert number not in found[epoch]
                found[epoch][number] = mirrored
        return found


def own_data(augmentation=(), **arguments):
    settings = {"val_size": 0, "batch_size": 10, "normalize": False, "augmentation": augmentation, **arguments}
    return TensorData(train_images=numbered(), train_targets=torch.arange(COUNT) % 3, **settings)


class ForeignData(LightningDataModule):
    """Shuffles anew each epoch; gives floats."""

    def train_dataloader(self):
        dataset = TensorDataset(numbered(torch.float32), torch.arange(COUNT) % 3)
        return DataLoader(dataset, batch_size=10, shuffle=True, drop_last=False)


WAYS = {
    "data module": lambda: (own_data([AlternatingFlip()]), []),
    "callback on our data": lambda: (own_data(), [AugmentBatches(AlternatingFlip())]),
    "foreign data": lambda: (ForeignData(), [AugmentBatches(AlternatingFlip())]),
}
every_way = pytest.mark.parametrize("way", WAYS)


@every_way
def test_over_two_epochs_every_image_is_seen_once_each_way(way):
    torch.manual_seed(5)
    data, callbacks = WAYS[way]()
    module = Seen()
    quiet_trainer(*callbacks, max_epochs=4).fit(module, data)
    first, second, third, fourth = (module.epochs[epoch] for epoch in range(4))
    assert sorted(first) == list(range(COUNT))
    assert all(first[number] is not second[number] for number in range(COUNT))
    assert first == third
    assert second == fourth
    assert 0.25 < sum(first.values()) / COUNT < 0.75
    assert [samples for _, samples in module.batches[:5]] != [
        samples for _, samples in module.batches[10:15]
    ]  # it was shuffled


@every_way
@pytest.mark.parametrize("batches", [3, 5, 7], ids=["within the first epoch", "at its end", "within the second"])
def test_a_resumed_run_goes_on_with_the_same_coins(way, batches, tmp_path):
    def run(seed, extra=(), ckpt_path=None):
        torch.manual_seed(seed)
        data, callbacks = WAYS[way]()
        module = Seen()
        trainer = quiet_trainer(*callbacks, *extra, max_epochs=3)
        with contextlib.suppress(Killed):
            trainer.fit(module, data, ckpt_path=ckpt_path)
        return module

    whole, path = run(5).epochs, tmp_path / "cut.ckpt"
    run(5, [SaveAtBatch(batches, path)])
    resumed = run(99, ckpt_path=str(path))
    assert resumed.batches
    for epoch, samples in resumed.epochs.items():
        assert samples.items() <= whole[epoch].items()


def test_another_seed_tosses_other_coins_and_drop_last_changes_none():
    epochs = {}
    for seed, arguments in ((5, {}), (6, {}), (5, {"drop_last": True, "batch_size": 7})):
        torch.manual_seed(seed)
        module = Seen()
        quiet_trainer(max_epochs=2).fit(module, own_data([AlternatingFlip()], **arguments))
        epochs[seed, len(arguments)] = module.epochs
    assert epochs[5, 0][0] != epochs[6, 0][0]
    for epoch in (0, 1):
        assert epochs[5, 2][epoch].items() < epochs[5, 0][epoch].items()


@pytest.mark.parametrize("kind", ["uint8", "floats", "large", "almost equal"])
def test_coins_are_fair_and_of_one_image_alone(kind):
    generator = torch.Generator().manual_seed(1)
    images = {
        "uint8": lambda: torch.randint(0, 256, (4000, 3, 8, 8), dtype=torch.uint8, generator=generator),
        "floats": lambda: torch.rand(4000, 1, 8, 8, generator=generator),
        "large": lambda: torch.randint(0, 256, (400, 3, 96, 70), dtype=torch.uint8, generator=generator),
        "almost equal": lambda: (torch.eye(256).repeat(8, 1) * torch.arange(1, 2049)[:, None]).view(-1, 1, 16, 16),
    }[kind]()
    found = [coins(images, seed) for seed in range(4)]
    for tossed in found:
        assert stats.binomtest(int(tossed.sum()), len(images)).pvalue > 1e-4
        runs = int((tossed[1:] == tossed[:-1]).sum())  # neighbours agree half of the time
        assert stats.binomtest(runs, len(images) - 1).pvalue > 1e-4
    agree = int((found[0] == found[1]).sum())
    assert stats.binomtest(agree, len(images)).pvalue > 1e-4
    order = torch.randperm(len(images), generator=generator)
    assert torch.equal(coins(images[order], 0), found[0][order])
    assert torch.equal(coins(images[7:8].contiguous(memory_format=torch.channels_last), 0), found[0][7:8])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (1, 1, 1, 1), (5, 4, 3, 7)])
def test_any_images_flip_and_come_back_and_are_not_written_to(shape, dtype):
    images = (torch.rand(shape) * 200).to(dtype)
    kept = images.clone()
    even, odd = (AlternatingFlip()(images, epoch=epoch, seed=3) for epoch in (2, 3))
    assert torch.equal(images, kept)
    assert torch.equal(even, odd.flip(-1))
    mirrored = (even != images).flatten(1).any(1)
    assert torch.equal(even[mirrored], images[mirrored].flip(-1))


def test_it_stands_first():
    with pytest.raises(ConfigurationError, match=r"tells images by their pixels, and PaddedCrop\(.*\) stands in front of it"):
        Augmentation([PaddedCrop(1), AlternatingFlip()])
    with pytest.raises(ConfigurationError, match="Put it first, and once"):
        Augmentation([AlternatingFlip(), AlternatingFlip()])
    with pytest.warns(UserWarning, match="makes what it alternates random again"):
        Augmentation([AlternatingFlip(), HorizontalFlip()])
    for before in ({"augmentation": [PaddedCrop(1)]}, {"mixing": MixUp()}):
        data = own_data(**before)
        with pytest.raises(ConfigurationError, match="and TensorData stands in front of it"):
            quiet_trainer(AugmentBatches(AlternatingFlip())).fit(Seen(), data)
        assert "on_after_batch_transfer" not in data.__dict__
    with pytest.raises(ConfigurationError, match="another AugmentBatches stands in front of it"):
        quiet_trainer(AugmentBatches(PaddedCrop(1)), AugmentBatches(AlternatingFlip())).fit(Seen(), own_data())


def test_a_chain_that_is_not_told_the_epoch_says_so():
    augmentation = Augmentation([AlternatingFlip()])
    with pytest.raises(ConfigurationError, match="needs to know the epoch"):
        augmentation([numbered(), torch.zeros(COUNT)])
    assert augmentation([numbered(), torch.zeros(COUNT)], epoch=1)[0].shape == (COUNT, 1, 4, 4)


class Noisy(torch.utils.data.Dataset):
    """Augments at random in its workers, as many do."""

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        return {"image": numbered(torch.float32)[index] + 0.01 * torch.rand(1), "label": index % 3}


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(numbered(torch.float32), (torch.arange(COUNT) % 3).tolist(), strict=True))


def test_a_data_set_with_random_transforms_is_refused_before_training_and_nothing_is_drawn_by_looking():
    module = Seen()
    with pytest.raises(ConfigurationError, match=r"Noisy brings other ones each time.*transforms to AugmentBatches"):
        quiet_trainer(AugmentBatches(AlternatingFlip())).fit(module, DataLoader(Noisy(), batch_size=8))
    assert not module.batches


def test_looking_at_the_data_set_draws_nothing():
    from lightning_cnnopt.augmentation.alternating import check_repeats

    class Drawing(TensorDataset):
        def __getitem__(self, index):
            torch.rand(1)
            return super().__getitem__(index)

    state = torch.get_rng_state()
    check_repeats(DataLoader(Drawing(numbered(), torch.zeros(COUNT)), batch_size=8))
    assert torch.equal(torch.get_rng_state(), state)


def test_what_can_not_be_checked_is_said():
    module = Seen()
    with pytest.warns(UserWarning, match="whether DataLoader brings the same ones in every epoch can't be seen"):
        quiet_trainer(AugmentBatches(AlternatingFlip()), max_epochs=2).fit(module, DataLoader(Stream(), batch_size=8))
    assert all(module.epochs[0][number] is not module.epochs[1][number] for number in range(COUNT))

    class Hooked(Seen):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch

    loader = ResidentLoader(numbered(), torch.arange(COUNT) % 3, 8)
    with pytest.warns(UserWarning, match=r"Hooked.on_after_batch_transfer comes before it"):
        quiet_trainer(AugmentBatches(AlternatingFlip())).fit(Hooked(), loader)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet_trainer(AugmentBatches(AlternatingFlip())).fit(Seen(), loader)
    assert not [one for one in caught if "AlternatingFlip" in str(one.message)]


class Gather(Callback):
    def __init__(self, path):
        self.path = str(path)

    def on_train_end(self, trainer, module):
        seen = gather(module.batches)
        if trainer.is_global_zero:
            torch.save(seen, self.path)


def test_two_processes_toss_the_same_coins_as_one(tmp_path):
    def run(**arguments):
        seed_everything(5, verbose=False)  # processes that are started take the seed of the run
        trainer = quiet_trainer(Gather(tmp_path / "seen.pt"), max_epochs=2, **arguments)
        trainer.fit(Seen(), own_data([AlternatingFlip()], batch_size=10 if not arguments else 5))
        return torch.load(tmp_path / "seen.pt")

    def epochs(parts):
        found: dict[int, dict[int, bool]] = defaultdict(dict)
        for part in parts:
            for epoch, samples in part:
                found[epoch].update(dict(samples))
        return found

    alone, both = run(), run(devices=2, strategy="ddp_fork")
    assert len(both) == 2
    assert {number for _, samples in both[0] for number, _ in samples} != set(range(COUNT)) or both[0] != both[1]
    assert epochs(alone) == epochs(both)
    assert len(epochs(both)[0]) == COUNT
