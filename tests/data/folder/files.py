"""Small image files of every kind."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

MODES = ("1", "L", "LA", "P", "RGB", "RGBA")


def pixels(height=6, width=8, channels=3, seed=0, top=256):
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, top, shape, dtype=np.uint16 if top > 256 else np.uint8)


def smooth(height, width, seed=0):
    coarse = Image.fromarray(pixels(height // 16 + 2, width // 16 + 2, seed=seed))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def save(path, levels, **options):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = levels if isinstance(levels, Image.Image) else Image.fromarray(levels)
    image.save(path, **options)
    return path


def save_png16(path, levels):
    """Write 16 bits a channel, (H, W, 3), which Pillow can't."""
    height, width, _ = levels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    content = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    return path


def make_folder(root, counts=None, size=(6, 8), channels=3, ending=".png"):
    """Make ``root/SPLIT/CLASS/N.png``, no two images alike."""
    counts = {"train": {"cat": 6, "dog": 6}, "test": {"cat": 2, "dog": 2}} if counts is None else counts
    seed = 0
    for split, classes in counts.items():
        for name, count in classes.items():
            for i in range(count):
                seed += 1
                save(Path(root) / split / name / f"{i}{ending}", pixels(*size, channels, seed))
    return Path(root)
