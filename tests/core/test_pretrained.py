import copy
import functools
import pickle

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrizations

from lightning_cnnopt.core import is_pretrained, mark_pretrained
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.pretrained import (
    is_pretrained_throughout,
    is_stated,
    mark_what_is_loaded,
    refuse_to_overwrite,
    seems_trained,
)


def network():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Sequential(nn.Flatten(), nn.Linear(2, 3)))


def watched():
    net = network()
    mark_what_is_loaded(net)
    return net


def marked(net):
    return [name for name, module in net.named_modules() if is_pretrained(module)]


def test_the_mark_goes_to_all_parts_and_comes_off():
    net = network()
    assert (marked(net), is_stated(net)) == ([], False)
    mark_pretrained(net[3])
    assert (marked(net), is_stated(net)) == (["3", "3.0", "3.1"], True)
    mark_pretrained(net, False)
    assert (marked(net), is_stated(net)) == ([], True)


def test_the_mark_is_copied_and_pickled_and_is_no_part_of_the_state():
    net = network()
    before = list(net.state_dict())
    mark_pretrained(net)
    assert list(net.state_dict()) == before
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert is_pretrained_throughout(other)


def test_what_is_put_in_later_is_not_marked():
    net = network()
    mark_pretrained(net)
    net[3][1] = nn.Linear(2, 7)
    assert not is_pretrained(net[3][1])
    assert not is_pretrained_throughout(net)


@pytest.mark.parametrize("copied", [lambda net: net, copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
@pytest.mark.parametrize("way", ["itself", "within another", "by parts", "assigned"])
def test_what_is_loaded_is_marked(way, copied):
    net, state = copied(watched()), network().state_dict()
    if way == "within another":
        nn.ModuleDict({"network": net}).load_state_dict({f"network.{key}": value for key, value in state.items()})
    elif way == "by parts":
        for index in (0, 1, 3):
            net[index].load_state_dict(network()[index].state_dict())
    else:
        net.load_state_dict(state, assign=way == "assigned")
    assert is_pretrained_throughout(net)


def test_keys_that_are_missing_mark_nothing():
    net, state = watched(), network().state_dict()
    net.load_state_dict({key: value for key, value in state.items() if not key.startswith("3.1")}, strict=False)
    assert marked(net) == ["0", "1"]


def test_a_layer_that_came_in_later_is_marked_when_the_network_is_loaded():
    net = watched()
    net[3][1] = nn.Linear(2, 7)
    net.load_state_dict(net.state_dict())
    assert is_pretrained_throughout(net)


def test_a_parametrized_layer_is_marked_by_what_its_weight_is_computed_from():
    def make():
        return nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2, bias=False)))

    net = make()
    mark_what_is_loaded(net)
    net.load_state_dict(make().state_dict())
    assert is_pretrained(net[0])
    assert is_pretrained_throughout(net)


def test_watching_twice_is_watching_once():
    net = watched()
    mark_what_is_loaded(net)
    assert all(len(module._load_state_dict_pre_hooks) == 1 for module in net.modules())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (network(), r"ready-made Sequential, and initializer=Any.*mark_pretrained\(network, False\)"),
        (functools.partial(torchvision.models.resnet18, weights="DEFAULT"), "weights='DEFAULT'.*Leave one of the two out"),
        ({"class_path": "timm.create_model", "init_args": {"pretrained": True}}, "pretrained=True"),
    ],
    ids=["instance", "partial", "spec"],
)
def test_weights_of_unknown_origin_are_not_overwritten_unless_that_was_said(given, message):
    net = watched()
    with pytest.raises(ConfigurationError, match=message):
        refuse_to_overwrite(net, given, _Any())
    mark_pretrained(net, False)
    refuse_to_overwrite(net, given, _Any())


class _Any:
    def __repr__(self):
        return "Any()"


def test_a_network_that_was_put_in_place_of_the_one_that_was_made_counts_as_ready_made():
    with pytest.raises(ConfigurationError, match="ready-made"):
        refuse_to_overwrite(network(), functools.partial(network), _Any())


@pytest.mark.parametrize(
    "given",
    [
        network,
        functools.partial(torchvision.models.resnet18, weights=None),
        {"class_path": "lightning_cnnopt.ConvNet"},
        {"class_path": "timm.create_model", "init_args": {"pretrained": False, "checkpoint_path": ""}},
    ],
)
def test_what_makes_a_new_network_may_be_initialized(given):
    refuse_to_overwrite(watched(), given, _Any())


def test_batch_normalization_tells_of_training():
    net = network()
    assert not seems_trained(net)
    net(torch.rand(2, 1, 3, 3))
    assert seems_trained(net)
    assert not seems_trained(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)))
