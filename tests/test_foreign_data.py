"""ImageClassifier on data that this project did not write: what is normalized, and what is said of it."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cnnopt import ConvNet, ImageClassifier, TensorData
from lightning_cnnopt.augmentation import AugmentBatches, MixUp
from lightning_cnnopt.core.errors import DataError
from tests.lightning_tools import quiet_trainer

LEVELS = torch.randint(0, 256, (24, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
TARGETS = torch.arange(24) % 3
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.25]


def shaped(values):
    return torch.tensor(values).view(1, -1, 1, 1)


NORMALIZED = (LEVELS / 255 - shaped(MEAN)) / shaped(STD)


class Data(LightningDataModule):
    """Has what many data modules have: ``mean`` and ``std``, which it applies already."""

    def __init__(self, images=NORMALIZED) -> None:
        super().__init__()
        self.mean, self.std = MEAN, STD
        self.normalize = True
        self.images = images

    def train_dataloader(self):
        return DataLoader(TensorDataset(self.images, TARGETS), batch_size=8)


class Seeing(nn.Sequential):
    """Keeps the first batch that it is trained on."""

    def __init__(self, num_classes):
        super().__init__(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, num_classes))
        self.seen = None

    def forward(self, images):
        if self.training and self.seen is None:
            self.seen = images.clone()
        return super().forward(images)


def fed(data, *callbacks, **arguments):
    """Return what the network gets of the first training batch, and all warnings and infos of the run."""
    model = ImageClassifier(Seeing, num_classes=3, in_channels=3, image_size=(8, 8), **arguments)
    trainer = quiet_trainer(*callbacks)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if isinstance(data, LightningDataModule):
            trainer.fit(model, datamodule=data)
        else:
            trainer.fit(model, data)
    return model.network.seen, [str(warning.message) for warning in caught]


def loader_of(images):
    return DataLoader(TensorDataset(images, TARGETS), batch_size=8)


def about_images(messages):
    return [message for message in messages if "Images are" in message]


def test_images_that_a_foreign_data_module_has_normalized_are_not_normalized_again():
    data = Data()
    seen, messages = fed(data)
    assert torch.equal(seen, data.images[:8])
    assert about_images(messages) == []


def test_what_the_user_gives_is_applied_to_foreign_data():
    seen, messages = fed(Data(LEVELS), mean=MEAN, std=STD)
    torch.testing.assert_close(seen, NORMALIZED[:8])
    assert about_images(messages) == []


def test_a_data_module_of_others_may_hand_its_statistics_over():
    class Handing(Data):
        def pixel_statistics(self):
            return self.mean, self.std

    data = Handing(LEVELS)
    data.normalize = False
    seen, messages = fed(data)
    torch.testing.assert_close(seen, NORMALIZED[:8])
    assert about_images(messages) == []


@pytest.mark.parametrize("callbacks", [(), (AugmentBatches(mixing=MixUp(p=0.0), num_classes=3),)], ids=["plain", "mixed"])
@pytest.mark.parametrize("source", [Data, loader_of], ids=["data module", "plain loader"])
def test_uint8_without_statistics_is_divided_by_255_and_said_once(source, callbacks):
    seen, messages = fed(source(LEVELS), *callbacks)
    torch.testing.assert_close(seen, LEVELS[:8] / 255)
    (message,) = about_images(messages)
    assert "divided by 255 only" in message
    assert "Pass mean= and std=" in message


def test_who_says_that_nothing_is_to_be_normalized_is_not_warned():
    seen, messages = fed(loader_of(LEVELS), mean=[0.0] * 3, std=[1.0] * 3)
    torch.testing.assert_close(seen, LEVELS[:8] / 255)
    assert about_images(messages) == []


def test_floats_without_statistics_are_fed_as_they_are_and_said(caplog):
    _, messages = fed(loader_of(LEVELS / 255))
    assert about_images(messages) == []
    assert caplog.text.count("Images are floats in [0, 1] and no mean and std are known") == 1


@pytest.mark.parametrize("images", [NORMALIZED, LEVELS.float()], ids=["normalized", "never divided by 255"])
def test_floats_that_look_normalized_already_are_warned_of_once_if_they_are_normalized_again(images):
    _, messages = fed(loader_of(images), mean=MEAN, std=STD)
    (message,) = about_images(messages)
    assert "normalized again" in message
    assert f"from {float(images[:8].min()):g} to {float(images[:8].max()):g}" in message


def test_floats_outside_the_unit_interval_are_right_where_nothing_normalizes():
    for arguments in ({}, {"mean": [0.0] * 3, "std": [1.0] * 3}):
        assert about_images(fed(loader_of(NORMALIZED), **arguments)[1]) == []


def test_our_data_is_never_warned_of():
    for images in (LEVELS, LEVELS / 255):
        data = TensorData(train_images=images, train_targets=TARGETS, val_size=0, batch_size=8, mixing=MixUp())
        assert about_images(fed(data)[1]) == []


def test_after_a_checkpoint_its_statistics_hold_whatever_the_data(tmp_path, caplog):
    model = ImageClassifier(partial(ConvNet, widths=(4,), depth=1), num_classes=3, in_channels=3, image_size=(8, 8))
    trainer = quiet_trainer()
    trainer.fit(model, loader_of(LEVELS))
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    caplog.clear()
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "model.ckpt")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet_trainer().fit(loaded, loader_of(LEVELS))
    assert about_images(str(warning.message) for warning in caught) == []
    assert "Images are" not in caplog.text


def test_images_of_other_integers_are_refused_at_the_first_batch():
    with pytest.raises(DataError, match=r"uint8, or floats in \[0, 1\]; got torch.int64"):
        fed(loader_of(LEVELS.long()))
