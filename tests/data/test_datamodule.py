from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_cnnopt.augmentation import HorizontalFlip, MixUp, PaddedCrop
from lightning_cnnopt.core.errors import ConfigurationError, DataError
from lightning_cnnopt.data import Digits, TensorData
from lightning_cnnopt.module import ImageClassifier
from tests.lightning_tools import Foreign, Killed, SaveAtBatch, assert_same_weights, quiet_trainer, weights_of


class Linear(torch.nn.Sequential):
    """A network for images of any size."""

    def __init__(self, num_classes, in_channels):
        super().__init__(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(4 * in_channels, num_classes))


def colours(count=60, classes=3, dtype=torch.uint8, **arguments) -> TensorData:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 200, (count, 3, 4, 5), generator=generator, dtype=torch.uint8)
    images[:, 1] //= 3
    if dtype.is_floating_point:
        images = images.to(dtype) / 255
    targets = torch.arange(count) % classes
    arguments = {"val_size": 0.2, "test_images": images[:9], "test_targets": targets[:9], **arguments}
    return TensorData(train_images=images, train_targets=targets, **arguments)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_mean_and_std_are_those_of_the_training_pixels_channel_by_channel(dtype):
    data = colours(dtype=dtype)
    images = data.train_set.images.numpy().astype(np.float64)
    pixels = images / 255 if dtype == torch.uint8 else images
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)), abs=1e-6)
    assert data.std == pytest.approx(pixels.std((0, 2, 3)), abs=1e-6)


def test_mean_and_std_of_more_than_one_block_are_exact():
    images = torch.randint(0, 256, (9000, 1, 2, 2), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images[:4096] //= 8
    data = TensorData(train_images=images, train_targets=torch.arange(9000) % 2, val_size=0)
    pixels = images.double() / 255
    assert data.mean == pytest.approx([float(pixels.mean())], abs=1e-6)
    assert data.std == pytest.approx([float(pixels.std(correction=0))], abs=1e-6)


def test_a_constant_channel_is_named():
    images = torch.randint(0, 256, (20, 3, 4, 4), dtype=torch.uint8)
    images[:, 2] = 7
    with pytest.raises(DataError, match="channel 2 is constant"):
        _ = TensorData(train_images=images, train_targets=torch.arange(20) % 2).std


@pytest.mark.parametrize(("val_size", "expected"), [(0.2, 12), (15, 15), (0.5, 30), (0, 0), (0.0, 0)])
def test_the_validation_split_is_stratified_disjoint_and_of_the_size_asked_for(val_size, expected):
    data = colours(val_size=val_size)
    if not expected:
        assert data.val_set is None
        assert data.val_dataloader() == []
        assert len(data.train_set) == 60
        return
    assert len(data.val_set) == expected
    assert len(data.train_set) == 60 - expected
    assert torch.bincount(data.val_set.targets).tolist() == [expected // 3] * 3
    everything = torch.cat([data.train_set.images, data.val_set.images]).flatten(1).tolist()
    assert sorted(everything) == sorted(data.load("train").images.flatten(1).tolist())


def test_the_split_follows_its_own_seed_and_not_the_runs():
    splits = []
    for run_seed, split_seed in ((0, 0), (1, 0), (0, 1)):
        torch.manual_seed(run_seed)
        np.random.seed(run_seed)
        splits.append(colours(split_seed=split_seed).val_set.images)
    assert torch.equal(splits[0], splits[1])
    assert not torch.equal(splits[0], splits[2])


@pytest.mark.parametrize("val_size", [60, 1000, 1])
def test_a_split_that_cant_be_made_says_what_there_is(val_size):
    with pytest.raises(DataError, match=f"val_size={val_size} can't be split off 60 training samples of 3 classes"):
        _ = colours(val_size=val_size).train_set


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"val_size": 1.0}, "val_size"),
        ({"val_size": -1}, "val_size"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"eval_batch_size": 0}, "eval"),
        ({"batch_size": 2.5}, "batch_size=2.5 is not a whole number"),
        ({"eval_batch_size": 4.0}, "eval_batch_size=4.0 is not a whole number"),
        ({"repeats": 2.0}, "repeats=2.0 is not a whole number"),
        ({"folds": 2.0}, "folds=2.0 is not a whole number"),
        ({"folds": 2, "fold": 0.5}, "fold=0.5 is not a whole number"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(arguments, name):
    with pytest.raises(ConfigurationError, match=name):
        colours(**arguments)


def test_model_args_are_what_an_image_classifier_needs():
    for data in (colours(class_names=["a", "b", "c"]), Digits()):
        model = ImageClassifier(Linear, **data.model_args())
        shape = (model.in_channels, *model.image_size)
        assert shape == tuple(data.train_set.images.shape[1:])
        assert model.class_names == data.class_names
        assert model(data.train_set.images[:2]).shape == (2, data.num_classes)


def test_a_sample_batch_is_of_normalized_training_images_and_drawn_on_its_own_stream():
    data = colours(augmentation=[HorizontalFlip(1.0)])
    torch.manual_seed(0)
    state = torch.get_rng_state()
    sample = data.sample_batch(16)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(colours().sample_batch(16), sample)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (data.mean, data.std))
    known = {tuple(image.flatten().tolist()) for image in data.train_set.images}
    back = ((sample * std + mean) * 255).round().to(torch.uint8)
    assert all(tuple(image.flatten().tolist()) in known for image in back)
    assert len(data.sample_batch(10**6)) == len(data.train_set)
    everything = data.sample_batch(10**6)
    assert torch.allclose(everything.mean((0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(everything.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4)


def test_a_sample_batch_is_what_a_batch_of_the_run_brings():
    raw = colours().train_set.images
    for normalize, model, expected in (
        (None, Foreign(), torch.float32),
        (None, ImageClassifier(Linear, **colours().model_args()), torch.uint8),
        (False, Foreign(), torch.uint8),
        (True, Foreign(), torch.float32),
    ):
        data = colours(normalize=normalize)
        data.trainer = quiet_trainer()
        data.trainer.strategy._lightning_module = model
        sample = data.sample_batch(len(raw))
        assert sample.dtype == expected
        assert sample.dtype != torch.uint8 or torch.equal(sample.sort(0).values, raw.sort(0).values)


class Seeing(Foreign):
    def __init__(self, size: int = 60) -> None:
        super().__init__()
        self.body[1] = torch.nn.Linear(size, 3)
        self.seen = {"train": [], "val": [], "test": []}

    def training_step(self, batch, batch_idx):
        self.seen["train"].append(batch)
        return super().training_step((batch[0].float(), batch[1]), batch_idx)

    def validation_step(self, batch, batch_idx):
        self.seen["val"].append(batch)

    def test_step(self, batch, batch_idx):
        self.seen["test"].append(batch)


class SeeingClassifier(ImageClassifier):
    def forward(self, images):
        self.__dict__.setdefault("seen", []).append(images)
        return super().forward(images)


def test_a_foreign_module_gets_normalized_floats():
    module, data = Seeing(), colours(batch_size=48)
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    images = torch.cat([batch[0] for batch in module.seen["train"]])
    assert torch.allclose(images.mean((0, 2, 3)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(images.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (data.mean, data.std))
    assert torch.allclose(module.seen["test"][0][0], (data.test_set.images / 255 - mean) / std, atol=1e-5)


def test_an_image_classifier_gets_uint8_and_normalizes_by_itself():
    data = colours(batch_size=48)
    model = SeeingClassifier(Linear, **data.model_args())
    quiet_trainer(max_epochs=1).fit(model, data)
    assert all(images.dtype == torch.uint8 for images in model.seen)
    assert model.preprocessing.mean.flatten().tolist() == pytest.approx(data.mean)
    assert model.preprocessing.std.flatten().tolist() == pytest.approx(data.std)


@pytest.mark.parametrize("normalize", [True, False])
def test_normalization_can_be_said_outright(normalize):
    module = Seeing()
    quiet_trainer(max_epochs=1).fit(module, colours(normalize=normalize))
    images = module.seen["train"][0][0]
    assert images.is_floating_point() is normalize


def test_training_batches_alone_are_augmented_and_mixed():
    data = colours(normalize=False, augmentation=[HorizontalFlip(1.0)], mixing=MixUp(1.0), batch_size=48, eval_batch_size=100)
    module = Seeing()
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, data)
    trainer.test(module, data, verbose=False)
    images, targets = module.seen["train"][0]
    assert targets.shape == (48, 3)
    assert images.dtype == torch.uint8
    assert torch.equal(module.seen["val"][-1][0], data.val_set.images)
    assert torch.equal(module.seen["test"][0][0], data.test_set.images)
    assert module.seen["val"][-1][1].ndim == 1


def test_one_transform_alone_need_not_be_in_a_list():
    assert colours(augmentation=HorizontalFlip(1.0)).augmentation.transforms == [HorizontalFlip(1.0)]


def test_augmentation_flips_what_it_is_given():
    data = colours(normalize=False, augmentation=[HorizontalFlip(1.0)], batch_size=48)
    module = Seeing()
    quiet_trainer(max_epochs=1).fit(module, data)
    flipped = {tuple(image.flatten().tolist()) for image in data.train_set.images.flip(-1)}
    assert {tuple(image.flatten().tolist()) for image in module.seen["train"][0][0]} == flipped


@pytest.mark.parametrize("limit", [1.0, 3, 0.5])
@pytest.mark.parametrize("batches", [2, 3, 5, 6])
def test_a_run_resumed_within_or_between_epochs_ends_with_the_same_bits(limit, batches, tmp_path):
    def run(*callbacks, ckpt_path=None):
        torch.manual_seed(4)
        module = Seeing()
        data = colours(batch_size=8, augmentation=[PaddedCrop(1)], mixing=MixUp())
        quiet_trainer(*callbacks, max_epochs=3, limit_train_batches=limit).fit(module, data, ckpt_path=ckpt_path)
        return weights_of(module)

    whole, path = run(), tmp_path / "cut.ckpt"
    with pytest.raises(Killed):
        run(SaveAtBatch(batches, path))
    assert_same_weights(run(ckpt_path=str(path)), whole)


@pytest.mark.parametrize("overfit", [2, 0.25])
def test_to_overfit_batches_takes_the_same_ones_each_epoch_as_lightning_does_with_plain_loaders(overfit):
    def seen(source):
        module = Seeing()
        trainer = quiet_trainer(max_epochs=3, overfit_batches=overfit, num_sanity_val_steps=0)
        if isinstance(source, TensorData):
            trainer.fit(module, source)
        else:
            trainer.fit(module, *source)
        return module.seen

    def plain(part, shuffle):
        return DataLoader(TensorDataset(part.images, part.targets), batch_size=6, shuffle=shuffle)

    data = colours(batch_size=6, eval_batch_size=6, normalize=False, val_size=24)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = seen(data)
    assert not [warning for warning in caught if "overfit" in str(warning.message)]
    theirs = seen((plain(data.train_set, shuffle=True), plain(data.val_set, shuffle=False)))
    for stage, batches in ours.items():
        assert len(batches) == len(theirs[stage])
        for (images, targets), (their_images, their_targets) in zip(batches, theirs[stage], strict=True):
            assert torch.equal(images, their_images)
            assert torch.equal(targets, their_targets)
    assert len(ours["train"]) > 0 < len(ours["val"])


def test_loaders_have_the_sizes_asked_for_and_prediction_gives_indices():
    data = colours(batch_size=7, eval_batch_size=5)
    assert [len(targets) for _, targets in data.train_dataloader()] == [7] * 6 + [6]
    assert [len(targets) for _, targets in data.val_dataloader()] == [5, 5, 2]
    assert torch.cat([batch["index"] for batch in data.predict_dataloader()]).tolist() == list(range(9))
    assert torch.cat([targets for _, targets in data.test_dataloader()]).tolist() == data.test_set.targets.tolist()


def test_class_counts_are_those_of_what_is_trained_on():
    data = colours(count=61)
    counts = data.class_counts()
    assert sum(counts) == data.num_train_samples == len(data.train_set)
    assert counts == [int((data.train_set.targets == c).sum()) for c in range(3)]
