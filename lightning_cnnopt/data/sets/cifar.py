"""CIFAR-10 and CIFAR-100."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from typing_extensions import override

from lightning_cnnopt.data.image_set import ImageSet
from lightning_cnnopt.data.sets.files import TorchvisionFiles, damaged

_NEEDED = {("multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
"""What the pickled arrays are made of, by the last part of the module."""


class CifarFiles(TorchvisionFiles):
    """Base of the CIFAR sets: 50,000 + 10,000 colour images of 32×32, in pickled batches."""

    in_channels = 3
    image_size = (32, 32)
    loads_once = True

    folder_name: ClassVar[str]
    files: ClassVar[dict[str, list[str]]]
    label_key: ClassVar[str]

    @property
    @override
    def folder(self) -> Path:
        return Path(self.root) / self.folder_name

    @override
    def load(self, split: Literal["train", "test"]) -> ImageSet:
        batches = [_read(self.file(name), self.label_key) for name in self.files[split]]
        images = np.concatenate([pixels for pixels, _ in batches]).reshape(-1, 3, 32, 32)
        return ImageSet(torch.from_numpy(images), torch.tensor([label for _, labels in batches for label in labels]))


class CIFAR10(CifarFiles):
    """CIFAR-10: colour images of 32×32 in ten classes (Krizhevsky, 2009).

    Args:
        root: Folder with ``cifar-10-batches-py/data_batch_*``, torchvision's layout.
        download: Fetch the files first, if they are not there.
        val_size: What the training set gives to validation.
        **arguments: Those of :class:`ImageDataModule`: batch sizes, augmentation, mixing, the validation split.

    Raises:
        DataError: If a file is missing or damaged, naming it.
    """

    torchvision_name = "CIFAR10"
    num_classes = 10
    class_names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    folder_name = "cifar-10-batches-py"
    files = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
    label_key = "labels"


class CIFAR100(CifarFiles):
    """CIFAR-100: colour images of 32×32 in a hundred classes (Krizhevsky, 2009).

    Args:
        root: Folder with ``cifar-100-python/train`` and ``test``, torchvision's layout.
        download: Fetch the files first, if they are not there.
        val_size: What the training set gives to validation.
        **arguments: Those of :class:`ImageDataModule`: batch sizes, augmentation, mixing, the validation split.

    Raises:
        DataError: If a file is missing or damaged, naming it.
    """

    torchvision_name = "CIFAR100"
    num_classes = 100
    class_names = (  # noqa: SIM905 - a hundred lines otherwise
        "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly "
        "camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup "
        "dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower "
        "leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid "
        "otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray "
        "road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar "
        "sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle "
        "wardrobe whale willow_tree wolf woman worm "
    ).split()
    folder_name = "cifar-100-python"
    files = {"train": ["train"], "test": ["test"]}
    label_key = "fine_labels"


class _ArrayUnpickler(pickle.Unpickler):
    """Reads arrays and builtins, and runs nothing else that a file names."""

    @override
    def find_class(self, module: str, name: str) -> Any:
        if (module.rpartition(".")[2], name) not in _NEEDED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def _read(path: Path, label_key: str) -> tuple[np.ndarray, list[int]]:
    """Return the pixels (N, 3072) and labels of a batch.

    Raises:
        DataError: If the file holds anything else.
    """
    try:
        with path.open("rb") as file:
            held = _ArrayUnpickler(file, encoding="latin1").load()
        pixels, labels = held["data"], list(held[label_key])
        is_sound = pixels.dtype == np.uint8 and pixels.shape == (len(labels), 3 * 32 * 32) and len(labels) > 0
    except Exception as error:  # a damaged pickle raises anything
        raise damaged(path) from error
    if not is_sound:
        raise damaged(path)
    return pixels, labels
