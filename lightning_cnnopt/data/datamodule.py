"""The base of our data modules: splits, statistics, loaders, and augmentation on the device."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_cnnopt.augmentation import Augmentation, Mixing, Transform
from lightning_cnnopt.core.batch import read_batch, to_float, write_batch
from lightning_cnnopt.core.callback import callbacks_of
from lightning_cnnopt.core.errors import DataError, check_choice, check_range
from lightning_cnnopt.core.randomness import ResumeRandomState, Stream, shared_seed
from lightning_cnnopt.core.spec import listed
from lightning_cnnopt.data.image_set import ImageSet, channel_statistics, check_set
from lightning_cnnopt.data.long_tail import long_tail
from lightning_cnnopt.data.resident import ResidentLoader
from lightning_cnnopt.imbalance import Scheme, sample_weights

Task = Literal["multiclass", "binary", "multilabel"]


class ImageDataModule(LightningDataModule):
    """Serves a data set that fits in memory; subclasses say where it comes from.

    Images stay uint8 until they are on the device. There, in training only, they are augmented and mixed, and last of all
    normalized: by the LightningModule, if it does so itself as ``ImageClassifier`` does, or else here.

    It attaches :class:`~lightning_cnnopt.core.ResumeRandomState` to the Trainer, so that a resumed run goes on with the order
    of samples that it would have had. With ``Trainer(overfit_batches=…)`` the training set is not shuffled.

    Args:
        batch_size: Samples of a training batch on each process.
        eval_batch_size: The same for validation, test and prediction.
        augmentation: Transforms for training, in their order. One alone need not be in a list.
        mixing: Mixing for training, after the transforms.
        val_size: What the training set gives to validation, stratified by class: a fraction, a number of samples, or 0.
        split_seed: Seed of that split; apart from the run's, so that seeds vary training only.
        normalize: Whether to hand out normalized floats; by default only to a module that does not normalize by itself.
        drop_last: Leave a last, smaller training batch out.
        sampling: Draw training samples with replacement, by the frequency of their class: ``"balanced"``, every class as
            often as every other, ``"sqrt"`` or ``"effective"``; see :func:`~lightning_cnnopt.imbalance.sample_weights`. By
            default every sample comes once an epoch.
        long_tail: Leave samples out of the training split, so that its classes are long-tailed with this ratio of the first
            to the last; see :func:`~lightning_cnnopt.data.long_tail`. For studies; validation and test stay as they are.

    Raises:
        ConfigurationError: If an argument is out of range.
        DataError: If a split is empty or targets are out of range.
    """

    task: Task = "multiclass"
    """What kind of targets there are."""

    def __init__(
        self,
        batch_size: int = 64,
        eval_batch_size: int = 512,
        augmentation: Transform | Sequence[Transform] = (),
        mixing: Mixing | None = None,
        val_size: int | float = 0.1,
        split_seed: int = 0,
        normalize: bool | None = None,
        drop_last: bool = False,
        sampling: Scheme | None = None,
        long_tail: float | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_range(name, "batch_size", batch_size, 1)
        check_range(name, "eval_batch_size", eval_batch_size, 1)
        if isinstance(val_size, float):
            check_range(name, "val_size", val_size, 0, 1, high_open=True)
        else:
            check_range(name, "val_size", val_size, 0)
        if sampling is not None:
            check_choice(name, "sampling", sampling, get_args(Scheme))
        if long_tail is not None:
            check_range(name, "long_tail", long_tail, 1)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.val_size = val_size
        self.split_seed = split_seed
        self.normalize = normalize
        self.drop_last = drop_last
        self.sampling: Scheme | None = sampling
        self.long_tail = long_tail
        self.augmentation = Augmentation(listed(augmentation), mixing, self.num_classes)
        self._sets: dict[str, ImageSet] = {}
        self._loader: ResidentLoader | None = None
        self._seed: int | None = None
        self._statistics: tuple[list[float], list[float]] | None = None

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

    @abstractmethod
    def load(self, split: Literal["train", "test"]) -> ImageSet | None:
        """Return all samples of a split; ``None`` for a test split that does not exist."""

    @property
    def train_set(self) -> ImageSet:
        """The samples that are trained on."""
        self._load_train()
        return self._sets["train"]

    @property
    def val_set(self) -> ImageSet | None:
        """The samples held out of the training set; ``None`` where there are none."""
        self._load_train()
        return self._sets.get("val")

    @property
    def test_set(self) -> ImageSet:
        """The test samples.

        Raises:
            DataError: If the data has none.
        """
        if "test" not in self._sets:
            loaded = self.load("test")
            if loaded is None:
                raise DataError(f"{type(self).__name__} has no test split.")
            self._sets["test"] = self._checked(loaded, "test")
        return self._sets["test"]

    @property
    def mean(self) -> list[float]:
        """Mean of each channel over the training set, for pixels in [0, 1]."""
        return self._measure()[0]

    @property
    def std(self) -> list[float]:
        """Standard deviation of each channel over the training set, for pixels in [0, 1]."""
        return self._measure()[1]

    def pixel_statistics(self) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation for the LightningModule to apply; those that are not applied here.

        A data module of your own may have this method, too: ``ImageClassifier`` takes over what it returns. Attributes
        ``mean`` and ``std`` alone are not taken over, since such a data module may have applied them already.
        """
        return self.mean, self.std

    @property
    def num_train_samples(self) -> int:
        """How many samples are trained on."""
        return len(self.train_set)

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

    def class_counts(self) -> list[int]:
        """Return the training samples of each class; of each positive label, for labels that are not exclusive."""
        targets = self.train_set.targets
        if self.task == "multiclass":
            return torch.bincount(targets, minlength=self.num_classes).tolist()
        return targets.reshape(len(targets), -1).sum(0).long().tolist()

    def sample_batch(self, size: int = 256) -> Tensor:
        """Return training images without augmentation, for techniques that need some.

        They are what a batch of this run brings to the LightningModule: as they are stored, to one that normalizes by itself
        as ``ImageClassifier`` does; otherwise, and outside of a run, normalized floats.

        Args:
            size: At most how many.

        Returns:
            (size, C, H, W). The draw has its own stream and is the same on every rank.
        """
        images = self.train_set.images
        chosen = torch.randperm(len(images), generator=Stream("sample", self._seed, per_rank=False).generator)[:size]
        return self._normalized(images[chosen]) if self._normalizes() else images[chosen]

    @override
    def setup(self, stage: str) -> None:
        if stage == "fit":
            self._seed = shared_seed()
            self.augmentation.begin(self._seed)
        if self.trainer is not None and not any(isinstance(c, ResumeRandomState) for c in callbacks_of(self.trainer)):
            callbacks_of(self.trainer).append(ResumeRandomState())
        if stage in ("fit", "validate"):
            self._load_train()
        if stage in ("test", "predict"):
            _ = self.test_set

    @override
    def train_dataloader(self) -> ResidentLoader:
        data = self.train_set
        shuffle = self.trainer is None or not self.trainer.overfit_batches  # type: ignore[attr-defined]
        if self.sampling and not shuffle:
            rank_zero_warn(f"With overfit_batches samples come in their order, so sampling={self.sampling!r} is left out.")
        weights = sample_weights(data.targets, self.num_classes, self.sampling) if shuffle and self.sampling else None
        loader = ResidentLoader(
            data.images, data.targets, self.batch_size, shuffle, self.drop_last, False, self._seed, True, weights
        )
        if self.trainer is not None and self.trainer.current_epoch > 0:
            # reload_dataloaders_every_n_epochs, or a Trainer that goes on with a second fit
            former = self.trainer.train_dataloader
            former = self._loader if former is None else former
            if isinstance(former, ResidentLoader):
                loader.load_state_dict(former.state_dict())
        return loader

    @override
    def teardown(self, stage: str) -> None:
        if stage == "fit" and self.trainer is not None:
            self._loader = self.trainer.train_dataloader

    @override
    def val_dataloader(self) -> ResidentLoader | list[Any]:
        data = self.val_set
        return [] if data is None else ResidentLoader(data.images, data.targets, self.eval_batch_size)

    @override
    def test_dataloader(self) -> ResidentLoader:
        return ResidentLoader(self.test_set.images, self.test_set.targets, self.eval_batch_size)

    @override
    def predict_dataloader(self) -> ResidentLoader:
        return ResidentLoader(self.test_set.images, self.test_set.targets, self.eval_batch_size, with_index=True)

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
        return {"augmentation": self.augmentation.state_dict()}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.trainer is None or self.trainer.state.fn == TrainerFn.FITTING:  # not for a test with ckpt_path
            self.augmentation.load_state_dict(state_dict["augmentation"])

    def _load_train(self) -> None:
        if "train" in self._sets:
            return
        loaded = self.load("train")
        assert loaded is not None
        data = self._checked(loaded, "training")
        if self.val_size:
            from sklearn.model_selection import train_test_split  # here, as importing it takes long

            stratify = data.targets.numpy() if data.targets.ndim == 1 else None
            try:
                train, held_out = train_test_split(
                    range(len(data)), test_size=self.val_size, random_state=self.split_seed, stratify=stratify
                )
            except ValueError as error:
                raise DataError(
                    f"{type(self).__name__}: val_size={self.val_size} can't be split off {len(data)} training samples of "
                    f"{self.num_classes} classes: {error}"
                ) from error
            self._sets["val"] = data[torch.tensor(sorted(held_out))]
            data = data[torch.tensor(sorted(train))]
        if self.long_tail is not None:
            data = data[long_tail(data.targets, self.long_tail, self.split_seed)]
        self._sets["train"] = data

    def _checked(self, data: ImageSet, split: str) -> ImageSet:
        check_set(data, f"{type(self).__name__}: the {split} split", self.num_classes if self.task == "multiclass" else None)
        return data

    def _measure(self) -> tuple[list[float], list[float]]:
        if self._statistics is None:
            self._statistics = channel_statistics(self.train_set.images, type(self).__name__)
        return self._statistics

    def _normalizes(self) -> bool:
        if self.normalize is not None:
            return self.normalize
        return getattr(getattr(self.trainer, "lightning_module", None), "preprocessing", None) is None

    def _normalized(self, images: Tensor) -> Tensor:
        shape = (1, -1, 1, 1)
        mean, std = (torch.tensor(values, device=images.device).view(shape) for values in (self.mean, self.std))
        return (to_float(images) - mean) / std
