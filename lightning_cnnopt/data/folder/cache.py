"""Files that outlive a run: written whole or not at all, by one process at a time."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lightning_cnnopt.core.errors import DataError


def read_json(path: Path) -> dict[str, Any] | None:
    """Return what was written to a file; ``None`` if it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        digest = content.pop("digest")
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return None
    return content if digest == _digest(content) else None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file; whoever reads it meanwhile, or after a kill, finds the old one."""
    content = json.loads(json.dumps(content))  # as it will be read, keys as text
    part = path.with_name(path.name + ".part")
    with open(part, "w", encoding="utf-8") as file:
        json.dump({**content, "digest": _digest(content)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    replace(part, path)


def replace(part: Path, path: Path) -> None:
    """Give a file, whose content is on the disk already, its name."""
    os.replace(part, path)
    if hasattr(os, "O_DIRECTORY"):  # the name outlives a power cut, too
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contextmanager
def only_one(path: Path, doing: str) -> Iterator[None]:
    """Let one process at a time in; a killed one lets go by itself.

    Args:
        path: Of the lock.
        doing: What the others wait for, to tell.

    Raises:
        OSError: If the lock can't be made, as on a disk that can only be read.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        rank_zero_info(f"Another process is {doing}; waiting for it.")
        lock.acquire()
    except NotImplementedError as error:
        raise DataError(f"The file system of {path.parent} has no locks; give cache_dir on another one.") from error
    try:
        yield
    finally:
        lock.release()
