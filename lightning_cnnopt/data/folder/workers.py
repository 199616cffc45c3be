"""Work on parts of a list of files in worker processes, results in order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_cnnopt.core.errors import DataError
from lightning_cnnopt.data.decoding import OnBroken

T = TypeVar("T")


class Problem(NamedTuple):
    """Why a file could not be used.

    Args:
        place: In the list.
        reason: What is wrong, with its path.
        broken: Whether the file itself is; otherwise the system did not hand it out.
    """

    place: int
    reason: str
    broken: bool


def attempt(call: Callable[[Path], T], path: Path, index: int) -> T | Problem:
    """Return what ``call`` makes of a file, or what is wrong with it: exceptions lose their shape between processes."""
    try:
        return call(path)
    except DataError as error:
        return Problem(index, str(error), True)
    except OSError as error:
        return Problem(index, f"{path} can't be read: {error.strerror or error}.", False)


def check_problem(problem: Problem, on_broken: OnBroken) -> None:
    """Raise unless the problem is a broken file that is to be skipped.

    Raises:
        DataError: Naming the file and the remedy.
    """
    if not problem.broken:
        raise DataError(f"ImageFolder: {problem.reason}")
    if on_broken == "raise":
        raise DataError(f"ImageFolder: {problem.reason} Mend or remove it, or leave broken images out with on_broken='skip'.")


def parts_of(count: int, part: int) -> list[list[int]]:
    """Return the numbers below ``count`` in parts."""
    return [list(range(begin, min(begin + part, count))) for begin in range(0, count, part)]


def in_workers(call: Callable[[list[int]], T], parts: Sequence[Any], workers: int, doing: str | None = None) -> Iterator[T]:
    """Yield ``call(part)`` of each part, in order, worked out ahead in processes of their own.

    Args:
        call: Takes the numbers of a part; picklable where processes are not forked.
        parts: Of the work: numbers as lists or tensors.
        workers: At most how many processes; with 0, or a single part, the work is done in this one.
        doing: What a progress bar says, in a terminal; by default there is none.
    """
    loader = DataLoader(
        _Task(call),
        batch_sampler=(part.tolist() if isinstance(part, Tensor) else part for part in parts),
        num_workers=min(workers, len(parts)) if len(parts) > 1 else 0,
        collate_fn=_unchanged,
        generator=torch.Generator(),  # else it would draw a seed for its workers from the run's own generator
    )
    if doing is None:
        yield from loader
        return
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(doing, total=sum(len(part) for part in parts))
        for part, result in zip(parts, loader, strict=True):
            progress.advance(task, len(part))
            yield result


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Task(Dataset):
    def __init__(self, call: Callable[[list[int]], Any]) -> None:
        self.call = call

    def __getitems__(self, index: list[int]) -> Any:
        return self.call(index)


def _unchanged(value: T) -> T:
    return value
