"""Streams of tar files, by the package webdataset."""

from __future__ import annotations

import io
import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from typing_extensions import override

from lightning_cnnopt.core.errors import ConfigurationError, DataError
from lightning_cnnopt.data.decoding import to_pixels
from lightning_cnnopt.data.streams.base import StreamDataModule, import_extra
from lightning_cnnopt.data.streams.loader import Source


class ShardSource:
    """Tar files whose members of one name and different endings are a sample.

    Args:
        shards: Their paths or addresses.
        image_keys: Endings of the images.
        target_key: Ending of the classes.
        channels: 3 for colour, 1 for grey.
        size: Height and width of the images that come out.
        buffer: Samples to draw the next one from.
    """

    def __init__(
        self,
        shards: Sequence[str],
        image_keys: Sequence[str],
        target_key: str,
        channels: int,
        size: tuple[int, int],
        buffer: int,
    ) -> None:
        self.shards = list(shards)
        self.image_keys, self.target_key = list(image_keys), target_key
        self.channels, self.size, self.buffer = channels, size, buffer

    def __repr__(self) -> str:
        """Return what a message calls it."""
        return f"The stream of {len(self.shards)} shards from {self.shards[0]!r} on"

    def useful_workers(self, workers: int, ranks: int) -> int:
        """Return the number of workers: each has shards, or a share of their samples."""
        return workers

    def read(self, seed: int | None, rank: int, ranks: int, worker: int, workers: int) -> Iterator[Any]:
        """Yield samples, undecoded. Shards are dealt out to ranks and workers, or where they are too few, their samples."""
        from webdataset.filters import shuffle
        from webdataset.tariterators import tarfile_samples

        part, parts = rank * workers + worker, ranks * workers
        shards = self.shards
        if seed is not None:
            order = torch.randperm(len(shards), generator=torch.Generator().manual_seed(seed))
            shards = [shards[place] for place in order]
        has_enough = len(shards) >= parts
        chosen = shards[part::parts] if has_enough else shards
        try:
            samples = iter(tarfile_samples({"url": shard} for shard in chosen))
            if not has_enough:
                samples = itertools.islice(samples, part, None, parts)
            if seed is not None:
                samples = shuffle(self.buffer, self.buffer, rng=random.Random(f"{seed}/{part}"))(samples)
            yield from samples
        except Exception as error:  # of a file system, of tarfile, of the sender
            raise DataError(f"A shard of {chosen} can't be read: {error}") from error

    def decode(self, sample: Any) -> tuple[Tensor, int]:
        """Return pixels and class of a sample.

        Raises:
            DataError: If the image or the class can't be read, naming it.
        """
        key = next((key for key in self.image_keys if key in sample), None)
        if key is None or self.target_key not in sample:
            endings = sorted(name for name in sample if not name.startswith("__"))
            raise DataError(
                f"{self.name(sample)} has the endings {endings}; expected one of {self.image_keys} and {self.target_key!r}."
            )
        try:
            return to_pixels(Image.open(io.BytesIO(sample[key])), self.channels, self.size), int(sample[self.target_key])
        except Exception as error:  # a decoder may raise anything
            raise DataError(f"{self.name(sample)} can't be read: {error}") from error

    def name(self, sample: Any) -> str:
        """Return what a message calls a sample."""
        return f"Sample {sample.get('__key__')!r} of {sample.get('__url__')}"


class WebDatasetImages(StreamDataModule):
    """Streams tar files ("shards"), through the package ``webdataset``: on disk, or wherever its addresses lead.

    A sample is the members of one name: an image, and a file with its class as a number, such as ``0001.jpg`` and
    ``0001.cls``. Shards are dealt out to processes and workers; have at least as many as there are workers in all, of about
    equal size. With fewer, every worker reads all of them and decodes its share.

    The extra is installed with ``pip install "lightning-cnnopt[webdataset]"``.

    Args:
        train: Training shards: a path or address with ranges in braces, such as ``train-{0000..0099}.tar``, or a list.
        train_samples: Training samples of an epoch: as many as the shards hold, or as an epoch shall have.
        val: Validation shards; ``None`` for no validation.
        test: Test shards, if there are some.
        image_keys: Endings of the images.
        target_key: Ending of the classes.
        class_names: Names of the classes.
        num_classes: Their number, in place of names.
        **arguments: Those of the base: ``image_size``, ``in_channels``, ``batch_size``, ``eval_batch_size``, ``workers``,
            ``shuffle_buffer``, ``on_broken``, ``augmentation``, ``mixing``, ``normalize``, ``mean``, ``std``.

    Raises:
        ConfigurationError: If ``webdataset`` is not installed, or the classes are not told.
        DataError: If a shard, an image or a class can't be read.
    """

    def __init__(
        self,
        train: str | list[str],
        train_samples: int,
        val: str | list[str] | None = None,
        test: str | list[str] | None = None,
        image_keys: Sequence[str] = ("jpg", "jpeg", "png", "webp"),
        target_key: str = "cls",
        class_names: Sequence[str] | None = None,
        num_classes: int | None = None,
        **arguments: Any,
    ) -> None:
        import_extra("webdataset", type(self).__name__)
        if class_names is None and num_classes is None:
            raise ConfigurationError(f"{type(self).__name__}: shards name no classes; pass class_names= or num_classes=.")
        self.train, self.val, self.test = train, val, test
        self.image_keys = list(image_keys)
        self.target_key = target_key
        super().__init__(class_names=class_names, num_classes=num_classes, train_samples=train_samples, **arguments)

    @override
    def source(self, split: Literal["train", "val", "test"]) -> Source | None:
        from webdataset.shardlists import expand_urls

        given = {"train": self.train, "val": self.val, "test": self.test}[split]
        if given is None:
            return None
        shards = [shard for pattern in ([given] if isinstance(given, str) else given) for shard in expand_urls(pattern)]
        return ShardSource(shards, self.image_keys, self.target_key, self.in_channels, self.image_size, self.shuffle_buffer)
