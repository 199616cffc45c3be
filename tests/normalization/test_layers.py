import pickle
from functools import partial

import pytest
import timm
import torch
import torchvision
from torch import nn

from lightning_cnnopt.architecture import ConvNet, SqueezeExcite
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.parameters import parameter_groups
from lightning_cnnopt.initialization import Kaiming
from lightning_cnnopt.normalization import (
    RMSNorm2d,
    StandardizedConv2d,
    StandardizeWeights,
    rms_norm_2d,
    standardize_weight,
)


def test_root_mean_square_normalization_is_that_of_timm():
    ours, theirs = RMSNorm2d(6, eps=1e-6), timm.layers.RmsNorm2d(6, eps=1e-6)
    nn.init.normal_(ours.weight)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, 5, 4)
    torch.testing.assert_close(ours(x), theirs(x))


def test_root_mean_square_normalization_is_torchs_with_channels_last():
    x, weight = torch.randn(2, 6, 5, 4), torch.randn(6)
    expected = nn.functional.rms_norm(x.permute(0, 2, 3, 1), (6,), weight).permute(0, 3, 1, 2)
    assert torch.equal(rms_norm_2d(x, weight), expected)
    assert list(RMSNorm2d(6, elementwise_affine=False).parameters()) == []


@pytest.mark.parametrize(
    "convolution",
    [
        partial(nn.Conv2d, 4, 6, 3),
        partial(nn.Conv2d, 4, 6, (3, 5), stride=2, padding=1, dilation=2, groups=2, bias=False),
        partial(nn.Conv2d, 4, 6, 3, padding="same", padding_mode="circular"),
    ],
)
def test_a_changed_convolution_is_the_same_one_with_standardized_weights(convolution):
    net = nn.Sequential(convolution(), nn.BatchNorm2d(6))
    plain = convolution()
    plain.load_state_dict(net[0].state_dict())
    plain.weight.data = (plain.weight - plain.weight.mean((1, 2, 3), keepdim=True)) / (
        plain.weight.var((1, 2, 3), keepdim=True, correction=0) + 1e-6
    ).sqrt()
    parameters = list(net.parameters())
    assert StandardizeWeights()(net) == 1
    x = torch.randn(2, 4, 12, 12)
    torch.testing.assert_close(net[0](x), plain(x))
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert torch.equal(pickle.loads(pickle.dumps(net)).eval()(x), net.eval()(x))


@pytest.mark.parametrize("groups", [1, 2])
def test_the_layer_is_timms(groups):
    theirs = timm.layers.StdConv2d(4, 6, 3, padding=1, groups=groups, bias=True)
    ours = StandardizedConv2d(4, 6, 3, padding=1, groups=groups)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(ours(x), theirs(x))


def test_neither_scale_nor_shift_of_a_filter_matters():
    weight = torch.randn(5, 3, 3, 3)
    torch.testing.assert_close(standardize_weight(7 * weight + 2, eps=0.0), standardize_weight(weight, eps=0.0))


def standardized(net):
    return {name for name, module in net.named_modules() if isinstance(module, StandardizedConv2d)}


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (partial(ConvNet, order="conv-act-norm"), 2),
        (partial(ConvNet, order="conv-norm-act"), 2),
        (torchvision.models.resnet50, 53),
        (partial(timm.create_model, "seresnet18"), 20),
        (partial(timm.create_model, "resnetv2_50"), 53),
        (torchvision.models.vgg11_bn, 8),
    ],
)
def test_every_convolution_that_is_normalized_is_changed_and_no_other(make, count):
    with torch.device("meta"):
        net = make()
    keys = list(net.state_dict())
    assert StandardizeWeights()(net) == count
    assert not any(".se." in name for name in standardized(net))
    assert list(net.state_dict()) == keys


def test_without_normalization_behind_it_a_convolution_stays():
    with pytest.warns(UserWarning, match="convolutions that a normalization follows"):
        assert StandardizeWeights()(torchvision.models.vgg11(num_classes=2)) == 0
    net = torchvision.models.resnet18()
    SqueezeExcite()(net)
    StandardizeWeights()(net)
    assert not any("squeeze_excite" in name for name in standardized(net))


def test_filters_of_one_weight_stay():
    net = nn.Sequential(nn.Conv2d(4, 4, 1, groups=4), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4))
    assert StandardizeWeights()(net) == 1
    assert standardized(net) == {"2"}


def test_changed_convolutions_decay_and_are_initialized_like_any():
    net = ConvNet(8)
    StandardizeWeights()(net)
    groups = parameter_groups(net)
    assert {id(net.get_submodule(name).weight) for name in standardized(net)} <= {id(p) for p in groups[0]["params"]}
    before = net.stages[0][0].conv.weight.clone()
    Kaiming()(net, None, torch.Generator().manual_seed(0))
    assert not torch.equal(net.stages[0][0].conv.weight, before)


@pytest.mark.parametrize("make", [partial(StandardizeWeights, -1.0), partial(StandardizedConv2d, 1, 1, 1, eps=-1.0)])
def test_an_epsilon_below_zero_is_refused(make):
    with pytest.raises(ConfigurationError, match=r"eps=-1\.0"):
        make()


@pytest.mark.parametrize("arguments", [{"normalized_shape": 0}, {"normalized_shape": 4, "eps": -1.0}])
def test_arguments_of_rms_norm_out_of_range_are_refused(arguments):
    with pytest.raises(ConfigurationError, match="RMSNorm2d"):
        RMSNorm2d(**arguments)
