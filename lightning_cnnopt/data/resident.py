"""Batches out of a data set that is one tensor in memory: no workers, no collation, no Python per sample."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_cnnopt.core.errors import ConfigurationError, DataError, check_range
from lightning_cnnopt.core.randomness import Stream, rank, shared_seed, world_size
from lightning_cnnopt.data.image_set import ImageSet
from lightning_cnnopt.imbalance import cumulated_weights, draw_by_weight


class ResidentLoader:
    """Iterates over images and targets in memory or on a device, a batch by one gather; works inside any DataModule or Trainer.

    Nothing is copied but batches: images may be a memory-mapped file that several processes share. Images on a CUDA device,
    given so or moved there once by ``device``, are gathered there, and Lightning has nothing to transfer.

    The order of an epoch is one permutation, drawn from a stream of its own that is the same on every rank, whatever each was
    seeded with. The *global* batch i is the i-th slice of it, whatever the number of ranks, and each rank takes its part: no
    sample is seen twice, and two ranks of batch B see what one of batch 2B sees.

    - In evaluation no sample is left out: parts of the last slice may differ by one sample.
    - In training all parts of a slice are equally large, since DDP gives the mean gradient of each rank the same weight. Where
      the ranks do not divide N, the last N mod ranks samples of an epoch's order are left out of that epoch (with two ranks
      one sample, another one each time). A last slice too small for every rank to take two samples joins the one before it,
      since batch normalization can't use a batch of one. In both cases an epoch ends with another batch than that of a single
      process; all batches before are the same.

    The state holds the position within the epoch, so Lightning resumes in mid-epoch with the very next batch. After a
    checkpoint of an epoch's end the next epoch comes if :class:`~lightning_cnnopt.core.ResumeRandomState` is attached.

    With ``weights`` the order is N draws with replacement, each sample as likely as its weight says. It is one draw for all
    ranks, so all of the above holds: shares of the same draw, and the very next batch after a resume.

    **Repeated augmentation.** With ``repeats`` of r, a global batch holds B / r samples, each r times, to be augmented
    differently. They are dealt out one after another, so that they meet in different ranks' batches before they meet in one.
    An epoch keeps its number of batches and so takes N / r of the samples, others each time.

    **Resumed with another number of ranks.** As long as the *global* batch is as large (``batch_size`` times ranks), the very
    next global batch comes, and all after it. With another global batch, Lightning goes on to count the same number of batches
    as done; then the rest of that epoch has other samples, some a second time or none, and a warning says so. The epochs after
    it are whole, in the same order as without the resume. So it is with another number of samples, but for that order.

    Several processes exchange the seed when the first epoch begins, so all of them have to iterate it, unless ``seed`` is
    given.

    Args:
        images: (N, …), usually uint8 (N, C, H, W).
        targets: (N, …).
        batch_size: Samples of a batch on each rank.
        shuffle: Whether to draw a new order each epoch. (``Trainer(overfit_batches=…)`` changes it in our data modules only.)
        drop_last: Whether to leave a last, smaller slice out.
        with_index: Yield ``{"image": …, "index": …}``, for prediction, in place of ``(images, targets)``.
        seed: Seed of the order; by default that of the run, on rank 0.
        training: Whether it feeds training, so that all ranks need equally many samples; by default as ``shuffle``.
        weights: (N,), how often each sample is drawn in proportion to the others; with ``shuffle``. See
            :func:`~lightning_cnnopt.imbalance.sample_weights`.
        places: (M,), which of the samples are served; all by default. N above is then M, so that a part of a set needs no
            copy.
        repeats: How often each sample of a training batch is in it; ``batch_size`` is a multiple.
        device: Where to keep images and targets; they are moved there once, only those at ``places``. By default they stay
            where the images are.

    Raises:
        DataError: If there are no samples, fewer than ranks to train, not as many targets or weights as images, or ``places``
            that are none of the samples'.
        ConfigurationError: If weights can't be right, or come without ``shuffle``, or ``repeats`` does not fit.

    Reference:
        Repeated augmentation: Hoffer et al., "Augment Your Batch", 2020; Berman et al., "MultiGrain", 2019, which counts epochs
        likewise.

    Example:
        >>> loader = ResidentLoader(torch.zeros(10, 1, 8, 8, dtype=torch.uint8), torch.arange(10), batch_size=4, shuffle=True)
        >>> [len(targets) for _, targets in loader]
        [4, 4, 2]
    """

    def __init__(
        self,
        images: Tensor,
        targets: Tensor,
        batch_size: int = 64,
        shuffle: bool = False,
        drop_last: bool = False,
        with_index: bool = False,
        seed: int | None = None,
        training: bool | None = None,
        weights: Tensor | None = None,
        places: Tensor | None = None,
        repeats: int = 1,
        device: torch.device | str | None = None,
    ) -> None:
        check_range("ResidentLoader", "batch_size", batch_size, 1, whole=True)
        check_range("ResidentLoader", "repeats", repeats, 1, whole=True)
        if images.ndim < 2:
            raise DataError(f"ResidentLoader: images of shape {tuple(images.shape)}; expected (N, …), such as (N, C, H, W).")
        if places is not None:
            _check_places(places, len(images))
        data = ImageSet(images, targets, places)
        if len(images) != len(targets):
            raise DataError(f"ResidentLoader: {len(images)} images and {len(targets)} targets do not belong together.")
        if len(data) == 0:
            raise DataError("ResidentLoader: there are no samples; this split of the data is empty.")
        if weights is not None:
            _check_weights(weights, len(data), shuffle)
        if repeats > 1:
            _check_repeats(repeats, batch_size, shuffle if training is None else training)
        data = data.to(images.device if device is None else device)
        self.images = data.whole_images.contiguous()
        self.targets = data.whole_targets
        self.places = None if data.places is None else data.places.to(self.images.device)
        self.repeats = repeats
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.with_index = with_index
        self.training = shuffle if training is None else training
        self._cumulated = None if weights is None else cumulated_weights("ResidentLoader", weights)
        self._stream = Stream("order", seed, per_rank=False)
        self._epoch_start: Tensor | None = None  # the stream's state before this epoch's order was drawn
        self._position = 0
        self._resumed: dict[str, Any] | None = None

    def __len__(self) -> int:
        """Return the number of batches, the same on every rank."""
        return len(self._cuts())

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor] | dict[str, Tensor]]:
        """Yield the batches of the next epoch, or what is left of the one that was resumed."""
        cuts = self._cuts()
        resumed, self._resumed = self._resumed, None
        start = resumed["position"] if resumed is not None and resumed["position"] < len(cuts) else 0
        if resumed is not None and start and resumed.get("batch", self._global_batch()) != self._global_batch():
            rank_zero_warn(
                f"ResidentLoader: the checkpoint's global batch had {resumed['batch']} samples and this one has "
                f"{self._global_batch()}, so the rest of this epoch has other samples than it would have had, some a second "
                f"time or none. A batch_size of {resumed['batch'] / world_size():g} on each of {world_size()} processes goes "
                "on exactly."
            )
        if resumed is not None and resumed["position"] and resumed.get("samples", self._count()) != self._count():
            rank_zero_warn(
                f"ResidentLoader: the checkpoint's data had {resumed['samples']} samples and these have {self._count()}, so "
                "what is left of this epoch has other samples than it would have had, some a second time or none. The epochs "
                "after it are whole."
            )
        order = self._order(None if resumed is None else resumed["order" if start else "next"])
        # half as large, and no more for a set of any size that fits in memory
        order = order.to(self.images.device, torch.int32 if self._count() < 2**31 else torch.int64)
        here, ranks = rank(), world_size()
        flat = self.images.flatten(1)
        self._position = start
        for begin, end in cuts[start:]:
            chosen = order[begin:end] if self.repeats == 1 else order[begin:end].repeat(self.repeats)
            index = chosen.tensor_split(ranks)[here]
            place = index if self.places is None else self.places.index_select(0, index)
            images = flat.index_select(0, place).view(-1, *self.images.shape[1:])
            self._position += 1
            if self.with_index:
                yield {"image": images, "index": index}
            else:
                yield images, self.targets.index_select(0, place)

    def state_dict(self) -> dict[str, Any]:
        """Return the position within the epoch, the state its order was drawn from, that of the next one's, and their sizes."""
        if self._resumed is not None:
            return dict(self._resumed)
        following = None if self._epoch_start is None else self._stream.generator.get_state()
        return {
            "order": self._epoch_start,
            "position": self._position,
            "next": following,
            "batch": self._global_batch(),
            "samples": self._count(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the batch that would have been next."""
        self._resumed = dict(state)

    def end_epoch(self) -> None:
        """Drop what is left of the epoch that was resumed, so that the next iteration is the next epoch."""
        if self._resumed is not None:
            self._resumed |= {"position": len(self), "samples": self._count()}  # nothing is left, whatever there was

    def _global_batch(self) -> int:
        return self.batch_size * world_size()

    def _count(self) -> int:
        return len(self.images if self.places is None else self.places)

    def _order(self, state: Tensor | None) -> Tensor:
        count = self._count()
        if not self.shuffle:
            return torch.arange(count)
        if self._stream.seed is None:
            self._stream.seed = shared_seed()
        if state is not None:
            self._stream.generator.set_state(state.cpu())
        self._epoch_start = self._stream.generator.get_state()
        if self._cumulated is None:
            return torch.randperm(count, generator=self._stream.generator)
        return draw_by_weight(self._cumulated, count, self._stream.generator)

    def _cuts(self) -> list[tuple[int, int]]:
        """Return where the order is cut into global batches, in samples before they are repeated."""
        count, ranks = self._count() // self.repeats, world_size()
        if self.training:
            shared = ranks // math.gcd(ranks, self.repeats)  # samples that make equal parts for all ranks
            if count < shared:
                times = f", {self.repeats} times each," if self.repeats > 1 else ""
                raise DataError(
                    f"ResidentLoader: {self._count()} training samples{times} can't be shared out to {ranks} processes."
                )
            count -= count % shared
        size = self._global_batch() // self.repeats
        cuts = [(begin, min(begin + size, count)) for begin in range(0, count, size)]
        last = cuts[-1][1] - cuts[-1][0]
        if self.drop_last and last < size and len(cuts) > 1:
            cuts.pop()
        elif last * self.repeats < ranks * (2 if self.training else 1) and last < size and len(cuts) > 1:
            cuts.pop()
            cuts[-1] = (cuts[-1][0], count)
        return cuts


def _check_places(places: Tensor, count: int) -> None:
    if places.ndim != 1 or places.dtype not in (torch.int32, torch.int64):
        raise DataError(
            f"ResidentLoader: places of {places.dtype} and shape {tuple(places.shape)}; expected (M,) whole numbers, int32 or "
            "int64. Those of a mask are mask.nonzero().flatten()."
        )
    if len(places) and (int(places.min()) < 0 or int(places.max()) >= count):
        raise DataError(
            f"ResidentLoader: places run from {int(places.min())} to {int(places.max())}; of {count} samples they have to be "
            f"from 0 to {count - 1}."
        )


def _check_weights(weights: Tensor, count: int, shuffle: bool) -> None:
    if weights.shape != (count,):
        raise DataError(f"ResidentLoader: weights of shape {tuple(weights.shape)} for {count} samples; expected one for each.")
    if not shuffle:
        raise ConfigurationError("ResidentLoader: weights say how to draw samples; give them together with shuffle=True.")


def _check_repeats(repeats: int, batch_size: int, training: bool) -> None:
    if not training:
        raise ConfigurationError(
            f"ResidentLoader: repeats={repeats} is for training, which augments; give it together with shuffle=True, or "
            "training=True."
        )
    if batch_size % repeats:
        raise ConfigurationError(
            f"ResidentLoader: batch_size={batch_size} is no multiple of repeats={repeats}; a batch holds each of its samples "
            "that often."
        )
