"""What the techniques of imbalance/ do for the rare classes of a long-tailed set, over paired seeds.

Usage: python -m benchmarks.long_tail [--seeds 5] [--root DIR]

Fashion-MNIST is made long-tailed, 100 to 1 (configs/long_tail.yaml); training alone, the test is balanced. Each technique is
its overlay of configs/imbalance/ as it stands: nothing was tuned for it. A difference to plain training is that of the same
seed, so of the same split, weights and order of samples as far as the technique leaves them; it stands with its 95% interval
(Student's t). Finished runs are kept in the JSON file, and the same command continues after them. Exits 0 whatever the figures.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.accuracy import run_of, summarize
from benchmarks.frame.machine import describe_machine, usable_cores

ROOT = Path(__file__).parent.parent
BASE = "configs/long_tail.yaml"
VARIANTS: dict[str, str | None] = {
    "plain": None,
    "class weights, effective": "configs/imbalance/effective_weights.yaml",
    "balanced sampling": "configs/imbalance/balanced_sampling.yaml",
    "focal loss": "configs/imbalance/focal_loss.yaml",
    "logit adjustment": "configs/imbalance/logit_adjustment.yaml",
    "LDAM, deferred weights": "configs/imbalance/ldam.yaml",
}
OUT = Path(__file__).parent / "results" / "long_tail.json"


def measure(overlay: str | None, seed: int, root: str | None) -> dict[str, Any]:
    """Train one variant with one seed, and return what its test says of the classes.

    Args:
        overlay: Laid over the base config.
        seed: The run's seed.
        root: Folder of Fashion-MNIST's files.
    """
    configs = [ROOT / BASE, *([] if overlay is None else [ROOT / overlay])]
    with run_of(configs, seed, root) as (directory, seconds), (directory / "classes_test.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    by_count = sorted(rows, key=lambda row: int(row["train_samples"]))
    rarest = by_count[: len(rows) // 3]
    return {
        "seed": seed,
        "rarest_third": round(statistics.mean(float(row["recall"]) for row in rarest), 6),
        "all_classes": round(statistics.mean(float(row["recall"]) for row in rows), 6),
        "seconds": round(seconds, 1),
    }


def report(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return means and paired differences to plain training of each variant that has runs.

    Example:
        >>> runs = {"plain": [{"seed": 0, "rarest_third": 0.5, "all_classes": 0.8}]}
        >>> report(runs)["plain"]["rarest_third"]["mean"]
        0.5
    """
    plain = {run["seed"]: run for run in runs.get("plain", [])}
    summary: dict[str, Any] = {}
    for name, finished in runs.items():
        if not finished:
            continue
        summary[name] = {"seeds": len(finished)}
        for what in ("rarest_third", "all_classes"):
            gains = [run[what] - plain[run["seed"]][what] for run in finished if run["seed"] in plain]
            gain, interval = summarize(gains) if gains else (None, None)
            mean = round(statistics.mean(run[what] for run in finished), 6)
            summary[name][what] = {"mean": mean, "gain": gain, "interval": interval}
    return summary


def markdown(summary: dict[str, Any]) -> str:
    """Return the table that docs/imbalance.md shows; a test holds the page to it.

    Example:
        >>> figure = {"mean": 0.9, "gain": 0.02, "interval": [0.01, 0.03]}
        >>> print(markdown({"focal loss": {"seeds": 5, "rarest_third": figure, "all_classes": figure}}).splitlines()[-1])
        | focal loss | 5 | 0.900 | +0.020 (+0.010 to +0.030) | 0.900 | +0.020 (+0.010 to +0.030) |
    """
    lines = ["| | seeds | rarest third | gain | all classes | gain |", "| --- | --- | --- | --- | --- | --- |"]
    for name, figures in summary.items():
        cells = [name, str(figures["seeds"])]
        for what in ("rarest_third", "all_classes"):
            figure = figures[what]
            low, high = figure["interval"]
            gain = "" if name == "plain" else f"{figure['gain']:+.3f} ({low:+.3f} to {high:+.3f})"
            cells += [f"{figure['mean']:.3f}", gain]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    """Run what is missing, print the table, and return 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--root")
    arguments = parser.parse_args()
    content: dict[str, Any] = {
        "command": f"python -m benchmarks.long_tail --seeds {arguments.seeds}",
        "configs": {name: (ROOT / (overlay or BASE)).read_text() for name, overlay in VARIANTS.items()},
        "machine": describe_machine(threads=usable_cores()),
        "runs": {name: [] for name in VARIANTS},
    }
    if OUT.exists():
        before = json.loads(OUT.read_text())
        for name, config in content["configs"].items():
            same = before["configs"]["plain"] == content["configs"]["plain"] and before["configs"].get(name) == config
            if same and before["machine"]["torch"] == content["machine"]["torch"]:
                content["runs"][name] = before["runs"][name]
    for seed in range(arguments.seeds):
        for name, overlay in VARIANTS.items():
            if any(run["seed"] == seed for run in content["runs"][name]):
                continue
            content["runs"][name].append(measure(overlay, seed, arguments.root))
            print(f"{name}: {content['runs'][name][-1]}", flush=True)
            content["summary"] = report(content["runs"])
            OUT.write_text(json.dumps(content, indent=1) + "\n")
    table = Table(
        title=f"Recall on long-tailed Fashion-MNIST; gain over plain training, same seeds ({content['machine']['cpu']})"
    )
    for column in ("", "seeds", "rarest third", "gain, 95%", "all classes", "gain, 95%"):
        table.add_column(column)
    for name, figures in report(content["runs"]).items():
        cells = []
        for what in ("rarest_third", "all_classes"):
            figure = figures[what]
            low, high = figure["interval"]
            cells += [f"{figure['mean']:.4f}", f"{figure['gain']:+.4f} ({low:+.4f} to {high:+.4f})"]
        table.add_row(name, str(figures["seeds"]), *cells)
    Console(width=130).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
