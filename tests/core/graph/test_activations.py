import pytest
import timm
import torch
from torch import nn

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.graph import gain_of, is_activation


class GainStated(nn.Module):
    gain = 1.7

    def forward(self, x):
        return x.relu() ** 2


@pytest.mark.parametrize("name", ["ReLU", "GELU", "SiLU", "Mish", "Tanh", "Sigmoid", "PReLU", "Hardswish", "ReLU6"])
def test_activations_of_torch_are_recognized(name):
    assert is_activation(getattr(nn, name)())


@pytest.mark.parametrize("module", [nn.Softmax(1), nn.Dropout(), nn.Identity(), nn.BatchNorm2d(2), nn.Linear(2, 2)])
def test_other_layers_are_no_activations(module):
    assert not is_activation(module)


def test_a_layer_that_states_its_gain_is_an_activation_but_no_layer_with_weights():
    assert is_activation(GainStated())
    assert not is_activation(timm.layers.ScaledStdConv2d(2, 2, 3))


@pytest.mark.parametrize("name", ["Swish", "Mish", "Sigmoid", "Tanh", "HardSwish", "PReLU", "GELU"])
def test_timms_own_activations_are_recognized(name):
    assert is_activation(getattr(timm.layers.activations, name)())


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (nn.ReLU(), "relu"),
        (nn.Tanh(), "tanh"),
        (nn.Sigmoid(), "sigmoid"),
        (nn.SELU(), "selu"),
        (timm.layers.activations.Sigmoid(), "sigmoid"),
        (timm.layers.activations.Tanh(), "tanh"),
    ],
)
def test_the_gain_is_torchs_where_it_has_one(activation, name):
    assert gain_of(activation) == nn.init.calculate_gain(name)


@pytest.mark.parametrize("slope", [0.0, 0.01, 0.3])
def test_the_gain_of_leaky_relu_follows_its_slope(slope):
    assert gain_of(nn.LeakyReLU(slope)) == pytest.approx((2 / (1 + slope**2)) ** 0.5)


def test_nothing_behind_a_layer_has_gain_one():
    assert gain_of(None) == gain_of(nn.Identity()) == 1.0


def test_a_stated_gain_is_believed():
    assert gain_of(GainStated()) == 1.7


ACTIVATIONS = [nn.GELU(), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.ELU(), nn.ReLU6(), nn.PReLU(init=0.25)]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
@torch.no_grad()
def test_the_gain_keeps_the_second_moment_of_a_normal_signal(activation):
    z = torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    squares = activation(z).double().square()
    error = 5 * float(squares.std()) / len(z) ** 0.5
    assert float(squares.mean()) == pytest.approx(gain_of(activation) ** -2, abs=error)


def test_a_slope_per_channel_has_no_single_gain():
    with pytest.raises(ConfigurationError, match="gain"):
        gain_of(nn.PReLU(4))


def test_the_gain_of_a_gate_is_that_of_a_value_and_its_gate_both_normal():
    z = torch.randn(400_000, 2, generator=torch.Generator().manual_seed(0))
    squares = nn.GLU()(z).double().square()
    error = 5 * float(squares.std()) / len(z) ** 0.5
    assert float(squares.mean()) == pytest.approx(gain_of(nn.GLU()) ** -2, abs=error)
    assert not is_activation(nn.GLU())  # it halves the channels, so it can't be swapped


def test_the_gain_of_a_random_slope_draws_nothing():
    state = torch.get_rng_state()
    gain = gain_of(nn.RReLU(0.1, 0.5))
    assert torch.equal(torch.get_rng_state(), state)
    z = torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    squares = nn.RReLU(0.1, 0.5)(z).double().square()
    assert float(squares.mean()) == pytest.approx(gain**-2, abs=5 * float(squares.std()) / len(z) ** 0.5)
