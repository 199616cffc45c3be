"""The data module of image files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from typing_extensions import override

from lightning_cnnopt.core.errors import ConfigurationError, DataError, check_choice, check_range, sides_of
from lightning_cnnopt.data.base import Task
from lightning_cnnopt.data.datamodule import ImageDataModule
from lightning_cnnopt.data.decoding import OnBroken, Resize
from lightning_cnnopt.data.folder.labels import list_table
from lightning_cnnopt.data.folder.listing import Listing, list_folders
from lightning_cnnopt.data.folder.packed import PackedImages, level_sums
from lightning_cnnopt.data.folder.sources import Sources
from lightning_cnnopt.data.folder.unpacked import DecodingLoader, UnpackedSet
from lightning_cnnopt.data.folder.workers import usable_cores
from lightning_cnnopt.data.image_set import ImageSet, statistics_of
from lightning_cnnopt.data.resident import ResidentLoader

_MEASURED = 4096
"""Images that mean and standard deviation are measured on where nothing is packed."""


class ImageFolder(ImageDataModule):
    """Image files in folders, or named in a table: decoded once into one file, or while training.

    The folder holds ``train/CLASS/…`` with, if there are some, ``test/CLASS/…`` and ``val/CLASS/…``; or ``CLASS/…`` alone, and
    no test split. Classes are in the order of their names, as torchvision has them. Files and folders that begin with a dot
    are left out, and images of kinds that are not read, such as GIF, which is told.

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
            check_range("ImageFolder", "num_workers", num_workers, 0, whole=True)
        self.root = root
        self.size = None if size is None else sides_of("ImageFolder", "size", size)
        self.resize: Resize = resize
        self.labels = labels
        self.separator = separator
        self.task = task
        self.pack = pack
        self.cache_dir = cache_dir
        self.on_broken: OnBroken = on_broken
        self.num_workers = num_workers
        self._listing = self._list()
        self._sources = Sources(
            self._listing,
            Path(root),
            None if labels is None else Path(labels),
            task != "multilabel",
            self.size,
            resize,
            in_channels,
            pack,
            None if cache_dir is None else Path(cache_dir),
            on_broken,
            num_workers,
            self._cores,
        )
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
        return self._sources.channels

    @property
    @override
    def image_size(self) -> tuple[int, int]:
        return self._sources.image_size

    @override
    def prepare_data(self) -> None:
        """Decode what is not packed yet: all splits, so that a broken test image is found before a training, not after it."""
        for split in self._listing.splits:
            self._sources.of(split)
        if "test" not in self._listing.splits:
            rank_zero_info(f"ImageFolder: there is no test split in {self.root}: all images are training data.")

    @override
    def load(self, split: Literal["train", "test"]) -> ImageSet | None:
        return self._sources.load(split)

    @override
    def load_val(self) -> ImageSet | None:
        return self._sources.load("val")

    @property
    @override
    def has_validation(self) -> bool:
        return "val" in self._listing.splits or super().has_validation

    @property
    @override
    def has_test(self) -> bool:
        return "test" in self._listing.splits

    @override
    def measure(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of the training images: of all, or of 4,096 where they are not packed."""
        data, source = self.train_set, self._sources.of("train")
        places = torch.arange(len(data)) if data.places is None else data.places.long()
        if isinstance(source, PackedImages):
            sums = source.sums()[places].sum(0)
        else:
            places = places[torch.randperm(len(places), generator=torch.Generator().manual_seed(0))[:_MEASURED]]
            sums = torch.stack([level_sums(images).sum(0) for images in source.read(places.split(64))]).sum(0)
        total, squares = (sums.double() / torch.tensor([255, 255**2])).unbind(1)
        return statistics_of(total, squares, len(places) * math.prod(source.shape[1:]), "ImageFolder")

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
        return DecodingLoader(loader, data) if isinstance(data, UnpackedSet) else loader

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

    def _cores(self) -> int:
        processes = 1 if self.trainer is None else self.trainer.num_devices
        return max(1, usable_cores() // processes)
