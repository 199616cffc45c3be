"""The command line as a user runs it: most of it in this process, what needs processes of its own as a subprocess."""

from __future__ import annotations

import csv
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from lightning_cnnopt.__main__ import main
from lightning_cnnopt.callbacks import __all__ as callback_names
from tests.contracts import harness

CONFIGS = Path(__file__).parent.parent / "configs"
QUICKSTART = str(CONFIGS / "quickstart.yaml")
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]


@pytest.fixture(autouse=True)
def _no_noise(monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)  # Lightning's handler writes to an earlier test's stream


def printed_config(capsys, *arguments):
    assert main(["fit", *arguments, "--print_config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    command = [sys.executable, "-m", "lightning_cnnopt", "fit", "--config", QUICKSTART, "--trainer.max_epochs", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, env=environment)
    return folder / "runs" / "quickstart" / "version_0", done.stdout + done.stderr


def test_one_run_leaves_everything_in_one_directory(run):
    directory, _ = run
    assert [path.name for path in directory.parent.iterdir()] == ["version_0"]
    left = {path.name for path in directory.iterdir()}
    assert left >= {"config.yaml", "resolved.yaml", "metrics.csv", "curves.png", "augmentation.png", "confusion_test.png"}
    assert any(name.startswith("events.out.tfevents") for name in left)
    assert {path.name.split("-")[0] for path in (directory / "checkpoints").iterdir()} == {"best", "last.ckpt"}


def test_a_run_says_where_it_left_what(run):
    _, output = run
    for name in ("config.yaml", "metrics.csv", "curves.png", "last.ckpt", "confusion_test.png"):
        assert f"{Path('runs/quickstart/version_0')}" in output
        assert name in output


def test_a_run_shows_loss_and_accuracy_and_tests_the_best_checkpoint(run):
    _, output = run
    for name in ("train_loss", "train_acc", "val_loss", "val_acc", "test_acc"):
        assert name in output
    assert "Loaded model weights from the checkpoint at runs/quickstart/version_0/checkpoints/best" in " ".join(output.split())


def test_what_was_derived_is_printed_and_written(run):
    directory, output = run
    derived = yaml.safe_load((directory / "resolved.yaml").read_text())
    assert derived["data"]["num_classes"] == 10
    assert derived["data"]["image_size"] == [8, 8]
    assert derived["training"]["steps"] == 42
    assert "num_classes: 10" in output


def test_test_of_a_checkpoint_needs_no_model_in_the_config(run, capfd, tmp_path):
    directory, _ = run
    checkpoint = str(directory / "checkpoints" / "last.ckpt")
    assert main(["test", "--data", "Digits", "--ckpt_path", checkpoint, *QUIET]) == 0
    with (directory / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    loaded = torch.load(checkpoint)
    assert loaded["hyper_parameters"]["network"]["init_args"]["widths"] == [64, 128]
    with next(Path("runs").glob("*/version_0/metrics.csv")).open() as stream:
        measured = [float(row["test_acc"]) for row in csv.DictReader(stream)]
    assert 0.5 < measured[-1] <= 1
    assert rows


def test_validate_gives_what_the_fit_logged_last(run):
    directory, _ = run
    arguments = ["--ckpt_path", str(directory / "checkpoints" / "last.ckpt"), *QUIET]
    assert main(["validate", "-c", str(directory / "config.yaml"), *arguments]) == 0
    with (directory / "metrics.csv").open() as stream:
        logged = [float(row["val_loss"]) for row in csv.DictReader(stream) if row["val_loss"]]
    with next(Path("runs").glob("*/version_0/metrics.csv")).open() as stream:
        measured = [float(row["val_loss"]) for row in csv.DictReader(stream) if row["val_loss"]]
    assert measured[-1] == pytest.approx(logged[-1], rel=1e-5)


def test_predict_writes_index_class_and_probability(run):
    directory, _ = run
    arguments = ["--ckpt_path", str(directory / "checkpoints" / "last.ckpt"), *QUIET]
    assert main(["predict", "-c", str(directory / "config.yaml"), *arguments]) == 0
    with next(Path("runs").glob("*/version_0/predictions.csv")).open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["index"]) for row in rows] == list(range(360))
    assert {row["class"] for row in rows} == {str(digit) for digit in range(10)}
    assert all(0.1 <= float(row["probability"]) <= 1 for row in rows)


def test_later_files_win_and_callbacks_are_appended_by_plus(capsys, tmp_path):
    (tmp_path / "more.yaml").write_text("trainer:\n  max_epochs: 3\n")
    config = printed_config(capsys, "-c", QUICKSTART, "-c", "more.yaml", "--trainer.callbacks+=StopOnDivergence")
    assert config["trainer"]["max_epochs"] == 3
    assert [c["class_path"].rpartition(".")[2] for c in config["trainer"]["callbacks"]] == ["EMA", "StopOnDivergence"]


@pytest.mark.parametrize("callback", sorted(set(callback_names) - {"EditNetwork", "InitializeWeights", "ScheduleLearningRate"}))
def test_every_callback_has_a_short_name(capsys, callback):
    needs = {
        "PenalizeWeights": ["--trainer.callbacks.penalties=L1"],
        "ConstrainWeights": ["--trainer.callbacks.constraints=MaxNorm"],
        "ScheduleDropout": ["--trainer.callbacks.schedule=Cosine"],
        "ScheduleMomentum": ["--trainer.callbacks.schedule=CounterCycle"],
        "ScheduleWeightDecay": ["--trainer.callbacks.schedule=Cosine"],
    }
    config = printed_config(capsys, "-c", QUICKSTART, f"--trainer.callbacks+={callback}", *needs.get(callback, []))
    assert config["trainer"]["callbacks"][-1]["class_path"].endswith(f".{callback}")


def test_another_class_starts_from_its_own_defaults(capsys):
    config = printed_config(capsys, "-c", QUICKSTART, "--model.optimizer", "SGD")
    optimizer = config["model"]["init_args"]["optimizer"]
    assert optimizer["class_path"] == "torch.optim.SGD"
    assert optimizer["init_args"]["weight_decay"] == 0.0
    assert optimizer["init_args"]["lr"] == 0.001


def test_an_argument_of_the_same_class_keeps_the_others(capsys):
    config = printed_config(capsys, "-c", QUICKSTART, "--model.optimizer.weight_decay", "0.5")
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.003


def test_a_list_in_a_later_config_replaces_the_earlier_one_arguments_of_its_items_included(capsys):
    Path("a.yaml").write_text(
        """
        data: {init_args: {augmentation: [{class_path: PaddedCrop, init_args: {padding: 3, mode: reflect}}]}}
        trainer: {callbacks: [{class_path: EMA, init_args: {decay: 0.9, warmup: false}}]}
        """
    )
    Path("b.yaml").write_text(
        """
        data: {init_args: {augmentation: [{class_path: PaddedCrop, init_args: {padding: 2}}]}}
        trainer: {callbacks: [{class_path: EMA, init_args: {start: 0.2}}]}
        """
    )
    config = printed_config(capsys, "-c", QUICKSTART, "-c", "a.yaml", "-c", "b.yaml", "--trainer.callbacks.start=0.3")
    [crop] = config["data"]["init_args"]["augmentation"]
    assert crop["init_args"] == {"padding": 2, "mode": "constant"}
    [ema] = config["trainer"]["callbacks"]
    assert ema["init_args"] == {"decay": None, "half_life": None, "warmup": True, "start": 0.3}


def test_an_object_in_a_later_config_is_laid_over_the_earlier_one_of_its_class(capsys):
    Path("b.yaml").write_text("model: {init_args: {schedule: {class_path: Warmup, init_args: {duration: 0.2}}}}")
    schedule = printed_config(capsys, "-c", QUICKSTART, "-c", "b.yaml")["model"]["init_args"]["schedule"]
    assert schedule["init_args"]["duration"] == 0.2
    assert schedule["init_args"]["schedule"]["class_path"].endswith("Cosine")


@pytest.mark.parametrize("overlay", ["compressed_gradients.yaml", "ddp.yaml", "mixed_precision.yaml"])
def test_overlays_hold_trainer_flags_only(overlay):
    assert set(yaml.safe_load((CONFIGS / overlay).read_text())) == {"trainer"}


@pytest.mark.parametrize("config", sorted(path.name for path in CONFIGS.glob("*.yaml")))
def test_every_config_parses(capsys, config):
    assert printed_config(capsys, "-c", QUICKSTART, "-c", str(CONFIGS / config))


def test_mixed_precision_runs(capfd):
    arguments = ["-c", QUICKSTART, "-c", str(CONFIGS / "mixed_precision.yaml"), "--test_after_fit", "false", *QUIET]
    assert main(["fit", *arguments, "--trainer.max_steps", "3"]) == 0
    derived = yaml.safe_load(next(Path("runs").glob("*/version_0/resolved.yaml")).read_text())
    assert derived["training"]["precision"] == "bf16-mixed"


@pytest.mark.parametrize(
    "start", [["-m", "lightning_cnnopt"], [str(Path(sys.executable).parent / "cnnopt")]], ids=["-m", "script"]
)
def test_ddp_runs_in_two_processes_and_reports_once(start, tmp_path):
    if not start[0].startswith("-") and not Path(start[0]).exists():
        pytest.skip("the package is not installed")
    command = [
        sys.executable,
        *start,
        "fit",
        "-c",
        QUICKSTART,
        "-c",
        str(CONFIGS / "ddp.yaml"),
        "--trainer.max_epochs",
        "1",
        "--model.network",
        "my_networks.Linear",  # of a file in the working directory
        *QUIET,
    ]
    (tmp_path / "my_networks.py").write_text(
        """
from torch import nn


class Linear(nn.Sequential):
    def __init__(self, num_classes: int):
        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))
"""
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        text=True,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            raise
    assert process.returncode == 0, output[-2000:]
    assert output.count("This run is in") == 1
    assert [path.name for path in (tmp_path / "runs" / "quickstart").iterdir()] == ["version_0"]
    derived = yaml.safe_load((tmp_path / "runs" / "quickstart" / "version_0" / "resolved.yaml").read_text())
    assert derived["training"]["processes"] == 2
    assert derived["training"]["global_batch_size"] == 128


def test_without_a_logger_everything_is_still_in_one_directory(capfd):
    arguments = ["-c", QUICKSTART, "--trainer.logger", "false", "--trainer.max_steps", "3", *QUIET]
    assert main(["fit", *arguments]) == 0
    assert [path.name for path in Path().iterdir()] == ["runs"]
    directory = Path("runs/quickstart/version_0")
    assert {"config.yaml", "resolved.yaml", "checkpoints"} <= {path.name for path in directory.iterdir()}


def test_help_and_version_import_no_torch():
    code = "import sys; from lightning_cnnopt.__main__ import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_a_module_that_is_not_ours_runs_from_yaml(capfd, tmp_path):
    config = {
        "model": {"class_path": "tests.contracts.harness.Foreign"},
        "data": {"class_path": "TensorData", "init_args": {"path": "data.npz", "val_size": 8}},
        "trainer": {"max_steps": 3, "callbacks": [{"class_path": "EMA"}]},
    }

    data = harness.make_data()
    images, targets = data.load("train").images.numpy(), data.load("train").targets.numpy()

    np.savez("data.npz", train_images=images, train_targets=targets)
    Path("foreign.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "-c", "foreign.yaml", *QUIET]) == 0


def test_a_short_name_means_torchs_class_when_other_packages_have_one_of_that_name(capsys):
    import timm.layers  # noqa: F401 - has a GELU and a LayerNorm, too

    config = printed_config(capsys, "-c", QUICKSTART, "--model.activation", "GELU", "--model.normalization", "BatchNorm2d")
    assert config["model"]["init_args"]["activation"]["class_path"] == "torch.nn.GELU"
    assert config["model"]["init_args"]["normalization"]["class_path"] == "torch.nn.BatchNorm2d"
