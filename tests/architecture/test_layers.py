import pytest
import torch
from torch import nn

from lightning_cnnopt.architecture import GeneralizedMeanPool2d, generalized_mean_pool
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.parameters import parameter_groups


def images():
    return torch.rand(2, 3, 6, 7) + 0.1


@pytest.mark.parametrize(
    ("kernel_size", "pooling"), [(2, nn.AvgPool2d(2)), (3, nn.AvgPool2d(3)), (None, nn.AdaptiveAvgPool2d(1))]
)
def test_with_exponent_one_it_is_the_average(kernel_size, pooling):
    x = images()
    torch.testing.assert_close(GeneralizedMeanPool2d(kernel_size, p=1.0)(x), pooling(x))


@pytest.mark.parametrize(("kernel_size", "pooling"), [(2, nn.MaxPool2d(2)), (None, nn.AdaptiveMaxPool2d(1))])
def test_a_large_exponent_comes_near_the_maximum(kernel_size, pooling):
    x = images().double()
    torch.testing.assert_close(generalized_mean_pool(x, 400.0, kernel_size), pooling(x), rtol=0.02, atol=0)


def test_with_exponent_two_it_is_torchs_power_average_over_the_number_of_values():
    x = images()
    torch.testing.assert_close(generalized_mean_pool(x, 2.0, 2), nn.LPPool2d(2, 2)(x) / 2)


def test_negative_values_count_as_eps():
    x = torch.tensor([[[[-5.0, 2.0]]]])
    assert GeneralizedMeanPool2d(p=1.0, eps=0.5)(x).item() == pytest.approx(1.25)


def test_the_exponent_learns_or_stays():
    x = images()
    learnable, fixed = GeneralizedMeanPool2d(p=3.0), GeneralizedMeanPool2d(p=3.0, learnable=False)
    assert torch.equal(learnable(x), fixed(x))
    assert list(fixed.parameters()) == []
    assert "p" in fixed.state_dict()
    learnable(x).sum().backward()
    assert learnable.p.grad.item() > 0  # the generalized mean grows with its exponent


def test_the_exponent_is_spared_weight_decay():
    (group,) = parameter_groups(GeneralizedMeanPool2d())
    assert group["weight_decay"] == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_under_autocast_large_activations_do_not_overflow(dtype):
    layer = GeneralizedMeanPool2d()
    with torch.autocast("cpu", dtype):
        out = layer(torch.full((1, 1, 2, 2), 100.0, dtype=dtype))
    assert out.float().item() == pytest.approx(100.0, rel=0.02)


@pytest.mark.parametrize("arguments", [{"kernel_size": 0}, {"p": 0.0}, {"eps": 0.0}, {"p": -1.0}])
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ConfigurationError, match=next(iter(arguments))):
        GeneralizedMeanPool2d(**arguments)
