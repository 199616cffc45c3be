import pytest
import torch
import torchvision
from torch import nn

from lightning_cnnopt.architecture import ConvNet
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.parameters import named_weights
from lightning_cnnopt.regularization import L1, L2, ElasticNet, GroupLasso, Orthogonal, functional, l1, l2
from lightning_cnnopt.regularization.functional import add_gradient
from lightning_cnnopt.regularization.penalties import Charges

NETWORKS = [ConvNet, torchvision.models.resnet18]


def gradients(network, penalty):
    network.zero_grad()
    penalty(network).backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize("strength", [1e-5, 0.1, 3.0])
def test_the_gradient_of_l1_is_the_sign_to_the_bit_on_weights_alone(make, strength):
    net = make()
    with torch.no_grad():
        next(p for p in net.parameters() if p.ndim >= 2).view(-1)[:3] = torch.tensor([0.0, -0.0, 1e-30])
    weights = {name for name, _ in named_weights(net)}
    found = gradients(net, L1(strength))
    for name, parameter in net.named_parameters():
        if name in weights:
            assert torch.equal(found[name], strength * parameter.detach().sign())
        else:
            assert found[name] is None


@pytest.mark.parametrize("strength", [5e-4, 2.0])
def test_the_gradient_of_l2_is_the_weight_times_its_strength(strength):
    net = ConvNet()
    found = gradients(net, L2(strength))
    for name, weight in named_weights(net):
        torch.testing.assert_close(found[name], strength * weight.detach())


@pytest.mark.parametrize("strength", [5e-4, 0.1])
def test_l2_steps_as_the_coupled_weight_decay_of_sgd(strength):
    net, decayed = ConvNet(), ConvNet()
    decayed.load_state_dict(net.state_dict())
    gradients(net, L2(strength))
    for parameter in decayed.parameters():
        parameter.grad = torch.zeros_like(parameter)
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    torch.optim.SGD([w for _, w in named_weights(decayed)], lr=0.1, weight_decay=strength).step()
    for a, b in zip(net.parameters(), decayed.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_values_are_the_norms_of_all_weights_together():
    tensors = [torch.randn(3, 4), torch.randn(5)]
    joined = torch.cat([tensor.flatten() for tensor in tensors])
    torch.testing.assert_close(l1(tensors), joined.norm(1))
    torch.testing.assert_close(l2(tensors), joined.norm(2) ** 2 / 2)


def test_patterns_choose_what_is_charged():
    net = ConvNet()
    found = gradients(net, L1(1.0, ["classifier.bias"]))
    assert [name for name, gradient in found.items() if gradient is not None] == ["classifier.bias"]


def test_a_pattern_without_a_match_is_named():
    with pytest.raises(ConfigurationError, match="haed"):
        L1(1.0, ["haed.*"])(ConvNet())


def test_a_network_without_weights_is_charged_nothing_and_warns():
    with pytest.warns(UserWarning, match="charges nothing"):
        assert float(L1(1.0)(nn.Sequential(nn.BatchNorm2d(2)))) == 0


@pytest.mark.parametrize("cls", [L1, L2, ElasticNet, GroupLasso, Orthogonal])
@pytest.mark.parametrize("strength", [-1e-3, float("nan"), "1e-3"])
def test_a_strength_out_of_range_is_refused(cls, strength):
    with pytest.raises(ConfigurationError, match="weight"):
        cls(strength)


def test_a_charge_is_added_to_the_gradient_of_the_loss_and_returned_detached():
    weight, other = nn.Parameter(torch.tensor([1.0, -2.0])), nn.Parameter(torch.ones(1))
    weight.grad = torch.tensor([10.0, 10.0])
    with torch.no_grad():
        charged = add_gradient(lambda: l1([weight]), [weight, other])
    assert float(charged) == 3
    assert not charged.requires_grad
    assert weight.grad.tolist() == [11.0, 9.0]
    assert other.grad is None


@pytest.mark.parametrize("charge", [lambda: None, lambda: torch.tensor(2.0)])
def test_a_charge_without_gradient_changes_none(charge):
    weight = nn.Parameter(torch.ones(1))
    assert add_gradient(charge, [weight]) == charge()
    assert weight.grad is None


PENALTIES = [L1(0.3), L2(0.3), ElasticNet(0.3, 0.25), GroupLasso(0.3), Orthogonal(0.3)]
every_penalty = pytest.mark.parametrize("penalty", PENALTIES, ids=lambda penalty: type(penalty).__name__)


class Layers(nn.Module):
    """Every way in which the weights of output units lie in a parameter, in float64."""

    def __init__(self):
        super().__init__()
        self.wide, self.tall = nn.Linear(5, 3), nn.Linear(3, 5)
        self.plain, self.grouped, self.depthwise = (
            nn.Conv2d(2, 4, 3),
            nn.Conv2d(4, 6, 2, groups=2),
            nn.Conv1d(3, 3, 3, groups=3),
        )
        self.transposed = nn.ConvTranspose2d(4, 6, 2)
        self.transposed_grouped = nn.ConvTranspose2d(4, 6, 2, groups=2)
        self.norm = nn.BatchNorm2d(4)
        self.double()


def units_of(layer):
    """Return for each group of a layer its W, a row for each output unit, element by element."""
    weight, groups = layer.weight, getattr(layer, "groups", 1)
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        inputs, outputs = layer.in_channels // groups, layer.out_channels // groups
        return [
            torch.stack([weight[g * inputs : (g + 1) * inputs, unit].flatten() for unit in range(outputs)])
            for g in range(groups)
        ]
    outputs = len(weight) // groups
    return [torch.stack([weight[g * outputs + unit].flatten() for unit in range(outputs)]) for g in range(groups)]


@every_penalty
def test_the_gradient_written_down_is_autograds_added_to_what_was_there(penalty):
    net = Layers()
    parameters = list(net.parameters())
    penalty(net).backward()
    expected = [None if p.grad is None else p.grad + 0.5 for p in parameters]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 0.5)
    Charges([penalty], net).add_gradients_(torch.optim.SGD(parameters, lr=0.1))
    for parameter, value in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, torch.full_like(parameter, 0.5) if value is None else value)


def test_large_networks_are_charged_block_by_block(monkeypatch):
    monkeypatch.setattr(functional, "_BLOCK", 100)
    net = torchvision.models.resnet18()
    parameters = list(net.parameters())
    Charges([L1(0.5)], net).add_gradients_(torch.optim.SGD(parameters, lr=0.1))
    for _, weight in named_weights(net):
        assert torch.equal(weight.grad, 0.5 * weight.detach().sign())


def test_a_penalty_is_not_lowered_to_half_precision_by_autocast():
    net = nn.Sequential(nn.Linear(50, 50))
    for penalty in PENALTIES:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = penalty(net)
        assert torch.equal(found, penalty(net))


@every_penalty
def test_the_gradient_is_that_of_the_value(penalty):
    net = Layers()
    weights = [weight for _, weight in named_weights(net)]
    assert torch.autograd.gradcheck(lambda *_: penalty(net), weights)


@every_penalty
def test_a_network_of_zeros_gives_no_nan(penalty):
    net = Layers()
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    Charges([penalty], net).add_gradients_(torch.optim.SGD(net.parameters(), lr=0.1))
    assert all(torch.equal(weight.grad, torch.zeros_like(weight)) for _, weight in named_weights(net))
    assert all(
        gradient is None or torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients(net, penalty).values()
    )


def test_a_parameter_that_the_loss_left_out_is_charged_all_the_same():
    net = nn.Sequential(nn.Linear(2, 2))
    Charges([L1(0.5)], net).add_gradients_(torch.optim.SGD(net.parameters(), lr=0.1))
    assert torch.equal(net[0].weight.grad, 0.5 * net[0].weight.detach().sign())
    assert net[0].bias.grad is None


@pytest.mark.parametrize("ratio", [0.0, 0.25, 1.0])
def test_elastic_net_is_between_l1_and_l2(ratio):
    net = ConvNet()
    expected = ratio * L1(0.2)(net) + (1 - ratio) * L2(0.2)(net)
    torch.testing.assert_close(ElasticNet(0.2, ratio)(net), expected)


@pytest.mark.parametrize("ratio", [-0.1, 1.5, "0.5"])
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(ConfigurationError, match="l1_ratio"):
        ElasticNet(1e-5, ratio)


def test_group_lasso_sums_the_norms_of_units_times_the_roots_of_their_sizes():
    net = Layers()
    units = [row for m in net.children() if not isinstance(m, nn.BatchNorm2d) for block in units_of(m) for row in block]
    assert len(units) == 3 + 5 + 4 + 6 + 3 + 6 + 6
    expected = sum(len(row) ** 0.5 * row.square().sum().sqrt() for row in units)
    torch.testing.assert_close(GroupLasso(0.5)(net), 0.5 * expected)


def test_group_lasso_pushes_every_unit_of_a_network_of_one_scale_alike():
    net = nn.Sequential(nn.Linear(4, 2), nn.Linear(900, 2))
    for layer in net:
        nn.init.constant_(layer.weight, 0.1)
    found = gradients(net, GroupLasso(0.5))
    assert found["0.weight"].unique().tolist() == pytest.approx([0.5])
    assert found["1.weight"].unique().tolist() == pytest.approx([0.5])


def test_group_lasso_on_scales_is_l1():
    norm = nn.Sequential(nn.BatchNorm2d(3))
    nn.init.normal_(norm[0].weight)
    torch.testing.assert_close(GroupLasso(0.5, ["*.weight"])(norm), L1(0.5, ["*.weight"])(norm))


def test_orthogonality_measures_every_group_of_filters_by_itself():
    net = Layers()
    matrices = [block for m in net.children() if not isinstance(m, nn.BatchNorm2d) for block in units_of(m)]
    assert any(len(w) > w.shape[1] for w in matrices)
    assert any(len(w) < w.shape[1] for w in matrices)
    small = [w if len(w) <= w.shape[1] else w.T for w in matrices]
    expected = sum((w @ w.T - torch.eye(len(w), dtype=w.dtype)).square().sum() for w in small)
    torch.testing.assert_close(Orthogonal(0.5)(net), 0.5 * expected)


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (4, 4)])
def test_descent_on_orthogonality_ends_at_orthonormal_rows_or_columns(shape):
    layer = nn.Linear(shape[1], shape[0])
    net, optimizer = nn.Sequential(layer), torch.optim.SGD([layer.weight], lr=0.05)
    for _ in range(500):
        gradients(net, Orthogonal(1.0))
        optimizer.step()
    assert Orthogonal(1.0)(net) < 1e-6
    singular = torch.linalg.svdvals(layer.weight.detach())
    torch.testing.assert_close(singular, torch.ones_like(singular), atol=1e-3, rtol=0)
