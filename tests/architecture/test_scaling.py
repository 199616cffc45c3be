import pytest
import timm.layers
from torchvision.models._utils import _make_divisible

from lightning_cnnopt.architecture import compound_scaling, round_channels
from lightning_cnnopt.core.errors import ConfigurationError


@pytest.mark.parametrize("divisor", [4, 8, 16])
def test_channels_are_rounded_as_timm_and_torchvision_do(divisor):
    for channels in [1, 3.5, *(width * factor for width in range(4, 200, 3) for factor in (0.3, 1, 1.1, 1.375))]:
        expected = timm.layers.make_divisible(channels, divisor)
        assert round_channels(channels, divisor) == expected == _make_divisible(channels, divisor)


def test_one_step_of_the_coefficient_doubles_the_cost():
    # equation 3 of the paper: alpha · beta² · gamma² ≈ 2
    one, three = compound_scaling(1), compound_scaling(3)
    cost = one.depth_factor * one.width_factor**2 * one.resolution_factor**2
    assert cost == pytest.approx(2, rel=0.05)
    assert three.depth_factor * three.width_factor**2 * three.resolution_factor**2 == pytest.approx(cost**3)
    assert compound_scaling(0) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("name", ["width", "depth", "resolution"])
def test_a_base_that_shrinks_is_refused(name):
    with pytest.raises(ConfigurationError, match=name):
        compound_scaling(1, **{name: 0.9})
