"""Averages of weights on any LightningModule."""

from __future__ import annotations

from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from torch import Tensor
from typing_extensions import override

from lightning_cnnopt.core.callback import TechniqueCallback, callbacks_of, refuse_sharding
from lightning_cnnopt.core.errors import ConfigurationError, check_range
from lightning_cnnopt.core.schedule import (
    DurationLike,
    TrainingLength,
    fraction_of,
    parse_duration,
    progress_of,
    steps_done,
    steps_of,
)
from lightning_cnnopt.optimizers.functional import ema_decay, ema_update_


class EMA(TechniqueCallback):
    """Keeps an exponential moving average of all weights and buffers, and evaluates with it.

    Validation, test and the checkpoint's ``state_dict`` hold the averaged weights, so whoever loads the checkpoint gets
    them; the raw ones, from which training goes on, are beside them in this callback's state. Before its first update the
    average *is* the network. After training the LightningModule holds the average.

    Args:
        decay: Share of the average that stays at each optimizer step. 0.999: an average over about a thousand steps.
        half_life: The same as a duration (``"1ep"``, ``0.02``): after it, a weight's share has halved. In place of ``decay``.
        warmup: Begin with a smaller decay, (1 + n) / (10 + n), so that the start does not stay in the average.
        start: When averaging begins; until then the average is the network.

    Raises:
        ConfigurationError: With a second averaging callback, or a strategy that shards weights.

    Reference:
        Polyak & Juditsky, 1992; Tarvainen & Valpola, "Mean teachers", 2017.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[EMA(half_life="1ep")], logger=False, enable_checkpointing=False)
    """

    single = True
    averages_weights = True

    def __init__(
        self,
        decay: float | None = None,
        half_life: DurationLike | None = None,
        warmup: bool = True,
        start: DurationLike = 0.0,
    ) -> None:
        if decay is not None and half_life is not None:
            raise ConfigurationError(f"EMA: decay={decay} and half_life={half_life!r} say the same thing; give one.")
        if decay is not None:
            check_range("EMA", "decay", decay, 0, 1, high_open=True)
        if half_life is not None and parse_duration(half_life, "EMA: half_life")[0] <= 0:
            raise ConfigurationError(f"EMA: half_life={half_life!r} must be longer than nothing.")
        parse_duration(start, "EMA: start")
        self.decay = decay if decay is not None or half_life is not None else 0.999
        self.half_life = half_life
        self.warmup = warmup
        self.start = start
        self.updates = 0
        """How many updates the average has had."""
        self._average: dict[str, Tensor] = {}
        self._raw: dict[str, Tensor] | None = None  # the network's own weights while it holds the averaged ones
        self._restored_raw: dict[str, Tensor] | None = None
        self._last_step = -1
        self._is_over = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        others = [type(c).__name__ for c in callbacks_of(trainer) if c is not self and isinstance(c, (EMA, WeightAveraging))]
        if others:
            raise ConfigurationError(f"EMA and {others[0]} both replace the weights for evaluation; keep one.")
        refuse_sharding(trainer, "EMA")
        if any(isinstance(c, ModelCheckpoint) and c.save_weights_only for c in callbacks_of(trainer)):
            raise ConfigurationError(
                "ModelCheckpoint(save_weights_only=True) asks no callback, so it would save the raw weights and not the "
                "average. Leave save_weights_only off with EMA."
            )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # the state_dict of a resumed run is the average; the raw weights come from this callback's state
        self._raw = None
        self._is_over = False
        self._live = _Live(pl_module)
        self._average = self._live.copies()
        if self._restored_raw is not None:
            _copy(self._restored_raw, self._live.tensors())
            self._restored_raw = None
        else:
            self.updates = 0
        self._last_step = trainer.global_step
        self._length = TrainingLength.of(trainer)
        self._begin = fraction_of(self.start, self._length, "start")
        if self.half_life is None:
            assert self.decay is not None
            self._decay = self.decay
        else:
            self._decay = 0.5 ** (1 / steps_of(self.half_life, self._length, "half_life"))

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._last_step:
            return  # gradients are still accumulating
        self._last_step = trainer.global_step
        current = self._live.tensors()
        if progress_of(trainer, self._length, steps_done(trainer)) < self._begin:
            decay = 0.0
        else:
            decay = ema_decay(self.updates, self._decay, self.warmup)
            self.updates += 1
        ema_update_(list(self._average.values()), list(current.values()), decay)

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
        # the module holds the average from here on, and a later validation must not swap it out; the raw weights stay for
        # checkpoints that are still to come
        self._is_over = True

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._swap_out()

    @override
    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not self._average:
            return
        if self._is_over and not self._holds_average():
            return  # the weights were changed after the fit: there is neither an average of them nor a raw form
        raw = self._raw if self._raw is not None else self._live.copies()
        state = checkpoint["callbacks"].setdefault(self.state_key, self.state_dict())
        state["raw"] = raw
        saved = checkpoint["state_dict"]
        saved.update({name: value.clone() for name, value in self._average.items() if name in saved})

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates}

    @override
    def resume(self, state_dict: dict[str, Any]) -> None:
        self.updates = state_dict["updates"]
        self._restored_raw = state_dict.get("raw")

    def _holds_average(self) -> bool:
        current = self._live.tensors()  # on the CPU by now, where Lightning moves a module after its fit
        return all(torch.equal(value.to(current[name].device), current[name]) for name, value in self._average.items())

    def _swap_in(self) -> None:
        if self._average and self._raw is None and not self._is_over:
            current = self._live.tensors()
            self._raw = self._live.copies()
            _copy(self._average, current)

    def _swap_out(self) -> None:
        if self._raw is not None and not self._is_over:
            _copy(self._raw, self._live.tensors())
            self._raw = None


class _Live:
    """The tensors of a module's state, read through their owners: a layer may put another tensor in a buffer's place."""

    def __init__(self, module: LightningModule) -> None:
        kept = set(module.state_dict())
        self.places = {
            f"{prefix}.{key}" if prefix else key: (tensors, key)
            for prefix, owner in module.named_modules(remove_duplicate=False)
            for tensors in (owner._parameters, owner._buffers)
            for key in tensors
            if (f"{prefix}.{key}" if prefix else key) in kept
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors as they are now."""
        return {name: cast(Tensor, owner[key]) for name, (owner, key) in self.places.items()}

    def copies(self) -> dict[str, Tensor]:
        """Return copies of the tensors as they are now."""
        return {name: tensor.detach().clone() for name, tensor in self.tensors().items()}


@torch.no_grad()
def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    for name, value in source.items():
        target[name].copy_(value)
