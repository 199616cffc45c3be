"""Runs the quickstart with several seeds and fails if it is slower or less accurate than the README says.

Usage: python tests/check_quickstart.py [--seeds 5]
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

QUICKSTART = Path(__file__).parent.parent / "configs" / "quickstart.yaml"
ACCURACY, SECONDS = 0.985, 60.0


def measure(seed: int, folder: Path) -> dict[str, float]:
    """Run one seed in a folder of its own and return test accuracy and seconds, start-up included."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "lightning_cnnopt", "fit", "--config", str(QUICKSTART), "--seed_everything", str(seed)]
    subprocess.run([*command, "--trainer.enable_progress_bar", "false"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - begin
    with (folder / "runs" / "quickstart" / "version_0" / "metrics.csv").open() as stream:
        accuracy = [float(row["test_acc"]) for row in csv.DictReader(stream) if row.get("test_acc")][-1]
    return {"seed": seed, "test_acc": accuracy, "seconds": seconds}


def main() -> int:
    """Run all seeds and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", help="Write the figures to this JSON file as well.")
    arguments = parser.parse_args()
    runs = []
    for seed in range(arguments.seeds):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(measure(seed, Path(folder)))
        print(f"seed {seed}: test accuracy {runs[-1]['test_acc']:.4f} in {runs[-1]['seconds']:.1f} s with start-up", flush=True)
    mean = sum(run["test_acc"] for run in runs) / len(runs)
    slowest = max(run["seconds"] for run in runs)
    print(f"mean {mean:.4f} (at least {ACCURACY}), slowest {slowest:.1f} s (at most {SECONDS:.0f})")
    if arguments.out:
        figures = {"command": "python tests/check_quickstart.py", "cores": os.cpu_count(), "mean_test_acc": mean, "runs": runs}
        Path(arguments.out).write_text(json.dumps(figures, indent=1) + "\n")
    return 0 if mean >= ACCURACY and slowest <= SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
