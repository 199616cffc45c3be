"""Whether memory is that of a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor


def is_mapped(tensor: Tensor, path: Path) -> bool:
    """Return whether a tensor lies in the mapping of a file, deleted since or not; skips where the system does not tell."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc/self/maps")
    for line in maps.read_text().splitlines():
        low, high = (int(end, 16) for end in line.split()[0].split("-"))
        if low <= tensor.data_ptr() < high:
            return str(path) in line
    return False
