import pytest
import timm
import torch
from torch import nn

from lightning_cnnopt.architecture import ConvNet
from lightning_cnnopt.core import mark_pretrained
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.initialization import LSUV, lsuv_

NETWORKS = {
    "ConvNet": lambda: ConvNet(in_channels=3, image_size=(32, 32)),
    "resnet": lambda: timm.create_model("test_resnet", pretrained=False, num_classes=10),
    "efficientnet": lambda: timm.create_model("test_efficientnet", pretrained=False, num_classes=10),
}


def sample(seed=0):
    return 2 + 3 * torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def run(network, seed=1):
    return LSUV()(network, sample(), torch.Generator().manual_seed(seed))


def output_variances(network):
    variances = {}
    handles = [
        module.register_forward_hook(lambda m, a, out, name=name: variances.update({name: float(out.var(unbiased=False))}))
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    modes = {module: module.training for module in network.modules()}
    with torch.no_grad():
        network.eval()(sample())
    for module, mode in modes.items():
        module.training = mode
    for handle in handles:
        handle.remove()
    return variances


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_has_unit_variance_on_the_sample(name):
    net = NETWORKS[name]()
    assert max(abs(variance - 1) for variance in output_variances(net).values()) > 0.1
    touched = run(net)
    variances = output_variances(net)
    assert set(variances) == set(touched)
    assert all(variance == pytest.approx(1, abs=0.011) for variance in variances.values())


def test_the_returned_variances_are_those_of_the_layers():
    net = NETWORKS["ConvNet"]()
    returned = lsuv_(net, sample())
    measured = output_variances(net)
    assert list(returned) == list(measured)
    assert returned == pytest.approx(measured, rel=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_statistics_mode_and_random_state_are_left_alone(name):
    net = NETWORKS[name]().train()
    first_norm = next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    first_norm.eval()
    modes = {n: m.training for n, m in net.named_modules()}
    buffers = {n: b.clone() for n, b in net.named_buffers()}
    state = torch.get_rng_state()
    run(net)
    assert {n: m.training for n, m in net.named_modules()} == modes
    assert all(torch.equal(buffer, buffers[n]) for n, buffer in net.named_buffers())
    assert torch.equal(torch.get_rng_state(), state)


def test_no_hook_and_no_gradient_is_left_behind():
    net = NETWORKS["ConvNet"]()
    run(net)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_weights_stay_orthogonal_up_to_their_scale():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 24), nn.Tanh(), nn.Linear(24, 24))
    run(net)
    for layer in (net[1], net[3]):
        gram = layer.weight @ layer.weight.T
        torch.testing.assert_close(gram / gram[0, 0], torch.eye(24), atol=1e-4, rtol=0)


def test_the_same_generator_gives_the_same_weights():
    first, second = NETWORKS["ConvNet"](), NETWORKS["ConvNet"]()
    run(first)
    run(second)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_it_needs_a_sample():
    assert LSUV.needs_sample
    with pytest.raises(ConfigurationError, match="sample="):
        LSUV()(NETWORKS["ConvNet"]())


def test_a_sample_without_variance_is_refused_and_the_mode_is_restored():
    net = NETWORKS["ConvNet"]().train()
    with pytest.raises(ConfigurationError, match="variance 0"):
        LSUV()(net, torch.zeros(4, 3, 32, 32))
    assert all(module.training for module in net.modules())
    assert not any(module._forward_hooks for module in net.modules())


def test_trained_layers_are_not_scaled_and_count_as_they_are():
    net = NETWORKS["ConvNet"]()
    mark_pretrained(net.stages)
    before = {name: value.clone() for name, value in net.stages.state_dict().items()}
    touched = run(net)
    assert touched == ["head.0.dense", "classifier"]
    assert all(torch.equal(value, before[name]) for name, value in net.stages.state_dict().items())
    variances = output_variances(net)
    assert [variances[name] for name in touched] == pytest.approx([1, 1], abs=0.011)
