import itertools
from functools import partial

import pytest
import torch
import torchvision
from torch import nn

from lightning_cnnopt.architecture import ConvNet, GeneralizedMeanPool2d, compound_scaling
from lightning_cnnopt.core.errors import ConfigurationError

ORDERS = ["-".join(order) for order in itertools.permutations(["conv", "norm", "act"])]


def reference():
    """Return the network of the article, layer by layer, as Keras builds it."""
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(32)),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(32)),
        *(nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(32 * 14 * 14, 128), nn.ReLU(), nn.BatchNorm1d(128), nn.Dropout(0.5)),
        nn.Linear(128, 10),
    )


def leaves(network):
    return [m for m in network.modules() if not list(m.children()) and not isinstance(m, (nn.Identity, nn.Flatten))]


def test_the_defaults_are_the_reference_layer_by_layer():
    assert [repr(layer) for layer in leaves(ConvNet())] == [repr(layer) for layer in leaves(reference())]


@pytest.mark.parametrize("training", [True, False])
def test_with_the_same_weights_the_defaults_compute_the_reference(training):
    net, expected = ConvNet(dropout=0.0).train(training), reference().train(training)
    expected[11].p = 0.0
    for ours, theirs in zip(leaves(net), leaves(expected), strict=True):
        ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 1, 28, 28)
    assert torch.equal(net(x), expected(x))


@pytest.mark.parametrize("image_size", [(28, 28), (32, 20)])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("pooling", ["max", "average", "strided", "gem"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dense": (), "global_pooling": True},
        {"normalization": None, "depth": 1},
        {"block": "depthwise", "global_pooling": "gem"},
        {"block": "bottleneck", "global_pooling": "max"},
    ],
)
def test_every_combination_gives_one_logit_per_class(image_size, padding, pooling, order, options):
    arguments = {"widths": (4, 6), "dense": (8, 5), "image_size": image_size, "padding": padding, "pooling": pooling}
    net = ConvNet(7, 3, order=order, **{**arguments, **options})
    assert net(torch.zeros(2, 3, *image_size)).shape == (2, 7)


@pytest.mark.parametrize("order", ORDERS)
def test_layers_stand_in_the_given_order(order):
    kinds = {"conv": nn.Conv2d, "act": nn.ReLU, "norm": nn.BatchNorm2d}
    stage = leaves(ConvNet(widths=(4,), depth=2, order=order).stages[0])
    assert [type(layer) for layer in stage] == [kinds[part] for part in order.split("-")] * 2 + [nn.MaxPool2d]


def test_depth_and_widths_are_the_convolutions():
    net = ConvNet(widths=(4, 8, 16), depth=3, padding="same")
    assert [m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d)] == [4] * 3 + [8] * 3 + [16] * 3


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("block", ["plain", "depthwise", "bottleneck"])
def test_a_normalization_has_the_channels_of_what_reaches_it(order, block):
    net = ConvNet(widths=(8, 12), depth=2, order=order, block=block, dense=(5,))
    net(torch.zeros(2, 1, 28, 28))  # torch refuses a BatchNorm of another number of channels
    names = [name for name, _ in net.stages.named_modules() if name.endswith((".conv", ".norm", ".act"))]
    units = {}
    for name in names:
        units.setdefault(name.rpartition(".")[0], []).append(name.rpartition(".")[2])
    assert {"-".join(parts) for parts in units.values()} == {order}


def convolutions(net):
    return [(*m.weight.shape, m.groups) for m in net.modules() if isinstance(m, nn.Conv2d)]


def test_depthwise_blocks_are_those_of_mobilenet_behind_a_plain_first_one():
    net = ConvNet(10, 3, widths=(8, 16), depth=1, block="depthwise", kernel_size=5)
    assert convolutions(net) == [(8, 3, 5, 5, 1), (8, 1, 5, 5, 8), (16, 8, 1, 1, 1)]


def test_bottleneck_blocks_are_those_of_resnet_without_the_shortcut():
    net = ConvNet(10, 3, widths=(8, 16), depth=1, block="bottleneck")
    assert convolutions(net) == [(8, 3, 3, 3, 1), (4, 8, 1, 1, 1), (4, 4, 3, 3, 1), (16, 4, 1, 1, 1)]
    theirs = torchvision.models.resnet.Bottleneck(16, 4)
    net = ConvNet(10, 3, widths=(16, 16), depth=1, block="bottleneck")
    assert convolutions(net.stages[1]) == convolutions(theirs)


def test_a_depth_for_each_stage():
    net = ConvNet(widths=(4, 8, 16), depth=(1, 3, 2))
    assert [m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d)] == [4] + [8] * 3 + [16] * 2


def test_one_number_scales_the_width_and_one_the_depth():
    scaling = compound_scaling(2)
    net = ConvNet(widths=(32, 64), depth=2, width_factor=scaling.width_factor, depth_factor=scaling.depth_factor, dense=(128,))
    # 32 · 1.21 = 38.7 → 40, 64 · 1.21 = 77.4 → 80; 2 · 1.44 = 2.9 → 3
    assert [m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d)] == [40] * 3 + [80] * 3
    assert net.head[0].dense.out_features == 128


def test_widths_that_are_not_scaled_are_not_rounded():
    assert ConvNet(widths=(5,)).stages[0][0].conv.out_channels == 5


def test_gem_pools_windows_and_images():
    net = ConvNet(widths=(4,), depth=1, pooling="gem", global_pooling="gem", dense=())
    window, image = (m for m in net.modules() if isinstance(m, GeneralizedMeanPool2d))
    assert (window.kernel_size, image.kernel_size) == (2, None)
    assert {name for name, _ in net.named_parameters() if name.endswith(".p")} == {"stages.0.1.p", "pool.p"}


@pytest.mark.parametrize(("pooling", "layer"), [("max", nn.MaxPool2d), ("average", nn.AvgPool2d)])
def test_a_stage_of_same_padding_halves_the_image(pooling, layer):
    stages = ConvNet(widths=(2, 2), padding="same", pooling=pooling).stages
    assert stages(torch.zeros(1, 1, 28, 28)).shape == (1, 2, 7, 7)
    assert sum(isinstance(m, layer) for m in stages.modules()) == 2


def test_strides_take_the_place_of_pooling():
    net = ConvNet(widths=(2, 2), padding="same", pooling="strided")
    assert net.stages(torch.zeros(1, 1, 28, 28)).shape == (1, 2, 7, 7)
    assert [m.stride[0] for m in net.modules() if isinstance(m, nn.Conv2d)] == [1, 2, 1, 2]
    assert not any(isinstance(m, (nn.MaxPool2d, nn.AvgPool2d)) for m in net.modules())


def test_global_pooling_averages_each_channel():
    net = ConvNet(widths=(3,), dense=(), global_pooling=True).eval()
    x = torch.randn(2, 1, 28, 28)
    torch.testing.assert_close(net(x), net.classifier(net.stages(x).mean((2, 3))))


def test_layers_can_be_given_by_class_partial_and_name():
    net = ConvNet(activation=partial(nn.LeakyReLU, negative_slope=0.2), normalization="torch.nn.InstanceNorm2d")
    assert {m.negative_slope for m in net.modules() if isinstance(m, nn.LeakyReLU)} == {0.2}
    assert sum(isinstance(m, nn.InstanceNorm2d) for m in net.modules()) == 2


@pytest.mark.parametrize(
    "arguments",
    [
        {"image_size": (4, 4), "padding": "valid"},
        {"image_size": (28, 4), "padding": "valid"},
        {"widths": (8, 8, 8, 8), "padding": "valid"},
        {"widths": (8,) * 6},
    ],
)
def test_images_that_the_stages_use_up_are_refused_with_the_way_out(arguments):
    with pytest.raises(ConfigurationError, match=r"too small.*fewer stages"):
        ConvNet(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"widths": ()},
        {"widths": (0,)},
        {"kernel_size": 2},
        {"kernel_size": -1},
        {"depth": 0},
        {"dense": (0,)},
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"padding": "full"},
        {"pooling": "mean"},
        {"order": "conv-norm"},
        {"order": "act_conv_norm"},
        {"block": "bottelneck"},
        {"global_pooling": "avg"},
        {"width_factor": 0.0},
        {"depth_factor": -1.0},
        {"depth": (1, 2)},
        {"depth": (0,)},
        {"num_classes": 0},
        {"in_channels": 0},
    ],
    ids=str,
)
def test_arguments_out_of_range_are_refused_by_name(arguments):
    with pytest.raises(ConfigurationError, match=next(iter(arguments))):
        ConvNet(**arguments)
