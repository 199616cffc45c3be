from __future__ import annotations

import sys

import pytest

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.data import HuggingFaceImages, WebDatasetImages


@pytest.mark.parametrize(
    ("make", "package", "extra"),
    [
        (lambda: HuggingFaceImages("cifar10"), "datasets", "huggingface"),
        (lambda: WebDatasetImages("{0..3}.tar", 10, num_classes=2), "webdataset", "webdataset"),
    ],
)
def test_a_missing_extra_is_one_paragraph_with_the_command(make, package, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigurationError) as caught:
        make()
    said = str(caught.value)
    assert f"needs the package {package}, which is not installed." in said
    assert f'pip install "lightning-cnnopt[{extra}]"' in said
    assert "\n" not in said
