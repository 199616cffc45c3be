"""A run that is killed with SIGKILL in mid-epoch and resumed ends with the bits of one that was not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from .contracts.harness import differences

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
SAVED_AT, STEPS = 27, 60  # epochs have 21 steps


@pytest.fixture
def command(tmp_path):
    save = {"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 9, "save_top_k": -1, "filename": "{step}"}}
    overlay = {
        "test_after_fit": False,
        "data": {"class_path": "Digits", "init_args": {"mixing": {"class_path": "MixUp"}}},
        "trainer": {
            "callbacks": [{"class_path": "EMA"}, save],
            "max_epochs": None,
            "max_steps": STEPS,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }
    config = tmp_path / "killed.yaml"
    config.write_text(yaml.safe_dump(overlay))
    return [sys.executable, "-m", "lightning_cnnopt", "fit", "-c", str(QUICKSTART), "-c", str(config)]


def checkpoint(folder, step):
    return next(iter(folder.glob(f"runs/*/version_0/checkpoints/step={step}.ckpt")), None)


def test_sigkill_in_mid_epoch_and_resume(command, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole, killed, resumed = (tmp_path / name for name in ("whole", "killed", "resumed"))
    for folder in (whole, killed, resumed):
        folder.mkdir()
    subprocess.run(command, cwd=whole, check=True, capture_output=True, env=environment)

    process = subprocess.Popen(command, cwd=killed, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while checkpoint(killed, SAVED_AT) is None and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = checkpoint(killed, SAVED_AT)
    assert left is not None

    subprocess.run([*command, "--ckpt_path", str(left)], cwd=resumed, check=True, capture_output=True, env=environment)
    last = STEPS - STEPS % 9
    states = [torch.load(checkpoint(folder, last)) for folder in (whole, resumed)]
    compared = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "Digits", "global_step", "epoch", "train_sums")
    for name in compared:
        assert not differences(states[0][name], states[1][name]), name
    ours = [{k: v for k, v in s["callbacks"].items() if k.startswith(("EMA", "ResumeRandomState"))} for s in states]
    assert len(ours[0]) == 2
    assert not differences(*ours)
