"""The page ``docs/speed.md``, made of the result files: ``python -m benchmarks.page`` writes it anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.frame.table import tell_met

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "speed.md"
_HEAD = """# Speed

Every figure of this page was measured side by side, both sides in turn on one machine, and comes from a file in
`benchmarks/results/`; `python -m benchmarks.page` makes the page of those files, and a test holds it against them. The
commands below repeat them on yours. A figure is the median of its pairs, with its 95% interval; a goal is met only if all of
the interval meets it, and *open* if a part does.
"""


def make_page(results: Path = ROOT / "benchmarks" / "results") -> str:
    """Return the page for the files of a folder: a section for each benchmark that has ended, in the order of their ids."""
    files = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    ended = [file for file in files if file.get("summary", {}) and "rows" in file["summary"]]
    ended.sort(key=lambda file: (int("".join(filter(str.isdigit, file["id"])) or 99), file["id"], file["benchmark"]))
    return "\n".join([_HEAD, *map(_section, ended)])


def _section(file: dict[str, Any]) -> str:
    machine = file["machines"][file["summary"]["machine"]]
    told = {name: value for name, value in machine.items() if value and name not in ("boot", "code", "lightning-cnnopt")}
    lines = [
        f"## {file['id']}: {_plain(file['what'])}",
        "",
        f"Against {_plain(file['against'])}. Goal: {_plain(file['goal'])}.",
        "",
        "```bash",
        file["command"],
        "```",
        "",
        "| row | against | figure | 95% interval | goal | met | pairs |",
        "|---|---|---|---|---|---|---|",
        *map(_row, file["summary"]["rows"]),
        "",
        f"On {', '.join(f'{name} {value}' for name, value in told.items())}.",
        "",
    ]
    return "\n".join(lines)


def _row(row: dict[str, Any]) -> str:
    name, against = _plain(row["row"]), _plain(row["against"])
    clock = next((key for key, value in row.items() if isinstance(value, dict) and "figure" in value and key != "limit"), None)
    if clock is None:
        return f"| {name} | {against} | {row.get('left_out', 'no valid pair')} | | {row['goal']} | | |"
    figure, met = row[clock]["figure"], tell_met(row["goal"], row["goal_met"])
    value, low, high = (f"{figure[part]:.3g}" for part in ("value", "low", "high"))
    return f"| {name} | {against} | {value} {row['measure']} | {low} to {high} | {row['goal']} | {met} | {row['pairs']} |"


def _plain(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(make_page())
