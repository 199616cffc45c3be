import functools

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from lightning_cnnopt.architecture import SqueezeExcite
from lightning_cnnopt.core.graph import WEIGHTED_LAYERS, NetworkGraph, Unknown
from lightning_cnnopt.core.surgery import insert_before
from tests.core.graph.test_network import Functional, Untraceable

NETWORKS = {
    "resnet18": torchvision.models.resnet18,
    "densenet121": torchvision.models.densenet121,
    "mobilenet_v3_small": torchvision.models.mobilenet_v3_small,
    "shufflenet": torchvision.models.shufflenet_v2_x0_5,
    "timm seresnet18": functools.partial(timm.create_model, "seresnet18"),
    "timm convnextv2_atto": functools.partial(timm.create_model, "convnextv2_atto"),
    "timm test_efficientnet": functools.partial(timm.create_model, "test_efficientnet"),
}


def layers_of(network):
    return [name for name, module in network.named_modules() if isinstance(module, WEIGHTED_LAYERS)]


@pytest.mark.parametrize("edited", [False, True], ids=["plain", "with squeeze-and-excite"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_recorded_network_has_the_activations_of_the_traced_one(name, edited):
    net = NETWORKS[name]()
    if edited:
        SqueezeExcite()(net)
    traced = NetworkGraph(net)
    recorded = NetworkGraph(Untraceable(net), torch.rand(2, 3, 64, 64))
    for layer in layers_of(net):
        expected, found = traced.activation_after(layer), recorded.activation_after(f"part.{layer}")
        assert found is expected or (repr(found) == repr(expected) and not isinstance(found, Unknown)), layer


def test_what_stands_in_front_of_a_layer_is_followed():
    net = Untraceable(Functional(F.gelu))
    insert_before(net, "part.second", "front", nn.Sequential(nn.Linear(2, 2), nn.Tanh()))
    found = NetworkGraph(net, torch.ones(3, 2))
    assert isinstance(found.activation_after("part.first"), nn.GELU)
    assert isinstance(found.activation_after("part.second.front.0"), nn.Tanh)
    assert found.activation_after("part.second") is None


def test_the_network_is_left_as_it_was():
    net = Untraceable(NETWORKS["timm test_efficientnet"]()).train()
    net.part.bn1.eval()
    modes = [m.training for m in net.modules()]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    sample = torch.rand(4, 3, 32, 32)
    random = torch.get_rng_state()
    NetworkGraph(net, sample)
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert all(p.grad is None for p in net.parameters())


def test_a_layer_that_the_sample_does_not_reach_is_unknown():
    class Chooses(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return F.relu(self.one(x) if x.sum() > 0 else self.two(x))

    found = NetworkGraph(Chooses(), torch.ones(3, 2))
    assert isinstance(found.activation_after("one"), nn.ReLU)
    assert found.activation_after("two") == Unknown("the sample does not reach the code that calls it")


def test_what_only_decides_where_to_go_does_not_count():
    class Decides(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.norm, self.two = nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2)

        def forward(self, x):
            x = self.one(x)
            if x.abs().exp().max() < 0 or x.shape[0] == 0:
                return x
            return self.two(F.relu(self.norm(x)))

    found = NetworkGraph(Decides(), torch.ones(3, 2))
    assert isinstance(found.activation_after("one"), nn.ReLU)
    assert found.activation_after("two") is None


def test_a_sample_that_does_not_fit_leaves_the_traceable_parts():
    net = Untraceable(Functional(F.relu))
    found = NetworkGraph(net, torch.ones(3, 5))
    assert isinstance(found.activation_after("part.first"), nn.ReLU)
    assert "does not run on the sample (mat1 and mat2" in found.activation_after("part.second").reason
    assert not any(m._forward_hooks for m in net.modules())


def test_a_network_that_can_be_traced_is_not_run():
    def never(*args):
        raise AssertionError

    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    net.register_forward_pre_hook(never)
    assert NetworkGraph(net, torch.ones(3, 2)).activation_after("0") is net[1]
