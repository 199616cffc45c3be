"""The base of our callbacks."""

from __future__ import annotations

from typing import Any, ClassVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.spec import Configurable

SHARDING_STRATEGIES = (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)
"""Strategies under which no process holds whole weights."""


class TechniqueCallback(Configurable, Callback):
    """A callback that its constructor arguments describe: ``repr`` rebuilds it, and its state is kept under them.

    Two callbacks are equal only if they are one: a Trainer looks its callbacks up by equality.
    """

    single: ClassVar[bool] = False
    """Whether a Trainer has at most one of the kind. Its state is then found again after its arguments were changed."""

    averages_weights: ClassVar[bool] = False
    """Whether it evaluates and saves averages of weights and buffers, as Lightning's ``WeightAveraging`` does."""

    measures_statistics: ClassVar[bool] = False
    """Whether it measures running statistics anew for the weights that are evaluated."""

    looks_on: ClassVar[bool] = False
    """Whether it trains nothing: it reports on a run, keeps its state, stops it, or spares it time. A range test
    does without it."""

    of_module = False
    """Whether it came with a LightningModule, whose ``own_callbacks`` hold it, and is not for another one on the Trainer."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    _state_is_ours = True
    _state_key: str | None = None

    @property
    @override
    def state_key(self) -> str:
        if self._state_key is None:  # Lightning asks some ten times a step
            self._state_key = type(self).__name__ if self.single else repr(self)
        return self._state_key

    def resume(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state of ``state_dict``. Called only where a fit is resumed."""

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # Lightning restores callbacks for a test with ckpt_path, too; a later fit must not start from what that left
        self._state_is_ours = trainer.state.fn == TrainerFn.FITTING

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self._state_is_ours:
            self.resume(state_dict)


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return a Trainer's callbacks, an attribute that its class does not declare."""
    return trainer.callbacks  # type: ignore[attr-defined]


def refuse_sharding(trainer: Trainer, owner: str) -> None:
    """Raise if no process holds whole weights, which ``owner`` needs.

    Raises:
        ConfigurationError: Naming the strategy.
    """
    if isinstance(trainer.strategy, SHARDING_STRATEGIES):
        raise ConfigurationError(f"{owner} needs whole weights on each device; {type(trainer.strategy).__name__} shards them.")


def is_logged(trainer: Trainer, batch_idx: int) -> bool:
    """Return whether Lightning hands to its loggers what is logged at this training batch. For ``on_train_batch_end``.

    That is at every ``log_every_n_steps``-th optimizer step of the whole run, and at every step once the run is to stop;
    under manual optimization, where a batch may hold several steps, batches are counted.
    """
    interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    if interval == 0:
        return False
    if not trainer.lightning_module.automatic_optimization:
        done = trainer.fit_loop.total_batch_idx + 1
    elif (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or is_last_batch(trainer):
        done = trainer.global_step
    else:
        return False
    return done % interval == 0 or trainer.should_stop


def is_last_batch(trainer: Trainer) -> bool:
    """Return whether the training batch that was taken last is the last one of its epoch."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return progress.is_last_batch or progress.current.ready >= trainer.num_training_batches
