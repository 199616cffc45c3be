"""Two machines, simulated by two agents of torchrun on this one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.contracts import harness

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def fit(*launcher, nodes, devices, folder):
    options = {
        "strategy": "ddp",
        "num_nodes": nodes,
        "devices": devices,
        "max_epochs": 1,
        "default_root_dir": str(folder),
        "accelerator": "cpu",
        "enable_progress_bar": "false",
        "limit_train_batches": 6,
    }
    flags = [word for name, value in options.items() for word in (f"--trainer.{name}", str(value))]
    command = [
        sys.executable,
        *launcher,
        "-m",
        "lightning_cnnopt",
        "fit",
        "-c",
        QUICKSTART,
        "--test_after_fit",
        "false",
        *flags,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(*processes):
    for process in processes:
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output[-3000:]


@pytest.mark.slow
def test_two_nodes_of_torchrun_end_with_the_weights_of_two_processes_on_one(tmp_path):
    port = free_port()
    wait_for(fit(nodes=1, devices=2, folder=tmp_path / "one"))
    wait_for(
        *(
            fit(
                *("-m", "torch.distributed.run", "--nnodes", "2", "--node_rank", str(node), "--nproc_per_node", "1"),
                *("--master_addr", "127.0.0.1", "--master_port", str(port)),
                nodes=2,
                devices=1,
                folder=tmp_path / "two",
            )
            for node in (0, 1)
        )
    )
    one, two = (
        torch.load(tmp_path / name / "quickstart" / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
        for name in ("one", "two")
    )
    assert one["global_step"] == two["global_step"] == 6
    assert not harness.differences(one["state_dict"], two["state_dict"])
