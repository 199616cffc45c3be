"""The reference on Fashion-MNIST, at its full length."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.accuracy import measure

CONFIG = Path(__file__).parent.parent / "configs" / "reference.yaml"
LEAST = 0.92


@pytest.mark.large_data
@pytest.mark.timeout(3600)
def test_the_reference_reaches_its_accuracy():
    run = measure(CONFIG, seed=0, root=os.environ["CNNOPT_DATA"])
    print(run)
    assert run["test_acc"] >= LEAST
