from __future__ import annotations

import csv
import warnings

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from lightning_cnnopt.analysis import WritePredictions, predictions
from lightning_cnnopt.core.randomness import rank, world_size
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


class Numbered(LightningModule):
    """Written by others: its predictions tell which image they are of, and not where it stood."""

    def predict_step(self, batch, batch_idx):
        return {"probabilities": torch.stack([torch.zeros(len(batch)), (batch + 1) / 100], 1)}


class Telling(Numbered):
    def predict_step(self, batch, batch_idx):
        return {"index": batch.long() * 2, **super().predict_step(batch, batch_idx)}


class Skipping(Numbered):
    def predict_step(self, batch, batch_idx):
        return None if batch_idx == 1 else super().predict_step(batch, batch_idx)


class Shares(IterableDataset):
    """Cuts itself by rank, so that nobody else knows where its images stood."""

    def __iter__(self):
        return iter(torch.arange(11.0)[rank() :: world_size()])


class Filled(Numbered):
    """Its sampler gives images to two ranks, where it can't give all of them equally many."""

    def predict_dataloader(self):
        images = torch.arange(11.0)
        return DataLoader(images, batch_size=2, sampler=DistributedSampler(images, shuffle=False))


def written(module, loader, path, **arguments):
    """Return index and number of the image of each row."""
    quiet_trainer(WritePredictions(str(path)), **arguments).predict(module, loader, return_predictions=False)
    with path.open(newline="") as stream:
        return [(int(row["index"]), round(100 * float(row["probability"])) - 1) for row in csv.DictReader(stream)]


TWO = {"devices": 2, "strategy": "ddp_fork"}


@pytest.mark.parametrize("processes", [{}, TWO], ids=["one process", "two processes"])
@pytest.mark.parametrize("batch_size", [1, 3, 20])
def test_a_plain_loader_gives_every_image_once_with_its_place_in_the_data(processes, batch_size, tmp_path):
    rows = written(Numbered(), DataLoader(torch.arange(11.0), batch_size=batch_size), tmp_path / "p.csv", **processes)
    assert rows == [(i, i) for i in range(11)]


def test_what_a_sampler_gives_to_two_processes_to_fill_up_is_written_once(tmp_path):
    assert written(Filled(), None, tmp_path / "p.csv", **TWO) == [(i, i) for i in range(11)]


@pytest.mark.parametrize("processes", [{}, TWO], ids=["one process", "two processes"])
def test_the_index_that_a_module_returns_is_the_one_that_is_written(processes, tmp_path):
    rows = written(Telling(), DataLoader(torch.arange(11.0), batch_size=3), tmp_path / "p.csv", **processes)
    assert rows == [(2 * i, i) for i in range(11)]


def test_a_sampler_in_another_order_and_batches_without_a_prediction_keep_the_places(tmp_path):
    loader = DataLoader(torch.arange(11.0), batch_size=3, sampler=[10, 8, 6, 4, 2, 0, 1])
    assert written(Numbered(), loader, tmp_path / "p.csv") == [(i, i) for i in (0, 1, 2, 4, 6, 8, 10)]
    assert written(Skipping(), loader, tmp_path / "p.csv") == [(i, i) for i in (1, 6, 8, 10)]


def test_where_no_place_is_known_rows_are_numbered_as_they_come(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert written(Numbered(), DataLoader(Shares(), batch_size=3), tmp_path / "p.csv") == [(i, i) for i in range(11)]
    assert not [warning for warning in caught if "WritePredictions" in str(warning.message)]
    rows = written(Numbered(), DataLoader(Shares(), batch_size=3), tmp_path / "p.csv", **TWO)
    assert rows == list(enumerate([0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9]))


def test_with_several_processes_it_says_that_no_place_is_known():
    with pytest.warns(UserWarning, match="not known.*rank by rank.*'index' from predict_step"):
        index, _ = predictions._merge([(None, torch.rand(2, 3)), (None, torch.rand(1, 3))])
    assert index.tolist() == [0, 1, 2]


def test_a_process_without_any_part_is_no_error():
    index, rows = predictions._merge([(torch.arange(2), torch.ones(2, 3)), (torch.arange(0), torch.zeros(0, 1))])
    assert (index.tolist(), rows.shape) == ([0, 1], (2, 3))
