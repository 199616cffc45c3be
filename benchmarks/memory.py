"""P12: what resident data take of a machine's memory, with augmentation, in all processes of a training together.

Memory is the proportional set size without libraries: a page that two processes share counts half for each. What a process
needs without data (Python, torch, the network, batches) is taken off by a second training of as many steps on a fiftieth of the
set.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import struct
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.frame.rows import LARGER, Benchmark, Function, Goal, Row

_PROCESSES = 2
_BATCH = 256
_COUNTS = {"FashionMNIST": 120_000, "CIFAR10": 50_000}
_PIXELS = {"FashionMNIST": 28 * 28, "CIFAR10": 3 * 32 * 32}
_PART = 50  # enough for whole batches


def write(kind: str, count: int, root: Path) -> None:
    """Write random training images in the layout of a set.

    Args:
        kind: ``FashionMNIST``, whose files are mapped, or ``CIFAR10``, whose files are decoded.
        count: How many images.
        root: The folder to give to the data module.
    """
    import numpy as np

    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (count, _PIXELS[kind]), dtype=np.uint8)
    labels = np.arange(count, dtype=np.uint8) % 10
    if kind == "FashionMNIST":
        raw = root / kind / "raw"
        raw.mkdir(parents=True)
        (raw / "train-images-idx3-ubyte").write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, count, 28, 28) + pixels.tobytes())
        (raw / "train-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, count) + labels.tobytes())
        return
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for number, (images, names) in enumerate(zip(np.split(pixels, 5), np.split(labels, 5), strict=True)):
        held = pickle.dumps({"data": images, "labels": names.tolist()}, protocol=2)
        (folder / f"data_batch_{number + 1}").write_bytes(held)


def train(kind: str, root: str, out: Path) -> None:
    """Train in this process, one of several, over all images; the first writes the memory of all of them."""
    import gc

    import torch
    from lightning.pytorch import Callback, Trainer

    from lightning_cnnopt import ConvNet, ImageClassifier, data
    from lightning_cnnopt.augmentation import HorizontalFlip, PaddedCrop
    from lightning_cnnopt.core.randomness import gather

    torch.set_num_threads(1)

    class Weigh(Callback):
        def on_train_end(self, trainer: Any, *rest: Any) -> None:
            gc.collect()
            gather(None)  # nobody has left yet
            taken = sum(gather(own_memory(root, tempfile.gettempdir())))
            if trainer.is_global_zero:
                out.write_text(json.dumps({"bytes": taken}))

    augmentation = [HorizontalFlip(), PaddedCrop(2)]
    made = getattr(data, kind)(root, batch_size=_BATCH, val_size=0, augmentation=augmentation)
    trainer = Trainer(
        accelerator="cpu",
        devices=_PROCESSES,
        strategy="ddp",
        max_steps=_COUNTS[kind] // (_BATCH * _PROCESSES),  # all of the larger set
        callbacks=[Weigh()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # a network of next to no work
    trainer.fit(ImageClassifier(_small(ConvNet), **made.model_args()), made)
    torch.distributed.destroy_process_group()  # gloo's threads, left running, now and then abort a process that ends


def _small(network: Any) -> Any:
    from functools import partial

    return partial(network, widths=(2,))


def own_memory(*folders: str) -> int:
    """Return the proportional set size of this process, in bytes: memory that is no file's, and files in some folders.

    Libraries are left out: their part changes with every other process on the machine that uses them.
    """
    total, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split(maxsplit=5)
        if "-" in words[0] and not words[0].endswith(":"):  # addresses: the next mapping
            name = words[5] if len(words) > 5 else ""
            counts = not name.startswith("/") or name.startswith(folders)
        elif words[0] == "Pss:" and counts:
            total += int(words[1]) * 1024
    return total


def _run(kind: str, count: int) -> float:
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder) / "data", Path(folder) / "figures.json"
        root.mkdir()
        write(kind, count, root)
        launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(_PROCESSES), "-m"]
        command = [sys.executable, "-m", *launcher, "benchmarks.memory", kind, str(root), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            raise RuntimeError(f"training on {kind} failed:\n{done.stderr[-2000:]}")
        figures: dict[str, float] = json.loads(out.read_text())
    return figures["bytes"]


def _ours(kind: str) -> Function:
    def run(pair: int) -> Mapping[str, float]:
        return {"bytes": _run(kind, _COUNTS[kind]) - _run(kind, _COUNTS[kind] // _PART)}

    lacks = "" if Path("/proc/self/smaps").exists() else "this system does not tell the memory of a process"
    return Function(f"{kind}, {_PROCESSES} processes (gloo)", run, lacks=lacks)


def _own_bytes(kind: str) -> Function:
    def run(pair: int) -> Mapping[str, float]:
        return {"bytes": float((_COUNTS[kind] - _COUNTS[kind] // _PART) * _PIXELS[kind])}

    return Function(f"the images of {kind} as uint8", run)


BENCHMARK = Benchmark(
    id="P12",
    what="memory of resident data and augmentation on a machine, all ranks together",
    against="the data set's own bytes as uint8",
    goal="at most 1.1 times, plus a batch for each rank",
    rows=tuple(
        Row(name, _ours(kind), _own_bytes(kind), Goal(LARGER, 1.1), warm_up=False)
        for name, kind in (("files that are mapped", "FashionMNIST"), ("files that are decoded", "CIFAR10"))
    ),
    threads=1,
)

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=list(_COUNTS))
    parser.add_argument("root")
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    train(given.kind, given.root, given.out)
