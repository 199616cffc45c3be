"""Where the images of each split come from: a packed file, or the files themselves; and what is kept beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lightning_cnnopt.core.errors import DataError
from lightning_cnnopt.data.decoding import OnBroken, Resize, Shape
from lightning_cnnopt.data.folder.listing import Listing, check_classes_left
from lightning_cnnopt.data.folder.packed import PackedImages
from lightning_cnnopt.data.folder.packing import pack
from lightning_cnnopt.data.folder.survey import Survey, find_broken, survey, tell_broken
from lightning_cnnopt.data.folder.unpacked import UnpackedImages, UnpackedSet
from lightning_cnnopt.data.folder.workers import Problem, check_problem
from lightning_cnnopt.data.image_set import ImageSet

_WHILE_TRAINING = 8
"""At most how many processes decode while training, unless a number is given."""


@dataclass
class Sources:
    """The images of all splits; each split is looked at, and packed, when it is first asked for.

    Args:
        listing: Which there are.
        root: The folder.
        labels: The table that names them, if there is one.
        exclusive: Whether an image has one label.
        size: Height and width that all are brought to; ``None`` for those that they have.
        resize: How.
        in_channels: 1 or 3; ``None`` to go by the training images.
        packed: Whether images are decoded once, or while training.
        cache_dir: Where what is made of them is kept; ``None`` for ``root``.
        on_broken: ``"raise"``, or ``"skip"`` to leave broken files out.
        num_workers: How many processes decode; ``None`` to go by the cores.
        cores: Returns how many are there for this process; asked each time, since a Trainer is attached late.
    """

    listing: Listing
    root: Path
    labels: Path | None
    exclusive: bool
    size: tuple[int, int] | None
    resize: Resize
    in_channels: int | None
    packed: bool
    cache_dir: Path | None
    on_broken: OnBroken
    num_workers: int | None
    cores: Callable[[], int]
    _surveys: dict[str, Survey] = field(default_factory=dict, init=False)
    _opened: dict[str, PackedImages | UnpackedImages] = field(default_factory=dict, init=False)

    @property
    def workers(self) -> int:
        """How many processes decode what is decoded once."""
        return self.cores() if self.num_workers is None else self.num_workers

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.in_channels or (1 if self._survey("train").grey else 3)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of an image.

        Raises:
            DataError: If training images differ in size and none is given.
        """
        if self.size is not None:
            return self.size
        found = self._survey("train")
        sizes = list(found.sizes)
        if len(sizes) > 1:
            raise DataError(
                f"ImageFolder: the images of train in {self.root} have {found.words}. Give size, that of the "
                f"network's input, such as size={min(sizes[0])}; resize says how they are brought to it."
            )
        return sizes[0]

    def of(self, split: str) -> PackedImages | UnpackedImages:
        """Return the images of a split, packed first if they have to be.

        Raises:
            DataError: If images differ in size and none is given, one is broken, or the packed file can't be written.
        """
        if split not in self._opened:
            files, shape, resize = self.listing.splits[split], self._shape(split), self.resize if self.size else None
            if self.packed:
                name = self._name(split, shape)
                packed = pack(name, files, self.listing.classes, shape, resize, self.on_broken, self.workers)
                for place, reason in packed.broken.items():
                    check_problem(Problem(place, reason, True), self.on_broken)
                self._opened[split] = packed
            else:
                # each holds batches ready, in memory that processes share and that containers often have little of
                workers = min(_WHILE_TRAINING, self.workers) if self.num_workers is None else self.num_workers
                self._opened[split] = UnpackedImages(files, shape, resize, workers)
        return self._opened[split]

    def load(self, split: str) -> ImageSet | None:
        """Return a split without its broken images, and say which those are; ``None`` if there is no such split.

        Raises:
            DataError: As :meth:`of`, or if nothing is left of the split or of a class.
        """
        files = self.listing.splits.get(split)
        if files is None:
            return None
        source = self.of(split)
        broken = self._broken(split, source)
        places = torch.tensor([place for place in range(len(files)) if place not in broken]) if broken else None
        if isinstance(source, PackedImages):
            found = ImageSet(source.images, files.targets, places)
        else:
            found = UnpackedSet(source, files.targets, places)
        if broken:
            tell_broken(split, broken, len(files))
            if split == "train" and self.exclusive:
                check_classes_left(self.listing.classes, found.targets.long().tolist())
        return found

    def _broken(self, split: str, source: PackedImages | UnpackedImages) -> dict[int, str]:
        if isinstance(source, PackedImages):
            return source.broken
        if self.on_broken == "raise":
            return {}
        return find_broken(self.listing.splits[split], self._name(split), split, self.workers)

    def _shape(self, split: str) -> Shape:
        height, width = self.image_size
        if self.size is None and (found := self._survey(split)).sizes.keys() != {(height, width)}:
            raise DataError(
                f"ImageFolder: the images of train are of {height}x{width}, and those of {split} have {found.words}. "
                "Give size to bring all to one; resize says how."
            )
        return self.channels, height, width

    def _survey(self, split: str) -> Survey:
        if split not in self._surveys:
            files = self.listing.splits[split]
            self._surveys[split] = survey(files, self._name(split), split, self.on_broken, self.workers)
        return self._surveys[split]

    def _name(self, split: str, shape: Shape | None = None) -> Path:
        """Return where what is kept of a split lies, without an ending."""
        parts = [split]
        root = self.root.resolve()
        if self.labels is not None:
            table = self.labels.resolve()
            parts.append(f"{table.stem}-{_hash(table.relative_to(root) if table.is_relative_to(root) else table)}")
        if shape is not None:
            parts += ["x".join(map(str, shape)), self.resize]
        if self.cache_dir is None:
            return self.root / "-".join([".cnnopt", *parts])
        return self.cache_dir / "-".join([root.name, _hash(root), *parts])


def _hash(path: Path) -> str:
    return hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:8]
