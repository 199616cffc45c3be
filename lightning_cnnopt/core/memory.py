"""Memory of a CPU that is used again and again."""

from __future__ import annotations

from functools import cache

import torch

_LARGEST = 2**25 - 2**16
"""Just below 32 MB, the most that glibc raises its threshold to (``M_MMAP_THRESHOLD`` in mallopt(3))."""


@cache
def keep_freed_memory() -> None:
    """Let glibc keep blocks of up to 32 MB that are freed, for the whole process; once called, more calls do nothing.

    A block above its threshold, at first 128 KB, is given back to the system when it is freed, and the next one of its size
    has to be paged in anew, which can take as long as computing a batch of images in it. The threshold rises to the largest
    block that was ever freed: so one is, which nobody has written to and which has cost no memory. Up to 64 MB that are free
    stay with the process for it. Other systems have rules of their own; there it does nothing.
    """
    torch.empty(_LARGEST, dtype=torch.uint8)
