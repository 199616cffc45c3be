"""MNIST and the sets in its format."""

from __future__ import annotations

import math
from abc import abstractmethod
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torchvision
from torch import Tensor
from typing_extensions import override

from lightning_cnnopt.core.errors import DataError
from lightning_cnnopt.data.image_set import ImageSet
from lightning_cnnopt.data.sets.files import TorchvisionFiles, damaged

_BYTES = 8  # the type of an IDX file whose elements are uint8


class IdxFiles(TorchvisionFiles):
    """Base of sets of 60,000 + 10,000 grey images of 28×28 in ten classes, in IDX files.

    The images are mapped into memory, not read: processes of one machine share them.
    """

    num_classes = 10
    in_channels = 1
    image_size = (28, 28)

    @property
    @abstractmethod
    @override
    def class_names(self) -> list[str]: ...

    @property
    @override
    def folder(self) -> Path:
        return Path(self.root) / self.torchvision_name / "raw"

    @override
    def load(self, split: Literal["train", "test"]) -> ImageSet:
        prefix = {"train": "train", "test": "t10k"}[split]
        images = map_idx(self.file(f"{prefix}-images-idx3-ubyte"), 3)
        labels = map_idx(self.file(f"{prefix}-labels-idx1-ubyte"), 1)
        if len(images) != len(labels):
            raise DataError(f"{self.folder}: the {split} files hold {len(images)} images and {len(labels)} labels.")
        if images.shape[1:] != self.image_size:
            raise DataError(
                f"{self.folder}: the {split} images are of {images.shape[1]}x{images.shape[2]}; those of "
                f"{type(self).__name__} are of 28x28."
            )
        return ImageSet(images.unsqueeze(1), labels.long())


class MNIST(IdxFiles):
    """MNIST: handwritten digits (LeCun et al., 1998).

    Args:
        root: Folder with ``MNIST/raw/*-ubyte``, torchvision's layout.
        download: Fetch the files first, if they are not there.
        val_size: What the training set gives to validation.
        **arguments: Those of :class:`ImageDataModule`: batch sizes, augmentation, mixing, the validation split.

    Raises:
        DataError: If a file is missing or damaged, naming it.
    """

    torchvision_name = "MNIST"
    class_names = [str(digit) for digit in range(10)]


class FashionMNIST(IdxFiles):
    """Fashion-MNIST: 60,000 + 10,000 images of clothes, 28×28, grey, in ten classes (Xiao et al., 2017).

    Args:
        root: Folder with ``FashionMNIST/raw/*-ubyte``, torchvision's layout.
        download: Fetch the files first, if they are not there.
        val_size: What the training set gives to validation.
        **arguments: Those of :class:`ImageDataModule`: batch sizes, augmentation, mixing, the validation split.

    Raises:
        DataError: If a file is missing or damaged, naming it.
    """

    torchvision_name = "FashionMNIST"
    class_names = list(torchvision.datasets.FashionMNIST.classes)


class KMNIST(IdxFiles):
    """Kuzushiji-MNIST: handwritten characters of classical Japanese (Clanuwat et al., 2018).

    Args:
        root: Folder with ``KMNIST/raw/*-ubyte``, torchvision's layout.
        download: Fetch the files first, if they are not there.
        val_size: What the training set gives to validation.
        **arguments: Those of :class:`ImageDataModule`: batch sizes, augmentation, mixing, the validation split.

    Raises:
        DataError: If a file is missing or damaged, naming it.
    """

    torchvision_name = "KMNIST"
    class_names = list(torchvision.datasets.KMNIST.classes)


def map_idx(path: Path, dimensions: int) -> Tensor:
    """Return the bytes of an IDX file as a tensor of its shape, mapped into memory.

    Args:
        path: The file: two zero bytes, the type, the number of dimensions, the sizes as big-endian uint32, the elements.
        dimensions: How many it has to have.

    Raises:
        DataError: If it holds anything else.
    """
    begin, size = 4 * (dimensions + 1), path.stat().st_size
    with path.open("rb") as file:
        header = file.read(begin)
    if len(header) < begin or header[:4] != bytes([0, 0, _BYTES, dimensions]):
        raise damaged(path)
    shape = tuple(np.frombuffer(header, ">u4", offset=4).tolist())
    if math.prod(shape) != size - begin or math.prod(shape) == 0:
        raise damaged(path)
    # private: who writes to it by mistake does not change the file
    return torch.from_numpy(np.memmap(path, np.uint8, mode="c", offset=begin, shape=shape))
