import pickle
from functools import partial

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.dropout import DropConnect, DropConnectConv2d, DropConnectLinear, FittingDropBlock2d


def test_on_maps_larger_than_the_block_drop_block_is_torchvisions():
    x = torch.randn(4, 3, 12, 10)
    ours, theirs = FittingDropBlock2d(0.3, 5), torchvision.ops.DropBlock2d(0.3, 5)
    torch.manual_seed(1)
    expected = theirs(x)
    torch.manual_seed(1)
    assert torch.equal(ours(x), expected)


@pytest.mark.parametrize(("side", "block"), [((4, 4), 3), ((2, 9), 1), ((1, 1), 1), ((6, 7), 5), ((3, 3), 3)])
def test_a_small_map_gets_the_largest_odd_block_that_fits(side, block):
    x = torch.rand(64, 4, *side) + 1
    torch.manual_seed(1)
    found = FittingDropBlock2d(0.3, 7)(x)
    torch.manual_seed(1)
    assert torch.equal(found, torchvision.ops.drop_block2d(x, 0.3, block))


def test_dropped_elements_are_whole_blocks():
    out = FittingDropBlock2d(0.05, 3)(torch.ones(64, 1, 12, 12))
    dropped = (out == 0).float()
    # every dropped element lies in a block that is dropped as a whole
    whole = 1 - F.max_pool2d(1 - dropped, 3, 1)
    covered = F.conv_transpose2d(whole, torch.ones(1, 1, 3, 3)) > 0
    assert dropped.sum() > 0
    assert torch.equal(covered, dropped > 0)


@pytest.mark.parametrize("p", [0.1, 0.3])
def test_the_rate_is_an_upper_bound_that_small_rates_come_near_to(p):
    out = FittingDropBlock2d(p, 3)(torch.ones(200, 4, 16, 16))
    share = float((out == 0).float().mean())
    assert 0.8 * p < share < p
    assert float(out.mean()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_does_not_overflow(dtype):
    x = torch.ones(16, 32, 16, 16, dtype=dtype)  # more elements than float16 counts
    out = FittingDropBlock2d(0.1, 3)(x)
    assert out.dtype == dtype
    assert float(out.float().mean()) == pytest.approx(1, abs=0.01)


def test_drop_block_in_evaluation_is_the_identity():
    x = torch.randn(2, 3, 4, 4)
    assert FittingDropBlock2d(0.5, 7).eval()(x) is x


LAYERS = [
    (partial(nn.Linear, 6, 4), DropConnectLinear, (5, 6)),
    (partial(nn.Conv2d, 6, 4, 3, padding=1, groups=2, padding_mode="reflect"), DropConnectConv2d, (5, 6, 7, 7)),
]


@pytest.mark.parametrize(("make", "cls", "shape"), LAYERS)
def test_weights_are_dropped_anew_in_every_pass_and_all_used_in_evaluation(make, cls, shape):
    net = nn.Sequential(make())
    plain = make()
    plain.load_state_dict(net[0].state_dict())
    parameters = list(net.parameters())
    assert DropConnect(0.4, [type(plain).__name__])(net) == 1
    assert type(net[0]) is cls
    x = torch.randn(shape)
    assert torch.equal(net.eval()(x), plain(x))
    torch.manual_seed(3)
    found = net.train()(x)
    assert not torch.equal(found, net(x))
    torch.manual_seed(3)
    masked = F.dropout(plain.weight, 0.4)
    expected = torch.func.functional_call(plain, {"weight": masked, "bias": plain.bias}, x)
    torch.testing.assert_close(found, expected)
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert torch.equal(pickle.loads(pickle.dumps(net)).eval()(x), plain(x))


@torch.no_grad()
@pytest.mark.parametrize(("make", "cls", "shape"), LAYERS)
def test_the_expected_output_in_training_is_that_in_evaluation(make, cls, shape):
    net = nn.Sequential(make())
    DropConnect(0.4, ["*"])(net)
    x = torch.randn(shape)
    outputs = torch.stack([net(x) for _ in range(4000)])
    error = 5.5 * outputs.std(0) / 4000**0.5
    assert bool(((outputs.mean(0) - net.eval()(x)).abs() <= error).all())


def test_a_dropped_weight_gets_no_gradient_and_the_others_a_larger_one():
    layer = DropConnectLinear(50, 1, p=0.5)
    layer(torch.ones(1, 50)).sum().backward()
    assert set(layer.weight.grad.unique().tolist()) == {0.0, 2.0}
    assert layer.bias.grad == 1


def test_dense_layers_are_changed_by_default_and_others_by_name():
    net = torchvision.models.vgg11(num_classes=2)
    keys = list(net.state_dict())
    assert DropConnect()(net) == 3
    assert [name for name, module in net.named_modules() if isinstance(module, DropConnectConv2d)] == []
    assert DropConnect(0.1, ["features.[03]", "classifier.6"])(net) == 3
    rates = {n: m.p for n, m in net.named_modules() if isinstance(m, (DropConnectConv2d, DropConnectLinear))}
    first, second = ("features.0", "features.3", "classifier.6"), ("classifier.0", "classifier.3")
    assert rates == {**dict.fromkeys(first, 0.1), **dict.fromkeys(second, 0.5)}
    assert list(net.state_dict()) == keys


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_layers_with_a_computation_of_their_own_are_left_alone():
    with pytest.warns(UserWarning, match=r"plain nn\.Linear"):
        assert DropConnect()(nn.Sequential(Doubled(2, 2))) == 0


def test_a_pattern_without_a_match_is_refused_and_a_network_without_dense_layers_warned_of():
    with pytest.raises(ConfigurationError, match=r"'fc\.\*' matches no layer of Sequential.*'Linear'"):
        DropConnect(0.5, ["fc.*"])(nn.Sequential(nn.Linear(2, 2)))
    with pytest.warns(UserWarning, match="changed nothing"):
        DropConnect(0.5)(nn.Sequential(nn.Conv2d(2, 2, 3)))


@pytest.mark.parametrize("p", [-0.1, 1, 1.5, "half"])
@pytest.mark.parametrize(
    "make",
    [
        DropConnect,
        partial(DropConnectLinear, 2, 2, True),
        lambda p: DropConnectConv2d(2, 2, 3, p=p),
        lambda p: FittingDropBlock2d(p, 3),
    ],
)
def test_a_rate_out_of_range_is_refused(make, p):
    with pytest.raises(ConfigurationError, match="p="):
        make(p)


@pytest.mark.parametrize("layers", ["Linear", []])
def test_patterns_have_to_be_a_list(layers):
    with pytest.raises(ConfigurationError, match="layers="):
        DropConnect(0.5, layers)
