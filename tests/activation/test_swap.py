import warnings
from functools import partial

import pytest
import timm
import torch
import torchvision
from torch import nn

from lightning_cnnopt.activation import SwapActivation, swap_activation
from lightning_cnnopt.activation.functional import GATES
from lightning_cnnopt.architecture import ConvNet
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.normalization import GhostBatchNorm2d, SwapNormalization


def count(network, *classes):
    return sum(type(module) in classes for module in network.modules())


NETWORKS = {
    "ConvNet": (ConvNet, 3),
    "resnet18": (torchvision.models.resnet18, 9),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, 35),
    "convnext_tiny": (torchvision.models.convnext_tiny, 0),
    "timm resnet18": (partial(timm.create_model, "resnet18"), 17),
    "timm efficientnet_b0": (partial(timm.create_model, "efficientnet_b0", pretrained=False), 33 + 16),
}


@pytest.mark.parametrize("name", [name for name in NETWORKS if NETWORKS[name][1]])
def test_every_activation_is_swapped_counted_and_found_under_its_name(name):
    make, expected = NETWORKS[name]
    net = make()
    names = [path for path, _ in net.named_modules()]
    gates = sum(isinstance(module, GATES) and not isinstance(module, nn.ReLU6) for module in net.modules())
    assert SwapActivation(nn.GELU)(net) == expected
    assert count(net, nn.GELU) == expected
    assert count(net, nn.ReLU, nn.SiLU, nn.ReLU6) == 0
    assert sum(isinstance(module, GATES) for module in net.modules()) == gates
    assert [path for path, _ in net.named_modules()] == names


def test_every_timm_normalization_that_held_an_activation_holds_the_new_one():
    net = timm.create_model("efficientnet_b0", pretrained=False)
    holders = [m for m in net.modules() if isinstance(getattr(m, "act", None), nn.SiLU) and isinstance(m, nn.BatchNorm2d)]
    assert len(holders) == 33
    SwapActivation(nn.GELU)(net)
    assert all(type(holder.act) is nn.GELU for holder in holders)
    x = torch.randn(2, holders[0].num_features, 4, 4)
    plain = nn.functional.batch_norm(x, None, None, training=True, eps=holders[0].eps)
    torch.testing.assert_close(holders[0](x), nn.functional.gelu(plain))


def test_an_activation_kept_behind_a_swapped_normalization_is_reached():
    net = timm.create_model("efficientnet_b0", pretrained=False)
    SwapNormalization(GhostBatchNorm2d)(net)
    assert SwapActivation(nn.GELU)(net) == 49
    assert count(net, nn.SiLU) == 0


@pytest.mark.parametrize("name", ["regnety_002", "mobilenetv3_small_100", "seresnet18"])
def test_gates_of_timm_are_left_alone(name):
    net = timm.create_model(name, pretrained=False)
    gates = {n: m for n, m in net.named_modules() if n.endswith("gate")}
    assert gates
    SwapActivation(nn.GELU)(net)
    assert all(net.get_submodule(path) is module for path, module in gates.items())


def test_gates_are_swapped_where_they_are_named():
    net = nn.Sequential(nn.Linear(2, 2), nn.Sigmoid(), nn.Linear(2, 2), nn.ReLU())
    assert SwapActivation(nn.GELU, ["Sigmoid"])(net) == 1
    assert isinstance(net[1], nn.GELU)
    assert isinstance(net[3], nn.ReLU)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_the_network_keeps_dtype_and_mode(dtype, training):
    net = ConvNet().to(dtype).train(training)
    SwapActivation(nn.PReLU, ["ReLU"])(net)
    swapped = [module for module in net.modules() if isinstance(module, nn.PReLU)]
    assert len(swapped) == 3
    assert all(module.weight.dtype == dtype for module in net.modules() if isinstance(module, nn.Linear))
    assert all(module.training is training for module in net.modules())
    assert net(torch.randn(2, 1, 28, 28, dtype=dtype)).dtype == dtype


def test_the_network_keeps_its_device():
    with torch.device("meta"):
        net = nn.Sequential(nn.Linear(2, 2), nn.PReLU())
    SwapActivation(partial(nn.PReLU, num_parameters=2), ["PReLU"])(net)
    assert net[1].weight.device.type == "meta"


@pytest.mark.parametrize("name", [name for name in NETWORKS if NETWORKS[name][1]])
def test_a_second_call_changes_nothing_and_is_silent(name):
    net = NETWORKS[name][0]()
    SwapActivation(nn.GELU)(net)
    modules = list(net.modules())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert SwapActivation(nn.GELU)(net) == 0
    assert list(net.modules()) == modules


def test_a_shared_activation_is_replaced_once_by_one():
    relu = nn.ReLU()
    net = nn.Sequential(nn.Linear(2, 2), relu, nn.Linear(2, 2), relu)
    assert SwapActivation(nn.GELU)(net) == 1
    assert net[1] is net[3]


def test_places_get_activations_of_their_own():
    net = nn.Sequential(nn.ReLU(), nn.ReLU())
    SwapActivation(nn.PReLU)(net)
    assert net[0] is not net[1]


def test_a_network_without_activations_warns_and_names_them():
    with pytest.warns(UserWarning, match="activation layers"):
        assert SwapActivation(nn.GELU)(nn.Sequential(nn.Linear(2, 2))) == 0


def test_activations_called_as_functions_are_named_in_a_warning():
    net = torchvision.models.densenet121()
    with pytest.warns(UserWarning, match=r"1 activations of DenseNet.*relu"):
        assert swap_activation(net, nn.GELU) == 120


def test_networks_without_functional_activations_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        swap_activation(torchvision.models.resnet18(), nn.GELU)


def test_the_output_is_that_of_a_network_built_with_the_activation():
    net = ConvNet(activation=nn.ReLU).eval()
    built = ConvNet(activation=nn.Mish).eval()
    SwapActivation(nn.Mish)(net)
    built.load_state_dict(net.state_dict())
    x = torch.randn(2, 1, 28, 28)
    assert torch.equal(net(x), built(x))


def test_arguments_of_the_activation_arrive():
    net = ConvNet()
    SwapActivation(partial(nn.LeakyReLU, negative_slope=0.3))(net)
    assert {m.negative_slope for m in net.modules() if isinstance(m, nn.LeakyReLU)} == {0.3}


@pytest.mark.parametrize("activation", ["GELU", "torch.nn.GELU", {"class_path": "torch.nn.GELU"}, nn.GELU, partial(nn.GELU)])
def test_every_way_to_name_an_activation_is_accepted(activation):
    assert SwapActivation(activation)(ConvNet()) == 3


def test_misspelt_names_are_refused_at_once():
    with pytest.raises(ConfigurationError, match="'GELU'"):
        SwapActivation("GELUU")
    with pytest.raises(ConfigurationError, match="'ReLU'"):
        SwapActivation(nn.GELU, ["Relu"])


def test_what_makes_no_module_is_refused():
    with pytest.raises(ConfigurationError, match="expected an activation layer"):
        swap_activation(ConvNet(), lambda: torch.relu)


def test_an_activation_behind_a_swapped_normalization_is_no_function():
    net = timm.create_model("efficientnet_b0", pretrained=False)
    SwapNormalization(GhostBatchNorm2d)(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SwapActivation(nn.GELU)(net)
