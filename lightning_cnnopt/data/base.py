"""What our data modules have in common: what they state of the data, and what they do to batches on the device."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from typing_extensions import override

from lightning_cnnopt.augmentation import Augmentation, Mixing, Transform
from lightning_cnnopt.core.batch import normalize, read_batch, write_batch
from lightning_cnnopt.core.callback import callbacks_of
from lightning_cnnopt.core.errors import check_range
from lightning_cnnopt.core.randomness import ResumeRandomState, shared_seed
from lightning_cnnopt.core.spec import listed

Task = Literal["multiclass", "binary", "multilabel"]


class DeviceAugmented(LightningDataModule):
    """Base of data modules whose images stay uint8 until they are on the device.

    There, in training only, they are augmented and mixed, and last of all normalized: by the LightningModule, if it does so
    itself as ``ImageClassifier`` does, or else here.

    It attaches :class:`~lightning_cnnopt.core.ResumeRandomState` to the Trainer, so that a resumed run goes on with the order
    of samples that it would have had. Mean and standard deviation are measured once and are part of every checkpoint; a run
    that is resumed or tested from one uses those. They are kept nowhere else: they belong to the split that is trained on, and
    to measure them is one pass over what is in memory anyway.

    Args:
        batch_size: Samples of a training batch on each process.
        eval_batch_size: The same for validation, test and prediction.
        augmentation: Transforms for training, in their order. One alone need not be in a list.
        mixing: Mixing for training, after the transforms.
        normalize: Whether to hand out normalized floats; by default only to a module that does not normalize by itself.

    Raises:
        ConfigurationError: If an argument is out of range.
    """

    task: Task = "multiclass"
    """What kind of targets there are."""

    def __init__(
        self,
        batch_size: int,
        eval_batch_size: int,
        augmentation: Transform | Sequence[Transform],
        mixing: Mixing | None,
        normalize: bool | None,
    ) -> None:
        super().__init__()
        check_range(type(self).__name__, "batch_size", batch_size, 1, whole=True)
        check_range(type(self).__name__, "eval_batch_size", eval_batch_size, 1, whole=True)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.normalize = normalize
        self.augmentation = Augmentation(listed(augmentation), mixing, self.num_classes)
        self._seed: int | None = None
        self._measured: tuple[list[float], list[float]] | None = None
        self._restored: tuple[list[float], list[float]] | None = None

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """How many classes or labels there are; 1 for a binary task."""

    @property
    @abstractmethod
    def in_channels(self) -> int:
        """Channels of an image."""

    @property
    @abstractmethod
    def image_size(self) -> tuple[int, int]:
        """Height and width of an image."""

    @property
    def class_names(self) -> list[str]:
        """Names of the classes; of both answers for a binary task."""
        return [str(index) for index in range(2 if self.task == "binary" else self.num_classes)]

    @property
    @abstractmethod
    def has_validation(self) -> bool:
        """Whether a fit validates; ``cnnopt fit`` keeps the weights of the best accuracy then."""

    @property
    @abstractmethod
    def has_test(self) -> bool:
        """Whether there is a test split; ``cnnopt fit`` refuses ``test_after_fit`` without one, before it trains."""

    @abstractmethod
    def measure(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation of each channel of training images, for pixels in [0, 1]."""

    @property
    def mean(self) -> list[float]:
        """Mean of each channel over the training set, for pixels in [0, 1]."""
        return self._statistics()[0]

    @property
    def std(self) -> list[float]:
        """Standard deviation of each channel over the training set, for pixels in [0, 1]."""
        return self._statistics()[1]

    def pixel_statistics(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation for the LightningModule to apply; those that are not applied here.

        A data module of your own may have this method, too: ``ImageClassifier`` takes over what it returns. Attributes
        ``mean`` and ``std`` alone are not taken over, since such a data module may have applied them already.
        """
        return self.mean, self.std

    def model_args(self) -> dict[str, Any]:
        """Return what an ``ImageClassifier`` has to know of the data, as its arguments.

        Example:
            >>> from lightning_cnnopt import Digits, ImageClassifier
            >>> model = ImageClassifier(**Digits().model_args())
        """
        return {
            "num_classes": self.num_classes,
            "in_channels": self.in_channels,
            "image_size": self.image_size,
            "task": self.task,
            "class_names": self.class_names,
        }

    @override
    def setup(self, stage: str) -> None:
        self._restored = None
        if stage == "fit":
            self._seed = shared_seed()
            self.augmentation.begin(self._seed)
        if self.trainer is not None and not any(isinstance(c, ResumeRandomState) for c in callbacks_of(self.trainer)):
            callbacks_of(self.trainer).append(ResumeRandomState())

    @override
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.trainer is not None and self.trainer.training:
            batch = self.augmentation(batch, self.trainer.global_step, self.trainer.current_epoch)
        if self._normalizes():
            if isinstance(batch, dict):  # a batch to predict has no targets
                return {**batch, "image": self._normalized(batch["image"])}
            images, targets = read_batch(batch)
            batch = write_batch(batch, self._normalized(images), targets)
        return batch

    @override
    def state_dict(self) -> dict[str, Any]:
        # not measured for the checkpoint's sake: ImageClassifier has its own
        statistics = self._restored or self._measured
        return {"augmentation": self.augmentation.state_dict(), "statistics": statistics and list(statistics)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict.get("statistics"):
            mean, std = state_dict["statistics"]
            self._restored = list(mean), list(std)
        if self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING:  # not for a test with ckpt_path
            self.augmentation.load_state_dict(state_dict["augmentation"])

    def _statistics(self) -> tuple[list[float], list[float]]:
        if self._restored is not None:
            return self._restored
        if self._measured is None:
            self._measured = self.measure()
        return self._measured

    def _normalizes(self) -> bool:
        if self.normalize is not None:
            return self.normalize
        return getattr(getattr(self.trainer, "lightning_module", None), "preprocessing", None) is None

    def _normalized(self, images: Tensor) -> Tensor:
        shape = (1, -1, 1, 1)
        mean, std = (torch.tensor(values, device=images.device).view(shape) for values in (self.mean, self.std))
        return normalize(images, mean, std)
