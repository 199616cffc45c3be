"""Every overlay of a room trains a step over the quickstart, validates, and tests, as a user would lay it over.

Those of data that are not here are laid over and parsed.
"""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import pytest
import yaml

from lightning_cnnopt.__main__ import main

CONFIGS = Path(__file__).parent.parent / "configs"
OVERLAYS = sorted(CONFIGS.glob("*/*.yaml"))
ELSEWHERE = [path for path in OVERLAYS if path.parent.name == "data" and "class_path: " in path.read_text()]
EXTRAS = {"schedulefree": "optimizers", "prodigyopt": "optimizers"}
# a training step and a validation step; no run is kept, so that nothing is drawn a hundred times
ONE_STEP = ["--trainer.fast_dev_run", "1", "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]


@pytest.fixture(autouse=True)
def _no_noise(monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)  # Lightning's handler writes to an earlier test's stream


def with_marks(overlay):
    # of a room whose overlays are as good as alike, the contracts name every technique in YAML already
    alike = overlay.parent.name in ("augmentation", "initialization", "learning_rate", "regularization")
    marks = [pytest.mark.slow] if alike or overlay.stem == "compile" else []  # the latter waits for a compiler
    for package, extra in EXTRAS.items():
        if f"class_path: {package}." in overlay.read_text() and importlib.util.find_spec(package) is None:
            marks.append(pytest.mark.skip(reason=f"needs {package}, of the extra {extra}"))
    return pytest.param(overlay, marks=marks)


@pytest.mark.parametrize(
    "overlay",
    [with_marks(overlay) for overlay in OVERLAYS if overlay not in ELSEWHERE],
    ids=lambda path: f"{path.parent.name}/{path.stem}",
)
def test_every_overlay_trains_over_the_quickstart(overlay, capfd):
    arguments = ["-c", str(CONFIGS / "quickstart.yaml"), "-c", str(overlay), "--test_after_fit", "false"]
    assert main(["fit", *arguments, *ONE_STEP]) == 0, capfd.readouterr().err


@pytest.mark.parametrize("overlay", ELSEWHERE, ids=lambda path: path.stem)
def test_every_overlay_of_data_that_are_not_here_parses(overlay, capfd):
    arguments = ["-c", str(CONFIGS / "quickstart.yaml"), "-c", str(overlay), "--print_config"]
    assert main(["fit", *arguments]) == 0
    said = yaml.safe_load(capfd.readouterr().out)["data"]
    given = yaml.safe_load(overlay.read_text())["data"]
    assert said["class_path"].rpartition(".")[2] == given["class_path"]
    assert given["init_args"].items() <= said["init_args"].items()


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_overlay_says_what_it_is_and_is_small(overlay):
    text = overlay.read_text()
    assert text.startswith("# "), "a first line that says what the overlay does"
    assert len(text.splitlines()) <= 25
    assert set(yaml.safe_load(text)) <= {"data", "model", "trainer"}
