"""Dropout rates that follow a schedule, on any LightningModule."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from lightning.pytorch import LightningModule, Trainer
from torch import nn
from typing_extensions import override

from lightning_cnnopt.core.callback import callbacks_of
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.schedule import Schedule
from lightning_cnnopt.core.values import Driven, ScheduleValue
from lightning_cnnopt.dropout.functional import dropout_layers


class ScheduleDropout(ScheduleValue):
    """Applies a schedule to dropout rates, every optimizer step.

    Every layer keeps its share: its rate is its own times the factor, so stochastic depth stays linear in depth. With
    ``start`` and ``end`` all chosen layers have the one rate that is given. After training, the layers have their own rates
    again. Several of these may drive several kinds of layers.

    Args:
        schedule: The schedule; the factor 1 is a layer's own rate.
        start: Rate at the factor 1, in place of the layers' own; given together with ``end``. With a schedule that falls from
            1 to 0, the rate goes from ``start`` to ``end``.
        end: Rate at the factor 0.
        layers: Shell patterns on the names of modules or of their classes, such as ``"StochasticDepth"`` or ``"head.*"``; by
            default every dropout of torch, torchvision, timm and this package, see :func:`dropout_layers`.

    Raises:
        ConfigurationError: If a rate would not be in [0, 1), a pattern matches nothing, two of these drive one layer, or
            training has no length.

    Reference:
        Morerio et al., "Curriculum Dropout", 2017; Liu et al., "Dropout Reduces Underfitting", 2023.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_cnnopt.learning_rate import Polynomial
        >>> callback = ScheduleDropout(Polynomial(), start=0.0, end=0.3)
        >>> trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)
    """

    quantity = "dropout rate"
    highest = 1.0

    def __init__(
        self,
        schedule: Schedule,
        start: float | None = None,
        end: float | None = None,
        layers: Sequence[str] | None = None,
    ) -> None:
        super().__init__(schedule, start, end)
        if isinstance(layers, str):
            raise ConfigurationError(f"ScheduleDropout: layers={layers!r} must be a list of patterns.")
        self.layers = None if layers is None else list(layers)
        self._modules: set[nn.Module] = set()

    @override
    def places(self, trainer: Trainer, pl_module: LightningModule) -> list[Driven]:
        """Return the rate of every chosen layer."""
        found = dropout_layers(pl_module, self.layers)
        self._modules = {module for module, _ in found.values()}
        for other in callbacks_of(trainer):
            if isinstance(other, ScheduleDropout) and other is not self and self._modules & other._modules:
                raise ConfigurationError(
                    f"{self!r} and {other!r} drive the rates of the same layers; give each layers= of its own."
                )
        # straight into the instance: nn.Module's own assignment looks through parameters, buffers and children first
        return [
            Driven(float(vars(module)[attribute]), functools.partial(vars(module).__setitem__, attribute))
            for module, attribute in found.values()
        ]

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._leave()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._leave()

    def _leave(self) -> None:
        self.restore()
        self._modules = set()
