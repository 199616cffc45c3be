"""What the runs come to: figures with intervals, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.frame.rows import Benchmark, Measure, Row, Side
from benchmarks.frame.store import Record, Results

ENOUGH = 5
"""Pairs below which a figure does not count."""


@dataclass(frozen=True)
class Figure:
    """The median over the pairs, and its 95% interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float], resamples: int = 10_000, seed: int = 0) -> Figure:
        """Return the median with the interval of the percentile bootstrap.

        Example:
            >>> Figure.of([2.0, 2.0, 2.0])
            Figure(value=2.0, low=2.0, high=2.0)
        """
        drawn = np.random.default_rng(seed).choice(np.asarray(values), size=(resamples, len(values)))
        low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
        return cls(float(np.median(values)), float(low), float(high))


def tell_met(goal: str, met: bool | None) -> str:
    """Return in a word whether a goal is met; nothing where there is none."""
    return "" if goal == "none" else {True: "yes", False: "no", None: "open"}[met]


def summarize(benchmark: Benchmark, results: Results) -> dict[str, Any]:
    """Return what this machine's runs come to, row by row."""
    return {"machine": results.machine_key, "rows": [_summarize_row(row, results) for row in benchmark.rows]}


def print_table(benchmark: Benchmark, results: Results, console: Console) -> None:
    """Print the machine, and a line each for wall time, CPU time and the limit of every row."""
    table = Table("row", "clock", "ours", "against", "figure", "95% interval", "goal", "met", "pairs")
    for row, summary in zip(benchmark.rows, summarize(benchmark, results)["rows"], strict=True):
        names = (row.name, "", escape(row.ours.label), escape(row.against.label))
        if "left_out" in summary:
            table.add_row(*names, escape(f"left out: {summary['left_out']}"))
            continue
        table.add_row(*names, "", "", row.goal.words)
        measure, void = row.goal.measure, summary["void_runs"]
        pairs = f"{summary['pairs']}{f', {void} void' if void else ''}"
        if not summary["pairs"]:
            table.add_row("", "", "", "", "no valid pair", "", "", "", pairs, end_section=True)
            continue
        met = tell_met(row.goal.words, summary["goal_met"])
        for clock, last in zip(_clocks(measure), ((met, pairs), ("", "")), strict=False):
            table.add_row("", clock, *_cells(summary[clock], "against", measure), "", *last)
        if row.limit is not None:
            limit = summary["limit"]
            cells = _cells(limit, "limit", measure) if "ours" in limit else ("", "", limit["left_out"], "")
            table.add_row("", _clocks(measure)[0], *cells, f"(limit: {escape(row.limit.label)})")
        table.add_section()
    machine = " · ".join(f"{name} {value}" for name, value in results.machine.items() if value)
    console.print(f"{benchmark.id}: {benchmark.what}", escape(machine), table, sep="\n")
    for note in _notes(benchmark, results):
        console.print(f"- {note}")


def _summarize_row(row: Row, results: Results) -> dict[str, Any]:
    summary: dict[str, Any] = {"row": row.name, "ours": row.ours.label, "against": row.against.label}
    summary |= {"measure": row.goal.measure.words, "goal": row.goal.words}
    if absent := row.ours.absent or row.against.absent:
        return {**summary, "left_out": absent}
    pairs = _pairs(row, "against", row.against, results)
    records = [r for role in ("ours", "against") for r in results.of_row(row.name, role, getattr(row, role))]
    summary |= {"pairs": len(pairs), "void_runs": sum(r.void for r in records)}
    if not pairs:
        return summary
    measure = row.goal.measure
    for clock in _clocks(measure):
        summary[clock] = _compare(pairs, "against", measure, clock)
    figure = summary[_clocks(measure)[0]]["figure"]
    summary["goal_met"] = row.goal.verdict(figure["low"], figure["high"])
    if row.limit is not None:
        limits = _pairs(row, "limit", row.limit, results)
        reason = row.limit.absent or "no valid run"
        summary["limit"] = {"label": row.limit.label}
        summary["limit"] |= _compare(limits, "limit", measure, _clocks(measure)[0]) if limits else {"left_out": reason}
    return summary


def _pairs(row: Row, role: str, other: Side, results: Results) -> list[tuple[Record, Record]]:
    """Return the valid runs of ours, each with that of the other side in the same pair."""
    ours = {record.pair: record for record in results.of_row(row.name, "ours", row.ours) if not record.void}
    others = {record.pair: record for record in results.of_row(row.name, role, other) if not record.void}
    return [(ours[pair], others[pair]) for pair in sorted(ours.keys() & others.keys())]


def _compare(pairs: Sequence[tuple[Record, Record]], other: str, measure: Measure, clock: str) -> dict[str, Any]:
    times = [(_value(ours, clock), _value(theirs, clock)) for ours, theirs in pairs]
    return {
        "ours": median(ours for ours, _ in times),
        other: median(theirs for _, theirs in times),
        "figure": asdict(Figure.of([measure.of(*both) for both in times])),
    }


def _clocks(measure: Measure) -> tuple[str, ...]:
    """Return what is compared, the goal's own first."""
    return (measure.figure,) if measure.figure else ("wall", "cpu")


def _value(record: Record, clock: str) -> float:
    return getattr(record, clock) if clock in ("wall", "cpu") else record.figures[clock]


def _cells(compared: dict[str, Any], other: str, measure: Measure) -> tuple[str, str, str, str]:
    show = _seconds if measure.in_seconds else "{:.3f}".format
    figure, low, high = (show(compared["figure"][name]) for name in ("value", "low", "high"))
    unit = _megabytes if measure.figure else _seconds
    return unit(compared["ours"]), unit(compared[other]), figure, f"{low} to {high}"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if abs(seconds) < 1 else f"{seconds:.4g} s"


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.4g} MB"


def _notes(benchmark: Benchmark, results: Results) -> list[str]:
    here = [record for record in results.records if record.machine == results.machine_key]
    others, void = len(results.records) - len(here), sum(record.void for record in here)
    few = [s["row"] for s in summarize(benchmark, results)["rows"] if s.get("pairs", ENOUGH) < ENOUGH]
    notes = {
        f"{void} runs were void for foreign load and count in no figure; the same command fills the gaps": void,
        "this system does not tell foreign load: no run was void": any(record.foreign is None for record in here),
        f"{others} runs in the file are from another machine, boot, version or code, and not used": others,
        f"fewer than {ENOUGH} pairs, so no figure to publish: {', '.join(few)}": few,
        f"kept in {results.path.name}": True,
    }
    return [note for note, holds in notes.items() if holds]
