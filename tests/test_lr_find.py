"""``cnnopt lr_find`` as a user runs it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import yaml

from lightning_cnnopt.__main__ import main

CONFIGS = Path(__file__).parent.parent / "configs"
QUICKSTART = str(CONFIGS / "quickstart.yaml")
FIND = ["lr_find", "-c", QUICKSTART, "--steps", "20", "--min_lr", "1e-5"]


@pytest.fixture(autouse=True)
def _no_noise(monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)  # Lightning's handler writes to an earlier test's stream


def test_what_it_finds_is_an_overlay_of_the_config_that_fit_takes(capfd):
    assert main(FIND) == 0
    said = capfd.readouterr().out
    directory = Path("runs/quickstart/version_0")
    assert sorted(path.name for path in directory.iterdir()) == ["config.yaml", "lr.yaml", "lr_find.csv", "lr_find.png"]
    rate = yaml.safe_load((directory / "lr.yaml").read_text())["model"]["init_args"]["optimizer"]["init_args"]["lr"]
    assert f"lr: {rate}" in said
    for first in (QUICKSTART, str(directory / "config.yaml")):
        assert main(["fit", "-c", first, "-c", str(directory / "lr.yaml"), "--print_config"]) == 0
        arguments = yaml.safe_load(capfd.readouterr().out)["model"]["init_args"]
        assert arguments["optimizer"]["class_path"] == "torch.optim.AdamW"
        assert arguments["optimizer"]["init_args"]["lr"] == rate
        assert arguments["network"]["init_args"]["widths"] == [64, 128]  # everything else is as it was
    flags = ["--trainer.fast_dev_run", "1", "--test_after_fit", "false", "--trainer.enable_progress_bar", "false"]
    assert main(["fit", "-c", QUICKSTART, "-c", str(directory / "lr.yaml"), *flags]) == 0


def test_a_config_without_an_optimizer_gets_the_rate_of_the_default_one(capfd):
    assert main(["lr_find", "--data", "Digits", "--steps", "20", "--min_lr", "1e-5"]) == 0
    overlay = yaml.safe_load(Path("runs/run/version_0/lr.yaml").read_text())
    assert overlay["model"]["init_args"]["optimizer"]["class_path"] == "torch.optim.AdamW"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max_lr", "1e-9"], "range_test: max_lr=1e-09 is out of range; expected 1e-05 < max_lr"),
        (["--steps", "3"], "range_test: steps=3 is out of range; expected 10 <= steps"),
        (["--steps", "many"], "steps: expected int. Got 'many'."),
        (["--divergence", "0.5"], "divergence=0.5 is out of range"),
        (["--min_rl", "1e-9"], "Did you mean"),
        (["--trainer.devices", "2"], "The range test runs in one process"),
        (["--trainer.fast_dev_run", "1"], "take fast_dev_run away"),
        (["--ckpt_path", "x.ckpt"], "ckpt_path"),
    ],
)
def test_what_can_not_be_right_is_one_paragraph(arguments, message, capfd):
    assert main([*FIND, *arguments]) == 2
    said = capfd.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not Path("runs").exists()


def test_a_rate_that_never_helps_is_said_and_leaves_the_picture(capfd):
    assert main([*FIND[:3], "--steps", "12", "--min_lr", "5", "--max_lr", "50", "--divergence", "1e6"]) == 2
    assert "The loss never fell between 5 and 50" in capfd.readouterr().err
    assert Path("runs/quickstart/version_0/lr_find.png").exists()
    assert not Path("runs/quickstart/version_0/lr.yaml").exists()
