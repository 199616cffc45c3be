import copy
import warnings
from functools import partial

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torchvision.ops import FrozenBatchNorm2d

from lightning_cnnopt.architecture import ConvNet, SqueezeExcite
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.dropout import StochasticDepth
from lightning_cnnopt.normalization import GhostBatchNorm2d, StandardizeWeights, SwapNormalization, fold_batch_norm


def settle(net, shape):
    """Return the network in evaluation, with scales, shifts and statistics that are none of the initial ones."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.affine:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
            if module.running_mean is not None:
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.5, 1.5)
    return net.double().eval(), torch.randn(shape, dtype=torch.float64)


def assert_folds(net, x, count):
    expected = net(x)
    assert fold_batch_norm(net) == count
    torch.testing.assert_close(net(x), expected, rtol=1e-9, atol=1e-9)
    return net


def norms(net):
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules())


NETWORKS = {
    "ConvNet conv-norm-act": (partial(ConvNet, order="conv-norm-act"), 3, 0, (2, 1, 28, 28)),
    "ConvNet conv-act-norm": (ConvNet, 0, 3, (2, 1, 28, 28)),
    "ConvNet norm-act-conv": (partial(ConvNet, order="norm-act-conv"), 1, 2, (2, 1, 28, 28)),
    "resnet18": (torchvision.models.resnet18, 20, 0, (2, 3, 64, 64)),
    "mobilenet_v3_small": (torchvision.models.mobilenet_v3_small, 34, 0, (2, 3, 64, 64)),
    "densenet121": (torchvision.models.densenet121, 59, 62, (1, 3, 64, 64)),
    "timm resnet18": (partial(timm.create_model, "resnet18"), 20, 0, (2, 3, 64, 64)),
    "timm efficientnet_b0": (partial(timm.create_model, "efficientnet_b0"), 49, 0, (2, 3, 64, 64)),
    "timm tf_efficientnet_b0": (partial(timm.create_model, "tf_efficientnet_b0"), 49, 0, (2, 3, 65, 65)),
    "timm regnety_002": (partial(timm.create_model, "regnety_002"), 44, 0, (2, 3, 64, 64)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_outputs_are_equal_and_no_more_is_folded_than_can_be(name):
    make, folded, left, shape = NETWORKS[name]
    net = assert_folds(*settle(make(), shape), folded)
    assert norms(net) == left
    assert fold_batch_norm(net) == 0


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Conv1d(4, 6, 3, bias=False), nn.BatchNorm1d(6), (3, 4, 9)),
        (nn.Conv2d(4, 6, 3, groups=2, padding=1, padding_mode="reflect"), nn.BatchNorm2d(6), (3, 4, 9, 9)),
        (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False), (3, 4, 9, 9)),
        (nn.Conv2d(4, 6, 3), nn.SyncBatchNorm(6), (3, 4, 9, 9)),
        (nn.Conv2d(4, 6, 3), GhostBatchNorm2d(6, 2), (3, 4, 9, 9)),
        (nn.Conv2d(4, 6, 3), FrozenBatchNorm2d(6, eps=0.1), (3, 4, 9, 9)),
        (nn.Conv3d(4, 6, 3), nn.BatchNorm3d(6), (3, 4, 5, 5, 5)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), nn.BatchNorm2d(6), (3, 4, 5, 5)),
        (nn.Linear(4, 6), nn.BatchNorm1d(6, affine=False), (3, 4)),
        (nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), (3, 4)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_every_kind_of_layer_folds(layer, norm, shape):
    net, x = settle(nn.Sequential(layer, norm), shape)
    assert_folds(net, x, 1)
    assert type(net[1]) is nn.Identity


def test_a_convolution_whose_weight_is_computed_is_folded_with_what_it_computes():
    net = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6))
    StandardizeWeights()(net)
    net[2] = parametrizations.weight_norm(nn.Conv2d(6, 6, 3))
    assert_folds(*settle(net, (2, 4, 9, 9)), 2)
    assert [type(net[0]), type(net[2])] == [nn.Conv2d, nn.Conv2d]
    assert not parametrize.is_parametrized(net)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(self.conv(x)))


class Forked(Twice):
    def forward(self, x):
        x = self.conv(x)
        return self.norm(x) + x


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Shifted(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) + 1


def hooked(add):
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    add(net)
    return net


@pytest.mark.parametrize(
    "make",
    [
        Twice,
        Forked,
        lambda: nn.Sequential(Doubled(4, 4, 3), nn.BatchNorm2d(4)),
        lambda: nn.Sequential(nn.Conv2d(4, 4, 3), Shifted(4)),
        lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
        lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)),
        lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.InstanceNorm2d(4, track_running_stats=True)),
        lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 4, 3, groups=2), nn.BatchNorm2d(4)),
        lambda: hooked(lambda net: net[0].register_forward_hook(lambda *_: _[-1] * 2)),
        lambda: hooked(lambda net: net[1].register_forward_hook(lambda *_: _[-1] * 2)),
        lambda: hooked(lambda net: net[1].register_forward_pre_hook(lambda *_: (_[-1][0] * 2,))),
    ],
)
def test_what_would_not_be_the_same_is_left_alone(make):
    assert_folds(*settle(make(), (2, 4, 9, 9)), 0)


def test_what_stands_behind_a_folded_layer_stays_under_its_name():
    net = timm.create_model("seresnet18", num_classes=4)
    SqueezeExcite(4)(plain := torchvision.models.resnet18(num_classes=4))
    StochasticDepth(0.5)(plain)
    SwapNormalization(partial(GhostBatchNorm2d, ghost_size=2))(effective := timm.create_model("efficientnet_b0", num_classes=4))
    for network, count in ((net, 20), (plain, 20), (effective, 49)):
        settled, x = settle(network, (2, 3, 64, 64))
        names = {name for name, _ in settled.named_modules() if not name.endswith((".drop", ".se"))}
        assert_folds(settled, x, count)
        assert names <= {name for name, _ in settled.named_modules()}


def test_a_network_in_training_mode_is_refused():
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(ConfigurationError, match=r"'1' of Sequential is in training mode.*eval\(\)"):
        fold_batch_norm(net)


def test_a_network_without_batch_normalization_is_left_as_it_is():
    net = nn.Sequential(nn.Linear(2, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fold_batch_norm(net) == 0


def test_what_is_folded_still_learns_and_the_original_parameters_are_not_touched():
    net, x = settle(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)), (2, 4, 9, 9))
    original, before = net[0].weight, copy.deepcopy(net[0].weight)
    fold_batch_norm(net)
    assert torch.equal(original, before)
    net(x).sum().backward()
    assert net[0].weight.grad is not None
