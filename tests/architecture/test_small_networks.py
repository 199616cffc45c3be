from functools import partial

import pytest
import torch
import torchvision
from torch import nn

from lightning_cnnopt.architecture import SmallResNet, SpeedNet
from lightning_cnnopt.architecture.networks.small_resnet import PaddedShortcut
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.graph import NetworkGraph
from lightning_cnnopt.dropout import StochasticDepth


def weighted(net):
    return [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


# SmallResNet


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)])
def test_depths_have_the_parameters_that_the_paper_prints(depth, millions):
    # table 6 of He et al. 2016
    with torch.device("meta"):
        net = SmallResNet(10, 3, depth=depth)
    assert len(weighted(net)) == depth
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.05 if depth == 110 else 0.005)


@pytest.mark.parametrize(("block", "depth"), [("basic", 8), ("bottleneck", 11)])
@pytest.mark.parametrize("shortcut", ["padded", "projection"])
@pytest.mark.parametrize(("channels", "image_size"), [(1, (8, 8)), (3, (33, 20)), (4, (4, 5))])
def test_any_channels_and_image_size(block, depth, shortcut, channels, image_size):
    net = SmallResNet(7, channels, image_size, depth, 4, block, shortcut)
    assert net(torch.zeros(2, channels, *image_size)).shape == (2, 7)


def test_width_is_one_number():
    net = SmallResNet(depth=8, width=5)
    assert [m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d)] == [5] * 3 + [10] * 2 + [20] * 2


def test_a_basic_block_computes_torchvisions():
    ours = SmallResNet(depth=8, width=16, shortcut="projection").stages[1][0]
    down = nn.Sequential(nn.Conv2d(16, 32, 1, 2, bias=False), nn.BatchNorm2d(32))
    theirs = torchvision.models.resnet.BasicBlock(16, 32, 2, down)
    assert [tuple(p.shape) for p in ours.parameters()] == [tuple(p.shape) for p in theirs.parameters()]
    for mine, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        other.copy_(mine)
    x = torch.randn(2, 16, 9, 9)
    assert torch.equal(ours(x), theirs(x))


def test_a_bottleneck_block_computes_torchvisions():
    ours = SmallResNet(depth=11, width=8, block="bottleneck", shortcut="projection").stages[2][0]
    down = nn.Sequential(nn.Conv2d(64, 128, 1, 2, bias=False), nn.BatchNorm2d(128))
    theirs = torchvision.models.resnet.Bottleneck(64, 32, 2, down)
    for mine, other in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        other.copy_(mine)
    x = torch.randn(2, 64, 9, 9)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("side", [7, 8])
def test_a_padded_shortcut_takes_every_second_pixel_and_adds_zeros(side):
    x = torch.randn(1, 3, side, side)
    out = PaddedShortcut(3, 5, 2)(x)
    assert torch.equal(out[:, :3], nn.functional.max_pool2d(x, 1, 2))
    assert out.shape[1] == 5
    assert not out[:, 3:].any()


def test_a_padded_shortcut_has_no_weights_and_a_projection_has():
    padded, projection = (SmallResNet(depth=8, shortcut=kind) for kind in ("padded", "projection"))
    assert len(weighted(projection)) - len(weighted(padded)) == 2


@pytest.mark.parametrize("shortcut", ["padded", "projection"])
def test_edits_find_its_residual_branches(shortcut):
    net = SmallResNet(depth=14, shortcut=shortcut)
    branches = NetworkGraph(net).residual_branches()
    assert [branch.end for branch in branches] == [f"stages.{i}.{j}.branch.norm2" for i in range(3) for j in range(2)]
    assert StochasticDepth(0.5)(net) == 6


def test_without_normalization_convolutions_have_biases():
    net = SmallResNet(depth=8, normalization=None, shortcut="projection")
    assert all(m.bias is not None for m in weighted(net))
    assert all(m.bias is None for m in weighted(SmallResNet(depth=8))[:-1])


def test_layers_can_be_chosen():
    net = SmallResNet(depth=8, activation=nn.GELU, normalization=partial(nn.GroupNorm, num_groups=4))
    assert {type(m) for m in net.modules()} >= {nn.GELU, nn.GroupNorm}
    assert not any(isinstance(m, (nn.ReLU, nn.BatchNorm2d)) for m in net.modules())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 18}, "depth=18 is not of the form 6n \\+ 2.*14 and 20"),
        ({"depth": 2}, "8 and 14"),
        ({"depth": 21, "block": "bottleneck"}, "depth=21 .*9n \\+ 2.*20 and 29"),
        ({"depth": 0}, "depth=0"),
        ({"width": 0}, "width=0"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"in_channels": 0}, "in_channels=0"),
        ({"block": "basc"}, "'basic'"),
        ({"shortcut": "zero"}, "shortcut='zero'"),
        ({"image_size": (32, 3)}, "32x3 are too small"),
    ],
    ids=str,
)
def test_wrong_arguments_of_small_resnet_are_named(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        SmallResNet(**arguments)


# SpeedNet


def test_speednet_is_laid_out_as_published():
    net = SpeedNet(10, 3, (32, 32))
    shapes = [tuple(m.weight.shape) for m in weighted(net)]
    expected = [(24, 3, 2, 2), (64, 24, 3, 3), (64, 64, 3, 3), (256, 64, 3, 3), (256, 256, 3, 3)]
    assert shapes == [*expected, (256, 256, 3, 3), (256, 256, 3, 3), (10, 256)]
    kinds = [type(m) for m in net.groups[0]]
    assert kinds == [nn.Conv2d, nn.MaxPool2d, nn.BatchNorm2d, nn.GELU, nn.Conv2d, nn.BatchNorm2d, nn.GELU]
    x = torch.randn(2, 3, 32, 32)
    maps = net.groups(net.stem(x))
    assert maps.shape == (2, 256, 3, 3)
    net.eval()
    logits = net.groups(net.stem(x)).amax((2, 3)) @ net.classifier.weight.T / 9
    torch.testing.assert_close(net(x), logits)


def test_batch_normalization_keeps_its_scale_at_one_and_learns_its_shift():
    for norm in (m for m in SpeedNet().modules() if isinstance(m, nn.BatchNorm2d)):
        assert not norm.weight.requires_grad
        assert norm.bias.requires_grad
        assert norm.weight.eq(1).all()
        assert norm.momentum == 0.4


@pytest.mark.parametrize("trained", [True, False])
def test_the_stem_is_trained_or_not(trained):
    net = SpeedNet(train_whitening=trained)
    assert net.stem.whiten.weight.requires_grad is trained
    assert net.stem.whiten.bias.requires_grad


@pytest.mark.parametrize(
    ("channels", "image_size", "widths"), [(1, (8, 8), (4, 6)), (5, (9, 40), (4, 6, 8)), (3, (3, 3), (4,))]
)
def test_speednet_takes_any_channels_and_image_size(channels, image_size, widths):
    net = SpeedNet(7, channels, image_size, widths)
    assert net.stem.whiten.out_channels == 8 * channels
    assert net(torch.zeros(2, channels, *image_size)).shape == (2, 7)


def test_the_scale_of_the_logits_is_an_argument():
    net = SpeedNet(logit_scale=0.5).eval()
    x = torch.randn(2, 3, 32, 32)
    once = net(x)
    net.logit_scale = 1.0
    torch.testing.assert_close(net(x), 2 * once)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": (8, 8)}, r"8x8 are too small for 3 groups, which need 9 pixels.*fewer widths"),
        ({"image_size": (32, 8)}, "32x8 are too small"),
        ({"widths": ()}, "widths"),
        ({"widths": (8, 0)}, "widths=0"),
        ({"logit_scale": 0.0}, "logit_scale"),
        ({"num_classes": 0}, "num_classes"),
        ({"in_channels": 0}, "in_channels"),
    ],
    ids=str,
)
def test_wrong_arguments_of_speednet_are_named(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        SpeedNet(**arguments)
