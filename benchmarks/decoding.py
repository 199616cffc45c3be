"""How image files are decoded fastest: Pillow against torchvision, with and without its draft mode, processes against threads.

It says why :func:`lightning_cnnopt.data.read_image` is what it is. Files are smooth pictures with noise, as photographs are, of
three kinds: 32x32 JPEG kept as they are, 500x375 and 2000x1500 JPEG brought to 224x224. torchvision's decoders are deprecated
since 0.29 and about to be removed: they are a measure here, and no choice.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from benchmarks.frame.rows import FASTER, Benchmark, Function, Goal, Row

# name: count, height, width, of the files; the size they are brought to
_KINDS: dict[str, tuple[int, int, int, tuple[int, int] | None]] = {
    "32x32": (2000, 32, 32, None),
    "500x375 to 224": (300, 375, 500, (224, 224)),
    "2000x1500 to 224": (40, 1500, 2000, (224, 224)),
}
_PART = 20


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()


@cache
def _files(kind: str) -> list[Path]:
    """Make the files of a kind, once in a sitting."""
    import numpy as np
    from PIL import Image

    count, height, width, _ = _KINDS[kind]
    draw, made = np.random.default_rng(0), []
    for i in range(count):
        coarse = draw.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int16)
        levels = (smooth + draw.integers(-12, 13, (height, width, 1))).clip(0, 255).astype(np.uint8)
        made.append(Path(_folder().name) / f"{kind.replace(' ', '-')}-{i}.jpg")
        Image.fromarray(levels).save(made[-1], quality=88)
    return made


def _ours(path: Path, size: tuple[int, int] | None) -> Any:
    from lightning_cnnopt.data import read_image

    return read_image(path, size=size)


def _without_draft(path: Path, size: tuple[int, int] | None) -> Any:
    from torchvision.transforms.v2 import functional as transforms

    from lightning_cnnopt.data import read_image

    image = read_image(path)
    return image if size is None else transforms.center_crop(transforms.resize(image, [min(size)], antialias=True), list(size))


def _pillow(path: Path, size: tuple[int, int] | None) -> Any:
    import numpy as np
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
        return np.asarray(upright if size is None else ImageOps.fit(upright, size[::-1], Image.Resampling.BILINEAR))


def _torchvision(path: Path, size: tuple[int, int] | None) -> Any:
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms.v2 import functional as transforms

    image = decode_image(str(path), ImageReadMode.RGB, apply_exif_orientation=True)
    return image if size is None else transforms.center_crop(transforms.resize(image, [min(size)], antialias=True), list(size))


@dataclass(frozen=True)
class _Part:
    files: list[Path]
    size: tuple[int, int] | None
    decode: Callable[[Path, tuple[int, int] | None], Any]

    def __call__(self, part: list[int]) -> int:
        for i in part:
            self.decode(self.files[i], self.size)
        return len(part)


def _seconds(decode: _Part, workers: Callable[[_Part, list[list[int]]], None]) -> Mapping[str, float]:
    from lightning_cnnopt.data.folder.workers import parts_of

    parts = parts_of(len(decode.files), _PART)
    workers(decode, parts[:2])  # imports
    begin = time.perf_counter()
    workers(decode, parts)
    return {"wall": (time.perf_counter() - begin) / len(decode.files)}


def _here(decode: _Part, parts: list[list[int]]) -> None:
    for part in parts:
        decode(part)


def _processes(decode: _Part, parts: list[list[int]]) -> None:
    from lightning_cnnopt.data.folder.workers import in_workers, usable_cores

    for _ in in_workers(decode, parts, usable_cores()):
        pass


def _threads(decode: _Part, parts: list[list[int]]) -> None:
    from lightning_cnnopt.data.folder.workers import usable_cores

    with ThreadPoolExecutor(usable_cores()) as pool:
        list(pool.map(decode, parts))


def _run(kind: str, decode: Callable[[Path, tuple[int, int] | None], Any], workers: Any, pair: int) -> Mapping[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _seconds(_Part(_files(kind), _KINDS[kind][3], decode), workers)


def _side(label: str, kind: str, decode: Any, workers: Any = _here) -> Function:
    return Function(f"{label}, {kind}", partial(_run, kind, decode, workers))


def _rows() -> tuple[Row, ...]:
    rows = []
    for kind in _KINDS:
        ours = _side("read_image", kind, _ours)
        rows.append(
            Row(
                f"torchvision, {kind}",
                ours,
                _side("torchvision's decode_image and resize", kind, _torchvision),
                Goal(FASTER, 1),
            )
        )
        rows.append(
            Row(f"Pillow alone, {kind}", ours, _side("Pillow's decoder and ImageOps.fit", kind, _pillow), Goal(FASTER, 1))
        )
        in_processes = _side("read_image in a process for each core", kind, _ours, _processes)
        threads = _side("read_image in a thread for each core", kind, _ours, _threads)
        rows.append(Row(f"threads, {kind}", in_processes, threads, Goal(FASTER, 1)))
        rows.append(Row(f"one process, {kind}", in_processes, ours, Goal(FASTER, 1)))
    for kind in list(_KINDS)[1:]:
        ours, whole = _side("read_image", kind, _ours), _side("read_image of the whole, then resized", kind, _without_draft)
        rows.append(Row(f"without draft, {kind}", ours, whole, Goal(FASTER, 1)))
    return tuple(rows)


BENCHMARK = Benchmark(
    id="decoding",
    what="`read_image`, alone and in a process for each core",
    against="torchvision's decoder; Pillow alone; threads; without draft mode",
    goal="at least as fast",
    rows=_rows(),
    packages=("torchvision", "pillow"),
)
