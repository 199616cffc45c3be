"""ImageFolder on 60,000 real JPEG files: packed, trained on, and started a second time."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from lightning.pytorch import Callback

from lightning_cnnopt import ConvNet, ImageClassifier, ImageFolder
from lightning_cnnopt.data.folder import packing, survey
from tests.lightning_tools import quiet_trainer


class Losses(Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.values.append(float(outputs["loss"]))


def trained(data, steps):
    torch.manual_seed(0)
    network = ConvNet(data.num_classes, data.in_channels, data.image_size, widths=[16, 32], depth=1, dense=[])
    model, losses = ImageClassifier(network=network, **data.model_args()), Losses()
    trainer = quiet_trainer(losses, max_steps=steps, limit_val_batches=0)
    trainer.fit(model, data)
    return model, losses.values


@pytest.mark.large_data
def test_cifar10_is_packed_once_trains_and_is_served_by_a_second_start(tmp_path, monkeypatch):
    root = Path(os.environ["CNNOPT_DATA"]) / "cifar10"
    if not root.is_dir():
        pytest.skip("needs cifar10/{train,test}/CLASS/*.jpg under CNNOPT_DATA")

    def start():
        return ImageFolder(str(root), val_size=5000, batch_size=64, cache_dir=str(tmp_path))

    data = start()
    _, losses = trained(data, 150)
    assert np.mean(losses[-20:]) < 0.85 * np.mean(losses[:20])

    assert (data.in_channels, data.image_size, data.class_counts()) == (3, (32, 32), [4500] * 10)
    assert data.mean == pytest.approx([0.491, 0.482, 0.447], abs=0.01)  # as published of CIFAR-10
    assert data.std == pytest.approx([0.247, 0.243, 0.262], abs=0.01)
    theirs = torchvision.datasets.ImageFolder(str(root / "test"))
    assert data.class_names == theirs.classes
    for place in range(0, 10_000, 997):
        image, target = theirs[place]
        assert np.array_equal(data.test_set.images[place].permute(1, 2, 0), np.asarray(image))
        assert data.test_set.targets[place] == target

    (packed,) = tmp_path.glob("*train*.images")
    before = packed.stat()
    monkeypatch.setattr(packing, "read_as", None)
    monkeypatch.setattr(survey, "read_header", None)
    again = start()
    _, same = trained(again, 10)
    assert same == losses[:10]
    assert (packed.stat().st_ino, packed.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
