"""The command ``python -m benchmarks [NAME] [--pairs N] [--out FILE]``."""

from __future__ import annotations

import argparse
import difflib
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

import benchmarks
from benchmarks.frame.machine import describe_machine, digest_code, pin_threads, usable_cores
from benchmarks.frame.pairs import run_pairs
from benchmarks.frame.rows import Benchmark
from benchmarks.frame.store import Results
from benchmarks.frame.table import print_table, summarize

RESULTS = Path(__file__).parent / "results"


def find_benchmarks() -> dict[str, Benchmark]:
    """Return every module of this package that has a ``BENCHMARK``, by the module's name."""
    names = [m.name for m in pkgutil.iter_modules(benchmarks.__path__) if not m.ispkg and m.name != "__main__"]
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in names}
    return {name: module.BENCHMARK for name, module in modules.items() if hasattr(module, "BENCHMARK")}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark, or list them all; 0 whatever the figures, 2 where the command is wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run a benchmark, or list them all.")
    parser.add_argument("name", nargs="?", help="the benchmark; without it, the list of them")
    parser.add_argument("--pairs", type=int, help="pairs of runs in each row; by default the benchmark's own number")
    parser.add_argument("--out", type=Path, help="the JSON file; by default benchmarks/results/NAME.json")
    options = parser.parse_args(arguments)
    console = Console() if sys.stdout.isatty() else Console(width=140)
    known = find_benchmarks()
    if options.name is None:
        console.print(_listing(known))
        return 0
    if options.name not in known:
        near = difflib.get_close_matches(options.name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
        parser.error(f"no benchmark {options.name!r}; {hint}")
    if options.pairs is not None and options.pairs < 1:
        parser.error(f"--pairs is {options.pairs}; expected 1 or more")
    benchmark = known[options.name]
    threads = benchmark.threads or usable_cores()
    pin_threads(threads)
    machine = describe_machine(threads, benchmark.packages)
    try:
        results = Results.open(options.out or RESULTS / f"{options.name}.json", options.name, benchmark, machine)
    except ValueError as error:
        parser.error(str(error))
    _run(benchmark, options.pairs or benchmark.pairs, results, console)
    return 0


def _run(benchmark: Benchmark, pairs: int, results: Results, console: Console) -> None:
    code = results.machine["code"]
    try:
        run_pairs(
            benchmark.rows,
            results,
            pairs,
            unchanged=lambda: digest_code() == code,
            tell=lambda line: console.print(line, style="dim", markup=False, highlight=False),
        )
    except KeyboardInterrupt:
        console.print("stopped; the same command continues from here")
    results.save(summarize(benchmark, results))
    print_table(benchmark, results, console)


def _listing(known: dict[str, Benchmark]) -> Table:
    table = Table("name", "id", "what", "against", "goal")
    for name, benchmark in known.items():
        table.add_row(name, benchmark.id, benchmark.what, benchmark.against, benchmark.goal)
    return table


if __name__ == "__main__":
    sys.exit(main())
