"""Optimizing a network: its optimizer, rates and penalties, and the callbacks that belong to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_cnnopt.core import checkpoints
from lightning_cnnopt.core.callback import callbacks_of, refuse_sharding
from lightning_cnnopt.core.divergence import StopOnDivergence
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.parameters import parameter_groups
from lightning_cnnopt.core.randomness import ResumeRandomState
from lightning_cnnopt.core.spec import factory_of
from lightning_cnnopt.imbalance import BindClassCounts, CountedCriterion
from lightning_cnnopt.learning_rate import LayerRate, Schedule, ScheduleLearningRate, layer_rates, scale_rates
from lightning_cnnopt.learning_rate.layer_wise import tell
from lightning_cnnopt.measurement import MeasuredModule
from lightning_cnnopt.optimizers import switching_for
from lightning_cnnopt.regularization import Penalty
from lightning_cnnopt.regularization.callback import parameters_of
from lightning_cnnopt.regularization.functional import add_gradient
from lightning_cnnopt.regularization.penalties import Charges


class OptimizedModule(MeasuredModule):
    """Base of a LightningModule that trains a network: what steps its weights, and at which rates.

    A subclass sets ``network`` and ``criterion`` beside the arguments.

    Args:
        optimizer: Makes the optimizer from parameter groups.
        schedule: Of the learning rate.
        layer_decay: Rate of a layer over that of the one behind it.
        penalties: What the loss is charged for.
    """

    network: nn.Module
    criterion: nn.Module

    def __init__(
        self,
        optimizer: Callable[[Iterable], Optimizer],
        schedule: Schedule | None,
        layer_decay: float | None,
        penalties: list[Penalty],
    ) -> None:
        super().__init__()
        self.schedule = schedule
        self.layer_decay = layer_decay
        self.penalties = penalties
        self.own_callbacks: list[Callback] = []
        """The callbacks that come with this module, once a Trainer has asked for them."""
        self._optimizer = optimizer
        self._charges: Charges | None = None
        self._penalty: Tensor | None = None

    # hooks to override

    def regularization(self) -> Tensor | None:
        """Return what the loss is charged, once per optimizer step. By default the sum of ``penalties``."""
        if not self.penalties:
            return None
        return torch.stack([penalty(self.network) for penalty in self.penalties]).sum()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the groups that the optimizer is made of. By default no decay on biases and norms."""
        return parameter_groups(self)

    def layer_rates(self) -> list[LayerRate]:
        """Return the layers that learn at rates of their own. By default, with ``layer_decay``, those of the network."""
        return [] if self.layer_decay is None else layer_rates(self.network, self.layer_decay)

    # training

    @override
    def configure_callbacks(self) -> list[Callback]:
        if not self.own_callbacks:
            self.own_callbacks = [
                ResumeRandomState(),
                StopOnDivergence(),
                *switching_for(factory_of(self._optimizer, Optimizer)),
            ]
            if self.schedule is not None:
                scheduled = ScheduleLearningRate(self.schedule)
                scheduled.of_module = True
                self.own_callbacks.append(scheduled)
            if isinstance(self.criterion, CountedCriterion):
                self.own_callbacks.append(BindClassCounts())
        others = [c for c in callbacks_of(self.trainer) if isinstance(c, ScheduleLearningRate) and not c.of_module]
        if others and self.schedule is not None:
            raise ConfigurationError(
                f"The model has schedule={self.schedule!r} and the Trainer has a ScheduleLearningRate with "
                f"{others[0].schedule!r}; keep one."
            )
        present = callbacks_of(self.trainer)
        given = any(isinstance(callback, BindClassCounts) for callback in present)
        return [c for c in self.own_callbacks if c not in present and not (given and isinstance(c, BindClassCounts))]

    @override
    def configure_optimizers(self) -> Optimizer:
        groups = self.parameter_groups()
        given = [id(parameter) for group in groups for parameter in group["params"]]
        missing = [
            name for name, parameter in self.named_parameters() if parameter.requires_grad and id(parameter) not in given
        ]
        if missing:
            raise ConfigurationError(
                f"parameter_groups() leaves out {len(missing)} trainable parameters, such as {missing[0]!r}."
            )
        try:
            optimizer: Optimizer = factory_of(self._optimizer, Optimizer)(groups)
        except (ValueError, TypeError) as error:
            name = checkpoints.storable(self._optimizer).get("class_path", "")
            raise ConfigurationError(f"The optimizer {name} can't be made: {error}.") from error
        if rates := self.layer_rates():
            scale_rates(optimizer, rates)
            tell(rates)
        return optimizer

    @override
    def on_train_start(self) -> None:
        super().on_train_start()
        if self.penalties:
            refuse_sharding(self.trainer, f"{type(self).__name__}(penalties={self.penalties!r})")
        # a subclass's own charge is autograd's business; penalties know their gradients
        charges_itself = is_overridden("regularization", self, OptimizedModule)
        self._charges = None if charges_itself else Charges(self.penalties, self.network)

    @override
    def on_train_end(self) -> None:
        self._charges = None

    @override
    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        if self._charges is not None:
            self._charges.add_gradients_(optimizer)
        else:
            self._penalty = add_gradient(self.regularization, parameters_of(optimizer))

    @override
    def charged(self) -> Tensor | None:
        """Return what the weights are charged at present."""
        return self._penalty if self._charges is None else self._charges.total()
