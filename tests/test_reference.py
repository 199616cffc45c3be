"""The reference does what its definition says, to the bit; and the accuracy that was asked of that definition."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback
from torch import nn
from torch.nn import functional as F

from benchmarks.accuracy import measure
from lightning_cnnopt.__main__ import main

CONFIG = Path(__file__).parent.parent / "configs" / "reference.yaml"
LEAST = 0.92  # of the mean over seeds, which is how the reference is defined


class Recorder(Callback):
    """Keeps what a run started from, what it was fed and what it came to."""

    last = None

    def __init__(self):
        Recorder.last = self
        self.batches, self.losses = [], []

    def on_train_start(self, trainer, pl_module):
        self.start = {name: value.clone() for name, value in pl_module.network.state_dict().items()}
        self.random_state = torch.get_rng_state()  # of which dropout alone takes

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append([tensor.clone() for tensor in batch])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))

    def on_validation_epoch_end(self, trainer, pl_module):
        self.end = {name: value.clone() for name, value in pl_module.network.state_dict().items()}
        self.val_set = trainer.datamodule._sets["val"]

    def on_fit_end(self, trainer, pl_module):
        self.val_acc = float(trainer.callback_metrics["val_acc"])


def reference_by_hand():
    """Performance.md's definition, with the layers of techniques.md, in plain torch."""
    norm = {"eps": 1e-3, "momentum": 0.01}
    conv1, conv2 = nn.Conv2d(1, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)
    first = [conv1, nn.ReLU(), nn.BatchNorm2d(32, **norm), conv2, nn.ReLU(), nn.BatchNorm2d(32, **norm), nn.MaxPool2d(2)]
    head = [nn.Flatten(), nn.Linear(32 * 14 * 14, 128), nn.ReLU(), nn.BatchNorm1d(128, **norm), nn.Dropout(0.5)]
    return nn.Sequential(*first, *head, nn.Linear(128, 10))


def train_by_hand(recorded):
    network = reference_by_hand()
    network.load_state_dict(dict(zip(network.state_dict(), recorded.start.values(), strict=True)))
    for layer in network:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            receptive = math.prod(layer.weight.shape[2:])
            bound = math.sqrt(6 / (receptive * (layer.weight.shape[0] + layer.weight.shape[1])))
            assert 0.95 * bound < layer.weight.abs().max() <= bound, "Glorot's uniform bound"
            assert not layer.bias.any()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, eps=1e-7)
    torch.set_rng_state(recorded.random_state)
    losses = []
    for images, targets in recorded.batches:
        loss = F.cross_entropy(network(images.float() / 255), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return network, losses


def check_against_the_definition(overlay, epochs):
    overlay["trainer"] = {
        "max_epochs": epochs,
        "callbacks": [{"class_path": "tests.test_reference.Recorder"}],
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    Path("overlay.yaml").write_text(yaml.safe_dump(overlay))
    assert main(["fit", "-c", str(CONFIG), "-c", "overlay.yaml", "--test_after_fit", "false"]) == 0
    recorded = Recorder.last
    network, losses = train_by_hand(recorded)
    assert losses == recorded.losses
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(recorded.end.values(), network.state_dict().values(), strict=True)
    )
    network.eval()
    images, targets = recorded.val_set.images, recorded.val_set.targets
    with torch.no_grad():
        logits = torch.cat([network(part.float() / 255) for part in images.split(500)])
    right = int((logits.argmax(1) == targets).sum())
    assert recorded.val_acc == pytest.approx(right / len(targets), abs=1e-6)
    return recorded


def test_the_reference_is_its_definition_to_the_bit():
    generator = np.random.default_rng(0)
    targets = np.arange(360) % 10
    images = generator.integers(0, 100, (360, 28, 28)) + 15 * targets[:, None, None]
    np.savez("images.npz", train_images=images.astype(np.uint8), train_targets=targets)
    data = {"class_path": "TensorData", "init_args": {"path": "images.npz", "batch_size": 32, "val_size": 40}}
    recorded = check_against_the_definition({"data": data}, epochs=2)
    assert [len(images) for images, _ in recorded.batches] == 2 * [32] * 10
    first, second = (torch.cat([images for images, _ in part]) for part in (recorded.batches[:10], recorded.batches[10:]))
    assert not torch.equal(first, second)
    assert torch.equal(first.flatten(1).unique(dim=0), second.flatten(1).unique(dim=0)), "every image once an epoch"


@pytest.mark.large_data
@pytest.mark.timeout(1200)
def test_an_epoch_of_fashion_mnist_is_the_definition_to_the_bit():
    data = {"init_args": {"root": os.environ["CNNOPT_DATA"]}}
    recorded = check_against_the_definition({"data": {"class_path": "FashionMNIST", **data}}, epochs=1)
    assert len(recorded.batches) == math.ceil(55_000 / 32)
    assert len(recorded.val_set) == 5_000
    first = torch.cat([targets for _, targets in recorded.batches]).bincount()
    assert first.tolist() == [5_500] * 10


@pytest.mark.goal
@pytest.mark.large_data
@pytest.mark.timeout(4500)
def test_the_reference_reaches_its_accuracy():
    runs = [measure(CONFIG, seed=seed, root=os.environ["CNNOPT_DATA"]) for seed in range(5)]
    print(runs)
    assert sum(run["test_acc"] for run in runs) / len(runs) >= LEAST
