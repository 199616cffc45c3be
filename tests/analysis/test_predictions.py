from __future__ import annotations

import csv

import pytest
import torch
from torch import nn

from lightning_cnnopt.analysis import WritePredictions
from lightning_cnnopt.data import TensorData
from lightning_cnnopt.module import ImageClassifier
from tests.lightning_tools import quiet_trainer


class Linear(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(16, num_classes))


def predicted(task, path, names=None, batch_size=4):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (30, 1, 4, 4), dtype=torch.uint8)
    targets = {
        "multiclass": torch.arange(30) % 3,
        "binary": torch.arange(30) % 2,
        "multilabel": torch.stack([torch.arange(30) % 2, torch.arange(30) % 3 == 0, torch.arange(30) % 5 == 0], 1).long(),
    }[task]
    data = TensorData(
        train_images=images, train_targets=targets, test_images=images[:11], test_targets=targets[:11],
        task=task, class_names=names, eval_batch_size=batch_size,
    )  # fmt: skip
    model = ImageClassifier(Linear, **data.model_args())
    quiet_trainer(WritePredictions(str(path))).predict(model, data)
    model.eval()
    with torch.no_grad():
        logits = model(images[:11])
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream)), logits


@pytest.mark.parametrize("batch_size", [1, 4, 100])
@pytest.mark.parametrize("names", [None, ["cat", "dog", 'ow"l, grey']])
def test_each_image_has_its_class_and_probability_in_the_order_of_the_data(names, batch_size, tmp_path):
    rows, logits = predicted("multiclass", tmp_path / "new" / "p.csv", names, batch_size)
    probabilities, classes = logits.softmax(1).max(1)
    assert [int(row["index"]) for row in rows] == list(range(11))
    assert [row["class"] for row in rows] == [(names or "012")[i] for i in classes.tolist()]
    assert [float(row["probability"]) for row in rows] == pytest.approx(probabilities.tolist(), abs=1e-5)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["p.csv"]


@pytest.mark.parametrize("names", [None, ["no", "yes"]])
def test_a_binary_task_names_both_answers(names, tmp_path):
    rows, logits = predicted("binary", tmp_path / "p.csv", names)
    positive = logits.sigmoid().flatten()
    assert [row["class"] for row in rows] == [(names or "01")[int(p > 0.5)] for p in positive]
    assert {row["class"] for row in rows} == set(names or "01")
    assert [float(row["probability"]) for row in rows] == pytest.approx(
        torch.maximum(positive, 1 - positive).tolist(), abs=1e-5
    )


def test_of_several_labels_all_that_are_likely_are_written(tmp_path):
    names = ["red", "round", "old"]
    rows, logits = predicted("multilabel", tmp_path / "p.csv", names)
    for row, values in zip(rows, logits.sigmoid().tolist(), strict=True):
        likely = [i for i, value in enumerate(values) if value > 0.5]
        assert row["class"].split(";") == ([names[i] for i in likely] or [""])
        assert [float(p) for p in row["probability"].split(";") if p] == pytest.approx([values[i] for i in likely], abs=1e-5)
