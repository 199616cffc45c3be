from __future__ import annotations

import pytest
import torch

from lightning_cnnopt.architecture import Preprocessing
from lightning_cnnopt.core.errors import ConfigurationError


def test_it_is_the_normalization_of_each_channel():
    images = torch.randint(0, 256, (5, 2, 3, 4), dtype=torch.uint8)
    expected = torch.stack([(images[:, 0] / 255 - 0.5) / 0.25, (images[:, 1] / 255 - 0.1) / 2.0], 1)
    preprocessing = Preprocessing(2, [0.5, 0.1], [0.25, 2.0])
    torch.testing.assert_close(preprocessing(images), expected)
    torch.testing.assert_close(preprocessing(images / 255), expected)
    assert torch.equal(Preprocessing(2)(images), images / 255)


@pytest.mark.parametrize(("low", "high", "warned"), [(0, 1, False), (-0.2, 1.2, False), (-0.3, 1, True), (0, 1.3, True)])
def test_what_lies_outside_the_unit_interval_looks_normalized(low, high, warned, recwarn):
    Preprocessing(1, [0.5], [0.5]).inspect(torch.linspace(low, high, 16).view(1, 1, 4, 4))
    assert any("look normalized already" in str(warning.message) for warning in recwarn) is warned


def test_statistics_of_other_channels_or_a_deviation_of_zero_are_refused():
    with pytest.raises(ConfigurationError, match=r"mean=\[0.5\] has 1 numbers for 3 channels"):
        Preprocessing(3, [0.5], [0.5])
    with pytest.raises(ConfigurationError, match="std"):
        Preprocessing(1, [0.5], [0.0])
