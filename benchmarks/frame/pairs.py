"""Running the two sides of a row in turn: A B, B A, A B, …"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.frame.machine import children_busy, machine_busy, wait_for_quiet
from benchmarks.frame.rows import Row, Side
from benchmarks.frame.store import Record, Results

TOLERATED = 0.1
"""Foreign CPU time that a run stands, as a part of its own."""
RESOLUTION = 0.02
"""Foreign CPU seconds below which nothing is said: the system counts in hundredths."""


@dataclass(frozen=True)
class Run:
    """One measured run.

    Args:
        wall: Seconds each time.
        cpu: CPU seconds each time, of all processes together.
        own: CPU seconds that the whole run used, with the frame's.
        foreign: CPU seconds that others used meanwhile; none where the system does not say.
        figures: What the side measured itself, averaged.
    """

    wall: float
    cpu: float
    own: float
    foreign: float | None
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def void(self) -> bool:
        return self.foreign is not None and self.foreign > TOLERATED * self.own + RESOLUTION


def measure(side: Side, pair: int) -> Run:
    """Run a side once, and measure it."""
    machine, own, children, start = machine_busy(), time.process_time(), children_busy(), time.perf_counter()
    reported = [side.run(pair) for _ in range(side.repeat)]
    wall = time.perf_counter() - start
    own, children, after = time.process_time() - own, children_busy() - children, machine_busy()
    foreign = None if machine is None or after is None else max(0.0, after - machine - own - children)
    figures = {name: sum(one[name] for one in reported) / side.repeat for name in reported[0]}
    return Run(
        wall=figures.pop("wall", wall / side.repeat),
        cpu=figures.pop("cpu", (children + own * side.in_process) / side.repeat),
        own=own + children,
        foreign=foreign,
        figures=figures,
    )


def order(row: Row, pair: int) -> list[tuple[str, Side]]:
    """Return the sides of a pair, by their role, in the order in which they are run."""
    sides = [("ours", row.ours), ("against", row.against)]
    limit = [("limit", row.limit)] if row.limit and not row.limit.absent else []
    return (sides[::-1] if pair % 2 else sides) + limit


def run_pairs(
    rows: Sequence[Row],
    results: Results,
    pairs: int,
    *,
    tries: int = 5,
    measure: Callable[[Side, int], Run] = measure,
    wait: Callable[[], None] = wait_for_quiet,
    unchanged: Callable[[], bool] = lambda: True,
    tell: Callable[[str], None] = lambda line: None,
) -> None:
    """Run what is still missing of every row, and keep each run as soon as it is done.

    Args:
        rows: Those with an absent side are left out.
        results: Where runs are kept, and those of earlier sittings are found.
        pairs: How many pairs each row shall have.
        tries: How often a run that foreign load makes void is tried, in rows about times. The last one is kept, as void; the
            next sitting tries again.
        measure: Runs a side.
        wait: Called before a run is tried again.
        unchanged: Whether the code is still that of the results; a run after which it is not is dropped, and the last.
        tell: Takes a line about each run.
    """
    for row in rows:
        if row.ours.absent or row.against.absent:
            continue
        missing = [
            (pair, role, side)
            for pair in range(pairs)
            for role, side in order(row, pair)
            if results.find(row.name, role, side, pair) is None
        ]
        if missing and row.warm_up:
            for _, side in order(row, 0):
                side.run(0)
        for pair, role, side in missing:
            is_timed = not row.goal.measure.figure  # foreign load changes times, and nothing else
            run, tried = _tried(side, pair, tries, measure, wait, tell) if is_timed else (measure(side, pair), 1)
            if not unchanged():
                tell("the code has changed since this sitting began: the same command begins anew")
                return
            record = Record(
                row=row.name,
                role=role,
                label=side.label,
                pair=pair,
                machine=results.machine_key,
                wall=run.wall,
                cpu=run.cpu,
                foreign=run.foreign,
                void=run.void and is_timed,
                tries=tried,
                repeat=side.repeat,
                figures=dict(run.figures),
            )
            results.add(record)
            void = ", void" if record.void else ""
            tell(f"{row.name}, pair {pair + 1} of {pairs}: {side.label}: {run.wall:.3f} s{void}")


def _tried(
    side: Side,
    pair: int,
    tries: int,
    measure: Callable[[Side, int], Run],
    wait: Callable[[], None],
    tell: Callable[[str], None],
) -> tuple[Run, int]:
    run = measure(side, pair)
    for tried in range(1, tries):
        if not run.void:
            return run, tried
        tell(f"void: {side.label}: others used {run.foreign:.2f} s of CPU time, the run itself {run.own:.2f} s; again")
        wait()
        run = measure(side, pair)
    return run, tries
