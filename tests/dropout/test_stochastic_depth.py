import pickle
import warnings
from functools import partial

import pytest
import timm
import torch
import torchvision
from torch import nn

from lightning_cnnopt.architecture import SqueezeExcite
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.dropout import StochasticDepth, drop_rates

NETWORKS = {
    "resnet18": (torchvision.models.resnet18, 8),
    "resnet50": (torchvision.models.resnet50, 16),
    "convnext_tiny": (torchvision.models.convnext_tiny, 18),
    "efficientnet_b0": (torchvision.models.efficientnet_b0, 9),
    "mobilenet_v3_small": (torchvision.models.mobilenet_v3_small, 6),
    "timm resnet18": (partial(timm.create_model, "resnet18"), 8),
    "timm resnet18 with paths": (partial(timm.create_model, "resnet18", drop_path_rate=0.5), 8),
    "timm seresnet18": (partial(timm.create_model, "seresnet18"), 8),
    "timm efficientnet_b0": (partial(timm.create_model, "efficientnet_b0", drop_path_rate=0.5), 9),
}


def on_meta(name):
    with torch.device("meta"):
        return NETWORKS[name][0]()


def rates(network):
    """Return the rate of every layer that drops a branch, in the order of registration.

    Blocks of EfficientNet that change size have a layer, too, but no shortcut, and never call it.
    """
    found = []
    idle = {
        layer
        for block in network.modules()
        if not getattr(block, "use_res_connect", getattr(block, "has_skip", True))
        for layer in block.modules()
    }
    for module in network.modules():
        if module in idle:
            continue
        if isinstance(module, torchvision.ops.StochasticDepth):
            found.append(module.p)
        elif type(module).__name__ == "DropPath":
            found.append(module.drop_prob)
    return found


@pytest.mark.parametrize(("p", "branches"), [(0.5, 1), (0.2, 4), (0.0, 3), (0.9, 54)])
def test_rates_grow_linearly_to_the_last_one(p, branches):
    found = drop_rates(p, branches)
    assert found == pytest.approx([p * step / branches for step in range(1, branches + 1)])


@pytest.mark.parametrize("name", NETWORKS)
def test_every_branch_drops_once_with_its_own_rate(name):
    net, branches = on_meta(name), NETWORKS[name][1]
    assert StochasticDepth(0.3)(net) == branches
    assert rates(net) == pytest.approx([0.3 * step / branches for step in range(1, branches + 1)])


@pytest.mark.parametrize("name", ["convnext_tiny", "efficientnet_b0"])
def test_layers_of_torchvision_that_drop_branches_get_the_rate_and_no_second_one(name):
    net = on_meta(name)
    before = list(net.modules())
    StochasticDepth(0.3)(net)
    assert list(net.modules()) == before


@pytest.mark.parametrize("name", ["timm resnet18 with paths", "timm efficientnet_b0"])
def test_layers_of_timm_that_drop_branches_get_the_rate_and_no_second_one(name):
    net = on_meta(name)
    before = {path for path, module in net.named_modules() if type(module).__name__ == "DropPath"}
    blocks = {path.rpartition(".")[0] for path in before}
    StochasticDepth(0.3)(net)
    assert before
    added = [path for path, _ in net.named_modules() if path.endswith("stochastic_depth")]
    assert not any(path.startswith(f"{block}.") for block in blocks for path in added)


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_saved_before_still_fit_and_a_second_call_is_silent(name):
    net = on_meta(name)
    keys = list(net.state_dict())
    StochasticDepth(0.3)(net)
    assert list(net.state_dict()) == keys
    found = rates(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert StochasticDepth(0.3)(net) == 0
    assert rates(net) == found


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "timm resnet18 with paths", "timm seresnet18"])
def test_evaluation_is_untouched(name):
    net = NETWORKS[name][0]().eval()
    x = torch.randn(2, 3, 32, 32)
    expected = net(x)
    StochasticDepth(0.5)(net)
    assert torch.equal(net(x), expected)


def test_a_new_rate_replaces_the_one_before():
    net = torchvision.models.resnet18()
    StochasticDepth(0.3)(net)
    assert StochasticDepth(0.5)(net) == 8
    assert rates(net) == pytest.approx([0.5 * step / 8 for step in range(1, 9)])


class Residual(nn.Module):
    """Two branches, each linear in its input, so that the expectation is exact."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        x = x + self.first(x)
        return x + self.second(x)


@torch.no_grad()
def test_the_expected_output_in_training_is_the_output_in_evaluation():
    torch.manual_seed(0)
    net = Residual()
    StochasticDepth(0.5)(net)
    x, draws = torch.randn(1, 3), 40_000
    outputs = net.train()(x.expand(draws, 3))
    error = 5 * outputs.std(0) / draws**0.5
    assert bool(((outputs.mean(0) - net.eval()(x)[0]).abs() <= error).all())


@torch.no_grad()
def test_samples_are_dropped_apart_each_with_its_branchs_rate():
    torch.manual_seed(0)
    net, draws = Residual().train(), 20_000
    nn.init.zeros_(net.first.weight)
    nn.init.zeros_(net.second.weight)
    net.first.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    net.second.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    StochasticDepth(0.4)(net)
    kept = net(torch.zeros(draws, 3))
    for column, rate in ((0, 0.2), (1, 0.4)):
        values = kept[:, column]
        torch.testing.assert_close(values.unique(), torch.tensor([0.0, 1 / (1 - rate)]))
        share = float((values == 0).float().mean())
        assert share == pytest.approx(rate, abs=5 * (rate * (1 - rate) / draws) ** 0.5)
    assert abs(float(torch.corrcoef(kept[:, :2].T)[0, 1])) < 5 / draws**0.5


def test_a_dropped_branch_leaves_the_shortcut():
    net = torchvision.models.resnet18().train()
    StochasticDepth(0.999999)(net)
    block = net.layer4[1]
    x = torch.rand(64, 512, 2, 2)
    block.bn2.stochastic_depth.p = 1 - 1e-7
    assert torch.equal(block(x), x)


def test_it_stands_behind_squeeze_and_excitation():
    net = torchvision.models.resnet18().train()
    SqueezeExcite()(net)
    StochasticDepth(0.5)(net)
    block = net.layer4[1]
    block.bn2.stochastic_depth.p = 1 - 1e-7
    x = torch.rand(64, 512, 2, 2)
    assert torch.equal(block(x), x)


def test_a_network_with_it_pickles():
    net = torchvision.models.resnet18(num_classes=3).eval()
    StochasticDepth(0.3)(net)
    copy = pickle.loads(pickle.dumps(net))
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(copy(x), net(x))
    assert rates(copy) == rates(net)


def test_a_network_without_branches_warns_and_names_them():
    with pytest.warns(UserWarning, match="residual branches"):
        assert StochasticDepth(0.3)(nn.Sequential(nn.Linear(2, 2))) == 0


@pytest.mark.parametrize("p", [-0.1, 1, 1.5])
def test_a_rate_out_of_range_is_refused(p):
    with pytest.raises(ConfigurationError, match="p="):
        StochasticDepth(p)
