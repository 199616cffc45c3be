"""P10: what two processes bring over one process with two threads, on one machine without a GPU.

Steps are timed within the training: starting, the first steps and the last are not in the figure. That both take the same steps
is held by tests/contracts/test_two_processes.py.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.frame.machine import usable_cores
from benchmarks.frame.rows import FASTER, Benchmark, Function, Goal, Row

_WARM_UP = 5
_IMAGES = 6144  # of each timed part, so that a run is some seconds of steps


def train(processes: int, batch_size: int, out: Path) -> None:
    """Train the reference's network on random images, and write the seconds per image of the timed steps.

    Args:
        processes: How many; the cores are shared out to them as threads.
        batch_size: Of all processes together.
        out: Where the first process writes.
    """
    import torch
    from lightning.pytorch import Callback, Trainer

    from lightning_cnnopt import ConvNet, ImageClassifier, TensorData

    torch.set_num_threads(max(1, usable_cores() // processes))
    steps = _IMAGES // batch_size

    class Clock(Callback):
        def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
            if trainer.global_step == _WARM_UP:
                self.start = time.perf_counter()
            if trainer.global_step == _WARM_UP + steps and trainer.is_global_zero:
                out.write_text(json.dumps({"wall": (time.perf_counter() - self.start) / (steps * batch_size)}))

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (batch_size * (_WARM_UP + steps + 1), 28, 28), dtype=torch.uint8, generator=generator)
    labels = torch.arange(len(images)) % 10
    data = TensorData(train_images=images, train_targets=labels, batch_size=batch_size // processes, val_size=0)
    trainer = Trainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        max_steps=_WARM_UP + steps,
        callbacks=[Clock()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(ImageClassifier(ConvNet, **data.model_args()), data)


def _side(processes: int, batch_size: int) -> Function:
    def run(pair: int) -> Mapping[str, float]:
        environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "figures.json"
            # torchrun waits for its processes, so that their CPU time is this run's; Lightning's own launcher does not
            launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
            command = [sys.executable, "-m", *launcher, "benchmarks.processes", str(processes), str(batch_size), str(out)]
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
            if done.returncode:
                raise RuntimeError(f"training with {processes} processes failed:\n{done.stderr[-2000:]}")
            figures: dict[str, float] = json.loads(out.read_text())
        return figures

    words = "one process" if processes == 1 else f"{processes} processes (gloo)"
    return Function(f"{words}, global batch {batch_size}", run)


BENCHMARK = Benchmark(
    id="P10",
    what="two processes (gloo), one thread each",
    against="one process with two threads",
    goal="0.9 of the throughput at global batch 64, 1.3 times at 512",
    rows=(
        Row("batch 64", _side(2, 64), _side(1, 64), Goal(FASTER, 0.9), warm_up=False),
        Row("batch 512", _side(2, 512), _side(1, 512), Goal(FASTER, 1.3), warm_up=False),
    ),
)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("processes", type=int)
    parser.add_argument("batch_size", type=int)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    train(given.processes, given.batch_size, given.out)
