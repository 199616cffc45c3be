from __future__ import annotations

import csv
import math

import pytest
import torch
from sklearn.metrics import classification_report

from lightning_cnnopt import Digits, ImageClassifier
from lightning_cnnopt.analysis import RunReport, class_report, plot_classes
from tests.lightning_tools import quiet_trainer

TARGETS = [0] * 8 + [1] * 5 + [2] * 4 + [3] * 2
PREDICTED = [0] * 6 + [1, 2] + [1] * 4 + [0] + [2] * 2 + [0] * 2 + [0, 1]


def confusion_of(targets, predicted, classes):
    counts = torch.zeros(classes, classes, dtype=torch.long)
    for target, prediction in zip(targets, predicted, strict=True):
        counts[target, prediction] += 1
    return counts


def test_recall_precision_and_f1_are_those_of_scikit_learn():
    expected = classification_report(TARGETS, PREDICTED, output_dict=True, zero_division=0)
    report = class_report(confusion_of(TARGETS, PREDICTED, 4))
    for label, result in enumerate(report.classes):
        theirs = expected[str(label)]
        assert result.recall == pytest.approx(theirs["recall"])
        assert result.precision == pytest.approx(theirs["precision"])
        assert result.f1 == pytest.approx(theirs["f1-score"])
        assert result.samples == theirs["support"]
    assert report.macro() == pytest.approx(
        {
            "recall": expected["macro avg"]["recall"],
            "precision": expected["macro avg"]["precision"],
            "f1": expected["macro avg"]["f1-score"],
        }
    )


def test_thirds_go_by_training_samples():
    confusion = torch.diag(torch.tensor([1, 2, 3, 4, 5, 6, 7])) + torch.eye(7).roll(1, 1).long() * 3
    report = class_report(confusion, train_samples=[10, 70, 20, 60, 30, 50, 40])
    recall = [n / (n + 3) for n in range(1, 8)]
    assert report.groups() == pytest.approx(
        {
            "many": (recall[1] + recall[3] + recall[5]) / 3,
            "medium": (recall[6] + recall[4]) / 2,
            "few": (recall[2] + recall[0]) / 2,
        }
    )
    assert "few: rarest third" in report.table()


def test_there_are_no_thirds_of_equal_or_unknown_or_two_classes():
    assert class_report(torch.eye(4), train_samples=[5, 5, 5, 5]).groups() == {}
    assert class_report(torch.eye(4)).groups() == {}
    assert class_report(torch.eye(2), train_samples=[5, 1]).groups() == {}


def test_a_class_without_samples_counts_for_nothing():
    report = class_report(torch.tensor([[4, 0, 1], [0, 0, 0], [0, 0, 5]]), train_samples=[9, 5, 2])
    assert math.isnan(report.classes[1].recall)
    assert report.macro()["recall"] == pytest.approx((0.8 + 1) / 2)
    assert math.isnan(report.groups()["medium"])


def test_of_many_classes_the_worst_are_shown_and_all_are_written(tmp_path):
    confusion = torch.diag(torch.arange(100)) + 1
    report = class_report(confusion, [f"class {label}" for label in range(100)])
    text = report.table("test")
    assert "class 19 " in text
    assert "class 20 " not in text
    assert "20 of 100 classes" in text
    with report.write_csv(tmp_path / "classes.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["name"] for row in rows] == [f"class {label}" for label in range(100)]
    assert float(rows[5]["recall"]) == pytest.approx(6 / 105, abs=1e-6)


def test_the_picture_puts_the_commonest_class_first():
    figure = plot_classes(["a", "b", "c"], [0.1, 0.2, math.nan], [5, 500, 50])
    bars, line = figure.axes
    assert [bar.get_height() for bar in bars.patches] == [0.2, 0.0, 0.1]
    assert line.lines[0].get_ydata().tolist() == [500, 50, 5]
    assert line.get_yscale() == "log"


def test_a_test_prints_the_classes_and_a_fit_leaves_them(tmp_path, capsys):
    data = Digits(long_tail=20)
    model = ImageClassifier(**data.model_args())
    trainer = quiet_trainer(RunReport(str(tmp_path), images=0), limit_train_batches=2)
    trainer.fit(model, data)
    assert {"classes_val.csv", "classes_val.png"} <= {path.name for path in tmp_path.iterdir()}
    assert "class by class" not in capsys.readouterr().out
    trainer.test(model, data)
    assert "test, class by class" in capsys.readouterr().out
    with (tmp_path / "classes_test.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["train_samples"]) for row in rows] == data.class_counts()
    assert sum(int(row["samples"]) for row in rows) == 360
    right = sum(float(row["recall"]) * int(row["samples"]) for row in rows)
    assert right / 360 == pytest.approx(float(trainer.callback_metrics["test_acc"]), abs=1e-4)
