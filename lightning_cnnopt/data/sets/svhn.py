"""Street View House Numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from typing_extensions import override

from lightning_cnnopt.data.image_set import ImageSet
from lightning_cnnopt.data.sets.files import TorchvisionFiles, damaged


class SVHN(TorchvisionFiles):
    """SVHN: 73,257 + 26,032 colour images of house numbers, 32×32, in ten classes, the digits (Netzer et al., 2011).

    The classes differ in number. The further 531,131 images of its "extra" part are not read.

    Args:
        root: Folder with ``train_32x32.mat`` and ``test_32x32.mat``, torchvision's layout.
        download: Fetch the files first, if they are not there.
        val_size: What the training set gives to validation.
        **arguments: Those of :class:`ImageDataModule`: batch sizes, augmentation, mixing, the validation split.

    Raises:
        DataError: If a file is missing or damaged, naming it.
    """

    torchvision_name = "SVHN"
    num_classes = 10
    in_channels = 3
    image_size = (32, 32)
    loads_once = True

    def __init__(self, root: str = "data", download: bool = False, val_size: int | float = 0.1, **arguments: Any) -> None:
        super().__init__(root, download, val_size, **arguments)

    @property
    @override
    def folder(self) -> Path:
        return Path(self.root)

    @override
    def fetch(self, source: type) -> None:
        for split in ("train", "test"):
            source(self.root, split=split, download=True)

    @override
    def load(self, split: Literal["train", "test"]) -> ImageSet:
        from scipy.io import loadmat  # here, as importing it takes long

        path = self.file(f"{split}_32x32.mat")
        try:
            held = loadmat(path)
            pixels, labels = held["X"], held["y"].reshape(-1)
            is_sound = pixels.dtype == np.uint8 and pixels.shape == (32, 32, 3, len(labels)) and len(labels) > 0
        except Exception as error:  # a damaged file raises anything
            raise damaged(path) from error
        if not is_sound:
            raise damaged(path)
        images = np.ascontiguousarray(pixels.transpose(3, 2, 0, 1))
        labels = labels.astype(np.int64)
        # the digit 0 is written as class 10
        return ImageSet(torch.from_numpy(images), torch.from_numpy(np.where(labels == 10, 0, labels)))
