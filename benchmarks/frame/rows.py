"""What a benchmark states: its rows, the two sides of each, and the goal."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol


class Side(Protocol):
    """One side of a row: something that can be run again and again.

    Attributes:
        label: How it is called in tables and files.
        repeat: How often it is done in one run, whose times are divided by it.
        absent: Why it can't be run here; empty if it can.
        in_process: Whether it runs in this process, whose own CPU time is then part of it.
    """

    @property
    def label(self) -> str: ...
    @property
    def repeat(self) -> int: ...
    @property
    def absent(self) -> str: ...
    @property
    def in_process(self) -> bool: ...
    def run(self, pair: int) -> Mapping[str, float]: ...


@dataclass(frozen=True)
class Command:
    """A side that is a command, written as one types it.

    Args:
        label: The command. ``python`` is the interpreter that runs the benchmark; other programs are looked up beside
            it, then on the path. So files and tables name no place of this machine.
        repeat: How often it is started in one run.
    """

    label: str
    repeat: int = 1
    in_process: bool = field(default=False, init=False)

    @property
    def absent(self) -> str:
        program = shlex.split(self.label)[0]
        return "" if _find_program(program) else f"{program} is not installed"

    def run(self, pair: int) -> Mapping[str, float]:
        """Run the command once, and raise if it fails."""
        program, *rest = shlex.split(self.label)
        done = subprocess.run(
            [_find_program(program) or program, *rest],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"`{self.label}` left with status {done.returncode}:\n{done.stderr[-2000:]}")
        return {}


@dataclass(frozen=True)
class Function:
    """A side that is called in this process.

    Args:
        label: How it is called in tables and files.
        call: Takes the number of the pair, which can serve as a seed, and returns the figures it measured itself, if
            any. They are kept with the run; ``wall`` and ``cpu`` among them, in seconds, replace the frame's.
        repeat: How often it is called in one run.
        needs: Modules without which it can't be run; its row is then left out.
        lacks: Why a peer has no such operation; its row is then left out.
    """

    label: str
    call: Callable[[int], Mapping[str, float] | None]
    repeat: int = 1
    needs: tuple[str, ...] = ()
    lacks: str = ""
    in_process: bool = field(default=True, init=False)

    @property
    def absent(self) -> str:
        missing = [name for name in self.needs if importlib.util.find_spec(name) is None]
        return self.lacks or (f"{', '.join(missing)} not installed" if missing else "")

    def run(self, pair: int) -> Mapping[str, float]:
        """Call it once."""
        return self.call(pair) or {}


@dataclass(frozen=True)
class Measure:
    """How the times of two sides become one figure.

    Args:
        words: What stands behind the figure.
        of: Takes our seconds and those of the other side.
        smaller_is_better: Whether a goal is an upper bound.
        in_seconds: Whether the figure is a time, not a ratio.
        figure: Name of the figure that the sides report, in bytes, where it is not about their times.
    """

    words: str
    of: Callable[[float, float], float]
    smaller_is_better: bool
    in_seconds: bool = False
    figure: str = ""


LONGER = Measure("times as long", lambda ours, against: ours / against, True)
FASTER = Measure("times as fast", lambda ours, against: against / ours, False)
MORE = Measure("s more", lambda ours, against: ours - against, True, in_seconds=True)

LARGER = Measure("times as much memory", lambda ours, against: ours / against, True, figure="bytes")


@dataclass(frozen=True)
class Goal:
    """A figure and what it should come to; without a bound it only tells how large something is.

    Example:
        >>> Goal(LONGER, 1.15).words, Goal(LONGER, 1.15).verdict(1.1, 1.2)
        ('at most 1.15 times as long', None)
    """

    measure: Measure
    bound: float | None = None

    @property
    def words(self) -> str:
        if self.bound is None:
            return "none"
        return f"at {'most' if self.measure.smaller_is_better else 'least'} {self.bound:g} {self.measure.words}"

    def verdict(self, low: float, high: float) -> bool | None:
        """Whether the whole interval meets the goal (true), none of it (false), or a part (none)."""
        if self.bound is None:
            return None
        met = [end <= self.bound if self.measure.smaller_is_better else end >= self.bound for end in (low, high)]
        return met[0] if met[0] == met[1] else None


@dataclass(frozen=True)
class Row:
    """Two sides, run in turn.

    Args:
        name: Names the row in the file.
        ours: The side that the goal is about.
        against: The side it is held against.
        goal: The figure and its bound.
        limit: What the machine itself can do, such as a copy, measured once in each pair and told next to the figure.
        warm_up: Run both sides once, unmeasured, before the first pair of a sitting.
    """

    name: str
    ours: Side
    against: Side
    goal: Goal
    limit: Side | None = None
    warm_up: bool = True


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: its rows, and what the list of benchmarks says of it.

    Args:
        id: Its id in the table of ratios.
        what: What is measured.
        against: What it is held against.
        goal: In words.
        rows: In the order of the table.
        pairs: How many pairs a row has, 5 or more.
        threads: For both sides alike; by default as many as there are cores to use.
        packages: Distributions whose versions belong to the result, beside torch, lightning and this project's own.
    """

    id: str
    what: str
    against: str
    goal: str
    rows: tuple[Row, ...]
    pairs: int = 5
    threads: int | None = None
    packages: tuple[str, ...] = ()


def _find_program(program: str) -> str | None:
    if program == "python":
        return sys.executable
    return shutil.which(program, path=sysconfig.get_path("scripts")) or shutil.which(program)
