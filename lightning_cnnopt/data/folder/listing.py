"""Which images there are, and what class each is of: from the names of folders."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, deque
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from lightning_cnnopt.core.errors import DataError

SPLITS = ("train", "val", "test")

ENDINGS = (*IMG_EXTENSIONS, ".jfif", ".jpe")
"""Files that are read: those that torchvision reads, and JPEG by its other names."""

_OTHER = (".apng", ".avif", ".dng", ".exr", ".gif", ".heic", ".heif", ".ico", ".jp2", ".jxl", ".pbm", ".psd", ".svg", ".tga")
"""Files that look like images, too, and are not read."""


@dataclass
class Files:
    """The images of one split.

    Args:
        root: The folder that their names are relative to.
        names: Of the files, with slashes.
        targets: One of each.
    """

    root: Path
    names: list[str]
    targets: Tensor

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.names)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of names, sizes and times of change, another one as soon as a file is added, removed, renamed or edited.

        Raises:
            DataError: If a file is missing.
        """
        digest = hashlib.sha256()
        for name in self.names:
            try:
                found = os.stat(self.root / name)
            except OSError as error:
                raise DataError(f"{self.root / name} can't be read: {error.strerror}.") from error
            digest.update(f"{name}\0{found.st_size}\0{found.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


@dataclass
class Listing:
    """All images of a data set.

    Args:
        classes: Names of the classes, in the order of their numbers.
        splits: The images of ``"train"``, and of ``"val"`` and ``"test"`` where there are some.
    """

    classes: list[str]
    splits: dict[str, Files] = field(default_factory=dict)


def list_folders(root: Path) -> Listing:
    """List ``root/train/CLASS/…`` with ``root/test/…`` and ``root/val/…``, or else ``root/CLASS/…``, all of it training data.

    Classes and files are in torchvision's order: by name. What begins with a dot is left out. So are images of kinds that are
    not read, and that is told.

    Raises:
        DataError: If the folder is missing or empty, a class folder has no images, there is one class only, or a split has a
            class that the training split has not.
    """
    check_folder(root)
    inside = _folders(root)
    left_out: list[str] = []
    if "train" not in inside:
        if stray := [split for split in SPLITS if split in inside]:
            raise DataError(f"ImageFolder: {root} has {stray[0]}/ but no train/; expected train/CLASS/… beside it.")
        classes, files = _classes_of(root, root, None, left_out)
        _tell_left_out(root, left_out)
        return Listing(classes, {"train": files})
    if unused := [name for name in inside if name not in SPLITS]:
        rank_zero_warn(
            f"ImageFolder: of {root} only train/, val/ and test/ are used, and not {', '.join(f'{name}/' for name in unused)}."
        )
    classes, files = _classes_of(root, root / "train", None, left_out)
    splits = {"train": files}
    for split in ("val", "test"):
        if split in inside:
            splits[split] = _classes_of(root, root / split, classes, left_out)[1]
    _tell_left_out(root, left_out)
    return Listing(classes, splits)


def check_folder(root: Path) -> None:
    """Raise if there is no such folder.

    Raises:
        DataError: Naming it.
    """
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise DataError(f"ImageFolder: root={str(root)!r} {what}; expected a folder.")


def check_classes(classes: list[str], known: list[str] | None, where: str) -> None:
    """Raise if there are too few classes, or some that the training split has not.

    Raises:
        DataError: Naming them.
    """
    if known is None and len(classes) == 1:
        raise DataError(f"ImageFolder: {where} holds one class only, {classes[0]!r}; there is nothing to tell apart.")
    if known is not None and (unknown := sorted(set(classes) - set(known))):
        raise DataError(
            f"ImageFolder: {where} has {_listed(unknown)}, which the training split has not; its classes are {_listed(known)}."
        )


def check_classes_left(classes: list[str], targets: list[int]) -> None:
    """Raise if a class has lost all of its training images.

    Raises:
        DataError: Naming it.
    """
    present = set(targets)
    for number, name in enumerate(classes):
        if number not in present:
            raise DataError(f"ImageFolder: all images of the class {name!r} in train are broken.")


def _classes_of(root: Path, folder: Path, known: list[str] | None, left_out: list[str]) -> tuple[list[str], Files]:
    """Return the classes in a folder and their images; add those that are not read to ``left_out``."""
    classes = _folders(folder)
    if not classes:
        raise DataError(
            f"ImageFolder: {folder} has no folder of a class in it, {_content(os.listdir(folder))}; expected CLASS/*.jpg, "
            "or train/CLASS/*.jpg with test/CLASS/*.jpg. Labels from a table are given by labels=table.csv."
        )
    check_classes(classes, known, str(folder))
    names: list[str] = []
    targets: list[int] = []
    for name in classes:
        found, other = _images(root, folder / name)
        if not found:
            raise DataError(
                f"ImageFolder: {folder / name} is a class without images, {_content(other)}; expected files that end in "
                f"{', '.join(ENDINGS)}. Fill it or remove it."
            )
        names += found
        left_out += [file for file in other if file.lower().endswith(_OTHER) and not Path(file).name.startswith(".")]
        targets += [(known or classes).index(name)] * len(found)
    return classes, Files(root, names, torch.tensor(targets))


def _folders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def _images(root: Path, folder: Path) -> tuple[list[str], list[str]]:
    """Return the images below a folder in torchvision's order, and the other files."""
    images: list[str] = []
    other: list[str] = []
    for place, names in _walk(folder):
        for name in names:
            is_read = name.lower().endswith(ENDINGS) and not name.startswith(".")
            (images if is_read else other).append((Path(place) / name).relative_to(root).as_posix())
    return images, other


def _walk(folder: Path) -> list[tuple[str, list[str]]]:
    """Return a folder and those below it, by name, each with the names of its files.

    Links are followed, but to no folder that has been listed already, nor up to one that holds the link: there the walk would
    begin anew, and the images of other classes would be listed as of this one.
    """
    found: list[tuple[str, list[str]]] = []
    seen: set[str] = set()
    waiting = deque([(str(folder), {os.path.realpath(parent) for parent in folder.absolute().parents})])
    while waiting:  # links come last, so that a folder is listed under its own name
        top, above = waiting.popleft()
        real = os.path.realpath(top)
        if real in above:
            continue
        above = above | {str(parent) for parent in Path(real).parents}
        for place, folders, names in os.walk(top):
            here = os.path.normpath(os.path.join(real, os.path.relpath(place, top)))
            folders[:] = [] if here in seen else sorted(name for name in folders if not name.startswith("."))
            if here not in seen:
                seen.add(here)
                found.append((place, sorted(names)))
            waiting += [(link, above) for name in folders if os.path.islink(link := os.path.join(place, name))]
    return sorted(found)


def _tell_left_out(root: Path, names: list[str]) -> None:
    if names:
        found = "1 image is" if len(names) == 1 else f"{len(names):,} images are"
        rank_zero_info(
            f"ImageFolder: {found} left out of {root}, as such files are not read: {_listed(names, 3)}. Those that end in "
            f"{', '.join(ENDINGS)} are."
        )


def _content(names: list[str]) -> str:
    endings = Counter(Path(name).suffix or Path(name).name for name in names)
    return f"but {', '.join(f'{n} of {ending}' for ending, n in endings.most_common(3))}" if endings else "nor anything else"


def _listed(names: list[str], most: int = 5) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
