"""The JSON file of a benchmark: every run that was ever made, and what they come to."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.frame.machine import Machine
from benchmarks.frame.rows import Benchmark, Side


@dataclass(frozen=True)
class Record:
    """One finished run, as it stands in the file.

    Args:
        row: The row's name.
        role: ``ours``, ``against`` or ``limit``.
        label: The side's own name: a command as one types it.
        pair: Number of the pair, from 0.
        machine: Key of the machine, boot and versions.
        wall: Seconds each time.
        cpu: CPU seconds each time.
        foreign: CPU seconds that others used during the whole run; none where the system does not say.
        void: Whether that was too much.
        tries: How often it was run until it was not void, or was given up.
        repeat: How often the side was done in this run.
        figures: What the side measured itself.
    """

    row: str
    role: str
    label: str
    pair: int
    machine: str
    wall: float
    cpu: float
    foreign: float | None
    void: bool
    tries: int
    repeat: int
    figures: dict[str, float] = field(default_factory=dict)


class Results:
    """The runs of one benchmark in one file, and the machine on which it is continued.

    Args:
        path: The file.
        head: What the file says before its runs.
        machine: The machine at hand; only its runs are used.
        machines: Those of the file, by key.
        records: The runs of the file, from all machines.
    """

    def __init__(
        self,
        path: Path,
        head: dict[str, str],
        machine: Machine,
        machines: dict[str, Machine] | None = None,
        records: list[Record] | None = None,
    ) -> None:
        self.path = path
        self.head = head
        self.machine = machine
        self.machine_key = hashlib.sha256(json.dumps(machine, sort_keys=True).encode()).hexdigest()[:12]
        self.machines = {**(machines or {}), self.machine_key: machine}
        self.records = list(records or [])

    @classmethod
    def open(cls, path: Path, name: str, benchmark: Benchmark, machine: Machine) -> Results:
        """Return what the file holds, or nothing yet if there is no such file.

        Raises:
            ValueError: If the file belongs to another benchmark.
        """
        stored: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        if stored and stored.get("benchmark") != name:
            raise ValueError(f"{path} holds the benchmark {stored.get('benchmark')!r}, not {name!r}")
        head = {"benchmark": name, "command": f"python -m benchmarks {name}", "id": benchmark.id}
        head |= {"what": benchmark.what, "against": benchmark.against, "goal": benchmark.goal}
        return cls(path, head, machine, stored.get("machines"), [Record(**record) for record in stored.get("runs", [])])

    def find(self, row: str, role: str, side: Side, pair: int) -> Record | None:
        """Return the valid run of this machine and boot, if there is one."""
        for record in self.of_row(row, role, side):
            if record.pair == pair and not record.void:
                return record
        return None

    def of_row(self, row: str, role: str, side: Side) -> list[Record]:
        """Return this machine's runs of one side of a row, void ones too."""
        key = (row, role, side.label, side.repeat, self.machine_key)
        return [r for r in self.records if (r.row, r.role, r.label, r.repeat, r.machine) == key]

    def add(self, record: Record) -> None:
        """Keep a run, and write it down at once."""
        self.records.append(record)
        self.save()

    def save(self, summary: dict[str, Any] | None = None) -> None:
        """Write the file whole, so that a kill in the midst of it leaves the old one.

        Args:
            summary: What the runs come to; without it, the file has none until the benchmark has ended.
        """
        used = {record.machine for record in self.records} | {self.machine_key}
        content = {
            **self.head,
            "summary": summary,
            "machines": {key: machine for key, machine in self.machines.items() if key in used},
            "runs": [asdict(record) for record in self.records],
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_name(self.path.name + ".new")
        new.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        os.replace(new, self.path)
