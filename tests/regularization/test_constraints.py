import pytest
import torch
import torchvision
from torch import nn

from lightning_cnnopt.architecture import ConvNet
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.parameters import named_weights
from lightning_cnnopt.regularization import MaxNorm, max_norm_

SHAPES = [(5, 7), (4, 3, 3, 3), (6, 1, 5), (2, 3, 2, 2, 2)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("limit", [0.5, 2.0, 100.0])
def test_max_norm_scales_each_output_unit_as_the_paper_says(shape, limit):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([unit * min(1.0, limit / float(unit.square().sum().sqrt())) for unit in weight])
    max_norm_(weight, limit)
    torch.testing.assert_close(weight, expected)


def test_units_within_the_limit_keep_their_bits_and_zeros_stay_zero():
    weight = torch.tensor([[0.3, 0.4], [3.0, 4.0], [0.0, 0.0]])
    max_norm_(weight, 1.0)
    assert torch.equal(weight[[0, 2]], torch.tensor([[0.3, 0.4], [0.0, 0.0]]))
    assert float(weight[1].norm()) == pytest.approx(1)


@pytest.mark.parametrize("make", [ConvNet, torchvision.models.resnet18])
def test_all_weights_are_held_and_nothing_else_is_touched(make):
    net = make()
    weights = {name for name, _ in named_weights(net)}
    others = {name: p.detach().clone() for name, p in net.named_parameters() if name not in weights}
    assert MaxNorm(0.1)(net) == len(weights)
    for name, parameter in net.named_parameters():
        if name in weights:
            assert float(parameter.detach().flatten(1).norm(dim=1).max()) <= 0.1 * (1 + 1e-5)
        else:
            assert torch.equal(parameter, others[name])


def test_projecting_twice_is_projecting_once():
    net = ConvNet()
    MaxNorm(0.1)(net)
    once = [parameter.detach().clone() for parameter in net.parameters()]
    MaxNorm(0.1)(net)
    torch.testing.assert_close([p.detach() for p in net.parameters()], once)


def test_projection_is_no_part_of_the_graph():
    layer = nn.Linear(3, 3)
    version = layer.weight
    MaxNorm(0.1)(layer)
    assert layer.weight is version
    assert layer.weight.is_leaf
    assert layer.weight.requires_grad


def test_patterns_choose_what_is_held():
    net = ConvNet()
    before = net.classifier.weight.detach().clone()
    assert MaxNorm(1e-3, ["stages.*.conv.weight"])(net) == 2
    assert torch.equal(net.classifier.weight, before)


@pytest.mark.parametrize("limit", [0, -1.0])
def test_a_limit_out_of_range_is_refused(limit):
    with pytest.raises(ConfigurationError, match="limit"):
        MaxNorm(limit)


@pytest.mark.parametrize("groups", [1, 2])
def test_max_norm_holds_the_output_units_of_transposed_convolutions(groups):
    layer = nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=False)
    nn.init.constant_(layer.weight, 1.0)
    MaxNorm(2.0)(nn.Sequential(layer))
    per_unit = torch.cat([group.transpose(0, 1).flatten(1).norm(dim=1) for group in layer.weight.detach().chunk(groups)])
    torch.testing.assert_close(per_unit, torch.full((6,), 2.0))
