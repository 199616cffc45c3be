"""How the peers of the augmentation benchmarks are run: as their documentation advises, at their best."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

SECONDS = 0.4
"""What a run takes at least."""

PEERS = {"torchvision": "torchvision", "kornia": "kornia", "albumentations": "albumentations"}
"""The peers, and the module without which each can't be run."""


@cache
def images(count: int, size: int) -> Any:
    """Return (count, 3, size, size) uint8 that no two calls draw anew: as smooth as photographs, so that nothing is trivial."""
    import torch
    from torch.nn import functional as F

    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(min(count, 512), 3, 8, 8, generator=generator)
    fine = F.interpolate(coarse, (size, size), mode="bilinear") * 255
    return fine.to(torch.uint8).repeat(-(-count // len(fine)), 1, 1, 1)[:count].contiguous()


@cache
def arrays(count: int, size: int) -> Any:
    """Return the same images as a list of arrays (size, size, 3)."""
    return [image.permute(1, 2, 0).contiguous().numpy() for image in images(count, size)]


def seconds_a_thousand(step: Callable[[], int]) -> Mapping[str, float]:
    """Return the seconds that a thousand images take; ``step`` works through some and says how many."""
    done, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < SECONDS or not done:
        done += step()
    return {"wall": 1000 * spent / done}


class Samples:
    """A data set in memory with a transform of single samples, for a ``DataLoader``."""

    def __init__(self, samples: Any, transform: Callable[[Any], Any]) -> None:
        self.samples = samples
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        return self.transform(self.samples[index]), 0


class Loaded:
    """Works through a data set by a ``DataLoader``, at the best of 0, 1 and 2 workers, which is looked for once.

    Args:
        samples: The data set.
        batch_size: Of the loader.
    """

    def __init__(self, samples: Samples, batch_size: int) -> None:
        self.samples = samples
        self.batch_size = batch_size
        self._best: int | None = None

    def run(self) -> Mapping[str, float]:
        """Return the seconds that a thousand images take once the workers are there, and how many there were."""
        if self._best is None:
            self._best = min(range(3), key=lambda workers: self._pass(workers)["wall"])
        return {**self._pass(self._best), "workers": self._best}

    def _pass(self, workers: int) -> Mapping[str, float]:
        from torch.utils.data import DataLoader

        loader = DataLoader(
            self.samples,  # type: ignore[arg-type]
            self.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        batches = iter(loader)
        next(batches)  # workers have started
        done, start = 0, time.perf_counter()
        for batch, _ in batches:
            done += len(batch)
            if time.perf_counter() - start > SECONDS:
                break
        return {"wall": 1000 * (time.perf_counter() - start) / done}
