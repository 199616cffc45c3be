"""Augmentation on any Trainer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from typing_extensions import override

from lightning_cnnopt.augmentation.mixing import Mixing
from lightning_cnnopt.augmentation.pipeline import Augmentation
from lightning_cnnopt.augmentation.transforms import Transform
from lightning_cnnopt.core.callback import TechniqueCallback
from lightning_cnnopt.core.errors import ConfigurationError


class AugmentBatches(TechniqueCallback):
    """Augments the training batches of any LightningModule, on the device, with a draw per sample.

    Batches are changed where Lightning hands them over: behind ``on_after_batch_transfer`` of the data module, where it has
    one, or of the LightningModule. Validation, test and prediction see the data as it is. With our own data modules, set their
    arguments ``augmentation`` and ``mixing`` instead: there it runs on uint8, before normalization.

    Args:
        transforms: Applied in their order.
        mixing: Applied last; targets become probabilities.
        num_classes: For mixing; by default that of the data module or of the LightningModule.

    Raises:
        ConfigurationError: If mixing is wanted and the number of classes is nowhere to be found.

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
        self.transforms = [transforms] if isinstance(transforms, Transform) else list(transforms)
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
        self._augmentation = Augmentation(self.transforms, self.mixing, num_classes)
        owner: LightningModule | LightningDataModule = pl_module
        if datamodule is not None and is_overridden("on_after_batch_transfer", datamodule):
            owner = datamodule
        self._wrap(trainer, owner, self._augmentation)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._state is not None and self._augmentation is not None:
            self._augmentation.load_state_dict(self._state)
            self._state = None

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

    def _wrap(self, trainer: Trainer, owner: Any, augmentation: Augmentation) -> None:
        hook: Callable[[Any, int], Any] = owner.on_after_batch_transfer

        def on_after_batch_transfer(batch: Any, dataloader_idx: int) -> Any:
            batch = hook(batch, dataloader_idx)
            return augmentation(batch) if trainer.training else batch

        owner.on_after_batch_transfer = on_after_batch_transfer
        self._owner = owner

    def _unwrap(self) -> None:
        if self._owner is not None:
            self._owner.__dict__.pop("on_after_batch_transfer", None)
            self._owner = None
