"""Layers whose weight is computed from other parameters."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.initialization import LSUV, Kaiming, XavierNormal, XavierUniform
from lightning_cnnopt.initialization.functional import assign_, xavier_uniform_


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def old_weight_norm(layer, **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(layer, **arguments)


def old_spectral_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.spectral_norm(layer)


class Doubled(nn.Module):
    def forward(self, x):
        return 2 * x


class Halvable(Doubled):
    def right_inverse(self, x):
        return x / 2


def own(parametrization, name="weight"):
    layer = nn.Linear(6, 4)
    parametrize.register_parametrization(layer, name, parametrization)
    return layer


LAYERS = {
    "weight_norm": lambda: parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
    "weight_norm dim": lambda: parametrizations.weight_norm(nn.Linear(6, 4), dim=1),
    "old weight_norm": lambda: old_weight_norm(nn.Conv2d(3, 4, 3)),
    "old weight_norm dim": lambda: old_weight_norm(nn.Linear(6, 4), dim=None),
    "own": lambda: own(Halvable()),
    "own bias": lambda: own(Halvable(), "bias"),
}


def run(layer):
    shape = (2, layer.in_channels, 5, 5) if isinstance(layer, nn.Conv2d) else (2, layer.in_features)
    return layer(torch.ones(shape))


@pytest.mark.parametrize("initializer", [XavierUniform(), XavierNormal(), Kaiming()], ids=repr)
@pytest.mark.parametrize("name", LAYERS)
def test_a_computed_weight_is_that_of_a_plain_layer(name, initializer):
    net = nn.Sequential(LAYERS[name]())
    plain = nn.Sequential(nn.Conv2d(3, 4, 3) if isinstance(net[0], nn.Conv2d) else nn.Linear(6, 4))
    assert initializer(net, generator=generator()) == initializer(plain, generator=generator()) == ["0"]
    torch.testing.assert_close(net[0].weight, plain[0].weight, check_stride=False)
    assert not net[0].bias.any()
    output = run(net[0])
    torch.testing.assert_close(output, run(plain[0]))
    output.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize(
    "make", [lambda: own(Doubled()), lambda: own(Doubled(), "bias"), lambda: old_spectral_norm(nn.Linear(6, 4))]
)
def test_what_can_not_be_inverted_is_left_alone_and_named(make):
    net = nn.Sequential(nn.Linear(6, 6), make())
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.warns(UserWarning, match=r"leaves 1 layers as they are, such as '1': .*(right_inverse|inverted)"):
        assert XavierUniform()(net, generator=generator()) == ["0"]
    after = net.state_dict()
    assert [name for name in after if not torch.equal(after[name], before[name])] == ["0.weight", "0.bias"]
    with pytest.raises(ConfigurationError, match="Linear computes its"):
        assign_(net[1], "bias" if parametrize.is_parametrized(net[1], "bias") else "weight", torch.zeros(4, 6))


def test_a_spectral_norm_has_the_norm_of_the_new_weight_at_once():
    layer = parametrizations.spectral_norm(nn.Linear(40, 30)).eval()
    xavier_uniform_(layer, generator=generator(1))
    assert not layer.parametrizations.weight[0].training
    plain = nn.Linear(40, 30)
    xavier_uniform_(plain, generator=generator(1))
    assert float(torch.linalg.matrix_norm(layer.weight, 2)) == pytest.approx(1, abs=0.05)
    cosine = nn.functional.cosine_similarity(layer.weight.flatten(), plain.weight.flatten(), dim=0)
    assert float(cosine) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
def test_an_orthogonal_weight_stays_orthogonal_and_repeats(shape):
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        net = nn.Sequential(parametrizations.orthogonal(nn.Linear(*shape)))
        state = torch.get_rng_state()
        assert XavierNormal()(net, generator=generator()) == ["0"]
        assert torch.equal(torch.get_rng_state(), state)
        states.append(net.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    weight = net[0].weight.detach()
    small = weight if weight.shape[0] <= weight.shape[1] else weight.T
    torch.testing.assert_close(small @ small.T, torch.eye(len(small)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["weight_norm", "old weight_norm"])
def test_lsuv_scales_a_computed_weight(name):
    net = nn.Sequential(LAYERS[name]())
    sample = 3 * torch.randn(16, 3, 8, 8, generator=generator())
    LSUV()(net, sample, generator())
    assert float(net(sample).detach().var(unbiased=False)) == pytest.approx(1, abs=0.011)


def test_lsuv_says_which_layers_it_could_not_scale():
    net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), parametrizations.spectral_norm(nn.Linear(6, 4)))
    with pytest.warns(UserWarning, match="1 layers kept another variance than 1, such as '2' with"):
        LSUV()(net, torch.randn(32, 6, generator=generator()), generator())
