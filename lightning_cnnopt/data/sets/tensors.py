"""Arrays in memory or in files of NumPy."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from lightning_cnnopt.core.errors import ConfigurationError, DataError, check_choice
from lightning_cnnopt.data.base import Task
from lightning_cnnopt.data.datamodule import ImageDataModule
from lightning_cnnopt.data.image_set import ImageSet


class TensorData(ImageDataModule):
    """Images that are in memory already, in one ``.npz`` file, or in a folder of ``.npy`` files.

    The ``.npy`` files of a folder are mapped into memory, not read: processes of one machine share them. So are arrays of
    ``numpy.load(…, mmap_mode="c")``. An ``.npz`` file is read by every process.

    Args:
        path: An ``.npz`` file with the arrays below, under their names, or a folder with ``train_images.npy`` and so on; in
            place of giving them.
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
            arrays = _map_folder(path, list(arrays)) if Path(path).is_dir() else _load_npz(path, list(arrays))
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
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable")  # a mapped file: nothing here writes to it
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


def _load_npz(path: str, names: list[str]) -> dict[str, Any]:
    if not Path(path).is_file():
        raise DataError(f"{path} is missing; expected an .npz file, or a folder of .npy files.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive.get(name) for name in names}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is damaged, or no .npz file of plain arrays: {error}") from error


def _map_folder(path: str, names: list[str]) -> dict[str, Any]:
    found = {name: Path(path) / f"{name}.npy" for name in names}
    return {name: _map_npy(file) if file.is_file() else None for name, file in found.items()}


def _map_npy(path: Path) -> np.ndarray:
    try:
        # private: who writes to it by mistake does not change the file
        return np.load(path, mmap_mode="c", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is damaged, or no .npy file of a plain array: {error}") from error


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
