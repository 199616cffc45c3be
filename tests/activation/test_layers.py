import math
import pickle
from functools import partial

import pytest
import timm
import torch
from jsonargparse import ArgumentParser
from torch import nn

from lightning_cnnopt.activation import ReLUSquared, ReLUStar, SwapActivation, swap_activation
from lightning_cnnopt.architecture import ConvNet
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.graph import gain_of, is_activation
from lightning_cnnopt.core.parameters import parameter_groups
from lightning_cnnopt.core.surgery import Edit
from lightning_cnnopt.initialization import Kaiming


def second_moment(activation):
    """E[f(z)²] for z standard normal, by the trapezoidal rule: for a smooth f to many digits."""
    z = torch.linspace(-12, 12, 400_001, dtype=torch.float64)
    density = (-z.square() / 2).exp() / math.sqrt(2 * math.pi)
    with torch.no_grad():
        return float(torch.trapezoid(activation.double()(z).square() * density, z))


@pytest.mark.parametrize("arguments", [{}, {"scale": 1.7, "bias": 0.3}, {"scale": 0.2, "bias": -2.0, "learnable": False}])
def test_the_gain_of_the_star_is_exact(arguments):
    gain = ReLUStar(**arguments).gain
    assert gain == pytest.approx(second_moment(ReLUStar(**arguments)) ** -0.5, rel=1e-6)
    assert gain_of(ReLUStar(**arguments)) == pytest.approx(gain)


def test_the_gain_of_the_square_is_exact():
    assert gain_of(ReLUSquared()) == ReLUSquared.gain == pytest.approx(second_moment(ReLUSquared()) ** -0.5, rel=1e-6)


def test_the_star_keeps_a_standard_normal_signal_standardized():
    values = ReLUStar()(torch.randn(4_000_000, generator=torch.Generator().manual_seed(0)))
    assert float(values.mean()) == pytest.approx(0, abs=3e-3)
    assert float(values.var()) == pytest.approx(1, abs=0.01)


def test_they_are_those_of_timm():
    metaformer = timm.models.metaformer
    x = torch.randn(50)
    torch.testing.assert_close(ReLUSquared()(x), metaformer.SquaredReLU()(x))
    theirs = metaformer.StarReLU(scale_value=1.3, bias_value=-0.2)
    torch.testing.assert_close(ReLUStar(1.3, -0.2)(x), theirs(x))


def test_the_star_learns_its_scalars_without_decay():
    net = nn.Sequential(nn.Linear(3, 3), ReLUStar())
    net(torch.randn(5, 3)).square().sum().backward()
    assert net[1].scale.grad != 0
    assert net[1].bias.grad != 0
    without_decay = {id(p) for p in parameter_groups(net)[1]["params"]}
    assert {id(net[1].scale), id(net[1].bias)} <= without_decay
    assert list(ReLUStar(learnable=False).state_dict()) == []


@pytest.mark.parametrize("make", [ReLUSquared, ReLUStar, partial(ReLUStar, scale=2.0, bias=-1.0, learnable=False)])
def test_they_are_activations_that_pickle_and_keep_the_dtype(make):
    assert is_activation(make())
    x = torch.randn(4, 3)
    assert torch.equal(pickle.loads(pickle.dumps(make()))(x), make()(x))
    assert make()(x.bfloat16()).dtype == torch.bfloat16
    net = ConvNet().double()
    assert SwapActivation(make)(net) == 3
    assert swap_activation(net, make) == 0
    assert net(torch.randn(2, 1, 28, 28, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("activation", [ReLUSquared, ReLUStar])
def test_initialization_follows_with_their_gain(activation):
    net = ConvNet(order="conv-norm-act", widths=(64,))
    SwapActivation(activation)(net)
    Kaiming()(net, None, torch.Generator().manual_seed(0))
    weight = net.head[0].dense.weight
    assert float(weight.detach().std() * weight.shape[1] ** 0.5) == pytest.approx(activation().gain, rel=0.02)


ELEMENTWISE = [
    name
    for name in nn.modules.activation.__all__
    if name not in {"MultiheadAttention", "GLU", "Softmax", "Softmax2d", "Softmin", "LogSoftmax", "Threshold"}
]


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_every_activation_of_torch_is_swapped_in_by_its_name_and_has_a_gain(name):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--edit", type=Edit)
    spec = {"class_path": "SwapActivation", "init_args": {"activation": f"torch.nn.{name}", "replaces": ["ReLU"]}}
    for edit in (SwapActivation(name, ["ReLU"]), parser.instantiate(parser.parse_object({"edit": spec})).edit):
        net = ConvNet()
        assert edit(net) == (0 if name == "ReLU" else 3)
        assert sum(type(module) is getattr(nn, name) for module in net.modules()) == 3
        assert net(torch.randn(2, 1, 28, 28)).isfinite().all()
        assert 0 < gain_of(net.stages[0][0].act) < 10


def test_the_slope_of_leaky_relu_is_that_of_the_article():
    net = ConvNet()
    SwapActivation("LeakyReLU")(net)
    assert net.stages[0][0].act.negative_slope == 0.01
    assert net.stages[0][0].act(torch.tensor(-1.0)) == pytest.approx(-0.01)


@pytest.mark.parametrize("name", ["GLU", "MultiheadAttention"])
def test_what_changes_the_shape_is_refused(name):
    given = partial(nn.MultiheadAttention, embed_dim=4, num_heads=2) if name == "MultiheadAttention" else name
    with pytest.raises(ConfigurationError, match=f"{name} does not keep its input's shape"):
        SwapActivation(given)(ConvNet())


def test_arguments_that_are_missing_are_named():
    with pytest.raises(ConfigurationError, match=r"Threshold.*can't be made.*threshold"):
        SwapActivation("Threshold")(ConvNet())


def test_a_class_of_another_package_is_replaced_by_its_path():
    net = nn.Sequential(nn.Linear(2, 2), timm.layers.activations.Sigmoid(), nn.Sigmoid())
    assert SwapActivation(nn.Tanh, ["timm.layers.activations.Sigmoid"])(net) == 1
    assert [type(module) for module in net[1:]] == [nn.Tanh, nn.Sigmoid]


@pytest.mark.parametrize("arguments", [{"scale": 0.0}, {"scale": -1.0}, {"bias": "low"}])
def test_arguments_of_the_star_out_of_range_are_refused(arguments):
    with pytest.raises(ConfigurationError, match="ReLUStar"):
        ReLUStar(**arguments)
