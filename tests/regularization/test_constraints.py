import pytest
import torch
import torchvision
from torch import nn

from lightning_cnnopt.architecture import ConvNet
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.parameters import named_weights
from lightning_cnnopt.regularization import MaxNorm, ProximalL1, UnitNorm, max_norm_, soft_threshold_, sparsity, unit_norm_

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


@pytest.mark.parametrize("shape", SHAPES)
def test_unit_norm_keeps_directions_and_nothing_else(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([unit / unit.square().sum().sqrt() for unit in weight])
    unit_norm_(weight)
    torch.testing.assert_close(weight, expected)


def test_a_unit_of_zeros_has_no_direction_and_stays():
    weight = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    unit_norm_(weight)
    torch.testing.assert_close(weight, torch.tensor([[0.0, 0.0], [0.6, 0.8]]))


def test_unit_norm_holds_all_weights_and_nothing_else():
    net = ConvNet()
    others = {name: p.detach().clone() for name, p in net.named_parameters() if p.ndim < 2}
    assert UnitNorm()(net) == len(list(named_weights(net)))
    for name, parameter in net.named_parameters():
        if name in others:
            assert torch.equal(parameter, others[name])
        else:
            norms = parameter.detach().flatten(1).norm(dim=1)
            torch.testing.assert_close(norms, torch.ones_like(norms))


@pytest.mark.parametrize("groups", [1, 2])
def test_unit_norm_finds_the_units_of_transposed_convolutions(groups):
    layer = nn.ConvTranspose2d(4, 6, 3, groups=groups, bias=False)
    UnitNorm()(nn.Sequential(layer))
    per_unit = torch.cat([group.transpose(0, 1).flatten(1).norm(dim=1) for group in layer.weight.detach().chunk(groups)])
    torch.testing.assert_close(per_unit, torch.ones(6))


def test_parameters_of_one_dimension_have_a_unit_in_each_element():
    net = nn.Sequential(nn.BatchNorm2d(3))
    net[0].weight.data.copy_(torch.tensor([-2.0, 0.25, 4.0]))
    MaxNorm(1.0, ["*.weight"])(net)
    torch.testing.assert_close(net[0].weight.detach(), torch.tensor([-1.0, 0.25, 1.0]))


@pytest.mark.parametrize("threshold", [0.0, 0.3, 10.0])
def test_the_soft_threshold_is_torchs_softshrink(threshold):
    weights = [torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in SHAPES]
    expected = [nn.functional.softshrink(weight, threshold) for weight in weights]
    soft_threshold_(weights, threshold)
    for weight, value in zip(weights, expected, strict=True):
        assert torch.equal(weight, value)


def test_the_proximal_step_minimizes_the_penalty_and_the_distance():
    net = nn.Sequential(nn.Linear(40, 1))
    before = net[0].weight.detach().clone()
    assert ProximalL1(2.0)(net, rate=0.05) == 1
    candidates = torch.linspace(-0.3, 0.3, 6001)
    costs = 0.05 * 2.0 * candidates.abs() + (candidates[:, None] - before.flatten()).square().T / 2
    torch.testing.assert_close(net[0].weight.detach().flatten(), candidates[costs.argmin(1)], atol=1e-4, rtol=0)


def test_sparsity_counts_exact_zeros_alone():
    net = nn.Sequential(nn.Linear(4, 4))
    net[0].weight.data[0, :2] = torch.tensor([0.0, 1e-30])
    assert float(sparsity([net[0].weight])) == 1 / 16
    ProximalL1(1.0)(net, rate=10.0)
    assert float(sparsity([net[0].weight])) == 1


@pytest.mark.parametrize("strength", [-1e-3, float("nan"), "1e-3"])
def test_a_strength_out_of_range_is_refused(strength):
    with pytest.raises(ConfigurationError, match="weight"):
        ProximalL1(strength)
