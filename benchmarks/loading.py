"""P3: images a second from a set in memory to normalized batches, with pad-crop and flip."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

from benchmarks.frame.rows import FASTER, LONGER, Benchmark, Function, Goal, Row
from benchmarks.peers import Loaded, Samples, images, seconds_a_thousand

COUNT, SIZE, BATCH = 50_000, 32, 512  # 154 MB: more than a cache holds
EPOCHS = 5  # of four steps, of each training
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def ours(pair: int) -> Mapping[str, float]:
    """Return the seconds that a thousand images take this project."""
    loader, augment, preprocessing = _loader(pair), _augment(pair), _preprocessing(pair)

    def epoch() -> int:
        for batch, _ in loader:
            preprocessing(augment(batch))
        return COUNT

    return seconds_a_thousand(epoch)


def _loader(pair: int) -> Any:
    import torch

    from lightning_cnnopt import ResidentLoader

    return ResidentLoader(images(COUNT, SIZE), torch.zeros(COUNT, dtype=torch.long), BATCH, shuffle=True, seed=pair)


def _augment(pair: int) -> Any:
    from lightning_cnnopt.augmentation import Augment, HorizontalFlip, PaddedCrop

    return Augment([PaddedCrop(4), HorizontalFlip()], seed=pair)


def _preprocessing(pair: int) -> Any:
    from lightning_cnnopt.architecture import Preprocessing

    return Preprocessing(3, MEAN, STD)


def _loading(pair: int) -> Mapping[str, float]:
    """Return the seconds that a thousand images take the loader alone."""
    loader = _loader(pair)
    return seconds_a_thousand(lambda: sum(len(batch) for batch, _ in loader))


def _changing(pair: int, make: Callable[[int], Any]) -> Mapping[str, float]:
    """Return the seconds that a thousand images take one of the other parts alone, from memory that no cache holds."""
    part, batches = make(pair), [batch for batch, _ in _loader(pair)]
    return seconds_a_thousand(lambda: sum(len(part(batch)) for batch in batches))


@cache
def _loaded() -> Loaded:
    import torch
    from torchvision.transforms import v2

    chain = [v2.RandomCrop(SIZE, padding=4), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)]
    return Loaded(Samples(images(COUNT, SIZE), v2.Compose([*chain, v2.Normalize(MEAN, STD)])), BATCH)


def _theirs(pair: int) -> Mapping[str, float]:
    return _loaded().run()


def _limit(pair: int) -> Mapping[str, float]:
    import torch

    data = images(COUNT, SIZE).flatten(1)
    generator = torch.Generator().manual_seed(pair)

    def epoch() -> int:
        for index in torch.randperm(COUNT, generator=generator).split(BATCH):
            data.index_select(0, index).view(-1, 3, SIZE, SIZE).float()
        return COUNT

    return seconds_a_thousand(epoch)


def _training(pair: int, augments: bool) -> Mapping[str, float]:
    """Return the seconds that a thousand images take in the median step of a training.

    The median, as equal steps differ by half on a shared machine and the first one is a warm-up.
    """
    import torch
    from torch.nn import functional as F

    from lightning_cnnopt import ResidentLoader
    from lightning_cnnopt.architecture import SmallResNet

    count = 4 * BATCH
    loader = ResidentLoader(images(COUNT, SIZE)[:count], torch.arange(count) % 10, BATCH, shuffle=True, seed=pair)
    augment = _augment(pair) if augments else lambda batch: batch
    torch.manual_seed(pair)
    network = torch.nn.Sequential(_preprocessing(pair), SmallResNet(10, 3))
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)

    spent = []
    for _ in range(EPOCHS):
        start = time.perf_counter()
        for batch, targets in loader:
            optimizer.zero_grad()
            F.cross_entropy(network(augment(batch)), targets).backward()
            optimizer.step()
            end = time.perf_counter()
            spent.append(end - start)
            start = end
    return {"wall": 1000 * statistics.median(spent) / BATCH}


_OURS = Function("ResidentLoader, Augment, Preprocessing", ours)
_THEIRS = Function("torchvision v2 in a DataLoader, best of 0, 1 and 2 workers", _theirs)
_LIMIT = Function("shuffled index_select and conversion to float", _limit)

BENCHMARK = Benchmark(
    id="P3",
    what="pad-crop, flip, normalize, 3x32x32, batch 512, from 154 MB in memory; seconds a thousand images",
    against="torchvision v2 in a DataLoader; shuffled index_select and conversion to float; a training without crop and flip",
    goal="50 times as fast; at most 3 times as long as the limit; a training at most 1.05 times as long as without",
    rows=(
        Row("against torchvision v2", _OURS, _THEIRS, Goal(FASTER, 50)),
        Row("against the limit", _OURS, _LIMIT, Goal(LONGER, 3)),
        Row("of it, the loader", Function("ResidentLoader", _loading), _LIMIT, Goal(LONGER)),
        Row("of it, crop and flip", Function("Augment", partial(_changing, make=_augment)), _LIMIT, Goal(LONGER)),
        Row("of it, normalization", Function("Preprocessing", partial(_changing, make=_preprocessing)), _LIMIT, Goal(LONGER)),
        Row(
            "training a small ResNet",
            Function("with crop and flip", partial(_training, augments=True)),
            Function("the same without", partial(_training, augments=False)),
            Goal(LONGER, 1.05),
        ),
    ),
    packages=("torchvision",),
)
