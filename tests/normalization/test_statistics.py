import pytest
import torch
import torchvision
from torch import nn
from torch.optim.swa_utils import update_bn

from lightning_cnnopt.core.errors import DataError
from lightning_cnnopt.normalization import GhostBatchNorm2d, precise_statistics

SIZES = (7, 5, 9, 3)


def batches(channels=3, side=6):
    images = 2 + 3 * torch.randn(sum(SIZES), channels, side, side, dtype=torch.float64)
    return [part * (1 + index) for index, part in enumerate(images.split(SIZES))]  # batches of different distributions


@pytest.mark.parametrize("make", [nn.BatchNorm2d, lambda channels: GhostBatchNorm2d(channels, 2)])
def test_the_first_layers_statistics_are_those_of_all_images_together(make):
    net = nn.Sequential(make(3)).double()
    data = batches()
    assert precise_statistics(net, data) == 1
    together = torch.cat(data)
    torch.testing.assert_close(net[0].running_mean, together.mean((0, 2, 3)))
    torch.testing.assert_close(net[0].running_var, together.var((0, 2, 3)))


def test_a_deeper_layer_is_measured_behind_layers_that_normalize_by_their_batch():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)).double()
    data = batches()
    precise_statistics(net, data)
    with torch.no_grad():
        reaching = torch.cat([net[2](net[1](nn.functional.batch_norm(x, None, None, training=True))) for x in data])
    torch.testing.assert_close(net[3].running_mean, reaching.mean((0, 2, 3)))
    torch.testing.assert_close(net[3].running_var, reaching.var((0, 2, 3)))


def test_on_equal_batches_the_means_are_torchs_cumulative_average_and_the_variance_has_the_between_part():
    net, theirs = (nn.Sequential(nn.BatchNorm2d(3)).double() for _ in range(2))
    data = list((torch.randn(24, 3, 5, 5, dtype=torch.float64) * 2).split(6))
    data = [x + index for index, x in enumerate(data)]
    precise_statistics(net, data)
    update_bn(data, theirs)
    torch.testing.assert_close(net[0].running_mean, theirs[0].running_mean)
    means = torch.stack([x.mean((0, 2, 3)) for x in data])
    count = sum(x.numel() // 3 for x in data)
    within = theirs[0].running_var * (6 * 25 - 1) / (6 * 25)
    torch.testing.assert_close(net[0].running_var, (within + means.var(0, correction=0)) * count / (count - 1))


def test_a_pixel_of_one_image_has_a_dense_layer_with_statistics_too():
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12)).double()
    data = batches(side=2)
    precise_statistics(net, data)
    torch.testing.assert_close(net[1].running_var, torch.cat(data).flatten(1).var(0))


@pytest.mark.parametrize("training", [True, False])
def test_modes_random_state_and_count_of_batches_are_left_as_they_were(training):
    net = torchvision.models.resnet18(num_classes=2).train(training)
    net.layer1[0].conv1.add_module("drop", nn.Dropout())
    net.fc = nn.Sequential(nn.Dropout(0.5), net.fc)
    net.bn1.num_batches_tracked.fill_(7)
    modes = {module: module.training for module in net.modules()}
    images = torch.randn(8, 3, 32, 32)
    state = torch.get_rng_state()
    assert precise_statistics(net, images.split(4)) == 20
    assert torch.equal(torch.get_rng_state(), state)
    assert {module: module.training for module in net.modules()} == modes
    assert int(net.bn1.num_batches_tracked) == 7
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_dropout_is_off_while_statistics_are_measured():
    net = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm2d(3)).double()
    data = batches()
    precise_statistics(net, data)
    torch.testing.assert_close(net[1].running_var, torch.cat(data).var((0, 2, 3)))


def test_frozen_layers_keep_theirs():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3)).double().train()
    net[0].eval()
    assert precise_statistics(net, batches()) == 1
    assert torch.equal(net[0].running_mean, torch.zeros(3, dtype=torch.float64))
    assert not torch.equal(net[1].running_mean, torch.zeros(3, dtype=torch.float64))


def test_layers_that_nothing_reaches_and_layers_without_statistics_are_left_alone():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False)).double()
    net[0].add_module("idle", nn.BatchNorm2d(3).double())
    assert precise_statistics(net, batches()) == 1
    assert torch.equal(net[0].idle.running_var, torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("batch", [lambda x: x, lambda x: (x, torch.zeros(len(x))), lambda x: {"image": x, "label": 0}])
def test_a_batch_may_be_images_or_hold_them(batch):
    net = nn.Sequential(nn.BatchNorm2d(3)).double()
    data = batches()
    precise_statistics(net, [batch(x) for x in data])
    torch.testing.assert_close(net[0].running_mean, torch.cat(data).mean((0, 2, 3)))


def test_half_precision_images_are_measured_in_single_precision():
    net = nn.Sequential(nn.BatchNorm2d(3))
    data = [x.bfloat16() for x in batches()]
    precise_statistics(net, data)
    torch.testing.assert_close(net[0].running_var, torch.cat(data).float().var((0, 2, 3)))


def test_an_error_in_between_leaves_statistics_and_modes():
    net = nn.Sequential(nn.Dropout(), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3)).double().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(RuntimeError):
        precise_statistics(net, [torch.randn(4, 3, 6, 6, dtype=torch.float64), torch.randn(4, 5, 6, 6)])
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(module.training for module in net.modules())


def test_no_batches_are_refused():
    with pytest.raises(DataError, match="no batches"):
        precise_statistics(nn.Sequential(nn.BatchNorm2d(3)), [])
