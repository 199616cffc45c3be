"""Augmentation on any Trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn
from torch.nn.modules.loss import _Loss
from typing_extensions import override

from lightning_cnnopt.augmentation.alternating import AlternatingFlip, check_alternates, check_repeats
from lightning_cnnopt.augmentation.chain import Augment
from lightning_cnnopt.augmentation.mixing import Mixing
from lightning_cnnopt.augmentation.pipeline import Augmentation
from lightning_cnnopt.augmentation.transforms import Transform
from lightning_cnnopt.core.callback import TechniqueCallback, callbacks_of
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.randomness import shared_seed

_TAKES_CLASSES_ONLY = (nn.NLLLoss, nn.MultiMarginLoss)


class AugmentBatches(TechniqueCallback):
    """Augments the training batches of any LightningModule, on the device, with a draw per sample.

    Batches are changed where Lightning hands them over: behind ``on_after_batch_transfer`` of the data module, where it has
    one, or of the LightningModule. Validation, test and prediction see the data as it is. With our own data modules, set their
    arguments ``augmentation`` and ``mixing`` instead: there it runs on uint8, before normalization.

    Where transforms are given in several places (the data module, several of these callbacks), all are applied: the data
    module's first, then the callbacks' in their order. One that is the same in two of them is applied twice, and a warning
    says so. Mixing is refused in more than one place.

    Args:
        transforms: Applied in their order.
        mixing: Applied last; targets become probabilities.
        num_classes: For mixing; by default that of the data module or of the LightningModule.

    Raises:
        ConfigurationError: If one of them is no transform, if mixing is wanted and the number of classes is nowhere to be
            found, or if images are mixed elsewhere, too.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_cnnopt.augmentation import HorizontalFlip, PaddedCrop
        >>> callback = AugmentBatches([HorizontalFlip(), PaddedCrop(4)])
        >>> trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        transforms: Transform | Sequence[Transform] = (),
        mixing: Mixing | None = None,
        num_classes: int | None = None,
    ) -> None:
        self.transforms = Augment(transforms).transforms
        self.mixing = mixing
        self.num_classes = num_classes
        self._augmentation: Augmentation | None = None
        self._state: dict[str, Any] | None = None
        self._owner: LightningModule | LightningDataModule | None = None

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        datamodule = getattr(trainer, "datamodule", None)
        num_classes = self.num_classes
        for source in (datamodule, pl_module, getattr(pl_module, "hparams", None)):
            num_classes = num_classes if num_classes is not None else getattr(source, "num_classes", None)
        if self.mixing is not None and num_classes is None:
            raise ConfigurationError(
                f"AugmentBatches: {self.mixing!r} needs num_classes=, which neither the data nor the module has."
            )
        self._check_others(trainer)
        if self.mixing is not None:
            _check_criteria(pl_module, self.mixing)
        self._augmentation = Augmentation(self.transforms, self.mixing, num_classes)
        self._augmentation.begin(shared_seed())
        owner: LightningModule | LightningDataModule = pl_module
        if datamodule is not None and is_overridden("on_after_batch_transfer", datamodule):
            owner = datamodule
        hooked = is_overridden("on_after_batch_transfer", owner) and not hasattr(owner, "augmentation")
        if hooked and any(isinstance(transform, AlternatingFlip) for transform in self.transforms):
            rank_zero_warn(
                f"AlternatingFlip tells images by their pixels, and {type(owner).__name__}.on_after_batch_transfer comes "
                "before it. If that changes images at random, flips are random, too."
            )
        self._wrap(trainer, owner, self._augmentation)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._state is not None and self._augmentation is not None:
            self._augmentation.load_state_dict(self._state)
            self._state = None
        if any(isinstance(transform, AlternatingFlip) for transform in self.transforms):
            check_repeats(trainer.train_dataloader)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._unwrap()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._unwrap()

    @override
    def state_dict(self) -> dict[str, Any]:
        return {} if self._augmentation is None else self._augmentation.state_dict()

    @override
    def resume(self, state_dict: dict[str, Any]) -> None:
        self._state = state_dict or None

    def _check_others(self, trainer: Trainer) -> None:
        datamodule = getattr(trainer, "datamodule", None)
        inside = getattr(datamodule, "augmentation", None)
        others: list[tuple[str, Augmentation | AugmentBatches]] = []
        if isinstance(inside, Augmentation):
            others.append((type(datamodule).__name__, inside))
        callbacks = [callback for callback in callbacks_of(trainer) if isinstance(callback, AugmentBatches)]
        others += [("another AugmentBatches", callback) for callback in callbacks[: callbacks.index(self)]]
        check_alternates(self.transforms, next((name for name, other in others if other.transforms or other.mixing), None))
        for name, other in others:
            if self.mixing is not None and other.mixing is not None:
                raise ConfigurationError(
                    f"{name} has mixing={other.mixing!r} and AugmentBatches has mixing={self.mixing!r}, so images would be "
                    "mixed twice; keep one."
                )
            theirs = {repr(transform) for transform in other.transforms}
            twice = sorted(theirs.intersection(map(repr, self.transforms)))
            if twice:
                rank_zero_warn(f"{', '.join(twice)} is in {name} and in AugmentBatches: images go through both.")

    def _wrap(self, trainer: Trainer, owner: Any, augmentation: Augmentation) -> None:
        hook: Callable[[Any, int], Any] = owner.on_after_batch_transfer

        def on_after_batch_transfer(batch: Any, dataloader_idx: int) -> Any:
            batch = hook(batch, dataloader_idx)
            return augmentation(batch, trainer.global_step, trainer.current_epoch) if trainer.training else batch

        owner.on_after_batch_transfer = on_after_batch_transfer
        self._owner = owner

    def _unwrap(self) -> None:
        if self._owner is not None:
            self._owner.__dict__.pop("on_after_batch_transfer", None)
            self._owner = None


def mixing_of(trainer: Trainer) -> Mixing | None:
    """Return what mixes the training batches of a Trainer: of its data module, or of a callback; ``None`` for nothing."""
    found = [getattr(getattr(trainer, "datamodule", None), "augmentation", None)]
    found += [callback for callback in callbacks_of(trainer) if isinstance(callback, AugmentBatches)]
    return next((one.mixing for one in found if isinstance(one, (Augmentation, AugmentBatches)) and one.mixing), None)


def _check_criteria(module: LightningModule, mixing: Mixing) -> None:
    # of a module that is not ours, which criterion is called with what is not known: one that has no other can't be right
    losses = [child for child in module.modules() if isinstance(child, _Loss)]
    of_classes = [loss for loss in losses if isinstance(loss, _TAKES_CLASSES_ONLY)]
    if losses and losses == of_classes:
        raise ConfigurationError(
            f"{type(module).__name__} has the criterion {of_classes[0]!r}, which takes class numbers, and {mixing!r} makes "
            "targets of probabilities. Take one that has them, such as CrossEntropyLoss, or leave mixing away."
        )
