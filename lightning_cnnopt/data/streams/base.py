"""The base of data modules that stream."""

from __future__ import annotations

import importlib
import itertools
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from typing_extensions import override

from lightning_cnnopt.augmentation import Mixing, Transform
from lightning_cnnopt.core.errors import ConfigurationError, DataError, check_choice, check_range, extra_of, sides_of
from lightning_cnnopt.core.randomness import Stream, world_size
from lightning_cnnopt.data.balance import is_weighed, report_counts
from lightning_cnnopt.data.base import DeviceAugmented
from lightning_cnnopt.data.decoding import OnBroken
from lightning_cnnopt.data.image_set import ImageSet, channel_statistics
from lightning_cnnopt.data.streams.loader import Source, StreamLoader, decode_all, draw_seed

MEASURED = 1024
"""Training images, the first ones, that mean and standard deviation are measured on."""


class StreamDataModule(DeviceAugmented):
    """Base of data modules for data that outgrows one machine; subclasses say where it comes from.

    Workers read and decode, and nothing else: images are brought to one size, uint8, by
    :func:`~lightning_cnnopt.data.decoding.to_pixels`, and augmented on the device as those of any of our data modules. See
    :class:`~lightning_cnnopt.data.streams.loader.StreamLoader` for epochs, ranks and resuming.
    How many samples the classes have is not known before, so techniques that go by it want ``counts=``; it is told after the
    first epoch that was seen from its beginning to its end.

    Args:
        image_size: Height and width; a number for both. Images are resized to cover it, and cut around their centre.
        in_channels: 3 for colour, 1 for grey.
        class_names: Names of the classes.
        num_classes: Their number, in place of names.
        train_samples: Training samples of an epoch, of all processes.
        batch_size: Samples of a training batch on each process.
        eval_batch_size: The same for validation, test and prediction.
        workers: Processes that read and decode, of each process.
        shuffle_buffer: Samples that each worker holds, undecoded, to draw the next one from; shards are shuffled too.
        on_broken: ``"raise"`` ends the run at a sample that can't be decoded, or whose class is out of range, and names it;
            ``"skip"`` makes its batch smaller by it and tells, at the end of each epoch, how many there were.
        augmentation: Transforms for training, in their order. One alone need not be in a list.
        mixing: Mixing for training, after the transforms.
        normalize: Whether to hand out normalized floats; by default only to a module that does not normalize by itself.
        mean: Mean of each channel, for pixels in [0, 1]; by default measured on the first 1024 training images.
        std: Standard deviation of each channel, likewise.

    Raises:
        ConfigurationError: If an argument is out of range, or the package that reads the data is not installed.
    """

    def __init__(
        self,
        image_size: int | tuple[int, int] = 224,
        in_channels: int = 3,
        class_names: Sequence[str] | None = None,
        num_classes: int | None = None,
        train_samples: int | None = None,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        workers: int = 2,
        shuffle_buffer: int = 1000,
        on_broken: OnBroken = "raise",
        augmentation: Transform | Sequence[Transform] = (),
        mixing: Mixing | None = None,
        normalize: bool | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        name = type(self).__name__
        sides = sides_of(name, "image_size", image_size)
        if in_channels not in (1, 3):
            raise ConfigurationError(f"{name}: in_channels={in_channels}; expected 1 or 3.")
        check_range(name, "workers", workers, 0, whole=True)
        check_range(name, "shuffle_buffer", shuffle_buffer, 1, whole=True)
        check_choice(name, "on_broken", on_broken, get_args(OnBroken))
        if train_samples is not None:
            check_range(name, "train_samples", train_samples, 1, whole=True)
        if (mean is None) != (std is None):
            raise ConfigurationError(f"{name}: mean and std belong together; give both or neither.")
        if class_names is not None and num_classes is not None and len(class_names) != num_classes:
            raise ConfigurationError(f"{name}: {len(class_names)} class_names for num_classes={num_classes}.")
        self._image_size = sides
        self._in_channels = in_channels
        self._class_names = None if class_names is None else list(class_names)
        self._num_classes = num_classes
        self.train_samples = train_samples
        self.workers = workers
        self.shuffle_buffer = shuffle_buffer
        self.on_broken: OnBroken = on_broken
        self._has_reported = False
        super().__init__(batch_size, eval_batch_size, augmentation, mixing, normalize)
        if mean is not None and std is not None:
            self._measured = list(mean), list(std)

    @abstractmethod
    def source(self, split: Literal["train", "val", "test"]) -> Source | None:
        """Return where a split comes from; ``None`` for one that does not exist."""

    @property
    @override
    def image_size(self) -> tuple[int, int]:
        return self._image_size

    @property
    @override
    def in_channels(self) -> int:
        return self._in_channels

    @property
    @override
    def num_classes(self) -> int:
        return self._num_classes if self._num_classes is not None else len(self.class_names)

    @property
    @override
    def class_names(self) -> list[str]:
        return self._class_names if self._class_names is not None else super().class_names

    @property
    @override
    def has_validation(self) -> bool:
        return self.source("val") is not None

    @property
    @override
    def has_test(self) -> bool:
        return self.source("test") is not None

    @property
    def num_train_samples(self) -> int:
        """Training samples of an epoch, of all processes.

        Raises:
            ConfigurationError: If the number is not known.
        """
        if self.train_samples is None:
            raise ConfigurationError(
                f"{type(self).__name__}: the stream does not tell how many training samples it has; pass train_samples=."
            )
        return self.train_samples

    @override
    def measure(self) -> tuple[list[float], list[float]]:
        return channel_statistics(ImageSet(self._first(MEASURED, None), torch.empty(0)), type(self).__name__)

    def sample_batch(self, size: int = 256) -> Tensor:
        """Return training images without augmentation, for techniques that need some.

        They are what a batch of this run brings to the LightningModule, as those of
        :meth:`ImageDataModule.sample_batch <lightning_cnnopt.ImageDataModule.sample_batch>`; they come from the start of the
        stream in an order of their own.

        Args:
            size: At most how many.

        Returns:
            (size, C, H, W), the same on every rank.
        """
        stream = Stream("sample", self._seed, per_rank=False)
        images = self._first(size, draw_seed(stream))
        return self._normalized(images) if self._normalizes() else images

    @override
    def train_dataloader(self) -> StreamLoader:
        batches = self.num_train_samples // (self.batch_size * world_size())
        if batches == 0:
            raise DataError(
                f"{type(self).__name__}: train_samples={self.num_train_samples} are less than a batch of {self.batch_size} on "
                f"each of {world_size()} processes."
            )
        return StreamLoader(
            self._needed("train"),
            self.batch_size,
            batches,
            self.workers,
            self._seed,
            self.on_broken,
            on_epoch=self._report_counts,
            num_classes=self._num_labels,
        )

    @override
    def val_dataloader(self) -> StreamLoader | list[Any]:
        source = self.source("val")
        return [] if source is None else self._evaluation(source, self._num_labels)

    @override
    def test_dataloader(self) -> StreamLoader:
        return self._evaluation(self._needed("test"), self._num_labels)

    @override
    def predict_dataloader(self) -> StreamLoader:
        return self._evaluation(self._needed("test"), None)  # classes of images to predict may be unknown, such as -1

    @property
    def _num_labels(self) -> int:
        return 2 if self.task == "binary" else self.num_classes

    def _evaluation(self, source: Source, num_classes: int | None) -> StreamLoader:
        return StreamLoader(
            source, self.eval_batch_size, workers=self.workers, on_broken=self.on_broken, num_classes=num_classes
        )

    def _report_counts(self, seen: Counter[int]) -> None:
        if self._has_reported or self.trainer is None:
            return
        self._has_reported = True
        part = "" if world_size() == 1 else ", as far as process 0 saw it"
        report_counts(
            f"{type(self).__name__}, an epoch{part}",
            [seen[label] for label in range(self._num_labels)],
            self.class_names,
            seen.total(),
            warn=not is_weighed(self.trainer),
            can_sample=False,
        )

    def _needed(self, split: Literal["train", "test"]) -> Source:
        source = self.source(split)
        if source is None:
            raise DataError(f"{type(self).__name__} has no {split} split.")
        return source

    def _first(self, count: int, seed: int | None) -> Tensor:
        source = self._needed("train")
        samples = itertools.islice(source.read(seed, 0, 1, 0, 1), count)
        pairs, _ = decode_all(source, samples, self.on_broken, self._num_labels)
        if not pairs:
            raise DataError(f"{source!r} has no samples.")
        return torch.stack([image for image, _ in pairs])


def import_extra(module: str, owner: str) -> ModuleType:
    """Return a package that is not installed with this one.

    Raises:
        ConfigurationError: If it is missing, with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{owner} needs the package {module}, which is not installed.{extra_of(module)}") from error
