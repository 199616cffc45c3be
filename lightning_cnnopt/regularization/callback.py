"""Penalties and constraints on any LightningModule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lightning_cnnopt.core.callback import TechniqueCallback, is_logged, refuse_sharding
from lightning_cnnopt.core.errors import ConfigurationError, check_range
from lightning_cnnopt.regularization.activities import ActivityCharges, ActivityPenalty
from lightning_cnnopt.regularization.constraints import Constraint, Projections
from lightning_cnnopt.regularization.functional import spare_from_decay
from lightning_cnnopt.regularization.penalties import Charges, Penalty
from lightning_cnnopt.regularization.weights import choose_weights


class PenalizeWeights(TechniqueCallback):
    """Charges penalties to the training of any LightningModule, once per optimizer step.

    The gradient is added right before the step, after accumulation, reduction over ranks and unscaling, and before
    clipping. The loss that the module returns and logs stays the task's own; what the weights are charged is logged as
    ``train_penalty`` at log intervals. The weights are chosen when training starts; those that are frozen or unfrozen later
    are left out or taken in. On an :class:`~lightning_cnnopt.ImageClassifier` its argument ``penalties`` does the same.

    Args:
        penalties: What is charged. One alone need not be in a list.

    Raises:
        ConfigurationError: If the module has penalties of its own, or the strategy shards weights.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_cnnopt.regularization import L1
        >>> trainer = Trainer(callbacks=[PenalizeWeights(L1(1e-5))], logger=False, enable_checkpointing=False)
    """

    def __init__(self, penalties: Penalty | list[Penalty]) -> None:
        self.penalties = [penalties] if isinstance(penalties, Penalty) else list(penalties)
        self._charges: Charges | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        refuse_sharding(trainer, "PenalizeWeights")
        if getattr(pl_module, "penalties", None):
            raise ConfigurationError(
                f"{type(pl_module).__name__} has penalties={pl_module.penalties!r} and the Trainer has PenalizeWeights, so "
                "both would be charged; give all of them in one place."
            )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._charges = Charges(self.penalties, pl_module)

    @override
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self._charges is not None:
            self._charges.add_gradients_(optimizer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._charges is not None and is_logged(trainer, batch_idx):
            charged = self._charges.total()
            if charged is not None:
                pl_module.log("train_penalty", charged)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._charges = None


class ConstrainWeights(TechniqueCallback):
    """Projects the weights of any LightningModule after every optimizer step.

    It is a hook of the optimizers, so whatever looks at the weights after a step sees them projected, in any order of the
    callbacks. With a constraint for sparsity the share of zeros is logged as ``sparsity``, at log intervals.

    Args:
        constraints: The constraints, in their order. One alone need not be in a list.

    Raises:
        ConfigurationError: If a constraint finds no weights, or the strategy shards weights.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_cnnopt.regularization import MaxNorm
        >>> trainer = Trainer(callbacks=[ConstrainWeights(MaxNorm(3.0))], logger=False, enable_checkpointing=False)
    """

    def __init__(self, constraints: Constraint | list[Constraint]) -> None:
        self.constraints = [constraints] if isinstance(constraints, Constraint) else list(constraints)
        self._projections: Projections | None = None
        self._handles: list[RemovableHandle] = []

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        refuse_sharding(trainer, "ConstrainWeights")

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remove()
        projections = self._projections = Projections(self.constraints, pl_module)

        # a hook of the optimizer, and not of the Trainer: whatever looks at the weights after a step (averages,
        # checkpoints, other callbacks in any order) sees them projected
        def project(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            projections.apply(optimizer)

        self._handles = [optimizer.register_step_post_hook(project) for optimizer in trainer.optimizers]

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._projections is not None and is_logged(trainer, batch_idx):
            share = self._projections.sparsity()
            if share is not None:
                pl_module.log("sparsity", share)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remove()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._remove()

    def _remove(self) -> None:
        self._projections = None
        while self._handles:
            self._handles.pop().remove()


class PenalizeActivations(TechniqueCallback):
    """Charges the outputs of layers to the training of any LightningModule.

    Unlike the charge of weights, this one goes backward through the batch. It is added to what ``training_step`` returns as
    a term whose value is zero and whose gradient is the charge's, so it is scaled, accumulated and averaged over ranks as the
    loss is, while the loss stays the task's own to the bit. The charge is logged as ``train_activity_penalty``, at log
    intervals. Layers that run outside ``training_step`` are not charged.

    Args:
        penalties: What is charged. One alone need not be in a list.

    Raises:
        ConfigurationError: If there are no such layers, they do not run, or the module steps its optimizers by hand.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_cnnopt.regularization import ActivityL1
        >>> trainer = Trainer(callbacks=[PenalizeActivations(ActivityL1(0.01))], logger=False, enable_checkpointing=False)
    """

    def __init__(self, penalties: ActivityPenalty | list[ActivityPenalty]) -> None:
        self.penalties = [penalties] if isinstance(penalties, ActivityPenalty) else list(penalties)
        self._charged: Tensor | None = None
        self._restore: Callable[[], None] | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not pl_module.automatic_optimization:
            raise ConfigurationError(
                f"PenalizeActivations adds to the loss that training_step returns, and {type(pl_module).__name__} steps its "
                "optimizers by hand; there, add charges.total() of `with penalty.watch(network) as charges` to the loss."
            )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._unwrap()
        charges = ActivityCharges(self.penalties, pl_module)
        step = pl_module.training_step
        own = pl_module.__dict__.get("training_step")

        def training_step(*args: Any, **kwargs: Any) -> Any:
            charges.begin()
            output = step(*args, **kwargs)
            if output is None:  # the module skips this batch
                return None
            charge = charges.total()
            self._charged = charge.detach()
            return _add_gradient_of(charge, output)

        def restore() -> None:
            charges.detach()
            del pl_module.__dict__["training_step"]
            if own is not None:
                pl_module.__dict__["training_step"] = own

        charges.attach()
        pl_module.__dict__["training_step"] = training_step
        self._restore = restore

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._charged is not None and is_logged(trainer, batch_idx):
            pl_module.log("train_activity_penalty", self._charged)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._unwrap()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._unwrap()

    def _unwrap(self) -> None:
        if self._restore is not None:
            self._restore()
        self._restore = self._charged = None


class DecayWeights(TechniqueCallback):
    """Lets the weight decay of any LightningModule's optimizers act on kernels and matrices alone.

    Each group of an optimizer that holds others, too (biases, scales of normalization layers), is split in two, and the second
    has no decay. Whether decay is decoupled from the gradient is the optimizer's affair: in AdamW it is, in SGD and Adam it is
    coupled. :class:`~lightning_cnnopt.ImageClassifier` has such groups by itself.

    Args:
        weight_decay: Decay of the weights; by default that of each group as it is.
        parameters: Shell patterns on the names of parameters that are decayed; by default those of two or more dimensions
            outside normalization layers.

    Raises:
        ConfigurationError: If an optimizer has no ``weight_decay``, a learning-rate scheduler was made for the groups as they
            were, or the strategy shards weights.

    Reference:
        Loshchilov & Hutter, "Decoupled Weight Decay Regularization", 2019; He et al., "Bag of Tricks", 2019.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[DecayWeights(0.05)], logger=False, enable_checkpointing=False)
    """

    def __init__(self, weight_decay: float | None = None, parameters: Sequence[str] | None = None) -> None:
        if weight_decay is not None:
            check_range("DecayWeights", "weight_decay", weight_decay, 0)
        self.weight_decay = weight_decay
        self.parameters = None if parameters is None else list(parameters)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        refuse_sharding(trainer, "DecayWeights")

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # before Lightning restores the optimizers, whose states in a checkpoint have these groups
        decayed = {id(weight.parameter) for weight in choose_weights(pl_module, self.parameters)}
        for optimizer in trainer.optimizers:
            if "weight_decay" not in optimizer.defaults:
                raise ConfigurationError(f"DecayWeights: {type(optimizer).__name__} has no weight_decay.")
            splits = spare_from_decay(optimizer, decayed, self.weight_decay)
            scheduler = next((c.scheduler for c in trainer.lr_scheduler_configs if c.scheduler.optimizer is optimizer), None)
            if splits and scheduler is not None:
                raise ConfigurationError(
                    f"DecayWeights splits groups of {type(optimizer).__name__}, and {type(scheduler).__name__} was made for "
                    "them as they were. Put DecayWeights before the callback that schedules the rate, or, if the module has "
                    "the scheduler, make its optimizer of lightning_cnnopt.core.parameters.parameter_groups(self)."
                )
            if not any(group["weight_decay"] for group in optimizer.param_groups):
                rank_zero_warn(f"{self!r} decays nothing: {type(optimizer).__name__} has weight_decay=0; pass weight_decay=.")


def _add_gradient_of(charge: Tensor, output: Any) -> Any:
    if isinstance(output, Mapping):
        return {**output, "loss": _add_gradient_of(charge, output["loss"])}
    return output + (charge - charge.detach()).to(output)


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """Return all parameters of an optimizer."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
