"""Which images there are, and what each shows: from a table."""

from __future__ import annotations

import csv
import os
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lightning_cnnopt.core.errors import ConfigurationError, DataError
from lightning_cnnopt.data.folder.listing import SPLITS, Files, Listing, check_classes, check_folder

_OWN = ("file", "label", "split")


@dataclass(frozen=True)
class _Row:
    file: str
    split: str
    cells: list[str]
    line: int


def list_table(root: Path, table: Path, task: str, separator: str | None = None) -> Listing:
    """List the files of a CSV table with the columns ``file``, ``label`` and, optionally, ``split``.

    For a multilabel task there is either a column of zeros and ones for each label in place of ``label``, or labels stand in
    that column with a separator between them; an empty cell is an image without labels.

    Args:
        root: The folder that files are relative to.
        table: The CSV file, with a header, UTF-8.
        task: What kind of targets there are.
        separator: Between the labels of a cell.

    Returns:
        Files in the order of their names. Classes are in the order of their names, those that are all whole numbers in that
        of the numbers; labels with a column each in the order of the columns.

    Raises:
        DataError: If the table is missing, has other columns, a wrong value or a file twice, naming the line.
        ConfigurationError: If the task needs a separator, or can't use one.
    """
    check_folder(root)
    if separator is not None and task != "multilabel":
        raise ConfigurationError(f"ImageFolder: separator={separator!r} is for task='multilabel'; this one is {task!r}.")
    columns, rows = _read(root, table, task)
    parts = {split: sorted((row for row in rows if row.split == split), key=lambda row: row.file) for split in SPLITS}
    if not parts["train"]:
        raise DataError(f"ImageFolder: {table} lists no image of the split 'train'.")
    if "label" not in columns:
        classes = [name for name in columns if name not in _OWN]
        targets = {split: _flags(part, table) for split, part in parts.items()}
    else:
        if task == "multilabel" and separator is None:
            raise ConfigurationError(
                f"ImageFolder: the column 'label' of {table} holds all labels of an image; give the separator between them, "
                "such as separator=';', or the table a column of zeros and ones for each label."
            )
        found = {split: [_labels(row, table, separator) for row in part] for split, part in parts.items()}
        classes = _ordered({label for labels in found["train"] for label in labels})
        for split, several in found.items():
            check_classes(
                sorted({label for labels in several for label in labels}),
                None if split == "train" else classes,
                f"the split {split!r} of {table}",
            )
        targets = {split: _numbers(several, classes, task) for split, several in found.items()}
    splits = {split: Files(root, [row.file for row in part], targets[split]) for split, part in parts.items() if part}
    return Listing(classes, splits)


def _read(root: Path, table: Path, task: str) -> tuple[list[str], list[_Row]]:
    content = _content(table)
    columns = content[0][1] if content else []
    labelled = "label" in columns or (task == "multilabel" and len(set(columns) - set(_OWN)) > 0)
    if "file" not in columns or not labelled or len(set(columns)) < len(columns):
        more = ", or one of zeros and ones for each label in place of label" if task == "multilabel" else ""
        raise DataError(f"ImageFolder: {table} has the columns {columns}; expected file, label and perhaps split{more}.")
    cells = (
        [columns.index(name) for name in columns if name not in _OWN] if "label" not in columns else [columns.index("label")]
    )
    rows = []
    for line, row in content[1:]:
        if len(row) != len(columns):
            raise DataError(f"ImageFolder: line {line} of {table} has {len(row)} cells; expected {len(columns)}.")
        split = row[columns.index("split")] if "split" in columns else "train"
        if split not in SPLITS:
            raise DataError(
                f"ImageFolder: line {line} of {table} has the split {split!r}; expected one of {', '.join(SPLITS)}."
            )
        rows.append(_Row(row[columns.index("file")], split, [row[cell] for cell in cells], line))
    _check_files(rows, root, table)
    leading = [posixpath.normpath(row.file).partition("/")[0] for row in rows]
    if "split" not in columns and "train" in leading and set(leading) <= set(SPLITS):
        rows = [_Row(row.file, split, row.cells, row.line) for row, split in zip(rows, leading, strict=True)]
    return columns, rows


def _content(table: Path) -> list[tuple[int, list[str]]]:
    """Return the rows of a table, each with the number of its line."""
    if not table.is_file():
        raise DataError(f"ImageFolder: labels={str(table)!r} is missing.")
    content, line = list[tuple[int, list[str]]](), 1
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            for row in reader:
                if any("\n" in cell or "\r" in cell for cell in row):  # as rows look that a missing quotation mark joins
                    raise csv.Error("a cell goes on in the next line")
                if row:
                    content.append((line, [cell.strip() for cell in row]))
                line = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise DataError(f"ImageFolder: {table} is no CSV table in UTF-8: {error}.") from error
    except csv.Error as error:
        raise DataError(
            f'ImageFolder: line {line} of {table} is no row of a CSV table: {error}. Look for a quotation mark (") without '
            "another one."
        ) from error
    return content


def _check_files(rows: Sequence[_Row], root: Path, table: Path) -> None:
    top = os.path.abspath(root)
    first: dict[str, _Row] = {}
    for row in rows:
        if not row.file:
            raise DataError(f"ImageFolder: line {row.line} of {table} names no file.")
        before = first.setdefault(os.path.normpath(os.path.join(top, row.file)), row)
        if before is not row:
            spelled = "" if before.file == row.file else f" (as {before.file!r})"
            raise DataError(f"ImageFolder: {table} lists {row.file!r} twice, in lines {before.line}{spelled} and {row.line}.")


def _labels(row: _Row, table: Path, separator: str | None) -> list[str]:
    if separator is not None:
        return [label for part in row.cells[0].split(separator) if (label := part.strip())]
    if not row.cells[0]:
        raise DataError(f"ImageFolder: line {row.line} of {table} has no label.")
    return row.cells


def _flags(rows: Sequence[_Row], table: Path) -> Tensor:
    for row in rows:
        if wrong := [cell for cell in row.cells if cell not in ("0", "1")]:
            raise DataError(
                f"ImageFolder: line {row.line} of {table} has {wrong[0]!r} in the column of a label; expected 0 or 1."
            )
    return torch.tensor([[float(cell) for cell in row.cells] for row in rows])


def _ordered(names: set[str]) -> list[str]:
    if all(name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))  # '1' and '01' are two classes, in the same order in each run
    return sorted(names)


def _numbers(several: Sequence[Sequence[str]], classes: Sequence[str], task: str) -> Tensor:
    numbers = {name: number for number, name in enumerate(classes)}
    if task != "multilabel":
        return torch.tensor([numbers[labels[0]] for labels in several])
    targets = torch.zeros(len(several), len(classes))
    for row, labels in enumerate(several):
        targets[row, [numbers[label] for label in labels]] = 1
    return targets
