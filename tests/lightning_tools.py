"""LightningModules, data and callbacks that this project did not write, and a Trainer that leaves nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cnnopt.data import ResidentLoader


def quiet_trainer(*callbacks: Callback, **arguments: Any) -> Trainer:
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 1 if "max_steps" not in arguments and "max_time" not in arguments else None,
    }
    return Trainer(callbacks=list(callbacks), **{**defaults, **arguments})


def samples(count: int = 12, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, 4, 4, generator=generator), torch.arange(count) % classes


def plain_loader(count: int = 12, batch_size: int = 2, classes: int = 3, seed: int = 0) -> DataLoader:
    return DataLoader(TensorDataset(*samples(count, classes, seed)), batch_size=batch_size)


def resident_loader(count: int = 12, batch_size: int = 2, classes: int = 3, seed: int = 0) -> ResidentLoader:
    return ResidentLoader(*samples(count, classes), batch_size=batch_size, shuffle=True, seed=seed)


class Foreign(LightningModule):
    """Written by someone who never heard of this project; two groups at rates of ratio 10."""

    def __init__(self, classes: int = 3, lr: float = 0.1, bias_lr: float = 0.01) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(16, classes))
        self.criterion = nn.CrossEntropyLoss()
        self.lr, self.bias_lr = lr, bias_lr
        with torch.no_grad():
            self.body[1].weight.copy_(torch.linspace(-1, 1, 16 * classes).view(classes, 16))
            self.body[1].bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, targets = batch
        return self.criterion(self(images), targets)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        images, targets = batch
        self.log("val_loss", self.criterion(self(images), targets))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(
            [
                {"params": [self.body[1].weight], "lr": self.lr},
                {"params": [self.body[1].bias], "lr": self.bias_lr},
            ],
            lr=self.lr,
        )


class RecordRates(Callback):
    """The rate of every group, at every optimizer step."""

    def __init__(self) -> None:
        self.groups: list[list[float]] = []

    @property
    def rates(self) -> list[float]:
        return [groups[0] for groups in self.groups]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.groups.append([float(group["lr"]) for group in optimizer.param_groups])


class SaveAtBatch(Callback):
    """Saves a checkpoint after so many batches of the run, and stops it there as a kill would."""

    def __init__(self, batches: int, path: Path) -> None:
        self.batches, self.path, self.seen = batches, path, 0

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.seen += 1
        if self.seen == self.batches:
            trainer.save_checkpoint(self.path)
            raise Killed


class Killed(Exception):
    """The end of a run by force."""


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def assert_same_weights(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
