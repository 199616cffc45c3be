import copy
import warnings

import pytest
import timm
import torch
import torchvision
from timm.layers import BlurPool2d
from torch import nn
from torch.nn import functional as F

from lightning_cnnopt.architecture import BinomialBlur2d, BlurPool, ConvNet, SmallResNet, add_blur
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.normalization import SwapNormalization

# the layer


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (5, 12)])
@pytest.mark.parametrize("filter_size", [3, 5])
@pytest.mark.parametrize("stride", [2, 3])
def test_the_layer_is_timms(size, filter_size, stride):
    x = torch.randn(2, 4, *size)
    theirs = BlurPool2d(4, filter_size, stride)
    theirs.padding = [filter_size // 2] * 4  # timm pads by half a stride more
    torch.testing.assert_close(BinomialBlur2d(stride, filter_size)(x), theirs(x))


def test_a_constant_stays_and_the_finest_pattern_vanishes():
    blur = BinomialBlur2d()
    torch.testing.assert_close(blur(torch.full((1, 1, 6, 6), 3.0)), torch.full((1, 1, 3, 3), 3.0))
    checks = torch.tensor([1.0, -1.0]).repeat(4).expand(8, 8)[None, None]
    assert blur(checks).abs().max() < 1e-6
    assert F.avg_pool2d(checks, 1, 2).abs().min() == 1  # without the blur, a stride of 2 turns it into a constant


def test_only_the_side_that_is_strided_over_is_blurred():
    x = torch.randn(1, 2, 6, 6)
    torch.testing.assert_close(
        BinomialBlur2d((1, 2))(x), torch.stack([BinomialBlur2d((1, 2))(x[:, :, i : i + 1])[:, :, 0] for i in range(6)], 2)
    )
    assert BinomialBlur2d((1, 2))(x).shape == (1, 2, 6, 3)


@pytest.mark.parametrize("size", [1, 2])
def test_images_smaller_than_the_filter_pass(size):
    assert BinomialBlur2d(2, 5)(torch.ones(1, 1, size, size)).tolist() == [[[[1.0]]]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_layer_keeps_the_dtype(dtype):
    assert BinomialBlur2d()(torch.ones(1, 1, 4, 4, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("arguments", [{"stride": 0}, {"stride": (2, 0)}, {"filter_size": 4}, {"filter_size": 0}])
def test_arguments_of_the_layer_out_of_range_are_refused(arguments):
    with pytest.raises(ConfigurationError, match=next(iter(arguments))):
        BinomialBlur2d(**arguments)


# the edit

NETWORKS = {
    "ConvNet": lambda: ConvNet(5, 3, (40, 33), widths=(16, 24), depth=1),
    "strided ConvNet": lambda: ConvNet(5, 3, (40, 33), widths=(16, 24), depth=2, pooling="strided"),
    "SmallResNet": lambda: SmallResNet(5, depth=8, shortcut="projection"),
    **{
        name: lambda name=name: torchvision.models.get_model(name)
        for name in ("resnet18", "resnet50", "mobilenet_v2", "densenet121", "squeezenet1_1", "shufflenet_v2_x0_5")
    },
    **{
        f"timm {name}": lambda name=name: timm.create_model(name)
        for name in ("resnet18", "tf_efficientnet_b0", "convnext_atto", "regnetx_002", "resnetv2_50")
    },
}
COUNTS = {
    "ConvNet": 2,
    "strided ConvNet": 2,
    "SmallResNet": 4,
    "resnet18": 7,
    "resnet50": 7,
    "mobilenet_v2": 4,
    "densenet121": 1,
    "squeezenet1_1": 3,
    "shufflenet_v2_x0_5": 7,
    "timm resnet18": 7,
    "timm tf_efficientnet_b0": 4,
    "timm convnext_atto": 3,
    "timm regnetx_002": 8,
    "timm resnetv2_50": 7,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_stride_is_blurred_and_all_sizes_and_keys_stay(name):
    net = NETWORKS[name]().eval()
    keys = {key: value.shape for key, value in net.state_dict().items()}
    sizes = [(40, 33)] if "ConvNet" in name else [(64, 75)]
    features = getattr(net, "forward_features", None) or getattr(net, "features", None) or net
    before = [features(torch.zeros(1, 3, *size)).shape for size in sizes]
    assert BlurPool()(net) == COUNTS[name]
    assert [features(torch.zeros(1, 3, *size)).shape for size in sizes] == before
    assert {key: value.shape for key, value in net.state_dict().items()} == keys


@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize(("kernel_size", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 2, 0), (3, 3, 0), (5, 2, 2)])
def test_pooling_keeps_its_sizes(kernel_size, stride, padding, ceil_mode):
    pool = nn.Sequential(nn.Conv2d(1, 1, 1), nn.MaxPool2d(kernel_size, stride, padding, ceil_mode=ceil_mode))
    images = [torch.randn(1, 1, height, height + 3) for height in range(6, 14)]
    before = [pool(x).shape for x in images]
    assert BlurPool()(pool) == 1
    assert [pool(x).shape for x in images] == before


def test_pooling_takes_every_maximum_and_strides_over_their_blur():
    net, x = torchvision.models.resnet18().eval(), torch.randn(1, 64, 9, 9)
    BlurPool(5)(net)
    torch.testing.assert_close(net.maxpool(x), BinomialBlur2d(2, 5)(F.max_pool2d(x, 3, 1, 1)))


@torch.no_grad()
def test_a_residual_block_blurs_behind_its_activation_and_in_front_of_its_projection():
    net, x = torchvision.models.resnet18().eval(), torch.randn(1, 64, 12, 12)
    plain = copy.deepcopy(net)
    BlurPool()(net)
    block, blur = plain.layer2[0], BinomialBlur2d(2, 3)
    block.conv1.stride = block.downsample[0].stride = (1, 1)
    branch = block.bn2(block.conv2(blur(block.bn1(block.conv1(x)).relu())))
    torch.testing.assert_close(net.layer2[0](x), (branch + block.downsample(blur(x))).relu())


def test_a_plain_convolution_blurs_behind_its_unit():
    net = ConvNet(5, 16, (12, 12), widths=(16,), depth=1, pooling="strided", order="conv-norm-act").eval()
    plain, x = copy.deepcopy(net), torch.randn(2, 16, 12, 12)
    BlurPool()(net)
    plain.stages[0][0].conv.stride = (1, 1)
    torch.testing.assert_close(net.stages(x), BinomialBlur2d(2, 3)(plain.stages(x)))


@torch.no_grad()
def test_outputs_change_less_when_the_image_is_shifted():
    net = ConvNet(8, 1, (32, 32), widths=(16, 16, 16), depth=1, order="conv-norm-act", dense=(), global_pooling=True).eval()
    blurred, x = copy.deepcopy(net), torch.randn(16, 1, 34, 34)
    BlurPool()(blurred)

    def change(network):
        first, second = network(x[..., 1:33, 1:33]), network(x[..., 2:34, 1:33])
        return float((first - second).norm() / (first - first.mean(0)).norm())

    assert change(blurred) < 0.6 * change(net)


def test_convolutions_can_be_left_and_narrow_ones_are():
    assert BlurPool(convolutions=False)(torchvision.models.resnet18()) == 1
    assert BlurPool(min_channels=1)(torchvision.models.resnet18()) == 8
    assert BlurPool(min_channels=128)(torchvision.models.resnet18()) == 5


def test_a_second_call_changes_nothing_whatever_its_arguments():
    net = torchvision.models.resnet18()
    BlurPool()(net)
    text = str(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert BlurPool()(net) == 0
    with pytest.warns(UserWarning, match="max-pooling and convolutions with a stride"):
        assert BlurPool(5)(net) == 0
    assert str(net) == text


def test_it_stays_when_the_layers_around_it_are_swapped():
    net = timm.create_model("resnet18")
    BlurPool()(net)
    before = [name for name, _ in net.named_modules() if name.endswith(".blur")]
    SwapNormalization(nn.InstanceNorm2d)(net)
    assert [name for name, _ in net.named_modules() if name.endswith(".blur")] == before
    assert net(torch.zeros(2, 3, 64, 64)).shape == (2, 1000)


class CallsPooling(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(16, 4, 3, 2)

    def forward(self, x):
        return F.max_pool2d(F.max_pool2d(self.conv(x), 2), 3, stride=1)


def test_pooling_that_is_called_as_a_function_is_reported():
    with pytest.warns(UserWarning, match="as a function in 1 places"):
        assert add_blur(CallsPooling()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"filter_size": 4}, "filter_size=4 is even"),
        ({"filter_size": 1}, "3 <= filter_size"),
        ({"min_channels": 0}, "min_channels"),
    ],
    ids=str,
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        BlurPool(**arguments)
