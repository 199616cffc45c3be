"""What a range test leaves behind for people: its points, a picture, and the lines of YAML that use it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lightning_cnnopt.analysis.plots import plot_range_test, save_figure
from lightning_cnnopt.learning_rate import RangeTest

_WHY = {
    "steepest": "where the loss falls fastest",
    "valley": "the middle of the longest descent",
    "minimum": "a tenth of where the loss is least",
}


def write_range_test(
    result: RangeTest, directory: str | Path, model: Mapping[str, Any] | None = None, origin: str = "cnnopt lr_find"
) -> str:
    """Write ``lr_find.csv``, ``lr_find.png`` and ``lr.yaml``, and return what is to be said of them, as text.

    Args:
        result: Of a range test.
        directory: Where to write; made if it is not there.
        model: The config that the test was made with, ``{class_path, init_args}``; without it, or where it has no place for a
            rate, there is no ``lr.yaml``.
        origin: What made the test, for the first line of ``lr.yaml``.

    Example:
        >>> import tempfile
        >>> rates, losses = [1e-4, 1e-3, 1e-2, 1e-1, 1.0], [2.0, 1.8, 1.2, 1.0, 3.0]
        >>> result = RangeTest(rates, losses, losses, True, steepest=1e-3, valley=2e-3, minimum=1e-2)
        >>> model = {"class_path": "mine.Module", "init_args": {"lr": 0.1}}
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     text = write_range_test(result, directory, model)
        >>> print(text.splitlines()[0])
        Loss over 5 steps, at rates from 0.0001 to 1, where it diverged:
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["lr", "loss", "smoothed_loss"])
    writer.writerows(zip(result.rates, result.losses, result.smoothed, strict=True))
    (directory / "lr_find.csv").write_text(table.getvalue(), encoding="utf-8")
    save_figure(plot_range_test(result, "range test"), directory / "lr_find.png")
    steps, ended = len(result.rates), ", where it diverged" if result.diverged else ""
    lines = [f"Loss over {steps} steps, at rates from {result.rates[0]:.3g} to {result.rates[-1]:.3g}{ended}:"]
    for name, rate in result.suggestions.items():
        chosen = "   <- recommended: noise of single batches moves it least" if rate == result.recommended else ""
        lines.append(f"  {name:9}{rate:<10.3g}{_WHY[name]}{chosen}")
    if result.remark:
        lines.append(result.remark)
    overlay = None if result.recommended is None or model is None else rate_overlay(model, result.recommended)
    if overlay is not None:
        text = yaml.safe_dump(overlay, sort_keys=False)
        path = directory / "lr.yaml"
        others = ", ".join(f"{name} {rate:.3g}" for name, rate in result.suggestions.items() if rate != result.recommended)
        path.write_text(f"# The learning rate that {origin} recommends (valley); {others}.\n{text}", encoding="utf-8")
        lines += ["", f"To use it, add `-c {path}` behind the other configs, or these lines:", text.rstrip()]
    elif result.recommended is not None:
        lines += ["", "The model's config has no optimizer, lr or learning_rate, so where the rate goes is for you to say."]
    files = [name for name in ("lr_find.png", "lr_find.csv", "lr.yaml") if (directory / name).exists()]
    return "\n".join([*lines, "", f"Written to {directory}: {', '.join(files)}."])


def rate_overlay(model: Mapping[str, Any], rate: float) -> dict[str, Any] | None:
    """Return the config to be laid over another one that gives its optimizer a rate, of three digits.

    It is the argument ``optimizer`` of the model that is given its ``lr``, or else its argument ``lr`` or ``learning_rate``.

    Args:
        model: The model of the config as ``{class_path, init_args}``.
        rate: The learning rate.

    Returns:
        The overlay, or ``None`` if the model has no such argument.

    Example:
        >>> rate_overlay({"class_path": "mine.Module", "init_args": {"lr": 0.1}}, 0.012345)
        {'model': {'init_args': {'lr': 0.0123}}}
    """
    arguments, rounded = model.get("init_args") or {}, float(f"{rate:.3g}")
    optimizer = arguments.get("optimizer")
    if isinstance(optimizer, Mapping) and "class_path" in optimizer:
        # by its class, too: the same one keeps its other arguments, and a config that names none gets the default one's rate
        changed: dict[str, Any] = {"optimizer": {"class_path": optimizer["class_path"], "init_args": {"lr": rounded}}}
    elif name := next((name for name in ("lr", "learning_rate") if name in arguments), None):
        changed = {name: rounded}
    else:
        return None
    return {"model": {"init_args": changed}}
