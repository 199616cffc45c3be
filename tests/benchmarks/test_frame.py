import contextlib
import io
import json
import sys

import numpy as np
import pytest
from rich.console import Console

from benchmarks.__main__ import find_benchmarks, main
from benchmarks.frame import machine
from benchmarks.frame.pairs import Run, measure, run_pairs
from benchmarks.frame.rows import FASTER, LARGER, LONGER, MORE, Benchmark, Command, Function, Goal, Row
from benchmarks.frame.store import Results
from benchmarks.frame.table import Figure, print_table, summarize, tell_met

OURS = Function("ours", lambda pair: {})
PEER = Function("peer", lambda pair: {})
GOAL = Goal(LONGER, 1.15)
HERE = {"boot": "here", "threads": 2}


def benchmark_of(*rows):
    return Benchmark("P0", "ours", "peer", "fast", rows)


def row_of(ours=OURS, against=PEER, goal=GOAL, **more):
    return Row("row", ours, against, goal, **more)


class Stopwatch:
    """Stands in for `measure`: hands out given runs, and notes who was run."""

    def __init__(self, seconds=None, void=(), stop_after=None):
        self.seconds = seconds or {"ours": lambda pair: 1.0, "peer": lambda pair: 2.0, "copy": lambda pair: 0.5}
        self.void = set(void)
        self.stop_after = stop_after
        self.calls = []

    def __call__(self, side, pair):
        if len(self.calls) == self.stop_after:
            raise KeyboardInterrupt
        foreign = 1.0 if len(self.calls) in self.void else 0.0
        self.calls.append((pair, side.label))
        seconds = self.seconds[side.label](pair)
        return Run(wall=seconds, cpu=seconds, own=seconds, foreign=foreign)


@pytest.fixture
def sit(tmp_path):
    def sit(benchmark, stopwatch, pairs=5, here=HERE, **more):
        results = Results.open(tmp_path / "out.json", "name", benchmark, here)
        with contextlib.suppress(KeyboardInterrupt):
            run_pairs(benchmark.rows, results, pairs, measure=stopwatch, wait=lambda: None, **more)
        return results

    return sit


def only_row(benchmark, results):
    return summarize(benchmark, results)["rows"][0]


def test_the_interval_of_a_median_covers_the_truth_about_as_often_as_it_says():
    draw = np.random.default_rng(1)
    samples = draw.normal(3.0, 1.0, size=(150, 15))
    figures = [Figure.of(sample, resamples=500) for sample in samples]
    assert [figure.value for figure in figures] == pytest.approx(np.median(samples, axis=1).tolist())
    assert 0.88 <= np.mean([figure.low <= 3.0 <= figure.high for figure in figures]) <= 0.995


def test_the_ratio_is_the_median_over_pairs_and_not_the_ratio_of_medians(sit):
    ours, theirs = [1, 2, 9, 4, 5], [10, 4, 3, 4, 10]  # ratios 0.1, 0.5, 3, 1, 0.5; medians 4 and 4
    benchmark = benchmark_of(row_of())
    results = sit(benchmark, Stopwatch({"ours": lambda pair: ours[pair], "peer": lambda pair: theirs[pair]}))
    wall = only_row(benchmark, results)["wall"]
    assert (wall["ours"], wall["against"], wall["figure"]["value"]) == (4, 4, 0.5)
    assert 0.1 <= wall["figure"]["low"] <= 0.5 <= wall["figure"]["high"] <= 3


@pytest.mark.parametrize(("measure", "figure"), [(LONGER, 0.5), (FASTER, 2.0), (MORE, -1.0)])
def test_the_measures_agree_on_equal_runs(sit, measure, figure):
    benchmark = benchmark_of(row_of(goal=Goal(measure, 1.0)))
    summary = only_row(benchmark, sit(benchmark, Stopwatch()))
    assert summary["wall"]["figure"] == summary["cpu"]["figure"] == {"value": figure, "low": figure, "high": figure}
    assert summary["goal_met"] is True


def test_a_goal_on_memory_is_about_what_the_sides_report_and_not_about_their_times(sit):
    benchmark = benchmark_of(
        row_of(
            Function("ours", lambda pair: {"bytes": 3.3e6}), Function("peer", lambda pair: {"bytes": 3e6}), Goal(LARGER, 1.2)
        )
    )
    results = sit(benchmark, lambda side, pair: Run(1.0, 1.0, 1.0, 9.0, side.run(pair)))  # foreign load is no matter
    summary = only_row(benchmark, results)
    assert summary["bytes"]["figure"] == {"value": pytest.approx(1.1), "low": pytest.approx(1.1), "high": pytest.approx(1.1)}
    assert "wall" not in summary
    assert summary["goal_met"] is True
    told = io.StringIO()
    print_table(benchmark, results, Console(file=told, width=200))
    assert "3.3 MB" in told.getvalue()
    assert "at most 1.2 times as much memory" in told.getvalue()


def test_a_goal_inside_the_interval_is_neither_met_nor_missed():
    assert [Goal(LONGER, 1.15).verdict(*ends) for ends in ((1.0, 1.1), (1.1, 1.2), (1.2, 1.3))] == [True, None, False]
    assert (Goal(LONGER).words, Goal(LONGER).verdict(1.0, 1.1), tell_met("none", None)) == ("none", None, "")
    assert [Goal(FASTER, 2).verdict(*ends) for ends in ((1.0, 1.5), (1.5, 2.5), (2.0, 3.0))] == [False, None, True]


def test_sides_take_turns_and_the_limit_comes_once_in_each_pair(sit):
    stopwatch = Stopwatch()
    benchmark = benchmark_of(row_of(limit=Function("copy", lambda pair: {})))
    results = sit(benchmark, stopwatch, pairs=3)
    assert " ".join(label for _, label in stopwatch.calls) == "ours peer copy peer ours copy ours peer copy"
    assert [pair for pair, _ in stopwatch.calls] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert only_row(benchmark, results)["limit"]["figure"]["value"] == 2.0


@pytest.mark.parametrize("stop_after", range(9))
def test_a_stopped_sitting_is_continued_where_it_stopped(sit, stop_after):
    benchmark, first, second = benchmark_of(row_of()), Stopwatch(stop_after=stop_after), Stopwatch()
    sit(benchmark, first, pairs=4)
    results = sit(benchmark, second, pairs=4)
    whole = Stopwatch()
    run_pairs(benchmark.rows, Results(results.path.with_name("whole.json"), {}, HERE), 4, measure=whole)
    assert first.calls + second.calls == whole.calls
    assert only_row(benchmark, results)["pairs"] == 4
    third = Stopwatch()
    sit(benchmark, third, pairs=4)
    assert third.calls == []


def test_each_run_is_in_the_file_before_the_next_begins(sit, tmp_path):
    written = []

    class Looking(Stopwatch):
        def __call__(self, side, pair):
            path = tmp_path / "out.json"
            written.append(len(json.loads(path.read_text())["runs"]) if path.exists() else 0)
            return super().__call__(side, pair)

    sit(benchmark_of(row_of()), Looking(), pairs=2)
    assert written == [0, 1, 2, 3]


def test_a_void_run_is_repeated(sit):
    benchmark, stopwatch = benchmark_of(row_of()), Stopwatch(void={1, 2})
    results = sit(benchmark, stopwatch, pairs=1)
    assert [label for _, label in stopwatch.calls] == ["ours", "peer", "peer", "peer"]
    assert [(record.void, record.tries) for record in results.records] == [(False, 1), (False, 3)]


def test_a_run_that_stays_void_is_kept_but_counts_in_nothing_until_a_later_sitting(sit):
    benchmark, stopwatch = benchmark_of(row_of()), Stopwatch(void={1, 2, 3})
    results = sit(benchmark, stopwatch, pairs=2, tries=3)
    assert [(record.role, record.pair, record.void) for record in results.records] == [
        ("ours", 0, False),
        ("against", 0, True),
        ("against", 1, False),
        ("ours", 1, False),
    ]
    summary = only_row(benchmark, results)
    assert (summary["pairs"], summary["void_runs"]) == (1, 1)
    console = Console(width=160, record=True, file=io.StringIO())
    print_table(benchmark, results, console)
    assert "1 runs were void" in console.export_text()
    later = Stopwatch()
    assert only_row(benchmark, sit(benchmark, later, pairs=2))["pairs"] == 2
    assert later.calls == [(0, "peer")]


@pytest.mark.parametrize("other", [{"boot": "later"}, {"threads": 1}, {"torch": "99"}, {"code": "edited"}])
def test_runs_of_another_machine_boot_version_or_code_are_not_mixed(sit, other):
    benchmark = benchmark_of(row_of())
    sit(benchmark, Stopwatch(stop_after=3), pairs=2)
    stopwatch = Stopwatch({"ours": lambda pair: 7.0, "peer": lambda pair: 7.0})
    results = sit(benchmark, stopwatch, pairs=2, here={**HERE, **other})
    assert len(stopwatch.calls) == 4
    assert len(results.records) == 7
    summary = only_row(benchmark, results)
    assert (summary["pairs"], summary["wall"]["figure"]["value"]) == (2, 1.0)
    assert len(results.machines) == 2


def test_a_sitting_ends_when_the_code_changes(sit):
    answers = iter([True, True, False])
    results = sit(benchmark_of(row_of()), Stopwatch(), unchanged=lambda: next(answers))
    assert len(results.records) == 2


@pytest.mark.parametrize(
    ("peer", "why"),
    [
        (Command("no-such-program --fast"), "no-such-program is not installed"),
        (Function("peer", lambda pair: {}, needs=("no_such_module",)), "no_such_module not installed"),
        (Function("peer", lambda pair: {}, lacks="peer has no erasing"), "peer has no erasing"),
    ],
)
def test_a_missing_peer_is_left_out_and_the_table_says_so(sit, peer, why):
    benchmark, stopwatch = benchmark_of(row_of(against=peer)), Stopwatch()
    results = sit(benchmark, stopwatch)
    assert stopwatch.calls == []
    console = Console(width=160, record=True, file=io.StringIO())
    print_table(benchmark, results, console)
    assert f"left out: {why}" in console.export_text()


def test_a_failing_command_is_an_error_and_not_a_figure():
    with pytest.raises(RuntimeError, match="left with status 3"):
        Command("python -c 'raise SystemExit(3)'").run(0)


def test_foreign_load_is_what_the_machine_used_and_the_run_did_not(monkeypatch):
    busy = iter([100.0, 101.0, 200.0, 200.0, 300.0, 301.0])
    own = iter([0.0, 0.5, 0.0, 0.5, 0.0, 0.95])
    monkeypatch.setattr("benchmarks.frame.pairs.machine_busy", lambda: next(busy))
    monkeypatch.setattr("benchmarks.frame.pairs.children_busy", lambda: 0.0)
    monkeypatch.setattr("benchmarks.frame.pairs.time.process_time", lambda: next(own))
    runs = [measure(OURS, 0) for _ in range(3)]
    assert [run.foreign for run in runs] == pytest.approx([0.5, 0.0, 0.05])
    assert [run.void for run in runs] == [True, False, False]


def test_where_the_system_does_not_tell_no_run_is_void(monkeypatch):
    monkeypatch.setattr("benchmarks.frame.pairs.machine_busy", lambda: None)
    run = measure(OURS, 0)
    assert (run.foreign, run.void) == (None, False)


def test_cpu_time_of_a_command_is_that_of_its_children():
    # counted in work done, not in time: a child that spins for 0.2 s of its own CPU clock
    spin = "import time\nwhile time.process_time() < 0.2: pass"
    run = measure(Command(f'python -c "{spin}"'), 0)
    assert run.cpu >= 0.2
    assert run.own >= run.cpu


def test_a_side_may_bring_its_own_clock_and_figures(monkeypatch):
    monkeypatch.setattr("benchmarks.frame.pairs.machine_busy", lambda: None)
    run = measure(Function("ours", lambda pair: {"wall": 12.0, "accuracy": 0.9 + pair}, repeat=2), 1)
    assert (run.wall, dict(run.figures)) == (12.0, pytest.approx({"accuracy": 1.9}))


def test_the_file_names_no_host_no_place_and_no_boot(tmp_path):
    benchmark = benchmark_of(row_of(ours=Command("python -c pass"), against=Command("python -c pass")))
    results = Results.open(tmp_path / "out.json", "name", benchmark, machine.describe_machine(2))
    run_pairs(benchmark.rows, results, 1, measure=lambda side, pair: Run(1, 1, 1, 0))
    text = results.path.read_text()
    boot = machine._read("sys/kernel/random/boot_id").strip()
    assert not [word for word in (sys.prefix, str(tmp_path), machine.platform.node(), boot) if word and word in text]


def test_a_file_of_another_benchmark_is_not_overwritten(sit):
    results = sit(benchmark_of(row_of()), Stopwatch(), pairs=1)
    with pytest.raises(ValueError, match="holds the benchmark 'name', not 'other'"):
        Results.open(results.path, "other", benchmark_of(row_of()), HERE)


def test_every_benchmark_is_found_and_listed(capsys):
    assert "start_up" in find_benchmarks()
    assert main([]) == 0
    assert "P11" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["start_upp"])
    assert "did you mean 'start_up'?" in capsys.readouterr().err
