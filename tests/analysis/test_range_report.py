from __future__ import annotations

import csv

import pytest
import yaml

from lightning_cnnopt.analysis import rate_overlay, write_range_test
from lightning_cnnopt.learning_rate import RangeTest

RESULT = RangeTest([1e-4, 1e-3, 1e-2, 1e-1], [3.0, 2.0, 1.0, 9.0], [3.1, 2.0, 1.5, 4.0], True, 1e-3, 0.0023456, 5e-3)
SGD = {"class_path": "lightning_cnnopt.ImageClassifier", "init_args": {"optimizer": {"class_path": "torch.optim.SGD"}}}


def test_points_picture_and_overlay_are_written_and_told(tmp_path):
    text = write_range_test(RESULT, tmp_path / "run", SGD, "cnnopt lr_find -c mine.yaml")
    with (tmp_path / "run" / "lr_find.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [[float(value) for value in row.values()] for row in rows] == [
        *map(list, zip(RESULT.rates, RESULT.losses, RESULT.smoothed, strict=True))
    ]
    assert list(rows[0]) == ["lr", "loss", "smoothed_loss"]
    overlay = (tmp_path / "run" / "lr.yaml").read_text()
    assert overlay.startswith("# The learning rate that cnnopt lr_find -c mine.yaml recommends")
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.00235}}
    assert yaml.safe_load(overlay) == {"model": {"init_args": {"optimizer": optimizer}}}
    assert "valley   0.00235" in text
    assert text.count("recommended") == 1
    assert f"add `-c {tmp_path / 'run' / 'lr.yaml'}`" in text
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["lr.yaml", "lr_find.csv", "lr_find.png"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"lr": 0.1, "other": 1}, {"lr": 0.0123}),
        ({"learning_rate": 0.1}, {"learning_rate": 0.0123}),
        ({"optimizer": {"class_path": "a.B"}, "lr": 1}, {"optimizer": {"class_path": "a.B", "init_args": {"lr": 0.0123}}}),
        ({"optimizer": None, "lr": 1}, {"lr": 0.0123}),
    ],
)
def test_the_rate_goes_where_the_config_has_a_place_for_it(arguments, expected):
    assert rate_overlay({"class_path": "a.C", "init_args": arguments}, 0.012345) == {"model": {"init_args": expected}}


def test_without_a_place_or_a_suggestion_there_is_no_overlay(tmp_path):
    assert rate_overlay({"class_path": "a.C"}, 0.1) is None
    text = write_range_test(RESULT, tmp_path / "a", {"class_path": "a.C", "init_args": {"width": 3}})
    assert "where the rate goes is for you to say" in text
    rising = RangeTest([1e-3, 1e-2], [1.0, 2.0], [1.0, 2.0], True)
    text = write_range_test(rising, tmp_path / "b", SGD)
    assert "The loss never fell between 0.001 and 0.01" in text
    for folder in ("a", "b"):
        assert sorted(path.name for path in (tmp_path / folder).iterdir()) == ["lr_find.csv", "lr_find.png"]
