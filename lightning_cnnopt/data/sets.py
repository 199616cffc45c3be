"""Data sets by name."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torchvision
from torch import Tensor
from torchvision.datasets.mnist import read_image_file, read_label_file
from typing_extensions import override

from lightning_cnnopt.core.errors import ConfigurationError, DataError, check_choice
from lightning_cnnopt.data.datamodule import ImageDataModule, Task
from lightning_cnnopt.data.image_set import ImageSet


class Digits(ImageDataModule):
    """scikit-learn's handwritten digits: 1,797 real images of 8×8, inside that package, so nothing is downloaded.

    A fixed, stratified fifth is the test split, so that seeds vary training only.

    Args:
        **arguments: Those of :class:`ImageDataModule`: batch sizes, augmentation, mixing, the validation split.

    Example:
        >>> digits = Digits()
        >>> digits.num_classes, digits.image_size, len(digits.train_set), len(digits.test_set)
        (10, (8, 8), 1293, 360)
    """

    num_classes = 10
    in_channels = 1
    image_size = (8, 8)

    @override
    def load(self, split: Literal["train", "test"]) -> ImageSet:
        from sklearn.datasets import load_digits  # here, as it takes half as long to import as the rest of this package
        from sklearn.model_selection import train_test_split

        pixels, labels = load_digits(return_X_y=True)
        train, test = train_test_split(range(len(labels)), test_size=0.2, random_state=0, stratify=labels)
        chosen = sorted(train if split == "train" else test)
        # 17 grey levels, 0 to 16, spread over those of uint8
        images = np.rint(pixels[chosen].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
        return ImageSet(torch.from_numpy(images), torch.from_numpy(labels[chosen]).long())


class FashionMNIST(ImageDataModule):
    """Fashion-MNIST: 60,000 + 10,000 images of clothes, 28×28, grey, in ten classes (Xiao et al., 2017).

    Args:
        root: Folder with ``FashionMNIST/raw/*-ubyte``, torchvision's layout.
        download: Fetch the files first, if they are not there.
        **arguments: Those of :class:`ImageDataModule`: batch sizes, augmentation, mixing, the validation split.

    Raises:
        DataError: If a file is missing or damaged, naming it.
    """

    num_classes = 10
    in_channels = 1
    image_size = (28, 28)
    class_names = list(torchvision.datasets.FashionMNIST.classes)

    def __init__(
        self,
        root: str = "data",
        download: bool = False,
        val_size: int | float = 5000,
        **arguments: Any,
    ) -> None:
        super().__init__(val_size=val_size, **arguments)
        self.root = root
        self.download = download

    @override
    def prepare_data(self) -> None:
        if self.download:
            try:
                torchvision.datasets.FashionMNIST(self.root, download=True)
            except (RuntimeError, OSError) as error:
                raise DataError(f"Fashion-MNIST could not be downloaded to {self.root!r}: {error}") from error

    @override
    def load(self, split: Literal["train", "test"]) -> ImageSet:
        raw, prefix = Path(self.root) / "FashionMNIST" / "raw", {"train": "train", "test": "t10k"}[split]
        images = _read(raw / f"{prefix}-images-idx3-ubyte", read_image_file)
        labels = _read(raw / f"{prefix}-labels-idx1-ubyte", read_label_file)
        if len(images) != len(labels):
            raise DataError(f"{raw}: the {split} files hold {len(images)} images and {len(labels)} labels.")
        return ImageSet(images.unsqueeze(1), labels)


class TensorData(ImageDataModule):
    """Images that are in memory already, or in one ``.npz`` file.

    Args:
        path: An ``.npz`` file with the arrays below, under their names; in place of giving them.
        train_images: (N, H, W) or (N, C, H, W), uint8, or floats in [0, 1].
        train_targets: (N,) classes; for a binary task zeros and ones; for labels (N, labels) zeros and ones.
        test_images: The same for the test split, if there is one.
        test_targets: Its targets.
        class_names: Names of the classes; their number is the number of classes. By default the greatest target counts.
        task: What kind of targets there are.
        **arguments: Those of :class:`ImageDataModule`: batch sizes, augmentation, mixing, the validation split.

    Raises:
        DataError: If arrays are missing, damaged, of the wrong shape, or labels are out of range.

    Example:
        >>> data = TensorData(train_images=torch.zeros(20, 8, 8, dtype=torch.uint8), train_targets=torch.arange(20) % 2)
        >>> data.num_classes, data.in_channels, data.image_size
        (2, 1, (8, 8))
    """

    def __init__(
        self,
        path: str | None = None,
        train_images: Any = None,
        train_targets: Any = None,
        test_images: Any = None,
        test_targets: Any = None,
        class_names: Sequence[str] | None = None,
        task: Task = "multiclass",
        **arguments: Any,
    ) -> None:
        check_choice("TensorData", "task", task, ("multiclass", "binary", "multilabel"))
        arrays = {
            "train_images": train_images,
            "train_targets": train_targets,
            "test_images": test_images,
            "test_targets": test_targets,
        }
        if path is not None:
            if any(array is not None for array in arrays.values()):
                raise ConfigurationError("TensorData: give path or arrays, not both.")
            arrays = _load_npz(path, list(arrays))
        source = path or "TensorData"
        for name in ("train_images", "train_targets"):
            if arrays[name] is None:
                raise DataError(f"{source}: {name} is missing.")
        self.path = path
        self.task = task
        self._given: dict[str, ImageSet] = {}
        for split in ("train", "test"):
            if arrays[f"{split}_images"] is not None:
                if arrays[f"{split}_targets"] is None:
                    raise DataError(f"{source}: {split}_targets is missing.")
                self._given[split] = ImageSet(
                    _as_images(arrays[f"{split}_images"], source), _as_targets(arrays[f"{split}_targets"], task, source)
                )
        train = self._given["train"]
        if len(train) == 0:
            raise DataError(f"{source}: the training split is empty.")
        if task == "multiclass":
            self._num_classes = len(class_names) if class_names is not None else int(train.targets.max()) + 1
        else:
            self._num_classes = 1 if task == "binary" else train.targets.shape[1]
        self._class_names = list(class_names) if class_names is not None else None
        super().__init__(**arguments)

    @property
    @override
    def num_classes(self) -> int:
        return self._num_classes

    @property
    @override
    def in_channels(self) -> int:
        return int(self._given["train"].images.shape[1])

    @property
    @override
    def image_size(self) -> tuple[int, int]:
        height, width = self._given["train"].images.shape[-2:]
        return int(height), int(width)

    @property
    @override
    def class_names(self) -> list[str]:
        return self._class_names or super().class_names

    @override
    def load(self, split: Literal["train", "test"]) -> ImageSet | None:
        return self._given.get(split)


def _as_images(value: Any, owner: str) -> Tensor:
    """Return arrays as images (N, C, H, W) of uint8 or of floats in [0, 1].

    Raises:
        DataError: If the shape or the range is another one.
    """
    images = torch.as_tensor(value)
    if images.ndim == 3:
        images = images.unsqueeze(1)
    if images.ndim != 4:
        raise DataError(f"{owner}: images have to be (N, H, W) or (N, C, H, W); got shape {tuple(images.shape)}.")
    if images.shape[-1] in (1, 3, 4) and images.shape[1] >= 8:
        raise DataError(
            f"{owner}: images of shape {tuple(images.shape)} look channels-last; pass images.transpose(0, 3, 1, 2)."
        )
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise DataError(f"{owner}: images have to be uint8, or floats in [0, 1]; got {images.dtype}.")
    low, high = (float(images.min()), float(images.max())) if images.numel() else (0.0, 0.0)
    if not (low >= 0 and high <= 1):
        raise DataError(
            f"{owner}: float images have to be in [0, 1]; these run from {low:g} to {high:g}. Scale them, or pass uint8."
        )
    return images.float()


def _read(path: Path, reader: Any) -> Tensor:
    if not path.is_file():
        raise DataError(f"{path} is missing. Put the file there, point root elsewhere, or set download: true.")
    try:
        return reader(str(path))
    except (ValueError, AssertionError, RuntimeError, EOFError, IndexError) as error:
        raise DataError(
            f"{path} is damaged or truncated ({path.stat().st_size} bytes). Delete it and fetch it again."
        ) from error


def _load_npz(path: str, names: list[str]) -> dict[str, Any]:
    if not Path(path).is_file():
        raise DataError(f"{path} is missing.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive.get(name) for name in names}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is damaged, or no .npz file of plain arrays: {error}") from error


def _as_targets(value: Any, task: Task, owner: str) -> Tensor:
    targets = torch.as_tensor(value)
    if task == "multiclass":
        if targets.ndim != 1 or targets.is_floating_point():
            raise DataError(
                f"{owner}: targets of single labels have to be (N,) integers; got {tuple(targets.shape)} of {targets.dtype}."
            )
        return targets.long()
    expected = 1 if task == "binary" else 2
    if targets.ndim != expected or not torch.isin(targets, torch.tensor([0, 1], dtype=targets.dtype)).all():
        raise DataError(
            f"{owner}: targets of a {task} task have to be zeros and ones of {expected} dimension(s); got "
            f"{tuple(targets.shape)}."
        )
    return targets.float()
