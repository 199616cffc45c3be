"""What torch's schedulers do, step by step, beside what ours do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.optim.lr_scheduler import LRScheduler

from lightning_cnnopt.core.schedule import Schedule, TrainingLength

TOTALS = [1, 7, 10, 100, 997]
RATE = 0.3


def optimizer_of_rate(rate: float = RATE, momentum: float = 0.9) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1)], lr=rate, momentum=momentum)


def torch_values(make: Callable[[torch.optim.Optimizer], LRScheduler], total: int, name: str = "lr") -> list[float]:
    optimizer = optimizer_of_rate()
    scheduler = make(optimizer)
    values = []
    for step in range(total):
        values.append(optimizer.param_groups[0][name])
        optimizer.step()
        if step < total - 1:  # OneCycleLR refuses to go on
            scheduler.step()
    return values


def our_values(schedule: Schedule, total: int, base: float = RATE) -> list[float]:
    bound = schedule.bind(TrainingLength(total, max(1, total // 10)))
    return [base * bound.factor(step / total) for step in range(total)]
