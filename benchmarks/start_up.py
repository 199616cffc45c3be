"""P11: how long the command line takes to answer."""

from __future__ import annotations

from benchmarks.frame.rows import LONGER, MORE, Benchmark, Command, Goal, Row

BENCHMARK = Benchmark(
    id="P11",
    what="`cnnopt --help`; `cnnopt fit --help`",
    against="python starting; `import lightning.pytorch`",
    goal="at most 0.1 s more; at most 1.15 times as long",
    pairs=11,
    rows=(
        # a start lasts about 30 ms, three ticks of the counter that tells foreign load: hence many in a run
        Row("help", Command("cnnopt --help", repeat=20), Command("python -c pass", repeat=20), Goal(MORE, 0.1)),
        Row(
            "fit help",
            Command("cnnopt fit --help"),
            Command("python -c 'import lightning.pytorch'"),
            Goal(LONGER, 1.15),
        ),
    ),
)
