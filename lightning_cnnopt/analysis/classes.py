"""How well each class is recognized, and how well the common ones and the rare ones."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

_GROUPS = {"many": "many: commonest third", "medium": "medium: next third", "few": "few: rarest third"}
_SHOWN = 20  # lines of a table that is still read


@dataclass(frozen=True)
class ClassResult:
    """How well one class is recognized."""

    name: str
    train_samples: int | None
    """Its training samples, where they are known."""
    samples: int
    """Its samples in the split that was evaluated."""
    recall: float
    """Share of its samples that were recognized: the accuracy of this class. NaN without samples."""
    precision: float
    """Share of it among what was taken for it; 0 where nothing was."""
    f1: float
    """2 · recall · precision / (recall + precision); 0 where both are."""


@dataclass(frozen=True)
class ClassReport:
    """Recall, precision and F1 of each class. Made by :func:`class_report`."""

    classes: list[ClassResult]
    """In the order of the class numbers."""

    def groups(self) -> dict[str, float]:
        """Return the mean recall of the commonest third of the classes, the next and the rarest one.

        They are ``many``, ``medium`` and ``few``, by training samples; where the number of classes is no multiple of three, the
        first ones have one class more. Empty where training samples are not known, or the same for all classes. Classes without
        samples to evaluate don't count.
        """
        counts = [result.train_samples for result in self.classes]
        known = [count for count in counts if count is not None]
        if len(known) < len(counts) or len(set(known)) == 1 or len(known) < 3:
            return {}
        order = sorted(range(len(known)), key=lambda label: -known[label])
        thirds = torch.tensor(order).tensor_split(3)
        return {
            name: _mean([self.classes[int(label)].recall for label in third])
            for name, third in zip(("many", "medium", "few"), thirds, strict=True)
        }

    def macro(self) -> dict[str, float]:
        """Return the means of recall, precision and F1 over the classes that have samples."""
        present = [result for result in self.classes if result.samples]
        return {name: _mean([getattr(result, name) for result in present]) for name in ("recall", "precision", "f1")}

    def table(self, title: str = "") -> str:
        """Return the table to be read: of more than twenty classes those of the lowest recall, and the means."""
        shown = self.classes
        if len(shown) > _SHOWN:
            shown = sorted((one for one in shown if one.samples), key=lambda result: result.recall)[:_SHOWN]
            title += f" ({len(shown)} of {len(self.classes)} classes, those of the lowest recall)"
        table = Table(title=title or None)
        for index, name in enumerate(("class", "trained on", "samples", "recall", "precision", "F1")):
            table.add_column(name, justify="right" if index else "left", no_wrap=True)
        for result in shown:
            table.add_row(
                escape(result.name),
                "-" if result.train_samples is None else f"{result.train_samples:,}",
                f"{result.samples:,}",
                *(f"{value:.4f}" for value in (result.recall, result.precision, result.f1)),
            )
        table.add_section()
        table.add_row("mean", "", "", *(f"{value:.4f}" for value in self.macro().values()))
        for name, value in self.groups().items():
            table.add_row(_GROUPS[name], "", "", f"{value:.4f}", "", "")
        console = Console(file=io.StringIO(), width=max(100, 70 + max((len(one.name) for one in shown), default=0)))
        console.print(table)
        return str(console.file.getvalue())  # type: ignore[attr-defined]

    def write_csv(self, path: str | Path) -> Path:
        """Write a line per class, in the order of the class numbers, with the fields of :class:`ClassResult`."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, [field.name for field in fields(ClassResult)])
            writer.writeheader()
            for result in self.classes:
                rounded = {name: round(getattr(result, name), 6) for name in ("recall", "precision", "f1")}
                writer.writerow({**asdict(result), **rounded})
        return path


def class_report(
    confusion: Tensor, class_names: Sequence[str] | None = None, train_samples: Sequence[int] | None = None
) -> ClassReport:
    """Return how well each class is recognized.

    Args:
        confusion: (C, C), how many images of each class (rows) were taken for which (columns).
        class_names: Names of the classes; by default their numbers.
        train_samples: Training samples of each class, where they are known.

    Example:
        >>> report = class_report(torch.tensor([[9, 1], [5, 5]]), ["cat", "dog"], [90, 10])
        >>> [(result.name, result.recall) for result in report.classes]
        [('cat', 0.9), ('dog', 0.5)]
    """
    count = len(confusion)
    names = list(class_names) if class_names is not None else [str(label) for label in range(count)]
    right, of_class, taken = (
        [int(value) for value in values] for values in (confusion.diag(), confusion.sum(1), confusion.sum(0))
    )
    return ClassReport(
        [
            ClassResult(
                names[label],
                None if train_samples is None else int(train_samples[label]),
                of_class[label],
                right[label] / of_class[label] if of_class[label] else math.nan,
                right[label] / taken[label] if taken[label] else 0.0,
                2 * right[label] / (of_class[label] + taken[label]) if of_class[label] + taken[label] else 0.0,
            )
            for label in range(count)
        ]
    )


def _mean(values: Sequence[float]) -> float:
    present = [value for value in values if not math.isnan(value)]
    return sum(present) / len(present) if present else math.nan
