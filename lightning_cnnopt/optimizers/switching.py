"""Optimizers that train one point and evaluate another, switched at the right moments on any LightningModule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from typing_extensions import override

from lightning_cnnopt.core.callback import TechniqueCallback, callbacks_of, refuse_sharding
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.rates import FactorLR


def has_modes(optimizer: Any) -> bool:
    """Return whether an optimizer, or a class of them, has to be told of training and evaluation.

    Example:
        >>> has_modes(torch.optim.SGD)
        False
    """
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))


def switching_for(factory: Callable[..., Any]) -> list[Callback]:
    """Return the callback that a module whose optimizer ``factory`` makes comes with: none, if it is known to need none."""
    made = getattr(factory, "func", factory)
    if isinstance(made, type) and not has_modes(made):
        return []
    switching = SwitchOptimizerMode()
    switching.of_module = True
    return [switching]


class SwitchOptimizerMode(TechniqueCallback):
    """Calls ``train()`` and ``eval()`` of optimizers that have them, such as those of ``schedulefree``, where it is due.

    A schedule-free optimizer takes its gradients at one point, y, and what is to be evaluated is another one, x, an average.
    Training runs in y; validation, test, prediction and the checkpoint's ``state_dict`` have x, so whoever loads the
    checkpoint gets it. Beside it the checkpoint holds y to the bit, from which a resumed run goes on: the optimizer could
    compute it from x, but not without rounding. For the same reason a validation changes nothing in the training. After the
    fit the LightningModule holds x.

    :class:`~lightning_cnnopt.ImageClassifier` attaches it by itself.

    Raises:
        ConfigurationError: With a callback that averages weights, too, with ``save_weights_only=True``, or a strategy that
            shards weights.

    Warns:
        If no optimizer has modes; if there is a schedule of the rate beside a schedule-free optimizer; and if running
        statistics of batch normalization, which are measured in y, are not measured anew in x by ``PreciseBN``.

    Reference:
        Defazio et al., "The Road Less Scheduled", 2024.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[SwitchOptimizerMode()], logger=False, enable_checkpointing=False)
    """

    single = True

    def __init__(self) -> None:
        self._optimizers: list[Optimizer] = []
        self._trained: list[Tensor] | None = None  # y, while the module holds x
        self._evaluated: list[Tensor] | None = None  # x, as the fit left it
        self._restored: list[Tensor] | None = None
        self._is_training = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # the list is replaced, not changed, since Lightning is walking it
        others = [callback for callback in callbacks_of(trainer) if callback is not self]
        stays = not self.of_module or self in getattr(pl_module, "own_callbacks", ())  # not that of a former module
        # before all others, so that these find x in validation and at the end
        trainer.callbacks = [self, *others] if stays else others  # type: ignore[attr-defined]

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._optimizers = [optimizer for optimizer in trainer.optimizers if has_modes(optimizer)]
        self._trained = self._evaluated = None
        self._is_training = False
        if not self._optimizers:
            if not self.of_module:
                names = ", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers)
                rank_zero_warn(f"SwitchOptimizerMode switches nothing: {names or 'no optimizer'} has train() and eval().")
            return
        name = type(self._optimizers[0]).__name__
        refuse_sharding(trainer, name)
        for callback in callbacks_of(trainer):
            if _averages(callback):
                raise ConfigurationError(
                    f"{name} evaluates an average of its own, and {type(callback).__name__} would evaluate another one of the "
                    "weights it trains; keep one. In a config, `callbacks: []` takes those of earlier files away."
                )
            if isinstance(callback, ModelCheckpoint) and callback.save_weights_only:
                raise ConfigurationError(
                    "ModelCheckpoint(save_weights_only=True) asks no callback, so it would save the weights that "
                    f"{name} trains and not those to be evaluated. Leave save_weights_only off with it."
                )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._optimizers:
            return
        self._warn(trainer, pl_module)
        self._train()
        if self._restored is not None:
            _copy(self._restored, self._parameters())
            self._restored = None
        self._is_training = True

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap_in()

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap_out()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap_in()

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._trained is not None:
            self._evaluated = _copies(self._parameters())
        self._is_training = False  # a later validation finds x; y stays for checkpoints that are still to come

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._swap_out()

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not self._is_training and (self._evaluated is None or not self._is_as_left()):
            return  # not begun, or the weights were changed after the fit: then the module's own are all there is
        was_training = self._trained is None
        self._swap_in()
        assert self._trained is not None
        x = {id(parameter): parameter.detach().clone() for parameter in self._parameters()}
        y = self._trained
        if was_training:
            self._swap_out()
        saved = checkpoint["state_dict"]
        for name, parameter in pl_module.named_parameters(remove_duplicate=False):
            if id(parameter) in x and name in saved:
                saved[name] = x[id(parameter)]
        for optimizer, state in zip(trainer.optimizers, checkpoint["optimizer_states"], strict=False):
            if has_modes(optimizer):
                for group in state["param_groups"]:
                    group["train_mode"] = False  # as the weights beside it
        checkpoint["callbacks"].setdefault(self.state_key, self.state_dict())["trained"] = y

    @override
    def resume(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict.get("trained")

    def _warn(self, trainer: Trainer, pl_module: LightningModule) -> None:
        name = type(self._optimizers[0]).__name__
        schedules = [
            type(c.scheduler).__name__
            for c in trainer.lr_scheduler_configs
            if c.scheduler.optimizer in self._optimizers
            and (not isinstance(c.scheduler, FactorLR) or "ScheduleLearningRate" in c.scheduler.factors)
        ]
        if schedules:
            rank_zero_warn(
                f"{name} replaces a schedule by an average, and a rate that falls keeps the average from moving on. Take the "
                "schedule away (`schedule: null`); for a warmup it has warmup_steps."
            )
        norms = [m for m in pl_module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        if norms and not any(getattr(c, "measures_statistics", False) for c in callbacks_of(trainer)):
            rank_zero_warn(
                f"The running statistics of {len(norms)} layers of batch normalization are those of the weights that {name} "
                "trains, and evaluated are others. Add the callback PreciseBN, which measures them anew before each validation."
            )

    def _parameters(self) -> list[Tensor]:
        return [p for optimizer in self._optimizers for group in optimizer.param_groups for p in group["params"]]

    def _train(self) -> None:
        for optimizer in self._optimizers:
            optimizer.train()  # type: ignore[attr-defined]

    def _swap_in(self) -> None:
        if self._is_training and self._trained is None:
            self._trained = _copies(self._parameters())
            for optimizer in self._optimizers:
                optimizer.eval()  # type: ignore[attr-defined]

    def _swap_out(self) -> None:
        if self._is_training and self._trained is not None:
            self._train()
            _copy(self._trained, self._parameters())
            self._trained = None

    def _is_as_left(self) -> bool:
        assert self._evaluated is not None
        pairs = zip(self._evaluated, self._parameters(), strict=True)
        return all(torch.equal(value.to(now.device), now) for value, now in pairs)


def _averages(callback: Callback) -> bool:
    return isinstance(callback, (WeightAveraging, StochasticWeightAveraging)) or getattr(callback, "averages_weights", False)


def _copies(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


@torch.no_grad()
def _copy(source: list[Tensor], target: list[Tensor]) -> None:
    for value, tensor in zip(source, target, strict=True):
        tensor.copy_(value)
