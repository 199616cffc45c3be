"""Weighted draws for a ``DataLoader``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler
from typing_extensions import override

from lightning_cnnopt.core.errors import DataError
from lightning_cnnopt.core.randomness import Stream, rank, world_size
from lightning_cnnopt.imbalance.functional import cumulated_weights, draw_by_weight


class WeightedSampler(DistributedSampler[int]):
    """Draws samples by weight, with replacement, for any ``DataLoader``; one draw for all processes.

    An epoch's draw follows from ``seed`` and the number of the epoch, which Lightning tells the sampler. Each process takes
    its share of it, so two processes of batch B see what one of batch 2B sees, and a run that is resumed at the end of an
    epoch goes on with the draw of the next one. torch's ``WeightedRandomSampler`` promises neither.

    A resume in *mid-epoch* takes the rest of the epoch's batches from the start of its draw, since a ``DataLoader`` does not
    know its place; where the set fits in memory, :class:`~lightning_cnnopt.ResidentLoader` draws likewise and goes on with
    the very next batch.

    Args:
        weights: (N,), how often each sample is drawn in proportion to the others; see :func:`sample_weights`. An epoch has N
            draws, or a few less where the processes do not divide N.
        seed: Of the draws; the same on every process, and on resume.

    Raises:
        ConfigurationError: If the weights can't be right.
        DataError: If there are fewer samples than processes.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> sampler = WeightedSampler([0.0, 1.0, 0.0, 3.0])
        >>> loader = DataLoader(torch.arange(4), batch_size=2, sampler=sampler)
        >>> set(torch.cat(list(loader)).tolist()) <= {1, 3}
        True
    """

    def __init__(self, weights: Tensor | Sequence[float], seed: int = 0) -> None:
        weights = torch.as_tensor(weights)
        self._cumulated = cumulated_weights("WeightedSampler", weights)
        # one process for torch's bookkeeping: how many there are is known when the first epoch begins
        super().__init__(weights, num_replicas=1, rank=0, seed=seed)  # type: ignore[arg-type]

    @override
    def __len__(self) -> int:
        """Return how many samples this process draws in an epoch, the same on every process."""
        return len(self._cumulated) // world_size()

    @override
    def __iter__(self) -> Iterator[int]:
        """Yield this process's share of the epoch's draw."""
        count, ranks = len(self._cumulated), world_size()
        if count < ranks:
            raise DataError(f"WeightedSampler: {count} samples can't be shared out to {ranks} processes.")
        stream = Stream(f"order/{self.epoch}", self.seed, per_rank=False)
        order = draw_by_weight(self._cumulated, count, stream.generator)
        return iter(order[: count - count % ranks][rank() :: ranks].tolist())
