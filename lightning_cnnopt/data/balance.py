"""How frequent the classes are, said when a training begins, or once a stream has been seen."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn

from lightning_cnnopt.core.callback import callbacks_of
from lightning_cnnopt.imbalance import BindClassCounts, ClassWeights, CountedCriterion, FocalLoss, SigmoidFocalLoss

RARE = 0.1
"""A class below this part of the commonest one is rare."""


def report_counts(
    owner: str,
    counts: Sequence[int],
    names: Sequence[str],
    total: int,
    warn: bool,
    exclusive: bool = True,
    can_sample: bool = True,
) -> None:
    """Say, on rank zero, how many training samples the classes have; warn of classes without any, and of rare ones.

    Args:
        owner: Whose they are.
        counts: Samples of each class; of each label, where they are not exclusive.
        names: Names of the classes.
        total: Samples in all.
        warn: Whether to warn of rare classes.
        exclusive: Whether a sample has one class.
        can_sample: Whether the data module can draw samples by the frequency of their class.
    """
    ranked = sorted(zip(counts, names, strict=True), key=lambda pair: pair[0])
    empty = [name for count, name in ranked if count == 0]
    what = "classes" if exclusive else "labels"
    (low, rarest), (high, commonest) = next((pair for pair in ranked if pair[0]), ranked[0]), ranked[-1]
    rank_zero_info(
        f"{owner}: {total} training samples of {len(counts)} {what}, from {low} of {rarest!r} to {high} of {commonest!r}."
    )
    if empty:
        shown = ", ".join(map(repr, empty[:5])) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        rank_zero_warn(f"{owner}: no training sample is of {shown}, so the network can't learn to tell it.")
    if warn and low < RARE * high:
        sampling = 'sampling="balanced", ' if can_sample else ""
        ways = (
            f"{sampling}ClassWeights, FocalLoss, LogitAdjustment or LDAM" if exclusive else "ClassWeights or SigmoidFocalLoss"
        )
        rank_zero_warn(
            f"{owner}: the {what} are unbalanced: {rarest!r} has {low} training samples and {commonest!r} {high}. Accuracy "
            f"says little of the rare ones then; {ways} make up for it, and the report of each class after a test shows them."
        )


def is_weighed(trainer: Trainer) -> bool:
    """Return whether a run has a technique against unbalanced classes: a callback, or a criterion that weighs them."""
    if any(isinstance(callback, (ClassWeights, BindClassCounts)) for callback in callbacks_of(trainer)):
        return True
    return any(_weighs(module) for module in trainer.lightning_module.modules())


def _weighs(module: nn.Module) -> bool:
    if isinstance(module, (CountedCriterion, FocalLoss, SigmoidFocalLoss)):
        return True
    is_loss = isinstance(module, nn.modules.loss._Loss)
    return is_loss and any(getattr(module, name, None) is not None for name in ("weight", "pos_weight"))
