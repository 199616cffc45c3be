"""The machine: what it is, which boot, how many threads, and how much of its CPU time goes to whom."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import resource
import sys
import time
import uuid
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

_PACKAGES = ("torch", "lightning", "lightning-cnnopt")
_THREADS = tuple(f"{library}_NUM_THREADS" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR"))
_PROCESS = uuid.uuid4().hex
_PROC = Path("/proc")

Machine = dict[str, str | int | list[str]]


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pin_threads(threads: int) -> None:
    """Give this process, and those it starts, so many threads."""
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


def describe_machine(threads: int, packages: Sequence[str] = ()) -> Machine:
    """Return all that two runs must share to stand in one ratio: machine, boot, threads, versions and our code.

    Where the system does not tell its boots apart, every process counts as a boot of its own.
    """
    cpuinfo = _read("cpuinfo")
    boot = _read("sys/kernel/random/boot_id").strip() or _PROCESS
    gpus = sorted(path.read_text() for path in _PROC.glob("driver/nvidia/gpus/*/information"))
    machine: Machine = {
        "boot": _digest(boot.encode()),
        "system": platform.system(),
        "cpu": match[1] if (match := re.search(r"model name\s*: (.*)", cpuinfo)) else platform.machine(),
        "cores": usable_cores(),
        "threads": threads,
        "gpus": [match[1] for text in gpus if (match := re.search(r"Model:\s*(.*)", text))],
        "python": platform.python_version(),
    }
    machine.update({name: _version(name) for name in (*_PACKAGES, *packages)})
    machine["code"] = digest_code()
    return machine


def digest_code(package: str = "lightning_cnnopt") -> str:
    """Return a digest of the package's source files, which changes with any of them."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return "not installed"
    files = sorted(Path(spec.submodule_search_locations[0]).rglob("*.py"))
    return _digest(b"\0".join(file.read_bytes() for file in files))


def machine_busy() -> float | None:
    """Return the CPU seconds that everybody on the machine has used since it started; none where it does not say.

    What a host takes from its guest counts as used.
    """
    fields = [int(field) for field in _read("stat").partition("\n")[0].split()[1:]]
    if not any(fields):
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields[:8]
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def children_busy() -> float:
    """Return the CPU seconds of all processes that this one has started, ended or (on Linux) alive."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime + _living_descendants()


def wait_for_quiet(patience: float = 20, sample: float = 0.5) -> None:
    """Wait until the machine does next to nothing for a moment, but not longer than so many seconds."""
    end = time.monotonic() + patience
    while (before := machine_busy()) is not None and time.monotonic() < end:
        time.sleep(sample)
        if ((machine_busy() or 0) - before) < 0.1 * sample:
            return


def _living_descendants() -> float:
    # workers of a DataLoader live on between runs, and would otherwise pass for foreign load
    children: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for path in _PROC.glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended in the meantime
            continue
        process = int(path.parent.name)
        children.setdefault(int(fields[1]), []).append(process)
        ticks[process] = sum(map(int, fields[11:15]))  # its own, and of those that it has waited for
    total, pending = 0, list(children.get(os.getpid(), ()))
    while pending:
        process = pending.pop()
        total += ticks[process]
        pending.extend(children.get(process, ()))
    return total / os.sysconf("SC_CLK_TCK")


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


def _read(name: str) -> str:
    try:
        return (_PROC / name).read_text()
    except OSError:
        return ""
