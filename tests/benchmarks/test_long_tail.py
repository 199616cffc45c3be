from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.long_tail import OUT, VARIANTS, markdown, report

ROOT = Path(__file__).parent.parent.parent


def run(seed, rarest, everything=0.8):
    return {"seed": seed, "rarest_third": rarest, "all_classes": everything}


def test_gains_are_paired_by_seed_and_runs_without_a_plain_one_count_for_none():
    runs = {"plain": [run(0, 0.5), run(1, 0.7)], "other": [run(1, 0.75), run(0, 0.56), run(2, 0.1)]}
    figure = report(runs)["other"]["rarest_third"]
    assert figure["gain"] == pytest.approx(0.055)
    low, high = figure["interval"]
    assert low < 0.05 < 0.06 < high
    assert figure["mean"] == pytest.approx((0.75 + 0.56 + 0.1) / 3, abs=1e-6)


def test_the_page_shows_the_figures_of_the_file():
    content = json.loads(OUT.read_text())
    assert set(content["runs"]) == set(VARIANTS)
    assert content["summary"] == json.loads(json.dumps(report(content["runs"])))
    assert markdown(content["summary"]) in (ROOT / "docs" / "imbalance.md").read_text()
