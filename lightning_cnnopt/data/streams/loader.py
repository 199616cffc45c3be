"""Batches out of a stream, decoded in workers."""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeAlias, get_args

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from typing_extensions import override

from lightning_cnnopt.core.errors import DataError, check_choice, check_range
from lightning_cnnopt.core.randomness import Stream, rank, shared_seed, world_size
from lightning_cnnopt.data.decoding import OnBroken

_Batch: TypeAlias = tuple[Tensor, Tensor, list[str]]
"""Images, targets, and what is wrong with samples that were left out."""


class Source(Protocol):
    """Where a stream comes from. It is sent to worker processes, so it pickles."""

    def read(self, seed: int | None, rank: int, ranks: int, worker: int, workers: int) -> Iterator[Any]:
        """Yield the samples of one worker of one rank, undecoded; those of all together are every sample once.

        Args:
            seed: Of the order, the same on every rank and worker; ``None`` for that of the source.
            rank: Number of this process.
            ranks: How many there are.
            worker: Number of this worker of the process.
            workers: How many there are.
        """

    def useful_workers(self, workers: int, ranks: int) -> int:
        """Return how many of so many workers have something to read; the order is fixed as long as each has."""

    def decode(self, sample: Any) -> tuple[Tensor, int]:
        """Return the image of a sample, uint8 (C, H, W), all of one size, and its class.

        Raises:
            DataError: If it is broken, naming it.
        """

    def name(self, sample: Any) -> str:
        """Return what a message calls a sample, such as by its file."""


class StreamLoader:
    """Iterates over a stream: each worker reads its part, decodes it, and makes batches of it.

    In training an epoch has a stated number of batches, the same on every rank, since a stream does not tell its length and
    DDP needs equal parts. A worker whose part is shorter than its share of an epoch begins it anew, in another order; what a
    longer part has left over comes in no batch of that epoch. In evaluation every sample comes once; each worker's last batch
    may be smaller.

    **Exact resume.** The order of an epoch follows from the seed and the number of the epoch, so the state is a position. A
    run that is resumed with the same number of ranks and workers goes on with the very next batch. What was seen is read
    again, almost all of it without being decoded: that takes the time of reading it. With other numbers of ranks or workers,
    the rest of that epoch has other samples, some a second time; the epochs after it are whole.

    Args:
        source: Where the samples come from.
        batch_size: Samples of a batch on each rank.
        batches: Batches of an epoch on each rank, in training; ``None`` reads all samples once, in their order.
        workers: Processes that read and decode; 0 does both in this one.
        seed: Of the order; by default that of the run, on rank 0.
        on_broken: ``"raise"`` ends the run at a broken sample; ``"skip"`` makes its batch smaller by it, so that a resumed run
            goes on exactly, and tells how many there were at the end of an epoch.
        on_epoch: Is called after a training epoch that was seen from its beginning to its end, with how many samples of each
            class came on this rank.
        num_classes: How many classes there are, so that a sample of another one is broken; by default that is not looked at, as
            for samples to predict, whose class may be a placeholder.

    Raises:
        DataError: If the source has no sample, one is broken, or all of a batch are.
    """

    def __init__(
        self,
        source: Source,
        batch_size: int,
        batches: int | None = None,
        workers: int = 0,
        seed: int | None = None,
        on_broken: OnBroken = "raise",
        on_epoch: Callable[[Counter[int]], None] | None = None,
        num_classes: int | None = None,
    ) -> None:
        check_choice("StreamLoader", "on_broken", on_broken, get_args(OnBroken))
        check_range("StreamLoader", "batch_size", batch_size, 1, whole=True)
        check_range("StreamLoader", "workers", workers, 0, whole=True)
        if batches is not None:
            check_range("StreamLoader", "batches", batches, 1, whole=True)
        self.source = source
        self.batch_size = batch_size
        self.batches = batches
        self.workers = workers
        self.on_broken: OnBroken = on_broken
        self.on_epoch = on_epoch
        self.num_classes = num_classes
        self._seed = seed
        self._epoch = -1
        self._position = 0
        self._resumed: dict[str, Any] | None = None

    def __len__(self) -> int:
        """Return the number of batches of an epoch.

        Raises:
            TypeError: In evaluation, where it is not known.
        """
        if self.batches is None:
            raise TypeError("The length of a stream is not known.")
        return self.batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of the next epoch, or what is left of the one that was resumed."""
        if self.batches is not None and self._seed is None:
            self._seed = shared_seed()
        resumed, self._resumed = self._resumed, None
        start = 0
        if resumed is not None:
            self._seed, self._epoch = resumed["seed"], resumed["epoch"]
            start = resumed["position"] if self.batches is not None and resumed["position"] < self.batches else 0
        if start == 0:
            self._epoch += 1
        self._position = start
        workers = self.source.useful_workers(self.workers, world_size())
        seeds = None if self.batches is None else f"stream/{self._epoch}"
        # batches come from the workers in turn, so this many of each worker's first ones are among those seen
        skimmed = start // max(1, workers)
        dataset = _Batches(self.source, self.batch_size, seeds, self._seed, skimmed, self.on_broken, self.num_classes)
        going = DataLoader(
            dataset, batch_size=None, num_workers=workers, pin_memory=torch.cuda.is_available(), collate_fn=_as_it_is
        )
        taken, problems, classes = 0, list[str](), Counter[int]()
        try:
            for images, targets, broken in itertools.islice(going, start, self.batches):
                taken += 1
                self._position += 1
                problems += broken
                if self.on_epoch is not None:
                    classes.update(targets.tolist())
                yield images, targets
        finally:
            if problems:
                self._tell(problems)
            if self.on_epoch is not None and taken == self.batches:
                self.on_epoch(classes)
        if not taken and start == 0 and (world_size() == 1 or self.batches is not None):
            raise DataError(f"{self.source!r} has no samples.")

    def _tell(self, problems: list[str]) -> None:
        more = f" And {len(problems) - 3:,} more." if len(problems) > 3 else ""
        first = " ".join(f"{problem.rstrip('.')}." for problem in problems[:3])
        told = f"{self.source!r}: {len(problems):,} samples were broken and left out: {first}{more}"
        warnings.warn(told, stacklevel=3)  # by every process, each of its own

    def state_dict(self) -> dict[str, Any]:
        """Return the number of the epoch, the position within it, and the seed of the order."""
        if self._resumed is not None:
            return dict(self._resumed)
        return {"epoch": self._epoch, "position": self._position, "seed": self._seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the batch that would have been next."""
        self._resumed = dict(state)

    def end_epoch(self) -> None:
        """Drop what is left of the epoch that was resumed, so that the next iteration is the next epoch."""
        if self._resumed is not None:
            self._resumed["position"] = 0 if self.batches is None else self.batches


class _Batches(IterableDataset[Any]):
    """What a worker reads, as batches; the first ones undecoded, as ``None``."""

    def __init__(
        self,
        source: Source,
        batch_size: int,
        seeds: str | None,
        run_seed: int | None,
        skimmed: int,
        on_broken: OnBroken,
        num_classes: int | None,
    ) -> None:
        self.source, self.batch_size = source, batch_size
        self.seeds, self.run_seed = seeds, run_seed
        self.skimmed, self.on_broken, self.num_classes = skimmed, on_broken, num_classes
        self.rank, self.ranks = rank(), world_size()  # a worker can't ask

    @override
    def __iter__(self) -> Iterator[_Batch | None]:
        left, pending = self.skimmed, list[Any]()
        for reading in itertools.count():
            has_read = False
            for sample in self._read(reading):
                has_read = True
                pending.append(sample)
                if len(pending) == self.batch_size:
                    yield None if left > 0 else self._decoded(pending)
                    left, pending = left - 1, []
            if self.seeds is None:
                if pending:
                    yield self._decoded(pending)
                return
            if not has_read:
                return

    def _read(self, reading: int) -> Iterator[Any]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        seed = None if self.seeds is None else draw_seed(Stream(f"{self.seeds}/{reading}", self.run_seed, per_rank=False))
        return self.source.read(seed, self.rank, self.ranks, worker, workers)

    def _decoded(self, samples: list[Any]) -> _Batch:
        pairs, broken = decode_all(self.source, samples, self.on_broken, self.num_classes)
        return torch.stack([image for image, _ in pairs]), torch.tensor([target for _, target in pairs]), broken


def decode_all(
    source: Source, samples: Iterable[Any], on_broken: OnBroken, num_classes: int | None
) -> tuple[list[tuple[Tensor, int]], list[str]]:
    """Return images and classes of the samples that are not broken, and what is wrong with the others.

    A sample whose class is none of ``num_classes`` is broken.

    Raises:
        DataError: If one is broken and is not to be skipped, or all are.
    """
    pairs, broken = list[tuple[Tensor, int]](), list[str]()
    for sample in samples:
        try:
            image, target = source.decode(sample)
            if num_classes is not None and not 0 <= target < num_classes:
                raise DataError(
                    f"{source.name(sample)} is of class {target}; with {num_classes} classes it has to be from 0 to "
                    f"{num_classes - 1}."
                )
            pairs.append((image, target))
        except DataError as error:
            if on_broken == "raise":
                raise DataError(
                    f"{str(error).rstrip('.')}. Mend or remove it, or leave broken samples out with on_broken='skip'."
                ) from error
            broken.append(str(error))
    if broken and not pairs:
        raise DataError(f"{source!r}: all {len(broken)} samples of a batch are broken: {broken[0]}")
    return pairs, broken


def draw_seed(stream: Stream) -> int:
    """Return a seed for the order of a source."""
    return int(torch.randint(2**62, (1,), generator=stream.generator))


def _as_it_is(batch: Any) -> Any:
    return batch
