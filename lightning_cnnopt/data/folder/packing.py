"""Decoding all images of a split into one file, once."""

from __future__ import annotations

import errno
import glob
import os
import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from lightning_cnnopt.core.errors import DataError
from lightning_cnnopt.data.decoding import OnBroken, Resize, Shape, read_as
from lightning_cnnopt.data.folder.cache import only_one, replace, write_json
from lightning_cnnopt.data.folder.listing import Files
from lightning_cnnopt.data.folder.packed import FORMAT, PackedImages, beside, file_bytes, image_bytes, level_sums, open_packed
from lightning_cnnopt.data.folder.workers import Problem, attempt, check_problem, in_workers, parts_of

_PART, _PART_BYTES = 64, 2**24


def pack(
    name: Path, files: Files, classes: Sequence[str], shape: Shape, resize: Resize | None, on_broken: OnBroken, workers: int
) -> PackedImages:
    """Return the packed images of a split; decode them first, if they are not there or not of these files.

    Args:
        name: Of the file and its manifest, without their endings.
        files: What to pack.
        classes: Their names, for the manifest.
        shape: Channels, height and width of a packed image.
        resize: How images of other sizes are brought to it; ``None`` if all of them have it.
        on_broken: ``"raise"``, or ``"skip"`` to leave zeros in the place of a broken image.
        workers: How many processes share the work.

    Raises:
        DataError: If the disk is too small or can't be written, or a file is broken or can't be read.
    """
    found = open_packed(name, files)
    if isinstance(found, PackedImages):
        return found
    try:
        with only_one(beside(name, ".lock"), f"packing {name.name}"):
            found = open_packed(name, files)
            if isinstance(found, PackedImages):
                return found
            if found:
                rank_zero_info(f"{name.name} is packed anew: {found}.")
            for stale in name.parent.glob(f"{glob.escape(name.name)}.images.*.part"):  # of a process that was killed
                stale.unlink(missing_ok=True)
            # a name of its own, since workers of the killed process may live on for seconds and write theirs
            part = beside(name, f".images.{uuid.uuid4().hex}.part")
            _Writer(part, files, shape, resize).run(name, classes, on_broken, workers)
    except OSError as error:
        raise _unwritable(name.parent, error) from error
    packed = open_packed(name, files)
    assert isinstance(packed, PackedImages)
    return packed


@dataclass(frozen=True)
class _Result:
    sums: np.ndarray
    problems: list[Problem]
    failure: int | None = None


@dataclass(frozen=True)
class _Writer:
    """Decodes images and writes each to its place in the file; called in worker processes."""

    part: Path
    files: Files
    shape: Shape
    resize: Resize | None

    def run(self, name: Path, classes: Sequence[str], on_broken: OnBroken, workers: int) -> None:
        begin = time.monotonic()
        self._check_space()
        try:
            sums, broken = self._decode(on_broken, workers)
            token = uuid.uuid4().hex
            with open(self.part, "r+b") as file:
                file.seek(len(self.files) * image_bytes(self.shape))
                file.write(sums.tobytes() + token.encode())
                file.flush()
                os.fsync(file.fileno())
            replace(self.part, beside(name, ".images"))
        finally:
            self.part.unlink(missing_ok=True)
        content = {
            "format": FORMAT,
            "fingerprint": self.files.fingerprint,
            "token": token,
            "shape": self.shape,
            "resize": self.resize,
            "images": len(self.files),
            "classes": list(classes),
            "broken": broken,
        }
        write_json(beside(name, ".json"), content)
        rank_zero_info(
            f"Packed {len(self.files):,} images of {_words(self.shape)} into {name}.images "
            f"({_size(file_bytes(len(self.files), self.shape))}) in {time.monotonic() - begin:.1f} s."
        )

    def __call__(self, index: list[int]) -> _Result:
        block = torch.zeros(len(index), *self.shape, dtype=torch.uint8)
        problems = []
        for place, i in enumerate(index):
            image = attempt(self._read, self.files.root / self.files.names[i], i)
            if isinstance(image, Problem):
                problems.append(image)
            else:
                block[place] = image
        sums = level_sums(block).numpy()
        try:
            with open(self.part, "r+b") as file:
                file.seek(index[0] * image_bytes(self.shape))
                file.write(block.numpy().tobytes())
        except OSError as error:
            return _Result(sums, problems, error.errno or errno.EIO)
        return _Result(sums, problems)

    def _read(self, path: Path) -> Tensor:
        return read_as(path, self.shape, self.resize)

    def _decode(self, on_broken: OnBroken, workers: int) -> tuple[np.ndarray, dict[int, str]]:
        with open(self.part, "wb") as file:
            file.truncate(len(self.files) * image_bytes(self.shape))
        sums, broken = [], {}
        parts = parts_of(len(self.files), max(1, min(_PART, _PART_BYTES // image_bytes(self.shape))))
        for result in in_workers(self, parts, workers, f"Packing {len(self.files):,} images"):
            for problem in result.problems:
                check_problem(problem, on_broken)
                broken[problem.place] = problem.reason
            if result.failure is not None:
                raise OSError(result.failure, os.strerror(result.failure))
            sums.append(result.sums)
        return np.concatenate(sums), broken

    def _check_space(self) -> None:
        needed, free = file_bytes(len(self.files), self.shape), shutil.disk_usage(self.part.parent).free
        if needed > free:
            raise DataError(
                f"ImageFolder: {len(self.files):,} images of {_words(self.shape)} take {_size(needed)} packed, and "
                f"{self.part.parent} has {_size(free)} left. Give cache_dir=, a folder on a larger disk, a smaller size=, or "
                "pack=False to decode while training."
            )


def _unwritable(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"ImageFolder: packed images can't be written to {folder}: {error.strerror or error}. Give cache_dir=, a folder that "
        "can be written and has room, or pack=False to decode while training."
    )


def _words(shape: Shape) -> str:
    channels, height, width = shape
    return f"{height}x{width}, {'grey' if channels == 1 else 'RGB'}"


def _size(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"
