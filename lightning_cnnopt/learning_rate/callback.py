"""Schedules of the learning rate, of momentum and of weight decay, on any LightningModule."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lightning_cnnopt.core.rates import RateCallback
from lightning_cnnopt.core.schedule import TrainingLength
from lightning_cnnopt.core.values import Driven, ScheduleCallback, ScheduleValue


class ScheduleLearningRate(ScheduleCallback, RateCallback):
    """Applies a schedule to the learning rate of any LightningModule, every optimizer step.

    Every group of every optimizer is multiplied, so the ratios between groups stay. Lightning steps the scheduler, saves
    and restores it, and ``LearningRateMonitor`` sees it. Under manual optimization, where Lightning steps no scheduler, it is
    stepped once a batch. On an :class:`~lightning_cnnopt.ImageClassifier` its argument ``schedule`` does the same.

    Under ``precision="16-mixed"`` a step that the gradient scaler skips still counts as progress.

    Args:
        schedule: The schedule; the factor 1 is the optimizer's own rate.

    Raises:
        ConfigurationError: If the LightningModule has a scheduler of its own, training has no length, or the schedule reacts
            to validations and there are none.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_cnnopt.learning_rate import Cosine, Warmup
        >>> callback = ScheduleLearningRate(Warmup(Cosine(), duration="1ep"))
        >>> trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)
    """

    single = True

    @override
    def make_factor(self, trainer: Trainer, length: TrainingLength) -> Callable[[float], float]:
        """Return the schedule, its durations turned into fractions of this training."""
        return self.bind(trainer, length).factor

    @override
    def refresh(self, trainer: Trainer) -> None:
        """Write the rates of this step again."""
        for scheduler in self.schedulers:
            scheduler.refresh()


class ScheduleMomentum(ScheduleValue):
    """Applies a schedule to the momentum of SGD and its kin, or to beta1 of Adam and its kin, every optimizer step.

    Written to every group of every optimizer. The value that a group had before the first step is kept in the group as
    ``initial_momentum``, as torch keeps ``initial_lr``, and so is in the checkpoint.

    Args:
        schedule: Such as :class:`~lightning_cnnopt.learning_rate.CounterCycle`; the factor 1 is the optimizer's own momentum.
        start: Momentum at the factor 1, in place of the optimizer's own; given together with ``end``.
        end: Momentum at the factor 0.

    Raises:
        ConfigurationError: If a momentum would not be in [0, 1), or training has no length.

    Reference:
        Smith, "A Disciplined Approach to Neural Network Hyper-Parameters", 2018.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_cnnopt.learning_rate import CounterCycle
        >>> trainer = Trainer(callbacks=[ScheduleMomentum(CounterCycle())], logger=False, enable_checkpointing=False)
    """

    single = True
    quantity = "momentum"
    highest = 1.0

    @override
    def places(self, trainer: Trainer, pl_module: LightningModule) -> list[Driven]:
        """Return the momentum, or beta1, of every group that has one."""
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        found = []
        for group in groups:
            if "momentum" in group or "betas" in group:
                own = group["momentum"] if "momentum" in group else group["betas"][0]
                base = group.setdefault("initial_momentum", float(own))
                found.append(Driven(base, functools.partial(_write_momentum, group)))
        return found


class ScheduleWeightDecay(ScheduleValue):
    """Applies a schedule to the optimizer's weight decay, every optimizer step.

    Written to every group of every optimizer that has a decay; groups without any, such as biases and norms, stay without.
    A group's own decay is kept in the group as ``initial_weight_decay`` and so is in the checkpoint.

    Args:
        schedule: The schedule; the factor 1 is the optimizer's own weight decay.
        start: Weight decay at the factor 1, in place of the optimizer's own; given together with ``end``.
        end: Weight decay at the factor 0. From 0.04 to 0.4, for one, in DINO (Caron et al., 2021).

    Raises:
        ConfigurationError: If a weight decay would be negative, or training has no length.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_cnnopt.learning_rate import Cosine
        >>> callback = ScheduleWeightDecay(Cosine(), start=0.04, end=0.4)
        >>> trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)
    """

    single = True
    quantity = "weight decay"

    @override
    def places(self, trainer: Trainer, pl_module: LightningModule) -> list[Driven]:
        """Return the weight decay of every group that has one."""
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups if "weight_decay" in group]
        bases = [group.setdefault("initial_weight_decay", group["weight_decay"]) for group in groups]
        return [
            Driven(base, functools.partial(group.__setitem__, "weight_decay"))
            for group, base in zip(groups, bases, strict=True)
            if base
        ]


def _write_momentum(group: dict[str, Any], value: float) -> None:
    if "momentum" in group:
        group["momentum"] = value
        return
    beta1, *others = group["betas"]
    if isinstance(beta1, Tensor):  # a captured step reads it where it stands
        beta1.fill_(value)
    else:
        group["betas"] = (value, *others)
