"""The reference on Fashion-MNIST, at its full length."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.accuracy import measure

CONFIG = Path(__file__).parent.parent / "configs" / "reference.yaml"
# What the config is held to, 92.0%, is the mean over seeds: python -m benchmarks.accuracy configs/reference.yaml --seeds 5
# --least 0.92. At a constant rate the end of one run lies a percent above or below it, and elsewhere with another version of
# torch, whose kernels differ in the last bits. So one run can only tell whether something is broken.
LEAST = 0.91


@pytest.mark.large_data
@pytest.mark.timeout(3600)
def test_the_reference_reaches_its_accuracy():
    run = measure(CONFIG, seed=0, root=os.environ["CNNOPT_DATA"])
    print(run)
    assert run["test_acc"] >= LEAST
