import pytest
import torch
import torchvision
from torch import nn

from lightning_cnnopt.architecture import ConvNet
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.parameters import named_weights
from lightning_cnnopt.regularization import L1, L2, l1, l2
from lightning_cnnopt.regularization.functional import add_gradient

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


@pytest.mark.parametrize("cls", [L1, L2])
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
