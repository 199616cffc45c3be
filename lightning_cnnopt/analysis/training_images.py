"""What training sees: images as they are stored, and several draws of what becomes of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchvision.transforms import Normalize as NormalizeV1
from torchvision.transforms.v2 import Normalize
from typing_extensions import override

from lightning_cnnopt.analysis.plots import plot_images
from lightning_cnnopt.augmentation import Augmentation, AugmentBatches
from lightning_cnnopt.core.batch import read_batch
from lightning_cnnopt.core.callback import callbacks_of
from lightning_cnnopt.core.errors import ConfigurationError, DataError, check_range

Statistics = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class TrainingImages:
    """Images of a training batch, and what training makes of them.

    Args:
        rows: By name, images to be drawn, (N, C, H, W): ``"original"``, and each draw.
        captions: By row, what the target of each image is: its class, or the shares of those that it was mixed from.
        title: What was drawn.
    """

    rows: dict[str, Tensor]
    captions: dict[str, list[str]]
    title: str

    def figure(self) -> Figure:
        """Return the picture."""
        return plot_images(self.rows, self.captions, self.title)


def training_images(
    trainer: Trainer,
    model: LightningModule,
    train_dataloaders: Any = None,
    datamodule: LightningDataModule | None = None,
    images: int = 8,
    draws: int = 3,
) -> TrainingImages:
    """Take the first training batch of a run the way that a fit takes it, several times, and return what it is each time.

    A fit is begun and left before its first step, so what is seen went through the loader, the hooks of data module and
    module, and ``AugmentBatches``; with the same seed the first draw is the first batch of that fit. Callbacks other than
    ``AugmentBatches`` are left out. Each draw is that of an epoch and an optimizer step of its own. Trainer, module and data
    are used up: train with others.

    Args:
        trainer: A Trainer of one process.
        model: Any LightningModule.
        train_dataloaders: What would be given to ``trainer.fit``.
        datamodule: In place of loaders.
        images: At most so many of the batch.
        draws: How often.

    Raises:
        ConfigurationError: If an argument is out of range, or the Trainer has several processes or loaders.
        DataError: If there is no batch of images and targets.

    Example:
        >>> from lightning_cnnopt import Digits, ImageClassifier
        >>> from lightning_cnnopt.augmentation import MixUp
        >>> data = Digits(mixing=MixUp())
        >>> trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        >>> seen = training_images(trainer, ImageClassifier(**data.model_args()), datamodule=data, images=4, draws=2)
        >>> {name: tuple(images.shape) for name, images in seen.rows.items()}
        {'original': (4, 1, 8, 8), 'epoch 1': (4, 1, 8, 8), 'epoch 2': (4, 1, 8, 8)}
    """
    check_range("show", "images", images, 1)
    check_range("show", "draws", draws, 1)
    if trainer.num_devices * trainer.num_nodes > 1:
        raise ConfigurationError("What training sees is looked at in one process: set devices=1 and num_nodes=1.")
    look = _Look(images, draws)
    callbacks_of(trainer)[:] = [*(c for c in callbacks_of(trainer) if isinstance(c, AugmentBatches)), look]
    trainer.limit_val_batches = trainer.num_sanity_val_steps = 0
    try:
        trainer.fit(model, train_dataloaders, datamodule=datamodule)
    except _Seen as seen:
        return seen.images
    raise DataError("There is nothing to be seen: the training has no batch.")


def captions_of(targets: Tensor, names: Sequence[str] | None, task: str | None = None) -> list[str]:
    r"""Return what each target says, as text: a class, or the largest shares of several.

    Args:
        targets: (N,) classes; (N, C) probabilities or labels; (N,) floats, or (N, 1), for a binary task.
        names: Of the classes; by default their numbers.
        task: As of ``ImageClassifier``, where it is known.

    Example:
        >>> captions_of(torch.tensor([0, 1]), ["cat", "dog"])
        ['cat', 'dog']
        >>> captions_of(torch.tensor([[0.25, 0.75]]), ["cat", "dog"])
        ['dog 0.75\ncat 0.25']
    """
    if task == "binary" or (targets.is_floating_point() and targets[0].numel() == 1):
        present = targets.float().flatten()
        targets, task = torch.stack([1 - present, present], 1), "multiclass"
    if targets.ndim == 1:
        return [_name(int(target), names) for target in targets]
    return [_shares(target.float(), names) for target in targets]


class _Seen(Exception):
    """The end of a fit that was begun to look."""

    def __init__(self, images: TrainingImages) -> None:
        super().__init__()
        self.images = images


class _Look(Callback):
    def __init__(self, images: int, draws: int) -> None:
        self.images, self.draws = images, draws

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> NoReturn:
        loaders = CombinedLoader(trainer.train_dataloader).flattened
        if len(loaders) != 1:
            raise ConfigurationError(f"What training sees is looked at for one training loader; there are {len(loaders)}.")
        batch = next(iter(loaders[0]), None)
        if batch is None:
            raise DataError(f"There is nothing to be seen: {type(loaders[0]).__name__} yields no batch.")
        originals, targets = read_batch(batch)
        data: Any = getattr(trainer, "datamodule", None)
        names = _class_names(data, pl_module, loaders[0])
        task = getattr(data, "task", getattr(pl_module, "task", None))
        rows, captions = {"original": originals}, {"original": captions_of(targets, names, task)[: self.images]}
        for epoch in range(self.draws):
            trainer.fit_loop.epoch_progress.current.completed = epoch
            for augmentation in augmentations_of(trainer):
                augmentation.draws.begin()
            images, drawn = read_batch(self._take(trainer, pl_module, copy.deepcopy(batch)))
            name = f"epoch {epoch + 1}"
            rows[name] = images
            if drawn.shape != targets.shape or not torch.equal(drawn.cpu(), targets):
                captions[name] = captions_of(drawn, names, task)[: self.images]
        rows, note = _visible({name: images[: self.images].detach().cpu() for name, images in rows.items()}, data, loaders[0])
        source = type(data if data is not None else getattr(loaders[0], "dataset", loaders[0])).__name__
        raise _Seen(TrainingImages(rows, captions, ", ".join([f"{source}: what training sees", *_chain(trainer), *note])))

    def _take(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> Any:
        data = getattr(trainer, "datamodule", None)
        has_hook = data is not None and is_overridden("on_before_batch_transfer", data)
        owner: LightningModule | LightningDataModule = data if has_hook else pl_module  # type: ignore[assignment]
        batch = owner.on_before_batch_transfer(trainer.precision_plugin.convert_input(batch), 0)
        return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def augmentations_of(trainer: Trainer) -> list[Augmentation]:
    """Return what augments or mixes the training batches of a Trainer, in the order of application."""
    found = [getattr(getattr(trainer, "datamodule", None), "augmentation", None)]
    found += [callback._augmentation for callback in callbacks_of(trainer) if isinstance(callback, AugmentBatches)]
    return [one for one in found if isinstance(one, Augmentation) and (one.transforms or one.mixing is not None)]


def _chain(trainer: Trainer) -> list[str]:
    names: list[str] = []
    for augmentation in augmentations_of(trainer):
        names += [type(transform).__name__ for transform in augmentation.transforms]
        names += [] if augmentation.mixing is None else [type(augmentation.mixing).__name__]
    return [" → ".join(names)] if names else []


def _class_names(data: Any, module: Any, loader: Any) -> Sequence[str] | None:
    dataset: Any = getattr(loader, "dataset", None)
    while hasattr(dataset, "dataset"):  # a Subset
        dataset = dataset.dataset
    candidates = (getattr(data, "class_names", None), getattr(module, "class_names", None), getattr(dataset, "classes", None))
    return next((names for names in candidates if isinstance(names, (list, tuple)) and names), None)


def _visible(rows: dict[str, Tensor], data: Any, loader: Any) -> tuple[dict[str, Tensor], list[str]]:
    """Return rows in [0, 1] or uint8, and a word on what had to be done for it."""
    original = rows["original"]
    normalized = original.is_floating_point() and not _is_plain(original)  # then all are, wherever their pixels happen to lie
    turn = {name: images.float() for name, images in rows.items() if images.is_floating_point()}
    turn = {name: images for name, images in turn.items() if normalized or not _is_plain(images)}
    if not turn:
        return rows, []
    for mean, std in _statistics(data, loader):
        if len(mean) not in (1, original.shape[1]):
            continue
        centre, width = (torch.tensor(list(values)).view(1, -1, 1, 1) for values in (mean, std))
        turned = {name: images * width + centre for name, images in turn.items()}
        if all(images.min() > -0.1 and images.max() < 1.1 for images in turned.values()):
            return rows | turned, []
    reference = original.float() if normalized else torch.cat([images.flatten(2) for images in turn.values()], 2).unsqueeze(3)
    low, high = reference.amin((0, 2, 3), keepdim=True), reference.amax((0, 2, 3), keepdim=True)
    stretched = {name: (images - low) / (high - low).clamp_min(1e-6) for name, images in turn.items()}
    return rows | stretched, ["normalized, channels stretched to be seen"]


def _is_plain(images: Tensor) -> bool:
    return bool(images.min() >= -1e-3 and images.max() <= 1 + 1e-3)


def _statistics(data: Any, loader: Any) -> list[Statistics]:
    """Return means and standard deviations that may have been taken off, the likeliest first."""
    found: list[Statistics] = []
    if callable(getattr(data, "pixel_statistics", None)):
        found.append(data.pixel_statistics())
    found += [(data.mean, data.std)] if _is_sequence(data, "mean") and _is_sequence(data, "std") else []
    pending = [getattr(loader, "dataset", None)]
    while pending:  # through Subset, VisionDataset and Compose
        current = pending.pop()
        if isinstance(current, (Normalize, NormalizeV1)):
            found.append((list(current.mean), list(current.std)))
        pending += list(current.children()) if isinstance(current, nn.Module) else []
        for name in ("dataset", "transform", "transforms"):
            inner = getattr(current, name, None)
            pending += list(inner) if isinstance(inner, (list, tuple)) else [] if inner is None else [inner]
    return found


def _is_sequence(owner: Any, name: Literal["mean", "std"]) -> bool:
    return isinstance(getattr(owner, name, None), (list, tuple))


def _name(index: int, names: Sequence[str] | None) -> str:
    name = str(names[index]) if names is not None and 0 <= index < len(names) else str(index)
    return name if len(name) <= 18 else f"{name[:17]}…"


def _shares(target: Tensor, names: Sequence[str] | None) -> str:
    values, indices = target.sort(descending=True, stable=True)
    parts = [(float(v), _name(int(i), names)) for v, i in zip(values[:3], indices[:3], strict=True) if v > 0.005]
    if all(value > 0.995 for value, _ in parts):  # whole labels
        return "\n".join(name for _, name in parts) + ("\n…" if float(target.sum()) > 3 else "") or "none"
    return "\n".join(f"{name} {value:.2f}" for value, name in parts) or "none"
