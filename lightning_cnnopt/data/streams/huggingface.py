"""Streams of the package datasets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from PIL import Image
from torch import Tensor
from typing_extensions import override

from lightning_cnnopt.core.errors import DataError
from lightning_cnnopt.data.decoding import to_pixels
from lightning_cnnopt.data.streams.base import StreamDataModule, import_extra
from lightning_cnnopt.data.streams.loader import Source


class HuggingFaceSource:
    """A split of a streamed data set of the package ``datasets``.

    Args:
        dataset: The ``IterableDataset``.
        image_key: Column of the images.
        target_key: Column of the classes.
        channels: 3 for colour, 1 for grey.
        size: Height and width of the images that come out.
        buffer: Samples to draw the next one from.
    """

    def __init__(
        self, dataset: Any, image_key: str, target_key: str, channels: int, size: tuple[int, int], buffer: int
    ) -> None:
        self.dataset = dataset.decode(False)
        self.image_key, self.target_key = image_key, target_key
        self.channels, self.size, self.buffer = channels, size, buffer

    def __repr__(self) -> str:
        """Return what a message calls it."""
        return f"The stream of columns {self.image_key!r} and {self.target_key!r}"

    def useful_workers(self, workers: int, ranks: int) -> int:
        """Return at most as many workers as ``datasets`` deals something out to: files, or groups of rows."""
        from datasets.distributed import split_dataset_by_node

        return min(workers, split_dataset_by_node(self.dataset, 0, ranks).num_shards)

    def read(self, seed: int | None, rank: int, ranks: int, worker: int, workers: int) -> Iterator[Any]:
        """Yield rows, undecoded. ``datasets`` shares them out to ranks; to workers, too, as it knows that it is in one."""
        from datasets.distributed import split_dataset_by_node

        data = self.dataset if seed is None else self.dataset.shuffle(seed=seed % 2**32, buffer_size=self.buffer)
        data = split_dataset_by_node(data, rank, ranks)
        yield from data

    def decode(self, sample: Any) -> tuple[Tensor, int]:
        """Return pixels and class of a row.

        Raises:
            DataError: If the image can't be read, or a column is missing.
        """
        from datasets import Image as ImageFeature

        for key in (self.image_key, self.target_key):
            if key not in sample:
                raise DataError(f"There is no column {key!r}; the data set has {sorted(sample)}.")
        held = sample[self.image_key]
        try:
            picture = held if isinstance(held, Image.Image) else ImageFeature().decode_example(held)
            return to_pixels(picture, self.channels, self.size), int(sample[self.target_key])
        except Exception as error:  # a decoder may raise anything
            raise DataError(f"{self.name(sample)} can't be read: {error}") from error

    def name(self, sample: Any) -> str:
        """Return what a message calls a row."""
        held = sample[self.image_key]
        path = held.get("path") if isinstance(held, Mapping) else None
        return f"The image {path or 'of a row without a path'}"


class HuggingFaceImages(StreamDataModule):
    """Streams a data set of the Hugging Face hub, or of files, through the package ``datasets``.

    Nothing is downloaded as a whole: rows are read as they are needed. Where the number of files is a multiple of that of the
    processes, each reads its own; otherwise every process reads all of them and decodes its share.

    The extra is installed with ``pip install "lightning-cnnopt[huggingface]"``.

    Args:
        path: The first argument of ``datasets.load_dataset``: a data set of the hub, a folder, or a kind of file such as
            ``parquet`` or ``imagefolder``.
        train_split: Name of the training split.
        val_split: Name of the validation split; ``None`` for no validation.
        test_split: Name of the test split, if there is one.
        image_key: Column of the images.
        target_key: Column of the classes, numbers.
        load: Further arguments of ``datasets.load_dataset``, such as ``name`` or ``data_files``.
        train_samples: Training samples of an epoch; by default what the data set says of itself.
        class_names: Names of the classes; by default those of the data set.
        **arguments: Those of the base: ``image_size``, ``in_channels``, ``num_classes``, ``batch_size``, ``eval_batch_size``,
            ``workers``, ``shuffle_buffer``, ``on_broken``, ``augmentation``, ``mixing``, ``normalize``, ``mean``, ``std``.

    Raises:
        ConfigurationError: If ``datasets`` is not installed.
        DataError: If the data set, a split or a column does not exist, or an image can't be read.
    """

    def __init__(
        self,
        path: str,
        train_split: str = "train",
        val_split: str | None = None,
        test_split: str | None = None,
        image_key: str = "image",
        target_key: str = "label",
        load: Mapping[str, Any] | None = None,
        train_samples: int | None = None,
        class_names: Sequence[str] | None = None,
        **arguments: Any,
    ) -> None:
        import_extra("datasets", type(self).__name__)
        self.path = path
        self.splits = {"train": train_split, "val": val_split, "test": test_split}
        self.image_key = image_key
        self.target_key = target_key
        self.load_arguments = dict(load or {})
        self._streams: dict[str, Any] = {}
        super().__init__(class_names=class_names, train_samples=train_samples, **arguments)

    @property
    @override
    def class_names(self) -> list[str]:
        if self._class_names is None and self._num_classes is None:
            feature: Any = (self._stream("train").features or {}).get(self.target_key)
            if not hasattr(feature, "names"):
                raise DataError(
                    f"{type(self).__name__}: column {self.target_key!r} of {self.path!r} names no classes; pass class_names= "
                    "or num_classes=."
                )
            self._class_names = list(feature.names)
        return super().class_names

    @property
    @override
    def num_train_samples(self) -> int:
        if self.train_samples is None:
            told = (getattr(self._stream("train").info, "splits", None) or {}).get(self.splits["train"])
            self.train_samples = getattr(told, "num_examples", None) or None
        return super().num_train_samples

    @override
    def source(self, split: Literal["train", "val", "test"]) -> Source | None:
        if self.splits[split] is None:
            return None
        return HuggingFaceSource(
            self._stream(split), self.image_key, self.target_key, self.in_channels, self.image_size, self.shuffle_buffer
        )

    def _stream(self, split: str) -> Any:
        if split not in self._streams:
            import datasets

            try:
                self._streams[split] = datasets.load_dataset(
                    self.path, split=self.splits[split], streaming=True, **self.load_arguments
                )
            except Exception as error:  # of the hub, of a file system, of a builder
                raise DataError(f"{type(self).__name__}: {self.path!r} can't be loaded: {error}") from error
        return self._streams[split]
