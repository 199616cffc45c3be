"""What the benchmark of memory writes and weighs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import memory
from lightning_cnnopt import data

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("kind", ["FashionMNIST", "CIFAR10"])
def test_what_it_writes_is_a_set_of_so_many_images(kind, tmp_path):
    memory.write(kind, 50, tmp_path)
    loaded = getattr(data, kind)(str(tmp_path), val_size=0).train_set
    assert len(loaded) == 50
    assert loaded.images[0].numel() == memory._PIXELS[kind]


_IN_A_PROCESS = """
import sys
import numpy as np
from benchmarks import memory

def mapped(name):
    np.zeros(20_000_000, np.uint8).tofile(f"{folder}/{name}")
    held = np.memmap(f"{folder}/{name}", np.uint8, mode="c")
    held.max()
    return held

folder = sys.argv[1]
before = memory.own_memory(f"{folder}/one")
files = mapped("one"), mapped("two")
with_files = memory.own_memory(f"{folder}/one")
held = np.ones(64_000_000, np.uint8)
print(with_files - before, memory.own_memory(f"{folder}/one") - with_files)
"""


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="this system does not tell the memory of a process")
def test_memory_counts_what_is_allocated_and_files_of_a_folder_and_no_others(tmp_path):
    # in a process of its own, as the benchmark measures it: what other tests gave back would be taken again, uncounted
    command = [sys.executable, "-c", _IN_A_PROCESS, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    files, allocated = map(int, done.stdout.split())
    assert files == pytest.approx(20e6, abs=8e6)
    assert allocated == pytest.approx(64e6, abs=8e6)
