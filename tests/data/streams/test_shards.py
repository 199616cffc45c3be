"""Tar files; needs webdataset."""

from __future__ import annotations

import io
import json
import tarfile

import pytest
import torch

from lightning_cnnopt.core.errors import ConfigurationError, DataError
from lightning_cnnopt.data import WebDatasetImages
from lightning_cnnopt.data.streams import loader
from tests.data.streams.pictures import numbers, picture
from tests.lightning_tools import Foreign, Killed, SaveAtBatch, assert_same_weights, quiet_trainer, weights_of

pytest.importorskip("webdataset", reason="needs webdataset, of the extra webdataset")

SHARDS, EACH = 4, 6


def write(path, samples):
    with tarfile.open(path, "w") as archive:
        for name, content in samples:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def shards(tmp_path):
    for shard in range(SHARDS):
        members = []
        for number in range(shard * EACH, (shard + 1) * EACH):
            size = (8, 5) if number % 2 else (4, 4)
            members += [(f"{number:04}.png", picture(number, size)), (f"{number:04}.cls", str(number % 3).encode())]
            members += [(f"{number:04}.json", json.dumps({"more": 1}).encode())]
        write(tmp_path / f"train-{shard}.tar", members)
    return str(tmp_path / f"train-{{0..{SHARDS - 1}}}.tar")


def data_of(shards, **arguments):
    defaults = {"num_classes": 3, "train_samples": 24, "image_size": 4, "in_channels": 1, "batch_size": 3, "workers": 2}
    return WebDatasetImages(shards, **{**defaults, "val": shards, **arguments})


@pytest.mark.parametrize("workers", [0, 2, 3, 5])
@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_and_workers_share_all_samples_without_overlap_with_enough_shards_and_without(
    ranks, workers, shards, monkeypatch
):
    monkeypatch.setattr(loader, "world_size", lambda: ranks)
    for split in ("train", "val"):
        seen = []
        for rank in range(ranks):
            monkeypatch.setattr(loader, "rank", lambda rank=rank: rank)
            data = data_of(shards, workers=workers, batch_size=1)
            made = loader.StreamLoader(data.source(split), 1, workers=workers)
            seen += numbers(made)
        assert sorted(seen) == list(range(24))


def test_an_epoch_is_shuffled_over_shards_and_within(shards):
    data = data_of(shards, workers=0)
    stream = data.train_dataloader()
    first, second = numbers(stream), numbers(stream)
    assert sorted(first) == sorted(second) == list(range(24))
    assert first != second
    assert first[:6] != sorted(first[:6])
    assert len({number // EACH for number in first[:6]}) > 1
    assert numbers(data_of(shards, workers=0).train_dataloader()) == first
    assert numbers(data.val_dataloader()) == list(range(24))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_resumes_to_the_same_bits(workers, shards, tmp_path):
    def run(*callbacks, ckpt_path=None, seed=4):
        torch.manual_seed(seed)
        module = Foreign()
        quiet_trainer(*callbacks, max_epochs=2).fit(module, data_of(shards, workers=workers), ckpt_path=ckpt_path)
        return weights_of(module)

    whole, path = run(), tmp_path / "cut.ckpt"
    for batches in (3, 8, 11):
        with pytest.raises(Killed):
            run(SaveAtBatch(batches, path))
        assert_same_weights(run(ckpt_path=str(path), seed=99), whole)


def test_a_sample_that_is_broken_is_named_with_its_shard(tmp_path):
    for content, said in (
        ([("1.png", b"junk"), ("1.cls", b"0")], r"Sample '1' of .*bad.tar can't be read: cannot identify image"),
        ([("1.png", picture(1)), ("1.cls", b"cat")], r"Sample '1' of .*bad.tar can't be read: invalid literal"),
        ([("1.png", picture(1))], r"Sample '1' of .*bad.tar has the endings \['png'\]; expected one of .* and 'cls'"),
        ([("1.png", picture(1)), ("1.cls", b"3")], r"Sample '1' of .*bad.tar is of class 3; with 3 classes .* from 0 to 2\."),
        ([("1.png", picture(1)), ("1.cls", b"-1")], r"Sample '1' of .*bad.tar is of class -1; .*on_broken='skip'"),
        ([("1.cls", b"1")], r"Sample '1' of .*bad.tar has the endings \['cls'\]"),
    ):
        write(tmp_path / "bad.tar", content)
        data = data_of(str(tmp_path / "bad.tar"), workers=0)
        with pytest.raises(DataError, match=said):
            _ = data.mean


@pytest.mark.parametrize("workers", [0, 2])
def test_a_shard_that_is_missing_or_cut_off_is_named(workers, shards, tmp_path):
    data = data_of(shards, workers=workers)
    path = tmp_path / "train-2.tar"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"train-2.tar"):
        numbers(data.val_dataloader())
    path.unlink()
    with pytest.raises(DataError, match=r"train-2.tar"):
        numbers(data.val_dataloader())


def test_what_shards_do_not_say_has_to_be_given(shards):
    with pytest.raises(ConfigurationError, match="shards name no classes; pass class_names= or num_classes="):
        WebDatasetImages(shards, train_samples=3)
    assert data_of(shards, num_classes=None, class_names=["a", "b", "c"]).model_args() == {
        "num_classes": 3,
        "in_channels": 1,
        "image_size": (4, 4),
        "task": "multiclass",
        "class_names": ["a", "b", "c"],
    }
