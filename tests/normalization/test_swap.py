import warnings
from functools import partial

import pytest
import timm
import torch
import torchvision
from jsonargparse import ArgumentParser
from torch import nn

from lightning_cnnopt.architecture import ConvNet
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.graph import is_activation
from lightning_cnnopt.core.spec import build, to_spec
from lightning_cnnopt.core.surgery import Edit
from lightning_cnnopt.normalization import GhostBatchNorm2d, SwapNormalization, swap_normalization

NETWORKS = {
    "ConvNet": (ConvNet, 2, (4, 1, 28, 28)),
    "resnet18": (torchvision.models.resnet18, 20, (4, 3, 32, 32)),
    "timm resnet18": (partial(timm.create_model, "resnet18"), 20, (4, 3, 32, 32)),
    "timm efficientnet_b0": (partial(timm.create_model, "efficientnet_b0", pretrained=False), 49, (4, 3, 32, 32)),
}


def trained(name):
    """Return a network whose scales, shifts and statistics are no longer the initial ones, and images for it."""
    make, _, shape = NETWORKS[name]
    net = make()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return net, torch.randn(shape)


@pytest.mark.parametrize("name", NETWORKS)
def test_in_evaluation_the_output_is_as_before(name):
    net, x = trained(name)
    expected = net.eval()(x)
    assert SwapNormalization(partial(GhostBatchNorm2d, ghost_size=2))(net) == NETWORKS[name][1]
    assert torch.equal(net(x), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_names_weights_and_activations_are_kept(name):
    net, _ = trained(name)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    parameters = dict(net.named_parameters())
    activations = sorted(path for path, module in net.named_modules() if is_activation(module))
    SwapNormalization(GhostBatchNorm2d)(net)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert list(net.state_dict()) == list(state)
    assert all(parameter is parameters[key] for key, parameter in net.named_parameters())
    assert sorted(path for path, module in net.named_modules() if is_activation(module)) == activations


@pytest.mark.parametrize("name", NETWORKS)
def test_a_second_call_changes_nothing_and_is_silent(name):
    net, _ = trained(name)
    SwapNormalization(GhostBatchNorm2d)(net)
    modules = list(net.modules())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert SwapNormalization(GhostBatchNorm2d)(net) == 0
    assert swap_normalization(net, GhostBatchNorm2d) == 0
    assert list(net.modules()) == modules


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_moves_every_swapped_layer(name):
    net, x = trained(name)
    SwapNormalization(partial(GhostBatchNorm2d, ghost_size=2))(net)
    net.train()(x).sum().backward()
    swapped = [module for module in net.modules() if isinstance(module, GhostBatchNorm2d)]
    assert all(module.weight.grad is not None for module in swapped)
    assert {int(module.num_batches_tracked) for module in swapped} == {1}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_dtype_and_mode_are_kept(dtype, training):
    net = ConvNet().to(dtype).train(training)
    SwapNormalization(partial(GhostBatchNorm2d, ghost_size=2))(net)
    swapped = [module for module in net.modules() if isinstance(module, GhostBatchNorm2d)]
    assert {module.weight.dtype for module in swapped} == {module.running_var.dtype for module in swapped} == {dtype}
    assert all(module.training is training for module in net.modules())
    assert net(torch.randn(6, 1, 28, 28, dtype=dtype)).dtype == dtype


def test_momentum_eps_and_frozen_parameters_are_kept():
    net = nn.Sequential(nn.BatchNorm2d(3, eps=0.01, momentum=None))
    net[0].weight.requires_grad_(False)
    SwapNormalization(GhostBatchNorm2d)(net)
    assert (net[0].eps, net[0].momentum) == (0.01, None)
    assert not net[0].weight.requires_grad
    assert net[0].bias.requires_grad


class Stubborn(GhostBatchNorm2d):
    def __init__(self, num_features):
        super().__init__(num_features, eps=0.25)


@pytest.mark.parametrize(
    ("normalization", "eps", "momentum"),
    [
        (partial(GhostBatchNorm2d, eps=0.5), 0.5, 0.02),
        (partial(GhostBatchNorm2d, eps=1e-5), 1e-5, 0.02),  # the class's own default, but said
        (partial(GhostBatchNorm2d, momentum=None), 0.01, None),
        (partial(GhostBatchNorm2d, eps=0.5, momentum=0.3), 0.5, 0.3),
        ({"class_path": "lightning_cnnopt.normalization.GhostBatchNorm2d", "init_args": {"eps": 1e-5}}, 1e-5, 0.02),
        (lambda channels: GhostBatchNorm2d(channels, momentum=0.3), 0.01, 0.3),
        (lambda channels: GhostBatchNorm2d(channels, 4), 0.01, 0.02),
        (Stubborn, 0.25, 0.02),
    ],
)
def test_what_is_stated_of_the_new_layer_wins_and_the_rest_is_carried_over(normalization, eps, momentum):
    net = nn.Sequential(nn.BatchNorm2d(3, eps=0.01, momentum=0.02))
    swap_normalization(net, normalization)
    assert (net[0].eps, net[0].momentum) == (eps, momentum)


def test_what_the_command_line_fills_in_counts_as_not_stated_and_a_checkpoint_says_the_same():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--edit", type=Edit)
    spec = {"class_path": "lightning_cnnopt.normalization.GhostBatchNorm2d", "init_args": {"ghost_size": 4, "momentum": 0.3}}
    given = {"class_path": "SwapNormalization", "init_args": {"normalization": spec}}
    edit = parser.instantiate(parser.parse_object({"edit": given})).edit
    for same in (edit, build(to_spec(edit), Edit)):
        net = nn.Sequential(nn.BatchNorm2d(3, eps=0.01, momentum=0.02))
        same(net)
        assert (net[0].eps, net[0].momentum, net[0].ghost_size) == (0.01, 0.3, 4)


def test_a_shared_layer_is_replaced_once_by_one():
    norm = nn.BatchNorm2d(3)
    net = nn.Sequential(norm, nn.ReLU(), norm)
    assert SwapNormalization(GhostBatchNorm2d)(net) == 1
    assert net[0] is net[2]


def test_the_channels_of_every_layer_arrive():
    net = torchvision.models.resnet18()
    expected = [module.num_features for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    swap_normalization(net, lambda channels: nn.GroupNorm(1, channels))
    assert [module.num_channels for module in net.modules() if isinstance(module, nn.GroupNorm)] == expected
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())


def test_only_the_named_kinds_are_replaced():
    net = nn.Sequential(nn.GroupNorm(1, 4), nn.BatchNorm2d(4), nn.LayerNorm([4, 2, 2]))
    assert SwapNormalization(GhostBatchNorm2d, replaces=["GroupNorm"])(net) == 1
    assert [type(module) for module in net] == [GhostBatchNorm2d, nn.BatchNorm2d, nn.LayerNorm]


def test_a_network_without_normalization_warns_and_names_it():
    with pytest.warns(UserWarning, match="normalization layers"):
        assert SwapNormalization(GhostBatchNorm2d)(nn.Sequential(nn.Linear(2, 2))) == 0


def test_a_misspelt_kind_is_refused_at_once():
    with pytest.raises(ConfigurationError, match="'BatchNorm2d'"):
        SwapNormalization(GhostBatchNorm2d, replaces=["BatchNrom2d"])


@pytest.mark.parametrize("groups", [1, 8])
def test_group_norm_is_made_by_name_from_a_partial_and_from_a_spec(groups):
    spec = {"class_path": "torch.nn.GroupNorm", "init_args": {"num_groups": groups}}
    for given in (partial(nn.GroupNorm, num_groups=groups), spec, lambda channels: nn.GroupNorm(groups, channels)):
        net = ConvNet(normalization=given)
        made = [m for m in net.modules() if isinstance(m, nn.GroupNorm)]
        assert [(m.num_groups, m.num_channels) for m in made] == [(groups, 32)] * 2
        swapped = ConvNet()
        assert SwapNormalization(given)(swapped) == 2
