"""Test accuracy and seconds of a config over seeds, each run in a process and a directory of its own.

Usage: python -m benchmarks.accuracy configs/quickstart.yaml [--seeds 5] [--least 0.985] [--seconds 60] [--root DIR]

Finished seeds are kept in the JSON file, and the same command continues after them, as long as config and torch are the same:
another torch computes other bits, and its seeds are other draws. The mean stands with its 95% interval (Student's t). Exits 1
if the mean accuracy is below ``--least``, or the median time above ``--seconds``.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from benchmarks.frame.machine import describe_machine, usable_cores


@contextmanager
def run_of(configs: Sequence[Path], seed: int, root: str | None = None) -> Iterator[tuple[Path, float]]:
    """Run ``cnnopt fit`` in a process and a directory of its own, and give that directory and the seconds, start-up included.

    Args:
        configs: Laid over each other; the first one has ``test_after_fit``.
        seed: The run's seed.
        root: Folder of the data set's files, for data modules that have any.
    """
    command = [sys.executable, "-m", "lightning_cnnopt", "fit"]
    command += [word for config in configs for word in ("--config", str(config.resolve()))]
    command += ["--name", "measured", "--seed_everything", str(seed), "--trainer.enable_progress_bar", "false"]
    command += [] if root is None else ["--data.root", str(Path(root).resolve())]
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        yield Path(folder) / "runs" / "measured" / "version_0", time.perf_counter() - begin


def measure(config: Path, seed: int, root: str | None = None) -> dict[str, float]:
    """Run one seed of a config and return its test accuracy and its seconds; see :func:`run_of`."""
    with run_of([config], seed, root) as (directory, seconds), (directory / "metrics.csv").open() as stream:
        accuracy = [float(row["test_acc"]) for row in csv.DictReader(stream) if row.get("test_acc")][-1]
    return {"seed": seed, "test_acc": round(accuracy, 6), "seconds": round(seconds, 1)}


def summarize(accuracies: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Return the mean and its 95% interval; of one run, the interval is that run.

    Example:
        >>> summarize([0.9, 0.92, 0.91])
        (0.91, (0.885159, 0.934841))
    """
    mean = statistics.mean(accuracies)
    if len(accuracies) == 1:
        return mean, (mean, mean)
    half = float(student.ppf(0.975, len(accuracies) - 1)) * statistics.stdev(accuracies) / len(accuracies) ** 0.5
    return round(mean, 6), (round(mean - half, 6), round(mean + half, 6))


def main() -> int:
    """Run the seeds that are missing, print each, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--least", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--root")
    parser.add_argument("--out", type=Path, help="by default benchmarks/results/accuracy_NAME.json; - for none")
    arguments = parser.parse_args()
    out = arguments.out or Path(__file__).parent / "results" / f"accuracy_{arguments.config.stem}.json"
    keep = str(out) != "-"
    content: dict[str, Any] = {
        "command": f"python -m benchmarks.accuracy configs/{arguments.config.name} --seeds {arguments.seeds}",
        "config": arguments.config.read_text(),
        "machine": describe_machine(threads=usable_cores()),
        "runs": [],
    }
    if keep and out.exists():
        before = json.loads(out.read_text())
        if before["config"] == content["config"] and before["machine"]["torch"] == content["machine"]["torch"]:
            content["runs"] = before["runs"]
    for seed in range(arguments.seeds):
        if any(run["seed"] == seed for run in content["runs"]):
            continue
        content["runs"].append(measure(arguments.config, seed, arguments.root))
        run = content["runs"][-1]
        print(f"seed {seed}: test accuracy {run['test_acc']:.4f}, {run['seconds']:.1f} s with start-up", flush=True)
        content["mean_test_acc"], content["interval"] = summarize([run["test_acc"] for run in content["runs"]])
        if keep:
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(content, indent=1) + "\n")
    mean, (low, high) = summarize([run["test_acc"] for run in content["runs"]])
    median = statistics.median(run["seconds"] for run in content["runs"])
    print(
        f"{arguments.config.name}: mean test accuracy {mean:.4f} ({low:.4f} to {high:.4f}) over {len(content['runs'])} seeds, "
        f"median {median:.1f} s"
    )
    return 0 if mean >= arguments.least and median <= arguments.seconds else 1


if __name__ == "__main__":
    sys.exit(main())
