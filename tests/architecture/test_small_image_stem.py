import warnings

import pytest
import timm
import torch
import torchvision
from torch import nn

from lightning_cnnopt.architecture import ConvNet, SmallImageStem
from lightning_cnnopt.core.errors import ConfigurationError


@pytest.mark.parametrize(
    ("make", "changed"),
    [
        (torchvision.models.resnet18, 2),
        (torchvision.models.densenet121, 2),
        (torchvision.models.mobilenet_v2, 1),
        (torchvision.models.shufflenet_v2_x0_5, 2),
        (lambda: timm.create_model("resnet18"), 2),
        (lambda: timm.create_model("resnet18d"), 2),  # three convolutions in front of its pooling
        (lambda: timm.create_model("tf_efficientnet_b0"), 1),  # a convolution that pads by itself
    ],
)
def test_the_image_keeps_its_size_up_to_the_first_block(make, changed):
    net = make().eval()
    name, first = next((name, m) for name, m in net.named_modules() if isinstance(m, nn.Conv2d))
    sides = []
    first.register_forward_hook(lambda module, args, output: sides.append((args[0].shape[2:], output.shape[2:])))
    x = torch.randn(1, 3, 32, 32)
    before = net(x).shape
    last = []
    convolutions = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    convolutions[5].register_forward_hook(lambda module, args, output: last.append(args[0].shape[-1]))
    net(x)
    assert SmallImageStem()(net) == changed
    assert net(x).shape == before
    assert sides[-1] == ((32, 32), (32, 32))
    assert last[1] == last[0] * 2**changed
    assert net.get_submodule(name) is first


def test_kernels_are_the_middle_of_the_former_ones_and_keep_their_norm():
    net = torchvision.models.resnet18()
    old = net.conv1.weight.detach().clone()
    SmallImageStem()(net)
    new = net.conv1.weight.detach()
    middle = old[:, :, 2:5, 2:5]
    torch.testing.assert_close(new / new.norm(), middle / middle.norm())
    torch.testing.assert_close(new.norm(), old.norm())


def test_the_scale_of_the_first_activations_stays():
    net, x = torchvision.models.resnet18(), torch.randn(4, 3, 64, 64)
    before = net.conv1(x).std()
    SmallImageStem()(net)
    assert float((net.conv1(x).std() / before).detach()) == pytest.approx(1, abs=0.1)


def test_frozen_filters_stay_frozen():
    net = torchvision.models.resnet18()
    net.conv1.weight.requires_grad_(False)
    SmallImageStem()(net)
    assert not net.conv1.weight.requires_grad


def test_a_network_for_small_images_is_left_alone():
    net = ConvNet(order="conv-norm-act")
    text = str(net)
    with pytest.warns(UserWarning, match="first convolution with a stride"):
        assert SmallImageStem()(net) == 0
    assert str(net) == text


def test_a_second_call_changes_nothing():
    net = torchvision.models.resnet18()
    SmallImageStem()(net)
    text = str(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert SmallImageStem()(net) == 0
    with pytest.warns(UserWarning, match="changed nothing"):
        assert SmallImageStem(5)(net) == 0
    assert str(net) == text


@pytest.mark.parametrize("kernel_size", [0, 2, -3])
def test_kernels_out_of_range_are_refused(kernel_size):
    with pytest.raises(ConfigurationError, match=f"kernel_size={kernel_size}"):
        SmallImageStem(kernel_size)
