"""Streams of datasets; needs that package."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from lightning_cnnopt.core.errors import ConfigurationError, DataError
from lightning_cnnopt.data import HuggingFaceImages
from lightning_cnnopt.data.streams import loader
from tests.data.streams.pictures import numbers, picture
from tests.lightning_tools import Foreign, Killed, SaveAtBatch, assert_same_weights, quiet_trainer, weights_of

datasets = pytest.importorskip("datasets", reason="needs datasets, of the extra huggingface")

FILES, EACH = 4, 6


@pytest.fixture
def files(tmp_path):
    """Parquet files of pictures that hold their numbers."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    for file in range(FILES):
        held = range(file * EACH, (file + 1) * EACH)
        rows = {"image": [{"bytes": picture(n), "path": f"{n}.png"} for n in held], "label": [n % 3 for n in held]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / f"train-{file}.parquet")
    return [str(tmp_path / f"train-{file}.parquet") for file in range(FILES)]


def data_of(files, **arguments):
    defaults = {"image_size": 4, "in_channels": 1, "batch_size": 3, "workers": 2, "train_samples": 24, "val_split": "train"}
    return HuggingFaceImages("parquet", load={"data_files": {"train": files}}, **{**defaults, **arguments})


@pytest.mark.parametrize("workers", [0, 2, 5])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_and_workers_share_all_samples_without_overlap(ranks, workers, files, monkeypatch):
    monkeypatch.setattr(loader, "world_size", lambda: ranks)
    seen = []
    for rank in range(ranks):
        monkeypatch.setattr(loader, "rank", lambda rank=rank: rank)
        seen += numbers(data_of(files, workers=workers).val_dataloader())
    assert sorted(seen) == list(range(24))


def test_no_more_workers_are_started_than_there_is_work_for(files):
    source = data_of(files).source("train")
    assert [source.useful_workers(workers, 1) for workers in (0, 3, 9)] == [0, 3, 4]
    assert source.useful_workers(9, 2) == 2


def test_an_epoch_is_shuffled_and_names_come_from_the_columns(files):
    data = data_of(files, workers=0)
    stream = data.train_dataloader()
    first, second = numbers(stream), numbers(stream)
    assert sorted(first) == sorted(second) == list(range(24))
    assert first != second
    assert first[:6] != sorted(first[:6])
    assert numbers(data_of(files, workers=0).train_dataloader()) == first
    assert numbers(data.val_dataloader()) == list(range(24))
    assert (data.class_names, data.num_classes) == (["a", "b", "c"], 3)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumes_to_the_same_bits(workers, files, tmp_path):
    def run(*callbacks, ckpt_path=None, seed=4):
        torch.manual_seed(seed)
        module = Foreign()
        quiet_trainer(*callbacks, max_epochs=2).fit(module, data_of(files, workers=workers), ckpt_path=ckpt_path)
        return weights_of(module)

    whole, path = run(), tmp_path / "cut.ckpt"
    for batches in (3, 8, 11):
        with pytest.raises(Killed):
            run(SaveAtBatch(batches, path))
        assert_same_weights(run(ckpt_path=str(path), seed=99), whole)


def test_a_folder_of_images_is_read_by_its_own_builder(tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (9, 7), (number, 0, 0)).save(tmp_path / "photos" / label / f"{number}.png")
    data = HuggingFaceImages(
        "imagefolder", load={"data_dir": str(tmp_path / "photos")}, train_samples=6, batch_size=6, image_size=(5, 6), workers=0
    )
    assert data.class_names == ["cat", "dog"]
    ((images, targets),) = data.train_dataloader()
    assert images.shape == (6, 3, 5, 6)
    assert sorted(targets.tolist()) == [0, 0, 0, 1, 1, 1]


def test_an_image_that_is_broken_is_named(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    for content, label, said in ((b"junk", 0, "can't be read"), (picture(7), 7, "is of class 7; with 3 classes it has to be")):
        rows = {"image": [{"bytes": content, "path": "seven.png"}], "label": [label]}
        file = tmp_path / f"bad-{label}.parquet"
        datasets.Dataset.from_dict(rows, features=features).to_parquet(file)
        data = data_of([str(file)], num_classes=3)
        with pytest.raises(DataError, match=rf"The image seven\.png {said}"):
            _ = data.mean


def test_what_is_not_there_is_named(files):
    with pytest.raises(DataError, match="'nowhere-at-all' can't be loaded"):
        _ = HuggingFaceImages("nowhere-at-all").class_names
    with pytest.raises(DataError, match="column 'breed' of 'parquet' names no classes"):
        _ = data_of(files, target_key="breed").class_names
    with pytest.raises(DataError, match=r"There is no column 'photo'; the data set has \['image', 'label'\]"):
        _ = data_of(files, image_key="photo").mean
    with pytest.raises(DataError, match="has no test split"):
        data_of(files).test_dataloader()
    with pytest.raises(ConfigurationError, match="pass train_samples="):
        data_of(files, train_samples=None).train_dataloader()
