from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes
import torch
from lightning_cnnopt.core.memory import keep_freed_memory


class Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in "arena ordblks smblks hblks hblkhd a b c d e".split()]


library = ctypes.CDLL(None)
library.mallinfo.restype = Mallinfo


def is_mapped(megabytes):  # whether a block is the system's, and goes back to it when it is freed
    before = library.mallinfo().hblks
    block = torch.empty(megabytes * 2**20, dtype=torch.uint8)
    return library.mallinfo().hblks > before


before = is_mapped(6)
keep_freed_memory()
print(before, is_mapped(6), is_mapped(31), is_mapped(128))  # up to 64 are kept, and one of 33 can be a part of that
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a rule of glibc")
def test_blocks_of_up_to_32_megabytes_stay_with_the_process_when_they_are_freed():
    told = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True).stdout
    assert told.split() == ["True", "False", "False", "True"]
