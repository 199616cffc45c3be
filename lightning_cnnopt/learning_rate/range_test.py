"""The range test: the loss over a rate that grows at every step, and what rates it suggests."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Checkpoint,
    DeviceStatsMonitor,
    EarlyStopping,
    LearningRateFinder,
    LearningRateMonitor,
    ModelSummary,
    ProgressBar,
    StochasticWeightAveraging,
    ThroughputMonitor,
    WeightAveraging,
)
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_cnnopt.core.callback import TechniqueCallback, callbacks_of
from lightning_cnnopt.core.errors import ConfigurationError, DivergenceError, check_range
from lightning_cnnopt.core.rates import RateCallback
from lightning_cnnopt.core.schedule import TrainingLength
from lightning_cnnopt.core.values import ScheduleCallback
from lightning_cnnopt.learning_rate.functional import descent, smooth, steepest, valley
from lightning_cnnopt.learning_rate.layer_wise import refuse_parameter_free

# what looks on, saves, stops a run or sets its rate; everything else trains as it does in a fit
_LEFT_OUT = (
    BatchSizeFinder,
    Checkpoint,
    DeviceStatsMonitor,
    EarlyStopping,
    LearningRateFinder,
    LearningRateMonitor,
    ModelSummary,
    ProgressBar,
    StochasticWeightAveraging,
    ThroughputMonitor,
    WeightAveraging,
    RateCallback,
    ScheduleCallback,
)


@dataclass(frozen=True)
class RangeTest:
    """What a range test found.

    Args:
        rates: The rate of each optimizer step, as the optimizer's ``lr``.
        losses: The training loss of the batches of that step, before it. Penalties are not in it, as they are not in the
            ``train_loss`` of an ``ImageClassifier``.
        smoothed: The losses, each a mean of its neighbourhood of up to a twentieth of the steps on either side, at weights
            that fall as a line. It is symmetric, so that it moves no minimum. What is more than a divergence counts as one.
        diverged: Whether the loss grew until the test was stopped.
        steepest: Where the loss falls fastest over the logarithm of the rate, once a twentieth of its fall is done; ``None``
            if it never fell.
        valley: The middle of the longest descent from there on, see
            :func:`~lightning_cnnopt.learning_rate.functional.valley`.
        minimum: A tenth of the rate at which the loss was least.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    diverged: bool
    steepest: float | None = None
    valley: float | None = None
    minimum: float | None = None

    @property
    def suggestions(self) -> dict[str, float]:
        """The suggested rates by name; empty if the loss never fell."""
        named = {"steepest": self.steepest, "valley": self.valley, "minimum": self.minimum}
        return {name: rate for name, rate in named.items() if rate is not None}

    @property
    def recommended(self) -> float | None:
        """The rate to use: the valley, which noise of single batches moves least; ``None`` if the loss never fell."""
        return self.valley

    @property
    def remark(self) -> str:
        """What has to be known of the suggestions, as a sentence, or nothing."""
        if self.recommended is None:
            return (
                f"The loss never fell between {self.rates[0]:.3g} and {self.rates[-1]:.3g}, so no rate can be suggested: test "
                "lower rates if it grew, and more steps or higher rates if it stood still."
            )
        if not self.diverged and self.smoothed.index(min(self.smoothed)) >= len(self.rates) - 2:
            return f"The loss was still falling at {self.rates[-1]:.3g}, the highest rate tested: test higher ones."
        low, high = min(self.suggestions.values()), max(self.suggestions.values())
        if high > 100 * low:
            return f"The suggestions differ by a factor of {high / low:.0f}: look at the picture, or test with more steps."
        return ""


def range_test(
    trainer: Trainer,
    model: LightningModule,
    train_dataloaders: Any = None,
    datamodule: LightningDataModule | None = None,
    min_lr: float = 1e-7,
    max_lr: float = 1.0,
    steps: int = 100,
    divergence: float = 4.0,
    without: Sequence[type[Callback]] = (),
) -> RangeTest:
    """Train for some steps at a rate that grows from ``min_lr`` to ``max_lr``, and return the losses and suggested rates.

    Everything happens on copies of Trainer, module, callbacks and data, with the global random streams put back at the end.
    So nothing is left behind: a fit afterwards is to the bit the fit that would have been without it. It needs a second copy
    of what lies in memory, data included, while it runs.

    Trained is as in a fit: the module's initializers draw first, and penalties, constraints, augmentation, mixing, accumulation
    and clipping do what they always do. Left out are schedules of anything, validation, loggers, checkpoints, and callbacks
    that only look on or stop a run. The rate of step i of n is min_lr · (max_lr / min_lr)^(i / (n - 1)); groups keep their
    ratio to each other. A factor that :class:`~lightning_cnnopt.parallel.ScaleRateWithBatchSize` puts on the rate is taken
    into account, so that the suggestions are always values for the optimizer's ``lr``.

    Args:
        trainer: Any Trainer of one process.
        model: Any LightningModule with one optimizer and automatic optimization.
        train_dataloaders: What would be given to ``trainer.fit``.
        datamodule: In place of loaders.
        min_lr: Rate of the first step.
        max_lr: Rate of the last step.
        steps: Optimizer steps. The data is gone through as often as they need.
        divergence: The test ends early when the loss is NaN, infinite, or more than this times its least value, in the mean
            over a twentieth of the steps; ``inf`` for the first two alone.
        without: Further kinds of callbacks to leave out, such as one that sends messages.

    Raises:
        ConfigurationError: If an argument is out of range, or the run can't be tested or copied.
        DivergenceError: If the loss is NaN or infinite before the rate can be the cause.

    Reference:
        Smith, "Cyclical Learning Rates for Training Neural Networks", 2017; the suggestions are those of fastai.

    Example:
        >>> from lightning_cnnopt import Digits, ImageClassifier
        >>> data = Digits()
        >>> trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        >>> result = range_test(trainer, ImageClassifier(**data.model_args()), datamodule=data, steps=20)
        >>> sorted(result.suggestions)
        ['minimum', 'steepest', 'valley']
    """
    check_range("range_test", "min_lr", min_lr, 0, low_open=True)
    check_range("range_test", "max_lr", max_lr, min_lr, low_open=True)
    check_range("range_test", "steps", steps, 10)
    check_range("range_test", "divergence", divergence, 1, low_open=True, finite=False)
    if not isinstance(steps, int):
        raise ConfigurationError(f"range_test: steps={steps!r} is no whole number.")
    if trainer.num_devices * trainer.num_nodes > 1:
        raise ConfigurationError(
            f"The range test runs in one process, and this Trainer has {trainer.num_devices} devices on {trainer.num_nodes} "
            "nodes: set devices=1 and num_nodes=1, and accumulate_grad_batches so that the global batch stays what it is."
        )
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        raise ConfigurationError("The range test makes steps of its own number: take fast_dev_run away, and set steps.")
    observed = _Steps(min_lr, max_lr, steps, divergence, (*_LEFT_OUT, *without))
    with isolate_rng():
        error = None
        try:
            _run(trainer, model, train_dataloaders, datamodule, observed)
        except BaseException as caught:  # isolate_rng puts nothing back if something is raised inside of it
            error = caught
    if error is not None:
        raise error
    return observed.result()


def _run(trainer: Trainer, model: LightningModule, loaders: Any, datamodule: Any, observed: _Steps) -> None:
    given = callbacks_of(trainer)
    memo: dict[int, Any] = {id(logger): DummyLogger() for logger in trainer.loggers}
    memo[id(trainer.profiler)] = PassThroughProfiler()  # type: ignore[attr-defined]
    memo.update({id(callback): callback for callback in given if observed.leaves_out(callback) and not _scales(callback)})
    try:
        copied, module, loaders, datamodule = copy.deepcopy((trainer, model, loaders, datamodule), memo)
    except (TypeError, RuntimeError, AttributeError, NotImplementedError) as error:
        raise ConfigurationError(
            f"The range test works on copies, and a part of this Trainer, {type(model).__name__} or its data can't be copied: "
            f"{error}. Give it a Trainer and a module that have not been used yet, or test in a process of its own."
        ) from error
    attached = callbacks_of(copied)
    observed.scaling = [callback for callback in attached if _scales(callback)]
    copied.callbacks = [observed, *(callback for callback in attached if not observed.leaves_out(callback))]  # type: ignore[attr-defined]
    copied.loggers = []
    copied.limit_val_batches = copied.num_sanity_val_steps = 0
    copied.fit_loop.max_epochs = -1
    copied.fit_loop.min_epochs = copied.fit_loop.epoch_loop.min_steps = None
    copied.should_stop = False
    copied.fit_loop.epoch_loop.max_steps = copied.global_step + observed.steps  # one that was used has taken steps already
    copied.fit(module, train_dataloaders=loaders, datamodule=datamodule)


def _scales(callback: Callback) -> bool:
    return isinstance(callback, RateCallback) and not isinstance(callback, ScheduleCallback)


class _Steps(Callback):
    """Writes the rate of every step and keeps its loss."""

    def __init__(self, low: float, high: float, steps: int, divergence: float, left_out: tuple[type[Callback], ...]) -> None:
        self.low, self.high, self.steps, self.divergence = low, high, steps, divergence
        self.left_out = left_out
        self.scaling: list[Any] = []
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.diverged = False
        self._shares: list[float] = []
        self._factor = 1.0
        self._of_step: list[float] = []  # losses of the batches that one step accumulates
        self._reach = max(1, steps // 20)
        self._least = math.inf

    def leaves_out(self, callback: Callback) -> bool:
        return isinstance(callback, self.left_out) or (isinstance(callback, TechniqueCallback) and callback.looks_on)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # those that came with the module were added since; the list is replaced, not changed, since Lightning is walking it
        trainer.callbacks = [c for c in callbacks_of(trainer) if c is self or not self.leaves_out(c)]  # type: ignore[attr-defined]

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not pl_module.automatic_optimization:
            raise ConfigurationError(
                f"The range test needs automatic optimization, and {type(pl_module).__name__} steps its optimizers itself."
            )
        if len(trainer.optimizers) != 1:
            raise ConfigurationError(
                f"The range test is for one optimizer, and {type(pl_module).__name__} has {len(trainer.optimizers)}."
            )
        trainer.strategy.lr_scheduler_configs = []
        optimizer = trainer.optimizers[0]
        refuse_parameter_free(optimizer, "A range test")
        self._shares = _shares(optimizer)
        length = TrainingLength(self.steps, self.steps)
        self._factor = math.prod(callback.make_factor(trainer, length)(1.0) for callback in self.scaling)
        self._start = trainer.global_step

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step - self._start
        if len(self.rates) <= step:
            self.rates.append(self.low * (self.high / self.low) ** (step / (self.steps - 1)))
        for group, share in zip(trainer.optimizers[0].param_groups, self._shares, strict=True):
            rate = self.rates[-1] * share * self._factor
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        self._of_step.append(float(loss) if isinstance(loss, Tensor) else math.nan)
        if trainer.global_step - self._start < len(self.rates):
            return  # gradients are accumulating
        self.losses.append(sum(self._of_step) / len(self._of_step))
        self._of_step = []
        if not math.isfinite(self.losses[-1]):
            if len(self.losses) <= 2:
                raise DivergenceError(
                    f"The loss is {self.losses[-1]} at step {len(self.losses)} of the range test, at the rate "
                    f"{self.rates[len(self.losses) - 1]:g}, where the rate is hardly the cause. Look at the data (NaN, "
                    "labels), the loss, the initialization and the precision, or lower min_lr."
                )
            self.diverged = True
        elif len(self.losses) > self._reach:
            recent = self.losses[-self._reach - 1 :]
            mean = sum(recent) / len(recent)
            self._least = min(self._least, mean)
            self.diverged = mean > self._least + (self.divergence - 1) * abs(self._least)
        if self.diverged:
            trainer.should_stop = True

    def result(self) -> RangeTest:
        if not self.losses:
            raise ConfigurationError(
                "The range test made no step in this process: there are no training batches, or the strategy trains in a "
                "process of its own, as ddp_spawn does. Use the default strategy."
            )
        finite = [loss for loss in self.losses if math.isfinite(loss)]
        rates, losses = self.rates[: len(finite)], finite
        if len(losses) < 5:
            raise DivergenceError(
                f"The loss diverged within {len(self.losses)} steps of the range test, at the rate {self.rates[-1]:.3g}: too "
                "early to tell anything. Lower min_lr."
            )
        least = min(losses)
        most = max(losses[0], least + (self.divergence - 1) * abs(least))
        smoothed = smooth([min(loss, most) for loss in losses], self._reach)
        fall = descent(smoothed, first=self._reach + 2)
        if fall is None:
            return RangeTest(rates, losses, smoothed, self.diverged)
        begin, end = fall
        part = smoothed[begin : end + 1]
        return RangeTest(
            rates,
            losses,
            smoothed,
            self.diverged,
            steepest=rates[begin + steepest(part)],
            valley=rates[begin + valley(part)],
            minimum=rates[end] / 10,
        )


def _shares(optimizer: Optimizer) -> list[float]:
    if "lr" not in optimizer.defaults:
        raise ConfigurationError(f"The range test varies the learning rate, and {type(optimizer).__name__} has no lr.")
    own = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
    default = optimizer.defaults["lr"]
    stated = float(default) if isinstance(default, (int, float, Tensor)) else math.nan
    reference = stated if stated in own else max(own)
    return [rate / reference for rate in own] if reference > 0 else [1.0] * len(own)
