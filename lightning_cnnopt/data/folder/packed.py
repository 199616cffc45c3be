"""Images that were decoded into one file of plain bytes, which every process maps into its memory.

``NAME.images`` holds the images one after the other, then the sums of their levels, then a token. ``NAME.json`` beside it says
what they are and repeats the token: after a kill between the two writes they do not belong together, and are made anew.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_cnnopt.core.errors import DataError
from lightning_cnnopt.data.decoding import Shape
from lightning_cnnopt.data.folder.cache import read_json
from lightning_cnnopt.data.folder.listing import Files

FORMAT = 1
"""Of the files; those of another one are made anew."""
TOKEN_BYTES = 32


class PackedImages:
    """Images in a file that is mapped: in memory once, whatever the number of processes, and only as far as it is read.

    Args:
        path: The file.
        count: How many images there are.
        shape: Channels, height and width of one.
        token: What the file ends with.
        broken: Reasons why images could not be decoded, by their places; these are zeros.
    """

    def __init__(self, path: Path, count: int, shape: Shape, token: str, broken: dict[int, str]) -> None:
        self.path = path
        self.count = count
        self.shape = shape
        self.token = token
        self.broken = broken
        self._images: Tensor | None = None

    @property
    def images(self) -> Tensor:
        """All of them, (N, C, H, W): the mapped file itself. What is written to it stays in this process.

        Raises:
            DataError: If the file is no longer the one that was opened.
        """
        if self._images is None:
            if not self.is_whole():
                raise DataError(f"{self.path} is missing, cut short, or was packed anew meanwhile; start again.")
            size = self.count * image_bytes(self.shape)
            self._images = torch.from_file(str(self.path), shared=False, size=size, dtype=torch.uint8).view(-1, *self.shape)
        return self._images

    def sums(self) -> Tensor:
        """Return the sum of levels and of their squares of each image and channel: (N, C, 2), int64."""
        values = np.fromfile(self.path, np.int64, self.count * self.shape[0] * 2, offset=self.count * image_bytes(self.shape))
        return torch.from_numpy(values).view(self.count, self.shape[0], 2)

    def is_whole(self) -> bool:
        """Return whether the file is there, as long as it has to be, and ends with its token."""
        try:
            with open(self.path, "rb") as file:
                if os.fstat(file.fileno()).st_size != file_bytes(self.count, self.shape):
                    return False
                file.seek(-TOKEN_BYTES, os.SEEK_END)
                return file.read() == self.token.encode()
        except OSError:
            return False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_images": None}  # a copy maps the same file


def image_bytes(shape: Sequence[int]) -> int:
    """Return the size of an image of such channels, height and width."""
    return math.prod(shape)


def file_bytes(count: int, shape: Shape) -> int:
    """Return the size of the file."""
    return count * (image_bytes(shape) + 2 * 8 * shape[0]) + TOKEN_BYTES


def level_sums(images: Tensor) -> Tensor:
    """Return the sum of levels and of their squares of each image and channel, exact: (N, C, 2), int64."""
    few = max(1, 2**18 // image_bytes(images.shape[1:]))  # as many as the caches hold: ten times as fast
    blocks = (block.flatten(2).int() for block in images.split(few))
    return torch.cat([torch.stack([block.sum(-1), (block * block).sum(-1)], dim=-1) for block in blocks])


def beside(name: Path, ending: str) -> Path:
    """Return the path with an ending more."""
    return name.with_name(name.name + ending)


def open_packed(name: Path, files: Files) -> PackedImages | str:
    """Return the images that were packed of these files; or why they can't be used, empty if there are none."""
    manifest = read_json(beside(name, ".json"))
    if manifest is None:
        return "its manifest is damaged" if beside(name, ".json").exists() else ""
    if manifest["format"] != FORMAT:
        return "another version wrote it"
    if manifest["fingerprint"] != files.fingerprint:
        return "an image was added, removed, renamed or edited"
    channels, height, width = manifest["shape"]
    broken = {int(place): reason for place, reason in manifest["broken"].items()}
    packed = PackedImages(beside(name, ".images"), len(files), (channels, height, width), manifest["token"], broken)
    return packed if packed.is_whole() else "the packed file is missing, cut short or of another time"
