import pickle
import warnings
from functools import partial

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.ops import SqueezeExcitation

from lightning_cnnopt.architecture import ConvNet, SqueezeExcite
from lightning_cnnopt.core.errors import ConfigurationError

NETWORKS = {
    "ConvNet": (partial(ConvNet, 5, 3, (32, 32), widths=(16, 32)), 4),
    "vgg11": (partial(torchvision.models.vgg11, num_classes=2), 8),
    "resnet18": (torchvision.models.resnet18, 8),
    "resnet50": (torchvision.models.resnet50, 16),
    "timm resnet18": (partial(timm.create_model, "resnet18"), 8),
}


def on_meta(name):
    with torch.device("meta"):
        return NETWORKS[name][0]()


@pytest.mark.parametrize("name", NETWORKS)
def test_every_block_gets_one_and_no_name_changes(name):
    net = on_meta(name)
    before = {key: value.shape for key, value in net.state_dict().items()}
    assert SqueezeExcite()(net) == NETWORKS[name][1]
    after = {key: value.shape for key, value in net.state_dict().items()}
    assert before.items() <= after.items()
    added = set(after) - set(before)
    assert added
    assert all(".squeeze_excite." in key for key in added)


def test_weights_saved_before_load_with_only_the_new_ones_missing():
    old, net = torchvision.models.resnet18(), torchvision.models.resnet18()
    SqueezeExcite()(net)
    incompatible = net.load_state_dict(old.state_dict(), strict=False)
    assert incompatible.unexpected_keys == []
    assert incompatible.missing_keys
    assert all(".squeeze_excite." in key for key in incompatible.missing_keys)
    assert torch.equal(net.layer1[0].conv1.weight, old.layer1[0].conv1.weight)


def excite(layer, x):
    """x · σ(W₂ δ(W₁ mean(x))), by matrices."""
    pooled = x.mean((2, 3))
    hidden = torch.relu(pooled @ layer.fc1.weight.flatten(1).T + layer.fc1.bias)
    scale = torch.sigmoid(hidden @ layer.fc2.weight.flatten(1).T + layer.fc2.bias)
    return x * scale[:, :, None, None]


def test_a_residual_branch_is_excited_before_the_addition():
    net = torchvision.models.resnet18().eval()
    SqueezeExcite()(net)
    block = net.layer1[0]
    x = torch.rand(2, 64, 8, 8)
    branch = block.bn1(block.conv1(x)).relu()
    branch = nn.functional.batch_norm(block.conv2(branch), block.bn2.running_mean, block.bn2.running_var, eps=block.bn2.eps)
    expected = (excite(block.bn2.squeeze_excite, branch) + x).relu()
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("order", ["conv-act-norm", "conv-norm-act"])
def test_a_plain_block_is_excited_behind_its_last_layer(order):
    net, plain = (ConvNet(widths=(16,), depth=1, order=order).eval() for _ in range(2))
    SqueezeExcite(reduction=4)(net)
    plain.load_state_dict(net.state_dict(), strict=False)
    (layer,) = (module for module in net.modules() if isinstance(module, SqueezeExcitation))
    x = torch.randn(2, 1, 28, 28)
    stage = plain.stages[0]
    torch.testing.assert_close(net.stages(x), stage[1](excite(layer, stage[0](x))))


@pytest.mark.parametrize(("reduction", "hidden"), [(16, 4), (8, 8), (1, 64), (1000, 1)])
def test_the_bottleneck_is_divided_by_the_reduction(reduction, hidden):
    net = torchvision.models.resnet18()
    SqueezeExcite(reduction)(net)
    assert net.layer1[0].bn2.squeeze_excite.fc1.out_channels == hidden


def test_narrow_blocks_are_left_alone():
    net = ConvNet(widths=(8, 16), depth=1)
    assert SqueezeExcite(min_channels=16)(net) == 1


def test_the_activation_of_the_bottleneck_can_be_chosen():
    net = ConvNet()
    SqueezeExcite(activation=nn.SiLU)(net)
    layers = [module for module in net.modules() if isinstance(module, SqueezeExcitation)]
    assert layers
    assert all(isinstance(layer.activation, nn.SiLU) for layer in layers)


@pytest.mark.parametrize("name", ["efficientnet_b0", "seresnet18", "regnety_002"])
def test_branches_of_timm_that_squeeze_already_get_no_second_one(name):
    with torch.device("meta"):
        net = timm.create_model(name)
    with pytest.warns(UserWarning, match="changed nothing"):
        assert SqueezeExcite()(net) == 0


def test_branches_of_torchvision_that_squeeze_already_get_no_second_one():
    with torch.device("meta"):
        net = torchvision.models.efficientnet_b0()
    before = list(net.state_dict())
    with pytest.warns(UserWarning, match="changed nothing"):
        SqueezeExcite()(net)
    assert list(net.state_dict()) == before


@pytest.mark.parametrize("name", NETWORKS)
def test_a_second_call_changes_nothing_and_is_silent(name):
    net = on_meta(name)
    SqueezeExcite()(net)
    keys = list(net.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert SqueezeExcite()(net) == 0
    assert list(net.state_dict()) == keys


@pytest.mark.parametrize("name", ["ConvNet", "resnet18"])
def test_another_reduction_adds_no_second_layer(name):
    net = on_meta(name)
    SqueezeExcite(16)(net)
    keys = list(net.state_dict())
    with pytest.warns(UserWarning, match="changed nothing"):
        assert SqueezeExcite(8)(net) == 0
    assert list(net.state_dict()) == keys


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_added_layers_have_the_networks_dtype_and_learn(dtype):
    net = ConvNet(widths=(16,)).to(dtype)
    SqueezeExcite()(net)
    net(torch.randn(4, 1, 28, 28, dtype=dtype)).sum().backward()
    added = [p for n, p in net.named_parameters() if "squeeze_excite" in n]
    assert {parameter.dtype for parameter in added} == {dtype}
    assert all(parameter.grad is not None for parameter in added)


def test_a_network_with_it_pickles():
    net = ConvNet().eval()
    SqueezeExcite()(net)
    x = torch.randn(1, 1, 28, 28)
    assert torch.equal(pickle.loads(pickle.dumps(net))(x), net(x))


@pytest.mark.parametrize("arguments", [{"reduction": 0}, {"min_channels": 0}])
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ConfigurationError, match=next(iter(arguments))):
        SqueezeExcite(**arguments)
