"""The data module: the same batches packed or decoded while training, on every rank, through every resume."""

from __future__ import annotations

import copy
import pickle
import warnings
from functools import partial

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_cnnopt import ImageClassifier
from lightning_cnnopt.augmentation import HorizontalFlip
from lightning_cnnopt.core.errors import ConfigurationError, DataError
from lightning_cnnopt.data import ImageFolder, read_image, resident
from lightning_cnnopt.data.folder import datamodule
from lightning_cnnopt.normalization import PreciseBN
from tests.lightning_tools import Killed, SaveAtBatch, assert_same_weights, quiet_trainer, weights_of

from .files import make_folder, pixels, save

PACKED, STREAMED, IN_WORKERS = {}, {"pack": False, "num_workers": 0}, {"pack": False, "num_workers": 2}
WAYS = pytest.mark.parametrize("way", [PACKED, STREAMED, IN_WORKERS], ids=["packed", "streamed", "in workers"])
BOTH = pytest.mark.parametrize("way", [PACKED, STREAMED], ids=["packed", "streamed"])


class Linear(nn.Sequential):
    def __init__(self, num_classes, in_channels):
        super().__init__(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * in_channels, num_classes))


@pytest.fixture
def root(tmp_path):
    return make_folder(tmp_path / "root", {"train": {"cat": 8, "dog": 7}, "test": {"cat": 2, "dog": 3}})


def folder(root, **arguments):
    return ImageFolder(str(root), **{"val_size": 3, "batch_size": 4, "num_workers": 0, **arguments})


def classifier(data):
    statistics = {"mean": [0.5] * 3, "std": [0.25] * 3}  # those that are measured depend on the way
    return ImageClassifier(Linear, **data.model_args(), **statistics, optimizer=partial(torch.optim.SGD, lr=0.1))


def trained(data, *callbacks, ckpt_path=None, seed=4, **arguments):
    torch.manual_seed(seed)
    model = classifier(data)
    quiet_trainer(*callbacks, **{"max_epochs": 3, "num_sanity_val_steps": 0, **arguments}).fit(model, data, ckpt_path=ckpt_path)
    return weights_of(model)


@WAYS
def test_every_batch_holds_the_files_of_its_targets(way, root):
    data = folder(root, **way)
    loader = data.train_dataloader()
    seen = []
    for images, targets in loader:
        for image, target in zip(images, targets, strict=True):
            same = [path for path in data.paths("train") if torch.equal(read_image(path), image)]
            assert [path.parent.name for path in same] == [data.class_names[target]]
            seen += same
    assert sorted(seen) == sorted(data.paths("train"))
    for batch in data.predict_dataloader():
        for image, index in zip(batch["image"], batch["index"], strict=True):
            assert torch.equal(read_image(data.paths("test")[index]), image)
    assert not {*data.paths("train")} & {*data.paths("val")}


@WAYS
def test_the_training_is_the_same_packed_or_not(way, root):
    augmentation = [HorizontalFlip()]
    assert_same_weights(
        trained(folder(root, augmentation=augmentation, **way)), trained(folder(root, augmentation=augmentation))
    )


@WAYS
def test_cut_anywhere_it_ends_with_the_same_bits(way, root, tmp_path):
    whole = trained(folder(root, **way))
    for batches in (2, 3):  # within an epoch, at its end
        path = tmp_path / f"{batches}.ckpt"
        with pytest.raises(Killed):
            trained(folder(root, **way), SaveAtBatch(batches, path))
        assert_same_weights(trained(folder(root, **way), ckpt_path=str(path), seed=99), whole)


@BOTH
def test_from_the_checkpoint_of_an_epoch_it_ends_with_the_same_bits(way, root, tmp_path):
    whole = trained(folder(root, **way), ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}"))
    assert_same_weights(trained(folder(root, **way), ckpt_path=str(tmp_path / "epoch=0.ckpt"), seed=99), whole)


@WAYS
def test_two_ranks_share_an_epoch_out_and_see_what_one_sees(way, root, monkeypatch):
    alone = [targets.tolist() for _, targets in folder(root, val_size=3, batch_size=4, **way).train_dataloader()]
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr(resident, "world_size", lambda: 2)
        monkeypatch.setattr(resident, "rank", lambda rank=rank: rank)
        data = folder(root, batch_size=2, **way)
        parts.append(list(data.train_dataloader()))
        images = torch.cat([images for images, _ in data.test_dataloader()])
        monkeypatch.undo()
        assert len(images) == (3, 2)[rank]
    together = [[*a.tolist(), *b.tolist()] for (_, a), (_, b) in zip(*parts, strict=True)]
    assert together == alone
    images = torch.cat([images for part in parts for images, _ in part])
    assert sorted(images.flatten(1).tolist()) == sorted(folder(root).train_set.images.flatten(1).tolist())


def test_workers_draw_nothing_from_the_generator_of_the_run(root):
    loader = folder(root, **IN_WORKERS, val_size=0).val_dataloader() or folder(root, **IN_WORKERS).test_dataloader()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    list(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_fit_and_test_through_a_trainer_with_all_that_is_measured(root):
    for way in (PACKED, STREAMED):
        data = folder(root, sampling="balanced", **way)
        model = ImageClassifier(Linear, **data.model_args())
        trainer = quiet_trainer()
        trainer.fit(model, data)
        assert set(trainer.test(model, data, verbose=False)[0]) >= {"test_acc", "test_loss"}
        assert data.class_counts() == torch.bincount(data.train_set.targets).tolist()
        assert data.sample_batch(5).shape == (5, 3, 6, 8)


def test_batch_statistics_are_measured_on_images_of_files(root):
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    for way in (PACKED, STREAMED):
        data = folder(root, **way)
        model = ImageClassifier(copy.deepcopy(network), **data.model_args(), optimizer=partial(torch.optim.SGD, lr=0.0))
        quiet_trainer(PreciseBN(samples=12)).fit(model, data)
        images = data.train_set.images
        shape = (1, 3, 1, 1)
        normalized = (images / 255 - torch.tensor(data.mean).view(shape)) / torch.tensor(data.std).view(shape)
        expected = model.network[0](normalized).mean((0, 2, 3))
        assert torch.allclose(model.network[1].running_mean, expected, atol=1e-4)


def test_mean_and_std_are_measured_on_a_sample_where_nothing_is_packed(root, monkeypatch):
    assert folder(root, **STREAMED).mean == folder(root).mean
    assert folder(root, **STREAMED).std == folder(root).std
    monkeypatch.setattr(datamodule, "_MEASURED", 4)
    few = folder(root, **STREAMED)
    assert few.mean != folder(root).mean
    assert few.mean == folder(root, **STREAMED).mean


def test_a_validation_split_of_its_own_is_used_whole(tmp_path):
    root = make_folder(tmp_path, {"train": {"cat": 4, "dog": 4}, "val": {"dog": 3}})
    data = ImageFolder(str(root))
    assert (len(data.train_set), len(data.val_set), data.val_size) == (8, 3, 3)
    assert {path.parent.name for path in data.paths("val")} == {"dog"}
    with pytest.raises(
        ConfigurationError, match=r"val_size=0.2 splits .* has a validation split of its own; leave val_size out"
    ):
        ImageFolder(str(root), val_size=0.2)


def test_what_contradicts_a_split_or_the_way_of_decoding_is_refused(root, tmp_path):
    own = make_folder(tmp_path / "own", {"train": {"cat": 4, "dog": 4}, "val": {"dog": 3}})
    with pytest.raises(ConfigurationError, match=r"folds=2 cuts .* has a validation split of its own; leave folds out"):
        ImageFolder(str(own), folds=2)
    with pytest.raises(ConfigurationError, match=r"on_device=True keeps decoded images on the device; pack=False keeps none"):
        folder(root, pack=False, on_device=True)
    assert ImageFolder(str(own)).has_validation
    assert not folder(root, val_size=0).has_validation


@BOTH
def test_folds_repeats_and_a_long_tail_work_on_files(way, root):
    held_out = [set(folder(root, folds=3, fold=fold, **way).paths("val")) for fold in range(3)]
    assert set.union(*held_out) == set(folder(root, val_size=0).paths("train"))
    images = torch.cat([images for images, _ in folder(root, repeats=2, **way).train_dataloader()]).flatten(1).tolist()
    assert sorted(images)[::2] == sorted(images)[1::2]
    assert [folder(root, long_tail=3.0, val_size=0, **way).class_counts()] == [[8, 3]]


def test_by_default_a_tenth_is_split_off(tmp_path):
    data = ImageFolder(str(make_folder(tmp_path, {"train": {"cat": 10, "dog": 10}})))
    assert (len(data.train_set), len(data.val_set)) == (18, 2)


def test_a_binary_task(root):
    data = folder(root, task="binary")
    assert (data.num_classes, data.class_names) == (1, ["cat", "dog"])
    assert {
        path.parent.name: target for path, target in zip(data.paths("test"), data.test_set.targets.tolist(), strict=True)
    } == {
        "cat": 0.0,
        "dog": 1.0,
    }
    trainer = quiet_trainer()
    trainer.fit(ImageClassifier(Linear, **data.model_args()), data)


@pytest.mark.parametrize(("grey", "given", "expected"), [(True, None, 1), (True, 3, 3), (False, None, 3), (False, 1, 1)])
def test_channels_are_those_of_the_files_or_those_asked_for(grey, given, expected, tmp_path):
    root = make_folder(tmp_path, {"train": {"cat": 2, "dog": 2}, "test": {"cat": 1}}, channels=1)
    if not grey:
        save(root / "train" / "dog" / "1.png", pixels(seed=9))
    save(root / "test" / "cat" / "1.png", pixels(seed=10))  # what is tested does not change what is trained on
    data = folder(root, val_size=0, in_channels=given)
    assert data.in_channels == expected
    assert data.train_set.images.shape == (4, expected, 6, 8)
    assert data.test_set.images.shape == (2, expected, 6, 8)


def test_images_of_several_sizes_need_one(root):
    save(root / "train" / "cat" / "large.png", pixels(12, 20))
    said = r"train in .* have 2 sizes \(height x width\): 15 of 6x8, 1 of 12x20. Give size, .* such as size=6; resize says how"
    with pytest.raises(DataError, match=said):
        _ = folder(root).image_size
    for size, expected in ((5, (5, 5)), ((4, 7), (4, 7)), ([4, 7], (4, 7))):
        for resize in ("crop", "squash"):
            data = folder(root, size=size, resize=resize, val_size=0)
            assert data.image_size == expected
            assert torch.equal(data.train_set.images[0], read_image(data.paths("train")[0], 3, expected, resize))


def test_a_test_split_of_another_size_is_told_before_the_training(root):
    save(root / "test" / "cat" / "0.png", pixels(12, 20))
    data = folder(root)
    assert len(data.train_set) == 12
    with pytest.raises(
        DataError, match=r"images of train are of 6x8, and those of test have 2 sizes .*: 4 of 6x8, 1 of 12x20. Give size"
    ):
        data.prepare_data()


def test_the_size_counts_after_the_rotation(tmp_path):
    root = make_folder(tmp_path, {"train": {"cat": 2, "dog": 2}}, ending=".jpg")
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    save(root / "train" / "cat" / "turned.jpg", pixels(8, 6), exif=exif)
    assert folder(root, val_size=0).train_set.images.shape == (5, 3, 6, 8)


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("damage", ["head", "pixels", "no image"])
def test_a_broken_image_is_named(damage, pack, root):
    break_image(root / "train" / "cat" / "3.png", damage)
    data = folder(root, pack=pack)
    with pytest.raises(DataError, match=r"cat/3.png can't be decoded: .* leave broken images out with on_broken='skip'"):
        list(data.train_dataloader())


@pytest.mark.parametrize("damage", ["head", "pixels"])
@BOTH
def test_a_broken_image_is_skipped_on_request_and_told_in_every_run(way, damage, root):
    intact = folder(root, val_size=0).train_set.images
    for name in ("cat/3", "dog/0"):
        break_image(root / "train" / f"{name}.png", damage)
    for _ in range(2):
        data = folder(root, on_broken="skip", val_size=0, **way)
        said = r"2 of 15 images of train are broken and left out: .*cat/3.png can't be decoded: .*dog/0.png can't"
        with pytest.warns(UserWarning, match=said):
            found = data.train_set
        assert len(found) == 13
        kept = [i for i in range(15) if i not in (3, 8)]
        assert torch.equal(data.train_set.images, intact[kept])
        assert [path.stem for path in data.paths("train")][:4] == ["0", "1", "2", "4"]
        assert data.mean == pytest.approx((intact[kept].double() / 255).mean((0, 2, 3)).tolist(), abs=2e-6)
        assert sum(len(targets) for _, targets in data.train_dataloader()) == 13
    with pytest.raises(DataError, match=r"(cat/3|dog/0).png can't be decoded"):  # what was skipped once is not skipped for good
        _ = list(folder(root, **way).train_dataloader())
    save(root / "train" / "cat" / "3.png", pixels(seed=50))
    save(root / "train" / "dog" / "0.png", pixels(seed=51))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(folder(root, on_broken="skip", val_size=0, **way).train_set) == 15


def test_a_class_of_broken_images_is_not_skipped(root):
    for path in (root / "train" / "dog").iterdir():
        break_image(path, "pixels")
    with pytest.raises(DataError, match="all images of the class 'dog' in train are broken"):
        _ = folder(root, on_broken="skip").train_set
    for path in (root / "train" / "cat").iterdir():
        break_image(path, "head")
    with pytest.raises(DataError, match="all 15 images of train are broken"):
        _ = folder(root, on_broken="skip", size=4, in_channels=3).train_set


@pytest.mark.parametrize("on_broken", ["raise", "skip"])
def test_a_file_that_can_not_be_read_is_no_broken_image(on_broken, root, monkeypatch):
    (root / "train" / "cat" / "3.png").unlink()
    (root / "train" / "cat" / "3.png").mkdir()
    save(root / "train" / "cat" / "3.png" / "inside.png", pixels())

    def refuse(path, *rest):
        if path.name == "inside.png":
            raise PermissionError(13, "Permission denied", str(path))
        return read_image(path, *rest)

    monkeypatch.setattr("lightning_cnnopt.data.decoding.read_image", refuse)
    with pytest.raises(DataError, match=r"inside.png can't be read: Permission denied"):
        _ = folder(root, on_broken=on_broken, size=4).train_set


def break_image(path, damage):
    content = path.read_bytes()
    if damage == "head":
        path.write_bytes(content[:10])
    elif damage == "pixels":
        path.write_bytes(content[:60])
    else:
        path.write_text("no image")


def test_a_data_module_can_be_copied_and_pickled(root):
    data = folder(root)
    expected = data.train_set.images
    for same in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        assert torch.equal(same.train_set.images, expected)
        assert same.train_set.targets.tolist() == data.train_set.targets.tolist()


def test_each_process_has_its_share_of_the_cores(root, monkeypatch):
    monkeypatch.setattr(datamodule, "usable_cores", lambda: 8)
    data = folder(root, num_workers=None)
    assert data._sources.workers == 8
    data.trainer = quiet_trainer(devices=3)
    assert data._sources.workers == 2
    assert folder(root, num_workers=5)._sources.workers == 5
    monkeypatch.setattr(datamodule, "usable_cores", lambda: 100)
    assert folder(root, num_workers=None, pack=False)._sources.of("train").workers == 8
    assert folder(root, num_workers=20, pack=False)._sources.of("train").workers == 20


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"resize": "pad"}, r"resize='pad' is unknown; expected one of 'crop', 'squash'"),
        ({"on_broken": "ignore"}, r"on_broken='ignore' is unknown"),
        ({"in_channels": 4}, r"in_channels=4; expected 1 for grey or 3 for RGB"),
        ({"size": 0}, r"size=0 is out of range"),
        ({"size": (4, 5, 3)}, r"size=\(4, 5, 3\); expected height and width, or one number for both"),
        ({"size": 4.5}, r"size=4.5 is not a whole number"),
        ({"size": (4.5, 4)}, r"size=4.5 is not a whole number"),
        ({"num_workers": 1.5}, r"num_workers=1.5 is not a whole number"),
        ({"num_workers": -1}, r"num_workers=-1 is out of range"),
        ({"task": "regression"}, r"task='regression' is unknown"),
    ],
)
def test_a_wrong_argument_is_refused(arguments, said, root):
    with pytest.raises(ConfigurationError, match=said):
        folder(root, **arguments)
