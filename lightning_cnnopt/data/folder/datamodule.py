"""The data module of image files."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from typing_extensions import override

from lightning_cnnopt.core.errors import ConfigurationError, DataError, check_choice, check_range
from lightning_cnnopt.data.base import Task
from lightning_cnnopt.data.datamodule import ImageDataModule
from lightning_cnnopt.data.folder.decoding import Resize, Shape
from lightning_cnnopt.data.folder.labels import list_table
from lightning_cnnopt.data.folder.listing import Files, Listing, check_classes_left, list_folders
from lightning_cnnopt.data.folder.loading import DecodingLoader, StreamedImages, StreamedSet
from lightning_cnnopt.data.folder.packed import PackedImages, level_sums, statistics_of
from lightning_cnnopt.data.folder.packing import pack
from lightning_cnnopt.data.folder.survey import Survey, find_broken, survey, tell_broken
from lightning_cnnopt.data.folder.workers import OnBroken, Problem, check_problem, usable_cores
from lightning_cnnopt.data.image_set import ImageSet
from lightning_cnnopt.data.resident import ResidentLoader

_STREAMING = 8
"""At most how many processes decode while training, unless a number is given."""
_MEASURED = 4096
"""Images that mean and standard deviation are measured on where nothing is packed."""


class ImageFolder(ImageDataModule):
    """Image files in folders, or named in a table: decoded once into one file, or while training.

    The folder holds ``train/CLASS/…`` with, if there are some, ``test/CLASS/…`` and ``val/CLASS/…``; or ``CLASS/…`` alone, and
    no test split. Classes are in the order of their names, as torchvision has them. Files and folders that begin with a dot
    are left out.

    By default images are packed: decoded by several processes into one memory-mapped file of uint8, which later runs and all
    processes of a run share. It is made anew when an image is added, removed, renamed or edited. With ``pack=False`` images
    are decoded by worker processes while training, in the very same batches.

    Args:
        root: The folder.
        size: Height and width that all images are brought to, one number for both; by default that of the images, which
            have to be of one size then.
        resize: How: ``"crop"`` scales an image until its shorter side fits and cuts the centre out, ``"squash"`` scales
            height and width each by its own factor. Both bilinear with antialiasing, torchvision's.
        in_channels: 1 for grey, 3 for RGB; by default 1 if all training images are grey, else 3.
        labels: A CSV table with the columns ``file`` (relative to ``root``), ``label`` and, optionally, ``split`` (train, val
            or test), in place of folders of classes. Without that column a file's first folder is its split, if all are such
            names and one is ``train``, else all is training data. For ``task="multilabel"`` each label may have a column of
            zeros and ones in place of ``label``.
        separator: Between the labels of a cell in ``label``, for ``task="multilabel"``.
        task: What kind of targets there are. For a binary task the second of two classes counts as 1.
        pack: Whether to decode images once, or while training, for sets that no disk holds decoded.
        cache_dir: Where packed images are kept; by default ``root`` itself, in files that begin with ``.cnnopt-``.
        on_broken: What to do about a file that is damaged or no image: ``"raise"`` an error that names it, or ``"skip"`` it;
            every run then tells how many there are, and the first of them.
        num_workers: How many processes decode; by default one for each core, and at most 8 while training.
        val_size: What the training set gives to validation; by default a tenth, or nothing if there is ``val/``.
        **arguments: Those of :class:`ImageDataModule`: batch sizes, augmentation, mixing.

    Raises:
        DataError: If there is no such folder, it holds no images, a class folder is empty, there is one class only, an image is
            broken, images differ in size and ``size`` is not given, or the packed file can't be written.
        ConfigurationError: If arguments contradict each other.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp())
        >>> for name, level in {"cat/a": 10, "cat/b": 20, "dog/c": 200, "dog/d": 210}.items():
        ...     (root / name).parent.mkdir(exist_ok=True)
        ...     Image.new("L", (8, 6), level).save(root / f"{name}.png")
        >>> data = ImageFolder(str(root), val_size=0)
        >>> data.class_names, data.in_channels, data.image_size, data.train_set.images[:, 0, 0, 0].tolist()
        (['cat', 'dog'], 1, (6, 8), [10, 20, 200, 210])
    """

    def __init__(
        self,
        root: str,
        size: int | tuple[int, int] | None = None,
        resize: Resize = "crop",
        in_channels: Literal[1, 3] | None = None,
        labels: str | None = None,
        separator: str | None = None,
        task: Task = "multiclass",
        pack: bool = True,
        cache_dir: str | None = None,
        on_broken: OnBroken = "raise",
        num_workers: int | None = None,
        val_size: int | float | None = None,
        **arguments: Any,
    ) -> None:
        check_choice("ImageFolder", "resize", resize, get_args(Resize))
        check_choice("ImageFolder", "task", task, get_args(Task))
        check_choice("ImageFolder", "on_broken", on_broken, get_args(OnBroken))
        if in_channels not in (None, 1, 3):
            raise ConfigurationError(f"ImageFolder: in_channels={in_channels!r}; expected 1 for grey or 3 for RGB.")
        if num_workers is not None:
            check_range("ImageFolder", "num_workers", num_workers, 0)
        self.root = root
        self.size = _pair(size)
        self.resize: Resize = resize
        self.labels = labels
        self.separator = separator
        self.task = task
        self.pack = pack
        self.cache_dir = cache_dir
        self.on_broken: OnBroken = on_broken
        self.num_workers = num_workers
        self._given_channels = in_channels
        self._surveys: dict[str, Survey] = {}
        self._sources: dict[str, PackedImages | StreamedImages] = {}
        self._listing = self._list()
        super().__init__(val_size=self._val_size(val_size), **arguments)
        if self.on_device and not pack:
            raise ConfigurationError("ImageFolder: on_device=True keeps decoded images on the device; pack=False keeps none.")
        if self.folds is not None and "val" in self._listing.splits:
            raise ConfigurationError(
                f"ImageFolder: folds={self.folds} cuts validation out of the training set, and {root} has a validation split "
                "of its own; leave folds out."
            )

    @property
    @override
    def num_classes(self) -> int:
        return 1 if self.task == "binary" else len(self._listing.classes)

    @property
    @override
    def class_names(self) -> list[str]:
        return list(self._listing.classes)

    @property
    @override
    def in_channels(self) -> int:
        return self._given_channels or (1 if self._survey("train").grey else 3)

    @property
    @override
    def image_size(self) -> tuple[int, int]:
        if self.size is not None:
            return self.size
        sizes = list(self._survey("train").sizes)
        if len(sizes) > 1:
            raise DataError(
                f"ImageFolder: the images of train in {self.root} have {self._survey('train').words}. Give size, that of the "
                f"network's input, such as size={min(sizes[0])}; resize says how they are brought to it."
            )
        return sizes[0]

    @override
    def prepare_data(self) -> None:
        """Decode what is not packed yet: all splits, so that a broken test image is found before a training, not after it."""
        for split in self._listing.splits:
            self._source(split)
        if "test" not in self._listing.splits:
            rank_zero_info(f"ImageFolder: there is no test split in {self.root}: all images are training data.")

    @override
    def load(self, split: Literal["train", "test"]) -> ImageSet | None:
        return self._load(split)

    @override
    def load_val(self) -> ImageSet | None:
        return self._load("val")

    @property
    @override
    def has_validation(self) -> bool:
        return "val" in self._listing.splits or super().has_validation

    @override
    def measure(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of the training images: of all, or of 4,096 where they are not packed."""
        data, source = self.train_set, self._source("train")
        places = torch.arange(len(data)) if data.places is None else data.places.long()
        if isinstance(source, PackedImages):
            sums = source.sums()[places].sum(0)
        else:
            places = places[torch.randperm(len(places), generator=torch.Generator().manual_seed(0))[:_MEASURED]]
            sums = torch.stack([level_sums(images).sum(0) for images in source.read(places.split(64))]).sum(0)
        return statistics_of(sums, len(places) * math.prod(source.shape[1:]), "ImageFolder")

    def paths(self, split: Literal["train", "val", "test"]) -> list[Path]:
        """Return the files of a split in the order of its samples, which is that of the ``index`` of predictions.

        Raises:
            DataError: If there is no such split.
        """
        data = {"train": lambda: self.train_set, "val": lambda: self.val_set, "test": lambda: self.test_set}[split]()
        if data is None:
            raise DataError("ImageFolder has no validation split.")
        files = self._listing.splits["train" if split not in self._listing.splits else split]
        places = range(len(data)) if data.places is None else data.places.tolist()
        return [files.root / files.names[place] for place in places]

    @override
    def train_dataloader(self) -> ResidentLoader | DecodingLoader:  # type: ignore[override]
        return self._decoding(super().train_dataloader(), self.train_set)

    @override
    def _evaluation_loader(  # type: ignore[override]
        self, split: str, data: ImageSet, with_index: bool = False
    ) -> ResidentLoader | DecodingLoader:
        return self._decoding(super()._evaluation_loader(split, data, with_index), data)

    def _decoding(self, loader: ResidentLoader, data: ImageSet) -> ResidentLoader | DecodingLoader:
        return DecodingLoader(loader, data) if isinstance(data, StreamedSet) else loader

    def _list(self) -> Listing:
        root = Path(self.root)
        if self.labels is not None:
            listing = list_table(root, Path(self.labels), self.task, self.separator)
        elif self.task == "multilabel":
            raise ConfigurationError(
                "ImageFolder: task='multilabel' takes labels=, a table; folders give each image one label."
            )
        elif self.separator is not None:
            raise ConfigurationError(f"ImageFolder: separator={self.separator!r} is for the table given by labels=.")
        else:
            listing = list_folders(root)
        if self.task == "binary":
            if len(listing.classes) != 2:
                raise DataError(
                    f"ImageFolder: task='binary' takes two classes; {self.root} has {len(listing.classes)}: "
                    f"{', '.join(listing.classes[:5])}."
                )
            for files in listing.splits.values():
                files.targets = files.targets.float()
        return listing

    def _val_size(self, given: int | float | None) -> int | float:
        own = self._listing.splits.get("val")
        if own is None:
            return 0.1 if given is None else given
        if given is not None:
            raise ConfigurationError(
                f"ImageFolder: val_size={given} splits validation off the training set, and {self.root} has a validation split "
                "of its own; leave val_size out."
            )
        return len(own)

    def _load(self, split: str) -> ImageSet | None:
        files = self._listing.splits.get(split)
        if files is None:
            return None
        source = self._source(split)
        broken = self._broken(split, files, source)
        places = torch.tensor([place for place in range(len(files)) if place not in broken]) if broken else None
        if isinstance(source, PackedImages):
            found = ImageSet(source.images, files.targets, places)
        else:
            found = StreamedSet(source, files.targets, places)
        if broken:
            tell_broken(split, broken, len(files))
            if split == "train" and self.task != "multilabel":
                check_classes_left(self.class_names, found.targets.long().tolist())
        return found

    def _source(self, split: str) -> PackedImages | StreamedImages:
        if split not in self._sources:
            files, shape, resize = self._listing.splits[split], self._shape(split), self.resize if self.size else None
            if self.pack:
                name = self._name(split, shape)
                packed = pack(name, files, self.class_names, shape, resize, self.on_broken, self._workers())
                for place, reason in packed.broken.items():
                    check_problem(Problem(place, reason, True), self.on_broken)
                self._sources[split] = packed
            else:
                # each holds batches ready, in memory that processes share and that containers often have little of
                workers = self._workers() if self.num_workers is not None else min(_STREAMING, self._workers())
                self._sources[split] = StreamedImages(files, shape, resize, workers)
        return self._sources[split]

    def _broken(self, split: str, files: Files, source: PackedImages | StreamedImages) -> dict[int, str]:
        if isinstance(source, PackedImages):
            return source.broken
        return find_broken(files, self._name(split), split, self._workers()) if self.on_broken == "skip" else {}

    def _shape(self, split: str) -> Shape:
        height, width = self.image_size
        if self.size is None and (found := self._survey(split)).sizes.keys() != {(height, width)}:
            raise DataError(
                f"ImageFolder: the images of train are of {height}x{width}, and those of {split} have {found.words}. "
                "Give size to bring all to one; resize says how."
            )
        return self.in_channels, height, width

    def _survey(self, split: str) -> Survey:
        if split not in self._surveys:
            files = self._listing.splits[split]
            self._surveys[split] = survey(files, self._name(split), split, self.on_broken, self._workers())
        return self._surveys[split]

    def _name(self, split: str, shape: Shape | None = None) -> Path:
        """Return where what is kept of a split lies, without an ending."""
        parts = [split]
        if self.labels is not None:
            table, root = Path(self.labels).resolve(), Path(self.root).resolve()
            parts.append(f"{table.stem}-{_hash(table.relative_to(root) if table.is_relative_to(root) else table)}")
        if shape is not None:
            parts += ["x".join(map(str, shape)), self.resize]
        if self.cache_dir is None:
            return Path(self.root) / "-".join([".cnnopt", *parts])
        root = Path(self.root).resolve()
        return Path(self.cache_dir) / "-".join([root.name, _hash(root), *parts])

    def _workers(self) -> int:
        if self.num_workers is not None:
            return self.num_workers
        processes = 1 if self.trainer is None else self.trainer.num_devices
        return max(1, usable_cores() // processes)


def _pair(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    sides = [size, size] if isinstance(size, int) else list(size)
    if len(sides) != 2:
        raise ConfigurationError(f"ImageFolder: size={size!r}; expected a number, or height and width.")
    for side in sides:
        check_range("ImageFolder", "size", side, 1)
    return int(sides[0]), int(sides[1])


def _hash(path: Path) -> str:
    return hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:8]
