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
from lightning_cnnopt.normalization import GhostBatchNorm2d, RMSNorm2d, SwapNormalization, swap_normalization

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


GROUPS = partial(nn.GroupNorm, num_groups=48)


@pytest.mark.parametrize(
    "groups",
    [
        GROUPS,
        {"class_path": "torch.nn.GroupNorm", "init_args": {"num_groups": 48}},
        lambda channels: nn.GroupNorm(48, channels),
    ],
)
def test_groups_that_do_not_divide_the_channels_are_refused_with_those_that_do(groups):
    net = torchvision.models.mobilenet_v2()
    with pytest.raises(ConfigurationError) as caught:
        SwapNormalization(groups)(net)
    text = str(caught.value)
    assert "layer 'features.0.1'" in text
    assert "32 channels" in text
    assert "48" in text
    assert text.endswith("these do, in every layer: 1, 2, 4, 8.")
    assert not any(isinstance(module, nn.GroupNorm) for module in net.modules())


def test_groups_are_refused_wherever_a_normalization_is_made():
    with pytest.raises(ConfigurationError, match=r"num_groups=5 does not divide the 32 channels.*these do: 1, 2, 4, 8, 16, 32"):
        ConvNet(normalization=partial(nn.GroupNorm, num_groups=5))
    with pytest.raises(ConfigurationError, match="num_groups=0"):
        ConvNet(normalization=partial(nn.GroupNorm, num_groups=0))


def test_arguments_of_batch_normalization_can_be_changed_in_any_network():
    net = torchvision.models.resnet18()
    change = partial(nn.BatchNorm2d, momentum=0.01, affine=False)
    assert SwapNormalization(change)(net) == 20
    layers = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(layer.momentum, layer.affine, layer.eps) for layer in layers} == {(0.01, False, 1e-5)}
    assert swap_normalization(net, change) == 0


KINDS = {
    "GroupNorm": partial(nn.GroupNorm, num_groups=4),
    "InstanceNorm2d": nn.InstanceNorm2d,
    "LayerNorm2d": torchvision.models.convnext.LayerNorm2d,
    "RMSNorm2d": RMSNorm2d,
    "FrozenBatchNorm2d": torchvision.ops.FrozenBatchNorm2d,
    "GhostBatchNorm2d": partial(GhostBatchNorm2d, ghost_size=2),
    "BatchNorm2d": partial(nn.BatchNorm2d, momentum=0.2),
    "a path": "torchvision.models.convnext.LayerNorm2d",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_any_kind_takes_the_place_of_batch_normalization_in_any_network(kind, name):
    net, x = trained(name)
    names = {path for path, _ in net.named_modules()}
    activations = [path for path, module in net.named_modules() if is_activation(module)]
    assert SwapNormalization(KINDS[kind])(net) == NETWORKS[name][1]
    swapped = [m for m in net.modules() if type(m).__name__ == ("LayerNorm2d" if kind == "a path" else kind)]
    assert len(swapped) == NETWORKS[name][1]
    assert {path for path, _ in net.named_modules()} <= names
    assert sorted(path for path, m in net.named_modules() if is_activation(m)) == sorted(activations)
    if kind == "InstanceNorm2d" and x.shape[-1] > 28:  # it needs two pixels where other kinds take one
        x = nn.functional.interpolate(x, scale_factor=2)
    net.train()(x).square().sum().backward()


def test_a_swap_into_layers_that_hold_an_activation_keeps_the_old_one_in_its_place():
    net = timm.create_model("efficientnet_b0")
    assert SwapNormalization(partial(timm.layers.GroupNormAct, num_groups=8))(net) == 49
    assert all(type(m.act) in (nn.SiLU, nn.Identity) for m in net.modules() if isinstance(m, timm.layers.GroupNormAct))
    net(torch.randn(2, 3, 32, 32))


def test_frozen_batch_normalization_computes_as_before_and_thaws_again():
    net, x = trained("resnet18")
    expected = net.eval()(x)
    SwapNormalization(torchvision.ops.FrozenBatchNorm2d)(net)
    assert torch.equal(net.train()(x), net.eval()(x))
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)
    assert not any("bn" in name for name, _ in net.named_parameters())
    assert SwapNormalization(nn.BatchNorm2d, replaces=["torchvision.ops.FrozenBatchNorm2d"])(net) == 20
    torch.testing.assert_close(net.eval()(x), expected)
    assert all(p.requires_grad for name, p in net.named_parameters() if "bn" in name)


def test_a_layer_that_does_not_tell_its_channels_is_named():
    net = nn.Sequential(nn.LocalResponseNorm(2))
    with pytest.raises(ConfigurationError, match="LocalResponseNorm '0' does not tell"):
        swap_normalization(net, nn.BatchNorm2d, (nn.LocalResponseNorm,))


def test_dropout_inside_timms_layers_stays_in_front_of_the_activation():
    layer = timm.layers.BatchNormAct2d(4, drop_layer=partial(nn.Dropout, 0.5))
    net = nn.Sequential(layer)
    swap_normalization(net, nn.BatchNorm2d)
    assert [type(child) for child in net[0].children()] == [nn.Dropout, nn.ReLU]
    x = torch.randn(8, 4, 3, 3)
    torch.manual_seed(0)
    expected = layer(x.clone())
    torch.manual_seed(0)
    assert torch.equal(net(x), expected)
