"""What is said of the classes when a fit begins."""

from __future__ import annotations

import logging
import warnings
from functools import partial

import pytest
import torch
from torch import nn

from lightning_cnnopt.callbacks import BindClassCounts, ClassWeights
from lightning_cnnopt.data import TensorData
from lightning_cnnopt.imbalance import FocalLoss, LogitAdjustment
from lightning_cnnopt.module import ImageClassifier
from tests.lightning_tools import Foreign, quiet_trainer


class Linear(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(16, num_classes))


def data_of(counts, names=None, **arguments):
    targets = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    images = torch.randint(0, 256, (len(targets), 1, 4, 4), dtype=torch.uint8)
    arguments = {"val_size": 0, "batch_size": 64, "class_names": names, **arguments}
    return TensorData(train_images=images, train_targets=targets, **arguments)


def said(data, caplog, *callbacks, module=None):
    """Return the warnings about classes, and the lines about counts."""
    caplog.clear()
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.INFO):
        warnings.simplefilter("always")
        trainer = quiet_trainer(*callbacks)
        trainer.fit(module or Foreign(classes=len(data.class_names)), data)
    warned = [str(warning.message) for warning in caught if "TensorData" in str(warning.message)]
    return warned, [line for line in caplog.messages if "training samples of" in line]


def test_counts_are_told_once_and_nothing_else_of_balanced_classes(caplog):
    data = data_of([30, 31, 40], ["a", "b", "c"])
    warned, told = said(data, caplog)
    assert told == ["TensorData: 101 training samples of 3 classes, from 30 of 'a' to 40 of 'c'."]
    assert warned == []
    assert said(data, caplog) == ([], [])


@pytest.mark.parametrize(("rare", "warns"), [(10, False), (9, True), (1, True)])
def test_a_class_below_a_tenth_of_the_commonest_is_warned_of_with_what_helps(rare, warns, caplog):
    warned, _ = said(data_of([100, rare, 40], ["cat", "lynx", "dog"]), caplog)
    assert len(warned) == warns
    if warns:
        assert f"'lynx' has {rare} training samples and 'cat' 100" in warned[0]
        assert all(way in warned[0] for way in ('sampling="balanced"', "ClassWeights", "FocalLoss", "LogitAdjustment", "LDAM"))


@pytest.mark.parametrize("arguments", [{"sampling": "sqrt"}, {"long_tail": 20.0}])
def test_who_asked_for_it_is_not_warned(arguments, caplog):
    counts = [100, 100, 100] if "long_tail" in arguments else [100, 5, 40]
    assert said(data_of(counts, **arguments), caplog)[0] == []


@pytest.mark.parametrize(
    "criterion",
    [FocalLoss, LogitAdjustment, partial(nn.CrossEntropyLoss, weight=torch.ones(3)), None],
    ids=["focal", "adjusted", "weighted", "callback"],
)
def test_who_weighs_classes_is_not_warned(criterion, caplog):
    data = data_of([100, 5, 40])
    if criterion is None:
        assert said(data, caplog, ClassWeights())[0] == []
    else:
        model = ImageClassifier(Linear, criterion=criterion, **data.model_args())
        assert said(data, caplog, module=model)[0] == []


def test_a_foreign_module_with_bound_counts_is_not_warned(caplog):
    module = Foreign()
    module.criterion = LogitAdjustment()
    assert said(data_of([100, 5, 40]), caplog, BindClassCounts(), module=module)[0] == []


def test_plain_cross_entropy_of_an_image_classifier_is_warned(caplog):
    data = data_of([100, 5, 40])
    assert len(said(data, caplog, module=ImageClassifier(Linear, **data.model_args()))[0]) == 1


def test_classes_without_a_sample_are_named(caplog):
    data = data_of([20, 0, 20, 0], ["a", "b", "c", "d"])
    warned, told = said(data, caplog)
    assert warned == ["TensorData: no training sample is of 'b', 'd', so the network can't learn to tell it."]
    assert "from 20 of 'a' to 20 of 'c'" in told[0]
    many = data_of([5] + [0] * 9)
    many._class_names, many._num_classes = [str(n) for n in range(10)], 10
    assert "'1', '2', '3', '4', '5' and 4 more" in said(many, caplog)[0][0]


def test_both_answers_of_a_binary_task_count(caplog):
    data = data_of([60, 3], ["no", "yes"], task="binary")
    model = ImageClassifier(Linear, **data.model_args())
    warned, told = said(data, caplog, module=model)
    assert told == ["TensorData: 63 training samples of 2 classes, from 3 of 'yes' to 60 of 'no'."]
    assert "'yes' has 3 training samples and 'no' 60" in warned[0]


def test_labels_that_are_not_exclusive_count_their_positives(caplog):
    labels = torch.zeros(50, 3)
    labels[:40, 0] = labels[:3, 1] = labels[:20, 2] = 1
    images = torch.randint(0, 256, (50, 1, 4, 4), dtype=torch.uint8)
    data = TensorData(train_images=images, train_targets=labels, task="multilabel", val_size=0)
    warned, told = said(data, caplog, module=ImageClassifier(Linear, **data.model_args()))
    assert told == ["TensorData: 50 training samples of 3 labels, from 3 of '1' to 40 of '0'."]
    assert "ClassWeights or SigmoidFocalLoss" in warned[0]
