"""Images that are decoded while training, in the order of :class:`~lightning_cnnopt.ResidentLoader`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from lightning_cnnopt.data.decoding import Resize, Shape, read_as
from lightning_cnnopt.data.folder.listing import Files
from lightning_cnnopt.data.folder.workers import Problem, attempt, check_problem, in_workers
from lightning_cnnopt.data.image_set import ImageSet
from lightning_cnnopt.data.resident import ResidentLoader


@dataclass(frozen=True)
class UnpackedImages:
    """Images that are decoded in worker processes each time that they are asked for.

    Args:
        files: Where they are.
        shape: Channels, height and width of one.
        resize: How images of other sizes are brought to it; ``None`` if all of them have it.
        workers: How many processes decode ahead; with 0 this one does when it needs them.
    """

    files: Files
    shape: Shape
    resize: Resize | None
    workers: int

    def read(self, parts: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the images at the places of each part.

        Raises:
            DataError: If a file is broken or can't be read, naming it.
        """
        for images, problem in in_workers(self, parts, self.workers):
            if problem is not None:
                check_problem(problem, "raise")
            yield images

    def __call__(self, index: list[int]) -> tuple[Tensor, Problem | None]:
        """Return images, or the first problem; called in worker processes."""
        block = torch.empty(len(index), *self.shape, dtype=torch.uint8)
        for place, i in enumerate(index):
            image = attempt(self._read, self.files.root / self.files.names[i], i)
            if isinstance(image, Problem):
                return block[:0], image
            block[place] = image
        return block, None

    def _read(self, path: Path) -> Tensor:
        return read_as(path, self.shape, self.resize)


class UnpackedSet(ImageSet):
    """Images in files with their targets; the whole is not in memory, only the numbers of its files.

    Args:
        source: Decodes them.
        targets: One of each file.
        places: (M,) which of them are meant; all by default.
    """

    def __init__(self, source: UnpackedImages, targets: Tensor, places: Tensor | None = None) -> None:
        super().__init__(torch.arange(len(targets)).unsqueeze(1), targets, places)
        self.source = source

    @property
    @override
    def images(self) -> Tensor:
        """The images that are meant, decoded anew each time: for a few of them. The loader takes a batch at a time."""
        return torch.cat(list(self.source.read(super().images.flatten().split(64))))

    @override
    def __getitem__(self, index: Any) -> UnpackedSet:
        return UnpackedSet(self.source, self.whole_targets, super().__getitem__(index).places)


class DecodingLoader:
    """Batches that worker processes decode ahead, the very same and in the same order as those of packed images.

    A :class:`~lightning_cnnopt.ResidentLoader` over the numbers of the files says which they are, so all that it states holds
    here: the shares of several processes, weights, repeats, the very next batch after a resume.

    Args:
        order: Of the set's ``whole_images``.
        data: The set.
    """

    def __init__(self, order: ResidentLoader, data: UnpackedSet) -> None:
        self.order = order
        self.data = data
        self.batch_size = order.batch_size
        self._position: int | None = None

    @property
    def dataset(self) -> Dataset[tuple[Tensor, Tensor]]:
        """The samples one by one, for those who draw from a loader's data set."""
        return _Samples(self.data)

    def __len__(self) -> int:
        """Return the number of batches, the same on every rank."""
        return len(self.order)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor] | dict[str, Tensor]]:
        """Yield the batches of the next epoch, or what is left of the one that was resumed."""
        batches: list[Any] = list(self.order)
        self._position = len(self) - len(batches)
        numbers = [batch["image"] if isinstance(batch, dict) else batch[0] for batch in batches]
        for batch, images in zip(batches, self.data.source.read([part.flatten() for part in numbers]), strict=True):
            self._position += 1
            yield {**batch, "image": images} if isinstance(batch, dict) else (images, batch[1])

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the order; its position is that of the batches that were handed out, not of those read ahead."""
        state = self.order.state_dict()
        return state if self._position is None else {**state, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the batch that would have been next."""
        self.order.load_state_dict(state)
        self._position = None

    def end_epoch(self) -> None:
        """Drop what is left of the epoch that was resumed, so that the next iteration is the next epoch."""
        self.order.end_epoch()


class _Samples(Dataset[tuple[Tensor, Tensor]]):
    def __init__(self, data: UnpackedSet) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    @override
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        one = self.data[index : index + 1]
        return one.images[0], one.targets[0]
