"""What the benchmark of memory writes and weighs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import memory
from lightning_cnnopt import data


@pytest.mark.parametrize("kind", ["FashionMNIST", "CIFAR10"])
def test_what_it_writes_is_a_set_of_so_many_images(kind, tmp_path):
    memory.write(kind, 50, tmp_path)
    loaded = getattr(data, kind)(str(tmp_path), val_size=0).train_set
    assert len(loaded) == 50
    assert loaded.images[0].numel() == memory._PIXELS[kind]


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="this system does not tell the memory of a process")
def test_memory_counts_what_is_allocated_and_files_of_a_folder_and_no_others(tmp_path):
    def mapped(name):
        np.zeros(20_000_000, np.uint8).tofile(tmp_path / name)
        held = np.memmap(tmp_path / name, np.uint8, mode="c")
        held.max()
        return held

    before = memory.own_memory(str(tmp_path / "one"))
    files = mapped("one"), mapped("two")
    with_files = memory.own_memory(str(tmp_path / "one"))
    assert with_files - before == pytest.approx(20e6, abs=8e6)
    held = np.ones(64_000_000, np.uint8)  # so much that it can't come from memory that was given back before
    assert memory.own_memory(str(tmp_path / "one")) - with_files == pytest.approx(64e6, abs=8e6)
    assert len(held) + len(files) == 64_000_002
