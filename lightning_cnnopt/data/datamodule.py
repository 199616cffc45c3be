"""The base of data modules for sets that fit in memory: splits, statistics, loaders."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, get_args

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor
from typing_extensions import override

from lightning_cnnopt.augmentation import Mixing, Transform
from lightning_cnnopt.core.errors import ConfigurationError, DataError, check_choice, check_range
from lightning_cnnopt.core.randomness import ContinuedLoader, Stream
from lightning_cnnopt.data.balance import is_weighed, report_counts
from lightning_cnnopt.data.base import DeviceAugmented
from lightning_cnnopt.data.image_set import ImageSet, channel_statistics, check_set
from lightning_cnnopt.data.long_tail import long_tail
from lightning_cnnopt.data.resident import ResidentLoader
from lightning_cnnopt.data.sharing import load_once
from lightning_cnnopt.data.splits import held_out_fold, held_out_part
from lightning_cnnopt.imbalance import Scheme, sample_weights


class ImageDataModule(DeviceAugmented):
    """Serves a data set that fits in memory; subclasses say where it comes from.

    Images stay uint8 until they are on the device. There, in training only, they are augmented and mixed, and last of all
    normalized: by the LightningModule, if it does so itself as ``ImageClassifier`` does, or else here. Splits refer to the set
    and copy nothing.

    When a fit begins, it says how many training samples the classes have, and warns of classes without any and of those below
    a tenth of the commonest; not where ``sampling``, ``long_tail`` or a technique of :mod:`lightning_cnnopt.imbalance` shows
    that this is known.

    It attaches :class:`~lightning_cnnopt.core.ResumeRandomState` to the Trainer, so that a resumed run goes on with the order
    of samples that it would have had. With ``Trainer(overfit_batches=…)`` the training set is not shuffled.

    Args:
        batch_size: Samples of a training batch on each process.
        eval_batch_size: The same for validation, test and prediction.
        augmentation: Transforms for training, in their order. One alone need not be in a list.
        mixing: Mixing for training, after the transforms.
        val_size: What the training set gives to validation, stratified by class: a fraction, a number of samples, or 0. Labels
            that are not exclusive are not stratified.
        split_seed: Seed of that split; apart from the run's, so that seeds vary training only.
        normalize: Whether to hand out normalized floats; by default only to a module that does not normalize by itself.
        drop_last: Leave a last, smaller training batch out.
        sampling: Draw training samples with replacement, by the frequency of their class: ``"balanced"``, every class as
            often as every other, ``"sqrt"`` or ``"effective"``; see :func:`~lightning_cnnopt.imbalance.sample_weights`. By
            default every sample comes once an epoch.
        long_tail: Leave samples out of the training split, so that its classes are long-tailed with this ratio of the first
            to the last; see :func:`~lightning_cnnopt.data.long_tail`. For studies; validation and test stay as they are.
        folds: Cut the training set into so many parts, likewise stratified and drawn by ``split_seed``, for cross-validation:
            one validates and the others train. It takes the place of ``val_size``.
        fold: Which of the folds validates, from 0.
        repeats: How often each sample of a training batch is in it, augmented differently; see
            :class:`~lightning_cnnopt.ResidentLoader`.
        on_device: Keep images on the device of the Trainer, where they are moved once, when a loader is made. By default they
            stay in the machine's memory and each batch is moved.

    Raises:
        ConfigurationError: If an argument is out of range.
        DataError: If a split is empty or targets are out of range.
    """

    loads_once: ClassVar[bool] = False
    """Whether one process of each machine calls :meth:`load` and the others map what it loaded.

    For sets whose files have to be decoded; of files that :meth:`load` maps into memory there is one copy anyway.
    """

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
        folds: int | None = None,
        fold: int = 0,
        repeats: int = 1,
        on_device: bool = False,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, augmentation, mixing, normalize)
        name = type(self).__name__
        if isinstance(val_size, float):
            check_range(name, "val_size", val_size, 0, 1, high_open=True)
        else:
            check_range(name, "val_size", val_size, 0, whole=True)
        if sampling is not None:
            check_choice(name, "sampling", sampling, get_args(Scheme))
        if long_tail is not None:
            check_range(name, "long_tail", long_tail, 1)
        if folds is not None:
            check_range(name, "folds", folds, 2, whole=True)
            check_range(name, "fold", fold, 0, folds - 1, whole=True)
        elif fold:
            raise ConfigurationError(f"{name}: fold={fold} without folds=, the number of folds.")
        check_range(name, "repeats", repeats, 1, whole=True)
        self.val_size = val_size
        self.split_seed = split_seed
        self.drop_last = drop_last
        self.sampling: Scheme | None = sampling
        self.long_tail = long_tail
        self.folds = folds
        self.fold = fold
        self.repeats = repeats
        self.on_device = on_device
        self._sets: dict[str, ImageSet] = {}
        self._on_device: dict[str, ImageSet] = {}
        self._loader: ContinuedLoader | None = None
        self._has_reported = False

    @abstractmethod
    def load(self, split: Literal["train", "test"]) -> ImageSet | None:
        """Return all samples of a split; ``None`` for a test split that does not exist."""

    def load_val(self) -> ImageSet | None:
        """Return the validation samples, where the data has some of its own; nothing is split off then."""
        return None

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
            self._keep_test(self.load("test"))
        return self._sets["test"]

    @property
    @override
    def has_validation(self) -> bool:
        return bool(self.val_size) or self.folds is not None

    @property
    @override
    def has_test(self) -> bool:
        # loaded and let go of: what is kept may be shared by processes, and not all of them need ask
        return "test" in self._sets or self.load("test") is not None

    @property
    def num_train_samples(self) -> int:
        """How many samples are trained on."""
        return len(self.train_set)

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
        data = self.train_set
        chosen = torch.randperm(len(data), generator=Stream("sample", self._seed, per_rank=False).generator)[:size]
        images = data[chosen].images
        return self._normalized(images) if self._normalizes() else images

    @override
    def measure(self) -> tuple[list[float], list[float]]:
        return channel_statistics(self.train_set, type(self).__name__)

    @override
    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage in ("fit", "validate"):
            if "train" not in self._sets and self.loads_once:
                self._keep_train(load_once(lambda: self.load("train")))
            self._load_train()
        if stage in ("test", "predict"):
            if "test" not in self._sets and self.loads_once:
                self._keep_test(load_once(lambda: self.load("test")))
            _ = self.test_set
        if stage == "fit":
            self._report_counts()

    @override
    def train_dataloader(self) -> ResidentLoader:
        data = self._resident("train", self.train_set)
        shuffle = self.trainer is None or not self.trainer.overfit_batches  # type: ignore[attr-defined]
        if self.sampling and not shuffle:
            rank_zero_warn(f"With overfit_batches samples come in their order, so sampling={self.sampling!r} is left out.")
        drawn = self.sampling if shuffle else None
        loader = ResidentLoader(
            data.whole_images,
            data.whole_targets,
            self.batch_size,
            shuffle,
            self.drop_last,
            seed=self._seed,
            training=True,
            weights=None if drawn is None else sample_weights(self.train_set.targets, self.num_classes, drawn),
            places=data.places,
            repeats=self.repeats,
        )
        if self.trainer is not None and self.trainer.current_epoch > 0:
            # reload_dataloaders_every_n_epochs, or a Trainer that goes on with a second fit
            former = self.trainer.train_dataloader
            former = self._loader if former is None else former
            if isinstance(former, ContinuedLoader):
                loader.load_state_dict(former.state_dict())
        return loader

    @override
    def teardown(self, stage: str) -> None:
        self._on_device = {}
        if stage == "fit" and self.trainer is not None:
            self._loader = self.trainer.train_dataloader

    @override
    def val_dataloader(self) -> ResidentLoader | list[Any]:
        data = self.val_set
        return [] if data is None else self._evaluation_loader("val", data)

    @override
    def test_dataloader(self) -> ResidentLoader:
        return self._evaluation_loader("test", self.test_set)

    @override
    def predict_dataloader(self) -> ResidentLoader:
        return self._evaluation_loader("test", self.test_set, with_index=True)

    def _evaluation_loader(self, split: str, data: ImageSet, with_index: bool = False) -> ResidentLoader:
        data = self._resident(split, data)
        return ResidentLoader(
            data.whole_images, data.whole_targets, self.eval_batch_size, with_index=with_index, places=data.places
        )

    def _resident(self, split: str, data: ImageSet) -> ImageSet:
        """Return a split where its loader gathers batches."""
        if not self.on_device or self.trainer is None:
            return data
        if split not in self._on_device:
            self._on_device[split] = data.to(self.trainer.strategy.root_device)
        return self._on_device[split]

    def _load_train(self) -> None:
        if "train" not in self._sets:
            self._keep_train(self.load("train"))

    def _keep_train(self, loaded: ImageSet | None) -> None:
        assert loaded is not None
        name = type(self).__name__
        data = self._checked(loaded, "training")
        held_out: Tensor | None = None
        if (own := self.load_val()) is not None:
            self._sets["val"] = self._checked(own, "validation")
        elif self.folds is not None:
            held_out = held_out_fold(data.targets, self.folds, self.fold, self.split_seed, name)
        elif self.val_size:
            held_out = held_out_part(data.targets, self.val_size, self.split_seed, name)
        if held_out is not None:
            rest = torch.ones(len(data), dtype=torch.bool)
            rest[held_out] = False
            self._sets["val"] = data[held_out]
            data = data[rest]
        if self.long_tail is not None:
            data = data[long_tail(data.targets, self.long_tail, self.split_seed)]
        self._sets["train"] = data

    def _keep_test(self, loaded: ImageSet | None) -> None:
        if loaded is None:
            raise DataError(f"{type(self).__name__} has no test split.")
        self._sets["test"] = self._checked(loaded, "test")

    def _checked(self, data: ImageSet, split: str) -> ImageSet:
        check_set(data, f"{type(self).__name__}: the {split} split", self.num_classes if self.task == "multiclass" else None)
        return data

    def _report_counts(self) -> None:
        if self._has_reported or self.trainer is None:
            return
        self._has_reported = True
        counts, total = self.class_counts(), self.num_train_samples
        if self.task == "binary":
            counts = [total - counts[0], *counts]
        knows = self.sampling is not None or self.long_tail is not None or is_weighed(self.trainer)
        report_counts(type(self).__name__, counts, self.class_names, total, not knows, self.task != "multilabel")
