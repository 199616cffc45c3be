from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

from lightning_cnnopt.augmentation import AugmentBatches, CutMix, MixUp, MixUpOrCutMix, PaddedCrop, Transform
from lightning_cnnopt.core.batch import read_batch
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.data import TensorData
from tests.lightning_tools import (
    Foreign,
    Killed,
    SaveAtBatch,
    assert_same_weights,
    plain_loader,
    quiet_trainer,
    resident_loader,
    samples,
    weights_of,
)


class Brighten(Transform):
    """Adds 10, so that any image that was touched, and how often, can be told."""

    def __init__(self) -> None:
        pass

    def __call__(self, images, generator=None):
        return images + 10


class Watching(Foreign):
    """Keeps what each of its steps was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, list[Any]] = {"train": [], "val": [], "test": [], "predict": []}

    def training_step(self, batch, batch_idx):
        self.seen["train"].append(batch)
        images, targets = read_batch(batch)
        return self.criterion(self(images), targets)

    def validation_step(self, batch, batch_idx):
        self.seen["val"].append(batch)

    def test_step(self, batch, batch_idx):
        self.seen["test"].append(batch)

    def predict_step(self, batch, batch_idx):
        self.seen["predict"].append(batch)


class Data(LightningDataModule):
    def __init__(self, container: str = "tuple", own_hook: bool = False) -> None:
        super().__init__()
        self.container = container
        if own_hook:
            self.__class__ = DataWithHook

    def loader(self):
        def collate(items):
            images, targets = torch.stack([image for image, _ in items]), torch.stack([target for _, target in items])
            return {
                "tuple": (images, targets),
                "list": [images, targets],
                "dict": {"image": images, "label": targets},
            }[self.container]

        return DataLoader(plain_loader(6).dataset, batch_size=2, collate_fn=collate)

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = loader


class DataWithHook(Data):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        images, targets = batch
        return images + 100, targets


def offsets(batches: list[Any]) -> set[int]:
    return {int(read_batch(batch)[0].min()) for batch in batches}


@pytest.mark.parametrize("container", ["tuple", "list", "dict"])
def test_only_training_batches_are_touched_whatever_their_container(container):
    module, data = Watching(), Data(container)
    trainer = quiet_trainer(AugmentBatches(Brighten()), max_epochs=2)
    trainer.fit(module, data)
    trainer.validate(module, data, verbose=False)
    trainer.test(module, data, verbose=False)
    trainer.predict(module, data)
    kind = {"tuple": tuple, "list": list, "dict": dict}[container]
    assert all(type(batch) is kind for batch in module.seen["train"])
    assert offsets(module.seen["train"]) == {10}
    assert all(offsets(module.seen[stage]) == {0} for stage in ("val", "test", "predict"))


def test_a_data_module_with_a_hook_of_its_own_is_augmented_behind_it():
    module = Watching()
    quiet_trainer(AugmentBatches(Brighten())).fit(module, Data(own_hook=True))
    assert offsets(module.seen["train"]) == {110}
    assert offsets(module.seen["val"]) == {100}


def test_a_hook_of_the_modules_own_is_kept():
    class WithHook(Watching):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch[0] + 1000, batch[1]

    module = WithHook()
    quiet_trainer(AugmentBatches(Brighten())).fit(module, plain_loader())
    assert offsets(module.seen["train"]) == {1010}


@pytest.mark.parametrize("own_hook", [False, True])
def test_nothing_is_left_wrapped_after_the_fit(own_hook):
    module, data = Watching(), Data(own_hook=own_hook)
    for _ in range(2):
        quiet_trainer(AugmentBatches(Brighten())).fit(module, data)
        assert "on_after_batch_transfer" not in {**module.__dict__, **data.__dict__}
    assert offsets(module.seen["train"]) == {110 if own_hook else 10}


@pytest.mark.parametrize("own_hook", [False, True])
def test_nothing_is_left_wrapped_after_an_exception(own_hook):
    class Failing(Watching):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("on purpose")

    module, data = Failing(), Data(own_hook=own_hook)
    with pytest.raises(RuntimeError, match="on purpose"):
        quiet_trainer(AugmentBatches(Brighten())).fit(module, data)
    assert "on_after_batch_transfer" not in {**module.__dict__, **data.__dict__}


def test_two_of_them_apply_one_after_the_other_and_both_are_unwrapped():
    module = Watching()
    quiet_trainer(AugmentBatches(Brighten()), AugmentBatches([Brighten(), Brighten()])).fit(module, plain_loader())
    assert offsets(module.seen["train"]) == {30}
    assert "on_after_batch_transfer" not in module.__dict__


def test_mixing_in_two_places_is_refused_before_training_and_names_both():
    images, targets = samples(12)
    data = TensorData(train_images=images, train_targets=targets, val_size=0, mixing=MixUp(0.2), batch_size=4)
    module = Watching()
    with pytest.raises(ConfigurationError, match=r"TensorData has mixing=MixUp\(.*0.2.*AugmentBatches has mixing=MixUp\(.*0.4"):
        quiet_trainer(AugmentBatches(mixing=MixUp(0.4))).fit(module, data)
    two = [AugmentBatches(mixing=MixUp(alpha), num_classes=3) for alpha in (0.2, 0.4)]
    with pytest.raises(ConfigurationError, match=r"another AugmentBatches has mixing=MixUp\(.*0.2.* has mixing=MixUp\(.*0.4"):
        quiet_trainer(*two).fit(module, plain_loader())
    assert module.seen["train"] == []
    for owner in (module, data):
        assert "on_after_batch_transfer" not in owner.__dict__


@pytest.mark.parametrize("other", [[], [PaddedCrop(2)], [PaddedCrop(1)]], ids=["none", "another", "the same"])
@pytest.mark.parametrize("mixing", [None, MixUp()])
def test_transforms_in_two_places_are_both_applied_and_the_same_one_is_said(other, mixing):
    images, targets = samples(12)
    data = TensorData(
        train_images=images, train_targets=targets, val_size=0, augmentation=other, mixing=mixing, batch_size=4, normalize=False
    )
    module = Watching()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet_trainer(AugmentBatches([PaddedCrop(1), Brighten()])).fit(module, data)
    said = [str(warning.message) for warning in caught if "images go through both" in str(warning.message)]
    assert len(said) == (other == [PaddedCrop(1)])
    assert all("PaddedCrop(padding=1" in message and "TensorData" in message for message in said)
    assert offsets(module.seen["train"]) == {10}


@pytest.mark.parametrize("mixing", [MixUp(), CutMix(), MixUpOrCutMix()])
def test_a_module_gets_the_type_and_range_of_its_data_also_when_they_are_mixed(mixing):
    class Bytes(Foreign):
        def training_step(self, batch, batch_idx):
            assert batch[0].dtype == torch.uint8
            assert batch[0].max() > 200
            return super().training_step((batch[0] / 255, batch[1]), batch_idx)

    images = torch.randint(0, 256, (40, 1, 4, 4), dtype=torch.uint8)
    loader = DataLoader(TensorDataset(images, torch.arange(40) % 3), batch_size=8)
    quiet_trainer(AugmentBatches(mixing=mixing, num_classes=3), max_epochs=1).fit(Bytes(), loader)


def test_mixing_hands_probabilities_to_a_criterion_that_stays_the_same_object():
    module = Watching()
    criterion, attributes = module.criterion, dict(module.criterion.__dict__)
    quiet_trainer(AugmentBatches(mixing=MixUp(1.0), num_classes=3)).fit(module, plain_loader())
    assert module.criterion is criterion
    assert module.criterion.__dict__ == attributes
    targets = torch.cat([batch[1] for batch in module.seen["train"]])
    assert targets.shape == (12, 3)
    assert torch.allclose(targets.sum(1), torch.ones(12))


def test_the_number_of_classes_is_found_in_the_data_the_module_or_its_hyperparameters():
    with_attribute, with_hparams, data = Watching(), Watching(), Data()
    with_attribute.num_classes = 4
    with_hparams.save_hyperparameters({"num_classes": 5})
    data.num_classes = 6
    for module, source, classes in (
        (with_attribute, plain_loader(), 4),
        (with_hparams, plain_loader(), 5),
        (Watching(), data, 6),
    ):
        module.body[1] = torch.nn.Linear(16, classes)
        module.configure_optimizers = lambda module=module: torch.optim.SGD(module.parameters(), lr=0.1)
        quiet_trainer(AugmentBatches(mixing=MixUp())).fit(module, source)
        assert read_batch(module.seen["train"][0])[1].shape[1] == classes


def test_mixing_without_a_number_of_classes_is_refused_before_training():
    module = Watching()
    with pytest.raises(ConfigurationError, match=r"MixUp.*num_classes="):
        quiet_trainer(AugmentBatches(mixing=MixUp())).fit(module, plain_loader())
    assert module.seen["train"] == []


def test_resumed_it_draws_what_it_would_have_drawn(tmp_path):
    def run(callbacks=(), ckpt_path=None):
        module = Foreign()
        augment = AugmentBatches(PaddedCrop(2), MixUp(), num_classes=3)
        torch.manual_seed(11)
        trainer = quiet_trainer(augment, *callbacks, max_epochs=3)
        trainer.fit(module, resident_loader(), ckpt_path=ckpt_path, val_dataloaders=plain_loader(4))
        return weights_of(module)

    whole, path = run(), tmp_path / "cut.ckpt"
    with pytest.raises(Killed):
        run([SaveAtBatch(8, path)])
    assert_same_weights(run(ckpt_path=str(path)), whole)


def test_labels_of_the_foreign_data_are_not_changed_in_place():
    images, targets = samples(4)
    kept = targets.clone()
    loader = DataLoader(torch.utils.data.TensorDataset(images, targets), batch_size=2)
    quiet_trainer(AugmentBatches(Brighten(), MixUp(), num_classes=3)).fit(Watching(), loader)
    assert torch.equal(targets, kept)
