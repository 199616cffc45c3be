from __future__ import annotations

import logging
import os
import warnings

import pytest
from torchvision.datasets import ImageFolder as TorchvisionFolder

from lightning_cnnopt.core.errors import DataError
from lightning_cnnopt.data import ImageFolder
from lightning_cnnopt.data.folder.listing import list_folders

from .files import make_folder, pixels, save


def torchvisions(folder):
    return [(os.path.relpath(path, folder), target) for path, target in TorchvisionFolder(folder).samples]


def ours(listing, split, below):
    files = listing.splits[split]
    names = [os.path.relpath(files.root / name, below) for name in files.names]
    return list(zip(names, files.targets.tolist(), strict=True))


def test_classes_files_and_their_order_are_torchvisions(tmp_path):
    make_folder(tmp_path, {"train": {"dog": 3, "Cat": 2, "10": 1, "9": 2}, "test": {"dog": 1, "10": 2}})
    save(tmp_path / "train" / "dog" / "puppies" / "z.JPEG", pixels(), format="JPEG")
    (tmp_path / "train" / "dog" / "notes.txt").write_text("no image")
    listing = list_folders(tmp_path)
    assert listing.classes == TorchvisionFolder(tmp_path / "train").classes == ["10", "9", "Cat", "dog"]
    assert ours(listing, "train", tmp_path / "train") == torchvisions(tmp_path / "train")
    assert ours(listing, "test", tmp_path / "test") == [("10/0.png", 0), ("10/1.png", 0), ("dog/0.png", 3)]


def test_folders_of_classes_alone_are_training_data(tmp_path):
    make_folder(tmp_path, {".": {"dog": 3, "cat": 2}})
    listing = list_folders(tmp_path)
    assert ours(listing, "train", tmp_path) == torchvisions(tmp_path)
    assert list(listing.splits) == ["train"]
    with pytest.raises(DataError, match="has no test split"):
        _ = ImageFolder(str(tmp_path)).test_set


def test_what_begins_with_a_dot_is_left_out(tmp_path):
    make_folder(tmp_path)
    before = list_folders(tmp_path)
    save(tmp_path / "train" / "cat" / "._0.png", pixels())
    save(tmp_path / "train" / "cat" / ".thumbnails" / "0.png", pixels())
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    after = list_folders(tmp_path)
    assert (after.classes, after.splits["train"].names) == (before.classes, before.splits["train"].names)


def test_jpeg_is_read_by_any_of_its_names(tmp_path):
    make_folder(tmp_path, {"cat": {"": 1}, "dog": {"": 1}})
    for ending in (".JFIF", ".jpe"):
        save(tmp_path / "cat" / f"a{ending}", pixels(), format="JPEG")
    data = ImageFolder(str(tmp_path), val_size=0)
    assert [path.name for path in data.paths("train")] == ["0.png", "a.JFIF", "a.jpe", "0.png"]
    assert len(data.train_set.images) == 4


def test_images_of_kinds_that_are_not_read_are_told_with_their_count(tmp_path, caplog):
    make_folder(tmp_path)
    with caplog.at_level(logging.INFO):
        list_folders(tmp_path)
    assert not caplog.messages
    for name in ("train/cat/a.gif", "train/cat/.b.gif", "train/cat/notes.txt", "train/dog/x/c.HEIC", "test/cat/d.avif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    save(tmp_path / "test" / "dog" / "e.gif", pixels())
    with caplog.at_level(logging.INFO):
        list_folders(tmp_path)
    (said,) = caplog.messages
    assert "4 images are left out of" in said
    assert "not read: 'train/cat/a.gif', 'train/dog/x/c.HEIC', 'test/cat/d.avif' and 1 more. Those that end in .jpg," in said


def test_links_are_followed(tmp_path):
    make_folder(tmp_path / "there", {"train": {"cat": 2, "dog": 2}})
    (tmp_path / "here" / "train").mkdir(parents=True)
    for name in ("cat", "dog"):
        (tmp_path / "here" / "train" / name).symlink_to(tmp_path / "there" / "train" / name)
    assert len(list_folders(tmp_path / "here").splits["train"]) == 4


def test_links_lead_to_no_folder_twice_and_not_back_up(tmp_path):
    make_folder(tmp_path / "there", {"store/one": {"x": 2}, "store/two": {"": 1}, "store/.kept": {"": 1}})
    root = make_folder(tmp_path / "here", {"train": {"cat": 2, "dog": 3, "cat/z": 1}})
    cat = root / "train" / "cat"
    before = ours(list_folders(root), "train", root / "train")
    for name, target in {
        "a": "z",  # comes before z itself
        "self": ".",
        "up": "..",
        "z/top": root,
        "elsewhere": tmp_path / "there" / "store" / "one",
        "elsewhere too": tmp_path / "there" / "store" / "one" / "x",
        "file.png": tmp_path / "there" / "store" / "two" / "0.png",
        "hidden": tmp_path / "there" / "store" / ".kept",
        "gone": "nowhere",
    }.items():
        (cat / name).symlink_to(target)
    (tmp_path / "there" / "store" / "one" / "up").symlink_to("..")
    (tmp_path / "there" / "store" / "one" / "home").symlink_to(root / "train")
    listed = ours(list_folders(root), "train", root / "train")
    more = ["cat/elsewhere/x/0.png", "cat/elsewhere/x/1.png", "cat/file.png", "cat/hidden/0.png"]
    assert sorted(listed) == sorted(before + [(name, 0) for name in more])
    assert [target for _, target in listed] == [0] * 7 + [1] * 3


def test_a_class_that_is_a_link_up_is_not_all_classes(tmp_path):
    make_folder(tmp_path, {"train": {"cat": 2, "dog": 2}})
    (tmp_path / "train" / "loop").symlink_to(tmp_path)
    with pytest.raises(DataError, match="loop is a class without images"):
        list_folders(tmp_path)


def test_folders_beside_the_splits_are_told(tmp_path):
    make_folder(tmp_path, {"train": {"cat": 1, "dog": 1}, "valid": {"cat": 1}})
    with pytest.warns(UserWarning, match=r"only train/, val/ and test/ are used, and not valid/"):
        list_folders(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list_folders(make_folder(tmp_path / "other"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"root='.*folder' does not exist; expected a folder"),
        ({}, r"folder has no folder of a class in it, nor anything else; expected CLASS/\*.jpg"),
        ({"a.jpg": 1, "b.jpg": 1, "c.txt": 0}, r"no folder of a class in it, but 2 of .jpg, 1 of .txt; .* labels=table.csv"),
        (
            {"cat/a.jpg": 1, "dog/b.gif": 0},
            r"folder/dog is a class without images, but 1 of .gif; expected files that end in .jpg",
        ),
        ({"cat/a.jpg": 1, "dog/.a.jpg": 1}, r"dog is a class without images, but 1 of .jpg"),
        ({"train/cat/a.jpg": 1, "train/dog/": 0}, r"folder/train/dog is a class without images, nor anything else"),
        ({"train/cat/a.jpg": 1}, r"folder/train holds one class only, 'cat'; there is nothing to tell apart"),
        ({"cat/a.jpg": 1}, r"folder holds one class only, 'cat'"),
        ({"test/cat/a.jpg": 1}, r"folder has test/ but no train/"),
        ({"train/a/1.jpg": 1, "train/b/1.jpg": 1, "test/c/1.jpg": 1}, r"folder/test has 'c', which the training split has not"),
        ({"train/a/1.jpg": 1, "train/b/1.jpg": 1, "val/c/1.jpg": 1}, r"folder/val has 'c', which .*; its classes are 'a', 'b'"),
    ],
)
def test_a_folder_that_can_not_be_used_is_refused_with_what_was_found(content, said, tmp_path):
    root = tmp_path / "folder"
    for name, is_image in (content or {}).items():
        if is_image:
            save(root / name, pixels())
        elif name.endswith("/"):
            (root / name).mkdir(parents=True)
        else:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("text")
    if content == {}:
        root.mkdir()
    with pytest.raises(DataError, match=said):
        ImageFolder(str(root))


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "images.zip").write_text("")
    with pytest.raises(DataError, match=r"images.zip' is a file; expected a folder"):
        ImageFolder(str(tmp_path / "images.zip"))


@pytest.mark.parametrize("change", ["add", "remove", "rename", "edit", "touch", "other split"])
def test_the_fingerprint_follows_every_change_of_its_files(change, tmp_path):
    make_folder(tmp_path)
    before = list_folders(tmp_path).splits["train"].fingerprint
    assert list_folders(tmp_path).splits["train"].fingerprint == before
    image = tmp_path / "train" / "cat" / "3.png"
    if change == "add":
        save(image.with_name("new.png"), pixels())
    elif change == "remove":
        image.unlink()
    elif change == "rename":
        image.rename(image.with_name("new.png"))
    elif change == "edit":
        content, times = image.read_bytes(), image.stat()
        image.write_bytes(content + b"\0")
        os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif change == "touch":
        os.utime(image, ns=(0, image.stat().st_mtime_ns + 1000))
    else:
        (tmp_path / "test" / "cat" / "0.png").unlink()
    assert (list_folders(tmp_path).splits["train"].fingerprint == before) == (change == "other split")
