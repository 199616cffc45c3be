import pytest
import timm
import torch
import torchvision
from torch import nn

from lightning_cnnopt.architecture import ConvNet
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.parameters import named_weights, parameter_groups
from lightning_cnnopt.normalization import GhostBatchNorm2d


def networks():
    return {
        "ConvNet": ConvNet(),
        "resnet18": torchvision.models.resnet18(),
        "timm": timm.create_model("efficientnet_b0", pretrained=False),
    }


@pytest.fixture(scope="module", params=["ConvNet", "resnet18", "timm"])
def network(request):
    return networks()[request.param]


def test_the_default_weights_are_those_of_convolutions_and_linear_layers(network):
    expected = [f"{n}.weight" for n, m in network.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert sorted(name for name, _ in named_weights(network)) == sorted(expected)


def test_groups_hold_every_parameter_once_and_decay_weights_only(network):
    groups = parameter_groups(network)
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in network.parameters())
    optimizer = torch.optim.SGD(groups, lr=0.1, weight_decay=0.5)
    decay = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
    assert decay == {"weights": 0.5, "biases_and_norms": 0.0}
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {id(p) for _, p in named_weights(network)}


@pytest.mark.parametrize("norm", [nn.LayerNorm((4, 5, 5)), nn.RMSNorm((4, 5, 5)), GhostBatchNorm2d(4), nn.GroupNorm(2, 4)])
def test_scales_of_normalization_are_no_weights_whatever_their_shape(norm):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), norm)
    assert [name for name, _ in named_weights(net)] == ["0.weight"]


def test_frozen_parameters_are_neither_weights_nor_in_a_group():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[0].requires_grad_(False)
    assert [name for name, _ in named_weights(net)] == ["1.weight"]
    assert [name for name, _ in named_weights(net, ["*"])] == ["1.weight", "1.bias"]
    assert sum(len(group["params"]) for group in parameter_groups(net)) == 2


def test_empty_groups_are_left_out():
    assert [group["name"] for group in parameter_groups(nn.Linear(2, 2, bias=False))] == ["weights"]
    assert [group["name"] for group in parameter_groups(nn.BatchNorm2d(2))] == ["biases_and_norms"]


def test_a_shared_parameter_is_in_one_group_once():
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    held = [id(p) for group in parameter_groups(nn.Sequential(first, second)) for p in group["params"]]
    assert len(held) == len(set(held)) == 3


def test_patterns_replace_the_default_rule_and_one_parameter_comes_once():
    names = [name for name, _ in named_weights(ConvNet(), ["classifier.*", "*.bias", "classifier.bias"])]
    assert "classifier.weight" in names
    assert all(name.startswith("classifier.") or name.endswith(".bias") for name in names)
    assert len(names) == len(set(names))


def test_a_pattern_without_a_match_is_named():
    with pytest.raises(ConfigurationError, match=r"haed\.\*"):
        list(named_weights(ConvNet(), ["classifier.*", "haed.*"]))


def test_frozen_parameters_are_yielded_where_they_are_asked_for(network):
    every = [name for name, _ in named_weights(network)]
    frozen = dict(named_weights(network))[every[0]].requires_grad_(False)
    assert [name for name, _ in named_weights(network)] == every[1:]
    assert [name for name, _ in named_weights(network, frozen=True)] == every
    assert [name for name, _ in named_weights(network, [every[0]])] == []
    assert [name for name, _ in named_weights(network, [every[0]], frozen=True)] == every[:1]
    frozen.requires_grad_(True)
