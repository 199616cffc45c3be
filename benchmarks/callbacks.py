"""P5: what a recipe's callbacks add to a step.

Steps are timed within the training: making the Trainer, the first steps and the end are not in the figure.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from benchmarks.frame.rows import LONGER, MORE, Benchmark, Function, Goal, Row

_WARM_UP = 10
_RATE = 0.05
_COUNTS = [600, 550, 500, 450, 400, 350, 300, 250, 200, 150]


def _network(widths: tuple[int, ...]) -> Any:
    import torch

    from lightning_cnnopt import ConvNet

    torch.manual_seed(0)
    return ConvNet(widths=widths)


def _batch(size: int) -> Any:
    import torch

    return torch.rand(size, 1, 28, 28), torch.arange(size) % 10


def _trainer(widths: tuple[int, ...], size: int, steps: int, recipe: Callable[[], list[Any]], pair: int) -> Mapping[str, float]:
    import torch
    from lightning.pytorch import Callback, LightningModule, Trainer
    from torch.utils.data import DataLoader

    class Module(LightningModule):
        """Knows nothing of this package, so that the callbacks are all that differs."""

        def __init__(self) -> None:
            super().__init__()
            self.network = _network(widths)
            self.criterion = torch.nn.CrossEntropyLoss()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.criterion(self.network(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=_RATE, momentum=0.9, weight_decay=1e-4)

    class Clock(Callback):
        def on_train_batch_start(self, trainer: Any, *rest: Any) -> None:
            if trainer.global_step == _WARM_UP:
                self.start = time.perf_counter()

        def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
            if trainer.global_step == _WARM_UP + steps:
                self.seconds = time.perf_counter() - self.start

    clock = Clock()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        trainer = Trainer(
            accelerator="cpu",
            max_steps=_WARM_UP + steps,
            callbacks=[*recipe(), clock],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        batches: Any = [_batch(size)] * (_WARM_UP + steps)
        trainer.fit(Module(), DataLoader(batches, batch_size=None))
    return {"wall": clock.seconds / steps}


def _by_hand(widths: tuple[int, ...], size: int, steps: int, pair: int) -> Mapping[str, float]:
    """Train by the same recipe without a Trainer: torch's own one-cycle schedule, average and weights."""
    import torch
    from torch.optim.lr_scheduler import OneCycleLR
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    from lightning_cnnopt.imbalance import class_weights

    network = _network(widths)
    criterion = torch.nn.CrossEntropyLoss(class_weights(torch.tensor(_COUNTS)))
    optimizer = torch.optim.SGD(network.parameters(), lr=_RATE, momentum=0.9, weight_decay=1e-4)
    schedule = OneCycleLR(optimizer, _RATE, _WARM_UP + steps)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.999), use_buffers=True)
    images, labels = _batch(size)
    start = 0.0
    for step in range(_WARM_UP + steps):
        if step == _WARM_UP:
            start = time.perf_counter()
        optimizer.zero_grad()
        criterion(network(images), labels).backward()
        optimizer.step()
        schedule.step()
        average.update_parameters(network)
    return {"wall": (time.perf_counter() - start) / steps}


def _recipe() -> list[Any]:
    from lightning_cnnopt.callbacks import EMA, ClassWeights, ScheduleLearningRate, ScheduleMomentum
    from lightning_cnnopt.learning_rate import CounterCycle, OneCycle

    return [
        ScheduleLearningRate(OneCycle()),
        ScheduleMomentum(CounterCycle()),
        EMA(0.999),
        ClassWeights(counts=_COUNTS),
    ]


def _in_tens() -> list[Any]:
    from lightning_cnnopt.callbacks import SeveralSteps

    return [*_recipe(), SeveralSteps(10)]


def _bookkeeping() -> list[Any]:
    from lightning_cnnopt.callbacks import (
        ClassWeights,
        FreezeStatistics,
        ResumeRandomState,
        ScaleRateWithBatchSize,
        ScheduleLearningRate,
        ScheduleMomentum,
        ScheduleWeightDecay,
        StopOnDivergence,
    )
    from lightning_cnnopt.learning_rate import Cosine, CounterCycle, OneCycle

    return [
        ResumeRandomState(),
        StopOnDivergence(),
        ScheduleLearningRate(OneCycle()),
        ScheduleMomentum(CounterCycle()),
        ScheduleWeightDecay(Cosine(), start=1e-4, end=0.0),
        ScaleRateWithBatchSize(32, batch_size=32),
        ClassWeights(counts=_COUNTS),
        FreezeStatistics(0.9),
    ]


_SMALL, _SHORT, _REFERENCE = ((4,), 32, 400), ((8,), 32, 200), ((32,), 64, 30)

BENCHMARK = Benchmark(
    id="P5",
    what="a Trainer with a recipe's callbacks",
    against="the same Trainer without; a loop by hand of the same recipe",
    goal="at most 0.1 ms a step more; at most 1.02 times as long at steps of 50 ms, and of 5 ms with several steps a call",
    rows=(
        Row(
            "eight callbacks, small steps",
            Function("Trainer with eight callbacks", partial(_trainer, *_SMALL, _bookkeeping)),
            Function("Trainer without", partial(_trainer, *_SMALL, list)),
            Goal(MORE, 1e-4),
        ),
        Row(
            "recipe, small steps",
            Function("Trainer with schedule, momentum, EMA and class weights", partial(_trainer, *_SMALL, _recipe)),
            Function("Trainer without", partial(_trainer, *_SMALL, list)),
            Goal(MORE, 1e-4),
        ),
        Row(
            "recipe against a loop, steps of 50 ms",
            Function("Trainer with schedule, momentum, EMA and class weights", partial(_trainer, *_REFERENCE, _recipe)),
            Function("loop by hand", partial(_by_hand, *_REFERENCE)),
            Goal(LONGER, 1.02),
        ),
        Row(
            "recipe against a loop, steps of 5 ms, ten a call",
            Function("Trainer with the same and SeveralSteps(10)", partial(_trainer, *_SHORT, _in_tens)),
            Function("loop by hand", partial(_by_hand, *_SHORT)),
            Goal(LONGER, 1.02),
        ),
    ),
    pairs=11,
)
