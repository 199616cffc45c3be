"""Networks, data and runs that every contract uses."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback
from torch import nn

from lightning_cnnopt import ImageClassifier, TensorData
from lightning_cnnopt.architecture import EditNetwork
from lightning_cnnopt.augmentation import AugmentBatches, Mixing, Transform
from lightning_cnnopt.core.schedule import Schedule
from lightning_cnnopt.core.surgery import Edit
from lightning_cnnopt.initialization import Initializer, InitializeWeights
from lightning_cnnopt.learning_rate import ScheduleLearningRate
from lightning_cnnopt.regularization import (
    ActivityPenalty,
    Constraint,
    ConstrainWeights,
    PenalizeActivations,
    PenalizeWeights,
    Penalty,
)

CLASSES = 4
BATCH = 8
SAMPLES = 52  # 44 to train on: an epoch of six batches, the last of four


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        return self.relu(x + self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))


class TinyResNet(nn.Module):
    """Has what edits look for: a stem, residual branches, norms, activations, 16 channels; dropout, which draws globally."""

    def __init__(self, num_classes, in_channels=1):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 16, 3, stride=2, padding=5)  # leaves 8x8 as they are
        self.norm = nn.BatchNorm2d(16)
        self.act = nn.ReLU()
        self.blocks = nn.Sequential(Block(16), Block(16))
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(16, num_classes)

    def forward(self, x):
        return self.head(self.dropout(self.pool(self.blocks(self.act(self.norm(self.stem(x))))).mean((2, 3))))


class Foreign(LightningModule):
    """A LightningModule that knows nothing of this package."""

    def __init__(self, network=None):
        super().__init__()
        self.network = network if network is not None else TinyResNet(CLASSES)
        self.criterion = nn.CrossEntropyLoss()

    def logits(self, images):
        return self.network(images / 255 if images.dtype == torch.uint8 else images)

    def training_step(self, batch, batch_idx):
        images, targets = batch
        return self.criterion(self.logits(images), targets)

    def validation_step(self, batch, batch_idx):
        images, targets = batch
        logits = self.logits(images)
        self.log("val_loss", self.criterion(logits, targets), sync_dist=True)
        return {"logits": logits, "targets": targets}

    def predict_step(self, batch, batch_idx):
        return {"index": batch["index"], "probabilities": self.network(batch["image"]).softmax(1)}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


def make_data(**arguments):
    generator = torch.Generator().manual_seed(3)
    targets = torch.arange(SAMPLES) % CLASSES
    images = torch.randint(0, 256, (SAMPLES, 1, 8, 8), generator=generator)
    images = ((images + targets[:, None, None, None] * 255) // CLASSES).to(torch.uint8)
    return TensorData(
        train_images=images,
        train_targets=targets,
        test_images=images[:10],
        test_targets=targets[:10],
        **{"val_size": 8, "batch_size": BATCH, **arguments},
    )


def make_model(**arguments):
    optimizer = functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.01)
    arguments = {"network": TinyResNet, "optimizer": optimizer, **arguments}
    return ImageClassifier(num_classes=CLASSES, in_channels=1, image_size=(8, 8), **arguments)


def as_callback(technique):
    """Return the callback face of any technique."""
    faces = {
        Edit: lambda: EditNetwork(technique, submodule=None),
        Initializer: lambda: InitializeWeights(technique),
        Penalty: lambda: PenalizeWeights(technique),
        ActivityPenalty: lambda: PenalizeActivations(technique),
        Constraint: lambda: ConstrainWeights(technique),
        Schedule: lambda: ScheduleLearningRate(technique),
        Transform: lambda: AugmentBatches([technique]),
        Mixing: lambda: AugmentBatches(mixing=technique, num_classes=CLASSES),
        Callback: lambda: technique,
    }
    return next(face() for kind, face in faces.items() if isinstance(technique, kind))


def assemble(technique=None):
    """Return module, data and callbacks with the technique in its place in an ``ImageClassifier`` or our data."""
    model, data, callbacks = {}, {}, []
    if isinstance(technique, Edit):
        model["edits"] = [technique]
    elif isinstance(technique, Initializer):
        model["initializer"] = technique
    elif isinstance(technique, Penalty):
        model["penalties"] = [technique]
    elif isinstance(technique, Schedule):
        model["schedule"] = technique
    elif isinstance(technique, Transform):
        data["augmentation"] = [technique]
    elif isinstance(technique, Mixing):
        data["mixing"] = technique
    elif technique is not None:
        callbacks.append(as_callback(technique))
    return make_model(**model), make_data(**data), callbacks


class Keep(Callback):
    """Saves a checkpoint after a given optimizer step, in the middle of an epoch."""

    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step and not Path(self.path).exists():
            trainer.save_checkpoint(self.path)


def trainer(callbacks=(), **arguments):
    defaults = {
        "accelerator": "cpu",
        "max_steps": 4,
        "max_epochs": None,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 2,
    }
    return Trainer(callbacks=list(callbacks), **{**defaults, **arguments})


def fit(technique=None, ckpt_path=None, seed=1, module=None, extra=(), **arguments):
    """Fit a fresh module with the technique and return (trainer, module)."""
    seed_everything(seed, verbose=False)
    model, data, callbacks = assemble(technique)
    if module is not None:
        # a transform behind a data module that normalizes is refused, if it goes by levels
        data = make_data(normalize=not isinstance(technique, Transform))
        model, callbacks = module, [as_callback(technique)] if technique is not None else []
    run = trainer([*callbacks, *extra], **arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return run, model


def state_of(run):
    """Return all that a checkpoint of this moment holds, and so all that the next step depends on."""
    return run._checkpoint_connector.dump_checkpoint(weights_only=False)


def differences(a, b, path=""):
    """Return the places where two nested states are not the same to the bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
        return [] if same else [path]
    if isinstance(a, dict) and isinstance(b, dict):
        found = [f"{path}/{key}: only on one side" for key in set(a) ^ set(b)]
        return found + [d for key in set(a) & set(b) for d in differences(a[key], b[key], f"{path}/{key}")]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            return [f"{path}: {len(a)} and {len(b)} items"]
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{path}[{i}]")]
    return [] if a == b else [f"{path}: {a!r} and {b!r}"]
