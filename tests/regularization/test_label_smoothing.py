"""Smoothing is torch's; what is shown here is that it goes together with mixing and class weights, from Python and YAML."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from lightning_cnnopt import ImageClassifier, TensorData
from lightning_cnnopt.augmentation import CutMix, MixUp, MixUpOrCutMix
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.imbalance import ClassWeights
from tests.lightning_tools import quiet_trainer

EPSILON = 0.2


class Linear(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(16, num_classes))


class Losses(Callback):
    """The loss that training returned, and the formula's on the same batch, before the step."""

    def __init__(self):
        self.pairs = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        images, targets = batch
        shares = targets if targets.ndim == 2 else nn.functional.one_hot(targets, 3).float()
        smoothed = (1 - EPSILON) * shares + EPSILON / 3
        with torch.no_grad():
            terms = -pl_module(images).log_softmax(1) * smoothed
        weight = pl_module.criterion.weight
        if weight is not None:
            terms = terms * weight
        self.mixed = targets.ndim == 2
        total = len(images) if weight is None or self.mixed else weight[targets].sum()
        self.expected = terms.sum() / total

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.pairs.append((float(outputs["loss"]), float(self.expected), self.mixed))


@pytest.mark.parametrize(
    "mixing",
    [None, MixUp(0.5), CutMix(), MixUpOrCutMix(per="batch")],
    ids=["hard targets", "blended", "cut", "either"],
)
@pytest.mark.parametrize("weights", [[], [ClassWeights()]], ids=["plain", "class weights"])
def test_the_training_loss_is_that_of_smoothed_targets(mixing, weights):
    images = torch.randint(0, 256, (24, 1, 4, 4), dtype=torch.uint8)
    targets = torch.tensor([0] * 12 + [1] * 8 + [2] * 4)
    data = TensorData(train_images=images, train_targets=targets, val_size=0, batch_size=8, mixing=mixing)
    criterion = partial(nn.CrossEntropyLoss, label_smoothing=EPSILON)
    losses = Losses()
    model = ImageClassifier(Linear, **data.model_args(), criterion=criterion)
    quiet_trainer(*weights, losses).fit(model, data)
    assert len(losses.pairs) == 3
    for found, expected, mixed in losses.pairs:
        assert found == pytest.approx(expected, rel=1e-5)
        assert mixed == (mixing is not None)


@pytest.mark.parametrize("smoothing", [-0.1, 1.5])
def test_a_smoothing_out_of_range_is_refused_before_training(smoothing):
    with pytest.raises(ConfigurationError, match=r"CrossEntropyLoss: label_smoothing=.*0 <= label_smoothing <= 1"):
        ImageClassifier(criterion=partial(nn.CrossEntropyLoss, label_smoothing=smoothing))
