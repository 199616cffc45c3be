"""Batch-size scaling of the learning rate on any LightningModule."""

from __future__ import annotations

import functools
from collections.abc import Callable

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from typing_extensions import override

from lightning_cnnopt.core.errors import ConfigurationError, check_choice, check_range
from lightning_cnnopt.core.rates import RateCallback
from lightning_cnnopt.core.schedule import DurationLike, TrainingLength, fraction_of, parse_duration
from lightning_cnnopt.parallel.functional import Rule, ramp, rate_scale


class ScaleRateWithBatchSize(RateCallback):
    """Multiplies the learning rate by what the global batch is to the batch at which the rate was tuned.

    The global batch is batch size × processes × accumulation. The factor joins that of a schedule, so the two combine in
    any order. Resumed with other resources, training goes on at the rate of the new global batch.

    Args:
        base_batch_size: The global batch size at which the optimizer's rate is right.
        rule: ``"linear"`` for SGD, ``"sqrt"`` for Adam and its kin.
        warmup: Duration over which the rate grows from that of the base to the scaled one; ``"5ep"`` in Goyal et al. 0 for
            none.
        batch_size: Samples per process and step; by default that of the training loader.

    Raises:
        ConfigurationError: If the batch size can't be read off the loader, or the module has a scheduler of its own.

    Reference:
        Goyal et al., "Accurate, Large Minibatch SGD", 2017; Malladi et al., 2022.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[ScaleRateWithBatchSize(256)], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        base_batch_size: int = 256,
        rule: Rule = "linear",
        warmup: DurationLike = 0.0,
        batch_size: int | None = None,
    ) -> None:
        name = type(self).__name__
        check_range(name, "base_batch_size", base_batch_size, 1)
        check_choice(name, "rule", rule, ("linear", "sqrt"))
        if batch_size is not None:
            check_range(name, "batch_size", batch_size, 1)
        parse_duration(warmup, f"{name}: warmup")
        self.base_batch_size = base_batch_size
        self.rule: Rule = rule
        self.warmup = warmup
        self.batch_size = batch_size
        self.scale = 1.0
        """The factor in force."""

    @override
    def make_factor(self, trainer: Trainer, length: TrainingLength) -> Callable[[float], float]:
        """Return the scaled rate over the base rate, with the ramp towards it."""
        batch_size = self.batch_size if self.batch_size is not None else getattr(trainer.train_dataloader, "batch_size", None)
        if not isinstance(batch_size, int):
            raise ConfigurationError(f"{type(self).__name__}: the training loader states no batch_size; pass batch_size=.")
        total = batch_size * trainer.world_size * trainer.accumulate_grad_batches
        self.scale = rate_scale(total, self.base_batch_size, self.rule)
        rank_zero_info(
            f"The global batch is {total} ({batch_size} × {trainer.world_size} processes × {trainer.accumulate_grad_batches} "
            f"accumulated); the learning rate is multiplied by {self.scale:g}."
        )
        return functools.partial(ramp, scale=self.scale, duration=fraction_of(self.warmup, length, "warmup"))
