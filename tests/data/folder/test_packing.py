"""The packed file: made once, shared, and never served when it is not that of the sources."""

from __future__ import annotations

import copy
import io
import json
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from lightning_cnnopt.core.errors import DataError
from lightning_cnnopt.data import ImageFolder, decoding
from lightning_cnnopt.data.folder import cache, packing, survey, workers

from .files import make_folder, pixels, save

COUNTS = {"train": {"cat": 4, "dog": 4}}
forked = multiprocessing.get_context("fork") if sys.platform == "linux" else None
needs_fork = pytest.mark.skipif(forked is None, reason="children have to start with this process's state")


def folder(root, **arguments):
    return ImageFolder(str(root), **{"val_size": 0, "num_workers": 0, **arguments})


def sources(data, split="train"):
    """Decode the files anew."""
    listed = data._listing.splits[split]
    return torch.stack([decoding.read_image(listed.root / name, data.in_channels, data.size) for name in listed.names])


def packed_file(root):
    (path,) = Path(root).glob(".cnnopt-train-*.images")
    return path


def assert_serves_its_sources(root, **arguments):
    data = folder(root, **arguments)
    assert torch.equal(data.train_set.images, sources(data))
    assert not list(Path(root).rglob("*.part"))


class Slow:
    """Decodes in so many seconds, and notes which file."""

    def __init__(self, log, seconds):
        self.log, self.seconds, self.read = log, seconds, packing.read_as

    def __call__(self, path, *rest):
        with open(self.log, "a") as file:
            file.write(f"{path.name}\n")
        time.sleep(self.seconds)
        return self.read(path, *rest)


def test_the_packed_images_are_those_of_the_files(tmp_path):
    make_folder(tmp_path, {"train": {"cat": 70, "dog": 80}, "test": {"cat": 3}, "val": {"dog": 2}})
    data = folder(tmp_path, num_workers=2, val_size=None)
    for split, found in (("train", data.train_set), ("test", data.test_set), ("val", data.val_set)):
        assert torch.equal(found.images, sources(data, split))
        assert [path.parent.name for path in data.paths(split)] == [data.class_names[target] for target in found.targets]


def test_the_manifest_says_what_is_in_the_file(tmp_path):
    data = folder(make_folder(tmp_path, COUNTS))
    data.prepare_data()
    manifest = json.loads(packed_file(tmp_path).with_suffix(".json").read_text())
    assert manifest.items() >= {"shape": [3, 6, 8], "images": 8, "classes": ["cat", "dog"], "broken": {}}.items()
    assert manifest["fingerprint"] == data._listing.splits["train"].fingerprint


def test_mean_and_std_are_those_of_the_part_that_is_trained_on(tmp_path):
    make_folder(tmp_path, {"train": {"cat": 9, "dog": 11}})
    data = folder(tmp_path, val_size=5)
    pixels = data.train_set.images.double() / 255
    assert data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=2e-6)
    assert data.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=2e-6)


def test_a_later_run_decodes_nothing(tmp_path, monkeypatch):
    folder(make_folder(tmp_path, COUNTS)).prepare_data()
    monkeypatch.setattr(packing, "read_as", None)
    monkeypatch.setattr(survey, "read_header", None)
    assert len(folder(tmp_path).train_set) == 8


def test_a_folder_that_can_only_be_read_serves_what_was_packed(tmp_path, monkeypatch):
    folder(make_folder(tmp_path, COUNTS)).prepare_data()

    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    for module in (packing, survey):
        monkeypatch.setattr(module, "only_one", refuse)
    monkeypatch.setattr(os, "replace", refuse)
    assert_serves_its_sources(tmp_path)
    with pytest.raises(DataError, match=r"can't be written to .*: Permission denied. Give cache_dir=.*, or pack=False"):
        _ = folder(tmp_path, size=4).train_set
    save(tmp_path / "train" / "cat" / "new.png", pixels())
    streamed = folder(tmp_path, pack=False)  # looks at the files anew, and goes on
    assert torch.equal(streamed.train_set.images, sources(streamed))


def test_a_cache_elsewhere_leaves_the_folder_as_it_is_and_holds_several(tmp_path):
    first, second, there = tmp_path / "a" / "set", tmp_path / "b" / "set", tmp_path / "cache" / "new"
    make_folder(first, COUNTS)
    make_folder(second, {"train": {"cat": 2, "dog": 2}})
    for root in (first, second, first):
        data = folder(root, cache_dir=str(there))
        assert torch.equal(data.train_set.images, sources(data))
        assert [path.name for path in root.iterdir()] == ["train"]
    assert len(list(there.glob("set-*.images"))) == 2


def test_a_cache_that_can_not_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    data = folder(make_folder(tmp_path / "root", COUNTS), cache_dir=str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match=r"can't be written to .*file/cache: .* Give cache_dir=, a folder that can be written"):
        _ = data.train_set


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "edited"])
def test_a_source_that_changed_is_packed_anew(change, tmp_path):
    folder(make_folder(tmp_path, COUNTS)).prepare_data()
    before = packed_file(tmp_path).stat().st_ino
    assert_serves_its_sources(tmp_path)
    assert packed_file(tmp_path).stat().st_ino == before
    image = tmp_path / "train" / "cat" / "1.png"
    if change == "added":
        save(image.with_name("new.png"), pixels(seed=99))
    elif change == "removed":
        image.unlink()
    elif change == "renamed":
        image.rename(image.with_name("9.png"))
    else:
        save(image, pixels(seed=99))
    assert_serves_its_sources(tmp_path)
    assert packed_file(tmp_path).stat().st_ino != before


@pytest.mark.parametrize("left", [0, 100, -1, -40])
def test_a_packed_file_that_was_cut_short_is_made_anew(left, tmp_path):
    folder(make_folder(tmp_path, COUNTS)).prepare_data()
    path = packed_file(tmp_path)
    os.truncate(path, left if left >= 0 else path.stat().st_size + left)
    assert_serves_its_sources(tmp_path)


def test_a_packed_file_that_is_gone_or_too_long_is_made_anew(tmp_path):
    folder(make_folder(tmp_path, COUNTS)).prepare_data()
    packed_file(tmp_path).unlink()
    assert_serves_its_sources(tmp_path)
    with open(packed_file(tmp_path), "ab") as file:
        file.write(b"more")
    assert_serves_its_sources(tmp_path)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    of_survey=st.booleans(),
    part=st.floats(0, 0.99),
    damage=st.one_of(
        st.none(), st.binary(max_size=40), st.integers(), st.text(max_size=5), st.lists(st.integers(), max_size=3)
    ),
)
def test_a_damaged_manifest_is_made_anew(of_survey, part, damage, tmp_path):
    if not (tmp_path / "train").exists():
        make_folder(tmp_path, COUNTS)
    folder(tmp_path).prepare_data()
    manifest = tmp_path / (".cnnopt-train.survey.json" if of_survey else packed_file(tmp_path).with_suffix(".json").name)
    content = manifest.read_bytes()
    if damage is None:
        manifest.write_bytes(content[: int(len(content) * part)])
    elif isinstance(damage, bytes):
        manifest.write_bytes(damage)
    else:
        values = json.loads(content)
        values[list(values)[int(len(values) * part)]] = damage
        manifest.write_text(json.dumps(values))
    assert_serves_its_sources(tmp_path)


def test_a_kill_between_file_and_manifest_does_not_pair_the_new_with_the_old(tmp_path):
    """Sources a, b, and a again with the very same times: the manifest of a would pass for that of b's images."""
    root, kept = tmp_path / "root", tmp_path / "kept"
    image = make_folder(root, COUNTS) / "train" / "cat" / "1.png"
    folder(root).prepare_data()
    manifest = packed_file(root).with_suffix(".json")
    shutil.copytree(root, kept)
    save(image, pixels(seed=99))
    folder(root).prepare_data()
    shutil.copy2(kept / manifest.name, manifest)
    shutil.copy2(kept / "train" / "cat" / "1.png", image)
    assert_serves_its_sources(root)


def test_a_disk_that_is_too_small_is_told_before_the_first_byte(tmp_path, monkeypatch):
    make_folder(tmp_path, COUNTS)
    usage = shutil.disk_usage(tmp_path)
    needed = 8 * (3 * 6 * 8 + 48) + 32
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    said = (
        r"8 images of 6x8, RGB take 1.531 KiB packed, and .* has 1.53 KiB left. Give cache_dir=.* smaller size=, or pack=False"
    )
    with pytest.raises(DataError, match=said):
        folder(tmp_path).prepare_data()
    assert not list(tmp_path.glob("*.images*"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed))
    assert_serves_its_sources(tmp_path)


@pytest.mark.parametrize("limit", [100, 8 * 3 * 6 * 8 + 10], ids=["images", "sums"])
def test_a_disk_that_fills_up_meanwhile_is_told_and_nothing_is_left(limit, tmp_path):
    data = folder(make_folder(tmp_path, COUNTS), size=(6, 8), in_channels=3)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(DataError, match=r"can't be written to .*: File too large. Give cache_dir="):
            data.prepare_data()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.glob("*.images*"))
    assert_serves_its_sources(tmp_path)


def test_an_interrupt_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    make_folder(tmp_path, COUNTS)
    monkeypatch.setattr(packing, "read_as", interrupt)
    with pytest.raises(KeyboardInterrupt):
        folder(tmp_path).prepare_data()
    monkeypatch.undo()
    assert not list(tmp_path.glob("*.images*"))


@needs_fork
@pytest.mark.parametrize("num_workers", [0, 2])
def test_killed_while_writing_the_next_run_makes_it_whole(num_workers, tmp_path, monkeypatch):
    make_folder(tmp_path / "root", {"train": {"cat": 70, "dog": 70}})
    log = tmp_path / "log"
    monkeypatch.setattr("torch.utils.data._utils.worker.MP_STATUS_CHECK_INTERVAL", 0.1)  # orphans look for their parent
    with monkeypatch.context() as slowly:
        slowly.setattr(packing, "read_as", Slow(log, 0.01))
        child = forked.Process(target=folder(tmp_path / "root", num_workers=num_workers).prepare_data)
        child.start()
        deadline = time.monotonic() + 60
        while (not log.exists() or log.read_text().count("\n") < 75) and time.monotonic() < deadline:
            time.sleep(0.002)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    assert child.exitcode == -signal.SIGKILL
    assert list((tmp_path / "root").glob("*.images.*.part")), "killed too late"
    assert not list((tmp_path / "root").glob("*.images"))
    assert_serves_its_sources(tmp_path / "root")


@needs_fork
def test_of_several_processes_that_start_at_once_one_decodes(tmp_path, monkeypatch):
    root, log = make_folder(tmp_path / "root", COUNTS), tmp_path / "log"
    together, results = forked.Barrier(3), forked.Queue()

    def run():
        torch.set_num_threads(1)
        together.wait()
        data = folder(root)
        results.put((data.train_set.images.sum().item(), str(data._sources.of("train").token)))

    monkeypatch.setattr(packing, "read_as", Slow(log, 0.03))
    children = [forked.Process(target=run) for _ in range(3)]
    for child in children:
        child.start()
    found = {results.get(timeout=60) for _ in children}
    for child in children:
        child.join()
    assert len(log.read_text().splitlines()) == 8
    monkeypatch.undo()
    data = folder(root)
    assert found == {(sources(data).sum().item(), data._sources.of("train").token)}


def test_copies_of_packed_images_map_the_same_file(tmp_path):
    data = folder(make_folder(tmp_path, COUNTS))
    packed = data._sources.of("train")
    expected = data.train_set.images.clone()
    other = pickle.dumps(packed)
    for same in (copy.deepcopy(packed), pickle.loads(other)):
        assert torch.equal(same.images, expected)
    assert len(other) < 1000
    save(tmp_path / "train" / "cat" / "1.png", pixels(seed=99))
    folder(tmp_path).prepare_data()
    assert torch.equal(data.train_set.images, expected), "what is mapped stays as it was"
    with pytest.raises(DataError, match="was packed anew meanwhile"):
        _ = pickle.loads(other).images


def test_writing_to_mapped_images_does_not_reach_the_file(tmp_path):
    data = folder(make_folder(tmp_path, COUNTS))
    data.train_set.images.zero_()
    assert_serves_its_sources(tmp_path)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells what memory is whose")
def test_an_epoch_takes_no_memory_of_its_own(tmp_path):
    data = folder(make_folder(tmp_path, {"train": {"cat": 16, "dog": 16}}), size=200, val_size=8, batch_size=2)
    assert sum(int(images.sum()) for images, _ in data.train_dataloader())
    assert data.mean
    assert data.train_set.whole_images is data.val_set.whole_images
    _, _, mapping = Path("/proc/self/smaps").read_text().partition(f"{packed_file(tmp_path)}\n")
    sizes = {words[0]: int(words[1]) for words in map(str.split, mapping.splitlines()[:20]) if words[-1] == "kB"}
    assert sizes["Size:"] >= 32 * 3 * 200 * 200 // 1024
    assert sizes["Private_Dirty:"] == sizes["Anonymous:"] == 0


def test_a_terminal_shows_how_far_it_is(tmp_path, monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(workers, "Console", lambda stderr: Console(file=screen, force_terminal=True, width=100))
    folder(make_folder(tmp_path, COUNTS)).prepare_data()
    assert "Packing 8 images" in screen.getvalue()
    assert "8/8" in screen.getvalue()


def test_the_lock_waits_and_says_so(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(cache, "rank_zero_info", said.append)
    make_folder(tmp_path, COUNTS)
    lock = tmp_path / "lock"
    start = forked.Event()

    def hold():
        with cache.only_one(lock, "packing"):
            start.set()
            time.sleep(0.3)

    child = forked.Process(target=hold)
    child.start()
    start.wait()
    begin = time.monotonic()
    with cache.only_one(lock, "packing"):
        assert time.monotonic() - begin > 0.1
    child.join()
    assert said == ["Another process is packing; waiting for it."]
