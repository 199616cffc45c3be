"""Several optimizer steps for one of the Trainer's own, so that its fixed cost is paid once in so many."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import lightning
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult
from lightning.pytorch.plugins import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler, Profiler
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lightning_cnnopt.core.callback import TechniqueCallback, callbacks_of
from lightning_cnnopt.core.errors import ConfigurationError, check_range

_HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
_OF_MODULES_ONLY = ("optimizer_zero_grad", "configure_gradient_clipping")
_FOLLOWED = (2, 6)  # the Lightning whose epoch loop this follows


class SeveralSteps(TechniqueCallback):
    """Lets the Trainer make one step of its own in so many; those between cost little more than in a loop by hand.

    For small networks and small batches, where the fixed time that a step of the Trainer costs beside the computation counts.
    Results are the same to the bit, on any LightningModule: every batch is an optimizer step of its own, with its
    augmentation, schedules, penalties, clipping, averages and counters, and ``global_step``, ``max_steps``, validations, logs
    and checkpoints are where they are without. A checkpoint does not tell whether this was attached; a run may be resumed
    with it, without it, or with another number.

    In a step between, every hook that a callback or the LightningModule has is called, in Lightning's order; what is left out
    are calls of hooks that nobody has, the profiler, and progress bars, which show every ``steps_per_execution``-th step.
    Steps of the Trainer's own are also those at which it logs, and the last one of an epoch, so a ``log_every_n_steps`` below
    ``steps_per_execution`` takes some of the gain away.

    Where the optimizer step is not Lightning's plain one (manual optimization, accumulation, a gradient scaler, an
    ``optimizer_step`` of the module's own, strategies other than a single device and DDP) that part runs as Lightning runs it,
    and the gain is smaller.

    Args:
        steps_per_execution: How many optimizer steps there are for one of the Trainer's own. With 10, most of what can be
            spared is spared, and a progress bar moves in steps of 10.

    Raises:
        ConfigurationError: If the ``training_step`` takes the iterator of the data loader, or there are two of these.

    Reference:
        ``steps_per_execution`` of Keras' ``Model.compile``, whose callbacks do see every so-many-th step only.

    Example:
        >>> trainer = Trainer(callbacks=[SeveralSteps(10)], logger=False, enable_checkpointing=False)
    """

    single = True
    looks_on = True

    def __init__(self, steps_per_execution: int = 10) -> None:
        check_range("SeveralSteps", "steps_per_execution", steps_per_execution, 2)
        self.steps_per_execution = steps_per_execution
        self._trainer: Trainer | None = None
        self._step: _BriefStep | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if sum(isinstance(callback, SeveralSteps) for callback in callbacks_of(trainer)) > 1:
            raise ConfigurationError("The Trainer has two callbacks SeveralSteps; keep one.")
        if is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True):
            raise ConfigurationError(
                f"{self!r}: {type(pl_module).__name__}.training_step takes batches from dataloader_iter itself, so nobody else "
                "can take several. Let it take (batch, batch_idx), or take SeveralSteps away."
            )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._warn(trainer)
        self._leave()
        self._trainer = trainer
        loop = trainer.fit_loop.epoch_loop
        own: Callable[[Any], None] = loop.advance

        def advance(fetcher: Any) -> None:
            while not loop.restarting and not self._is_own(trainer):
                item = next(fetcher)
                loop.batch_progress.is_last_batch = fetcher.done
                if fetcher.done or item[0] is None:
                    own(_Taken(item, fetcher.done))
                    return
                if self._brief(trainer).run(item[0], fetcher):
                    return
            own(fetcher)

        vars(loop)["advance"] = advance

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = None  # what is hooked in, and how gradients are accumulated, may change from epoch to epoch

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._leave()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._leave()

    def _is_own(self, trainer: Trainer) -> bool:
        loop = trainer.fit_loop.epoch_loop
        batches = loop.batch_progress.current.ready + 1
        return (
            batches % self.steps_per_execution == 0
            or batches >= trainer.num_training_batches
            or loop.global_step + 1 == loop.max_steps
            or trainer._logger_connector.should_update_logs
        )

    def _brief(self, trainer: Trainer) -> _BriefStep:
        # a callback that runs another training within this one, as Lightning's finders do, replaces the list meanwhile
        if self._step is None or self._step.callbacks is not callbacks_of(trainer):
            self._step = _BriefStep(trainer)
        return self._step

    def _leave(self) -> None:
        if self._trainer is not None:
            vars(self._trainer.fit_loop.epoch_loop).pop("advance", None)
        self._trainer = self._step = None

    def _warn(self, trainer: Trainer) -> None:
        interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if 0 < interval < self.steps_per_execution:
            rank_zero_warn(
                f"{self!r}: log_every_n_steps={interval} makes every {interval}-th step one of the Trainer's own; set it to "
                f"{self.steps_per_execution} or more."
            )
        profiler: Profiler = trainer.profiler  # type: ignore[attr-defined]
        if not isinstance(profiler, PassThroughProfiler):
            rank_zero_warn(
                f"{type(profiler).__name__} sees only those steps that {self!r} leaves to the Trainer; take it away to "
                "profile a training."
            )
        if tuple(int(part) for part in lightning.__version__.split(".")[:2]) > _FOLLOWED:
            rank_zero_warn(
                f"SeveralSteps follows the epoch loop of Lightning {'.'.join(map(str, _FOLLOWED))} and has not been tried with "
                f"{lightning.__version__}, whose loop may do more in a step."
            )


class _Taken:
    """Hands a batch that was taken already to a step of the Trainer's own, in the place of its fetcher."""

    def __init__(self, item: Any, done: bool) -> None:
        self.item = item
        self.done = done

    def __next__(self) -> Any:
        return self.item


class _BriefStep:
    """A training step of what acts: the batch, the hooks that somebody has, the optimizer, schedules and counters.

    In the order of Lightning's ``_TrainingEpochLoop.advance`` and ``on_advance_end``, so that whoever looks at the Trainer from
    a hook, or at a checkpoint, finds what there would be without.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.callbacks = callbacks_of(trainer)
        self.module = module = trainer.lightning_module
        self.loop = trainer.fit_loop.epoch_loop
        acting = [callback for callback in self.callbacks if not isinstance(callback, ProgressBar)]
        self.hooks = {name: [c for c in acting if is_overridden(name, c, Callback)] for name in _HOOKS}
        self.own = {name for name in (*_HOOKS, *_OF_MODULES_ONLY) if is_overridden(name, module)}
        self.takes_index = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
        self.has_plateau = any(config.reduce_on_plateau for config in trainer.lr_scheduler_configs)
        selector = trainer._data_connector._datahook_selector
        assert selector is not None
        data_hooks = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
        self.before, self.transfer, self.after = map(selector.get_instance, data_hooks)
        strategy, precision = trainer.strategy, trainer.precision_plugin
        self.is_known = (
            type(strategy) in (SingleDeviceStrategy, DDPStrategy)
            and getattr(strategy, "_model_averager", None) is None
            and type(precision) in (Precision, HalfPrecision, DoublePrecision, MixedPrecision)
            and getattr(precision, "scaler", None) is None
        )
        self.is_plain = (
            self.is_known
            and module.automatic_optimization
            and not is_overridden("optimizer_step", module)
            and not self.loop.automatic_optimization._skip_backward
        )

    def run(self, batch: Any, fetcher: Any) -> bool:
        """Take the step.

        Args:
            batch: As the loader gave it.
            fetcher: Where it came from.

        Returns:
            Whether the Trainer has something to do now: to validate, or to stop.
        """
        trainer, loop, connector, progress = self.trainer, self.loop, self.trainer._logger_connector, self.loop.batch_progress
        batch_idx = loop.batch_idx + 1
        batch = self._to_device(batch)
        progress.increment_ready()
        connector.on_batch_start(batch)
        response = self._call("on_train_batch_start", batch, batch_idx)
        trainer.strategy.on_train_batch_start(batch, batch_idx)
        if response == -1:  # the module leaves the rest of the epoch out
            progress.increment_by(0, is_last_batch=True)
            progress.increment_processed()
            loop.update_lr_schedulers("step", update_plateau_schedulers=False)
            loop.update_lr_schedulers("epoch", update_plateau_schedulers=False)
            raise StopIteration
        progress.increment_started()
        output = self._optimize(batch, batch_idx)
        progress.increment_processed()
        if trainer.lr_scheduler_configs:
            loop.update_lr_schedulers("step", update_plateau_schedulers=False)
        self._call("on_train_batch_end", output, batch, batch_idx)
        progress.increment_completed()
        if trainer.should_stop or loop._is_training_done or trainer.received_sigterm or loop._should_check_val_fx(fetcher):
            connector.on_batch_end()
            connector.update_train_step_metrics()
            return True
        # what was logged is computed where it is read while training; only validation finds it as it was left
        loop._results.batch = loop._results.batch_size = None
        if self.has_plateau:
            loop.update_lr_schedulers("step", update_plateau_schedulers=True)
        if trainer.accumulate_grad_batches == 1 or not loop._should_accumulate():
            loop._batches_that_stepped += 1
        return False

    def _to_device(self, batch: Any) -> Any:
        strategy = self.trainer.strategy
        batch = self.trainer.precision_plugin.convert_input(batch)
        if not self.is_known:
            return strategy.batch_to_device(self.module._on_before_batch_transfer(batch))
        batch = self.before.on_before_batch_transfer(batch, 0)
        batch = self.transfer.transfer_batch_to_device(batch, strategy.root_device, 0)
        return self.after.on_after_batch_transfer(batch, 0)

    def _optimize(self, batch: Any, batch_idx: int) -> Any:
        optimization = self.loop.automatic_optimization
        if not self.is_plain or self.trainer.accumulate_grad_batches != 1:
            arguments = self.loop._build_kwargs(OrderedDict(), batch, batch_idx)
            if not self.module.automatic_optimization:
                return self.loop.manual_optimization.run(arguments)
            return optimization.run(self.trainer.optimizers[0], batch_idx, arguments)
        optimizer, progress = self.trainer.optimizers[0], optimization.optim_progress.optimizer.step
        closure = Closure(
            partial(self._training_step, *((batch, batch_idx) if self.takes_index else (batch,))),
            partial(self._backward, optimizer),
            partial(self._zero_grad, optimizer, batch_idx),
        )
        progress.increment_ready()
        optimizer.step(closure=partial(self._close, closure, optimizer))
        progress.increment_completed()
        result = closure.consume_result()
        return {} if result.loss is None else result.asdict()

    def _training_step(self, *arguments: Any) -> ClosureResult:
        output = self._named("training_step", self.trainer.strategy.training_step, *arguments)
        if output is None and self.trainer.world_size > 1:
            raise RuntimeError("training_step returned None, and in distributed training no process can skip a batch alone.")
        # Lightning would divide by the one batch that is accumulated: one more operation to go back through
        return ClosureResult(output) if isinstance(output, Tensor) else ClosureResult.from_training_step_output(output)

    def _zero_grad(self, optimizer: Optimizer, batch_idx: int) -> None:
        progress = self.loop.automatic_optimization.optim_progress.optimizer.zero_grad
        progress.increment_ready()
        self._call("on_before_zero_grad", optimizer)
        progress.increment_started()
        if "optimizer_zero_grad" in self.own:
            zero_grad = self.module.optimizer_zero_grad
            self._named("optimizer_zero_grad", zero_grad, self.trainer.current_epoch, batch_idx, optimizer)
        else:
            optimizer.zero_grad()
        progress.increment_completed()

    def _backward(self, optimizer: Optimizer, loss: Tensor) -> None:
        strategy = self.trainer.strategy
        strategy.pre_backward(loss)
        self._call("on_before_backward", loss)
        self._named("backward", self.trainer.precision_plugin.backward, loss, self.module, optimizer)
        self._call("on_after_backward")
        strategy.post_backward(loss)

    def _close(self, closure: Closure, optimizer: Optimizer) -> Any:
        loss = closure()
        self._call("on_before_optimizer_step", optimizer)
        value, algorithm = self.trainer.gradient_clip_val, self.trainer.gradient_clip_algorithm
        if value is not None or "configure_gradient_clipping" in self.own:
            clip = partial(self.module.configure_gradient_clipping, gradient_clip_val=value, gradient_clip_algorithm=algorithm)
            self._named("configure_gradient_clipping", clip, optimizer)
        return loss

    def _call(self, name: str, *arguments: Any) -> Any:
        for callback in self.hooks[name]:
            self._named(name, getattr(callback, name), self.trainer, self.module, *arguments)
        return self._named(name, getattr(self.module, name), *arguments) if name in self.own else None

    def _named(self, name: str, call: Callable[..., Any], *arguments: Any) -> Any:
        # self.log looks up which hook it is called from; nn.Module's own assignment goes through parameters and children first
        attributes = vars(self.module)
        former, attributes["_current_fx_name"] = attributes["_current_fx_name"], name
        output = call(*arguments)
        attributes["_current_fx_name"] = former
        return output
