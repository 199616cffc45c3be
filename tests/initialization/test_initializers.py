import math
import warnings

import pytest
import timm
import torch
import torchvision
from torch import nn

from lightning_cnnopt.activation import SwapActivation
from lightning_cnnopt.architecture import ConvNet, SqueezeExcite
from lightning_cnnopt.core import mark_pretrained
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.initialization import (
    LSUV,
    Kaiming,
    XavierNormal,
    XavierUniform,
    kaiming_normal_,
    kaiming_uniform_,
    layer_fans,
    xavier_normal_,
    xavier_uniform_,
)

CONVOLUTIONS = [
    nn.Conv1d(8, 12, 3),
    nn.Conv2d(8, 12, (3, 5)),
    nn.Conv2d(8, 12, 3, groups=4),
    nn.Conv2d(8, 8, 5, groups=8),
    nn.Conv2d(8, 12, 3, dilation=2),
    nn.ConvTranspose2d(8, 12, 3),
    nn.ConvTranspose2d(8, 12, 3, groups=4),
    nn.Conv3d(2, 4, 3),
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=repr)
def test_fans_count_the_connections_of_one_output_and_one_input(layer):
    dimensions = layer.weight.ndim - 2
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.bias)
    x = torch.ones(1, layer.in_channels, *[25] * dimensions, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    middle_of = lambda t: t[(0, 0, *[side // 2 for side in t.shape[2:]])]  # noqa: E731
    assert layer_fans(layer) == (round(float(middle_of(y))), round(float(middle_of(x.grad))))


@pytest.mark.parametrize("layer", [nn.Linear(5, 3), nn.Conv2d(4, 6, 3), nn.Conv1d(4, 6, 3)], ids=repr)
def test_fans_of_ordinary_layers_are_torchs(layer):
    assert layer_fans(layer) == nn.init._calculate_fan_in_and_fan_out(layer.weight)


def test_a_layer_without_fans_says_so():
    with pytest.raises(ConfigurationError, match="BatchNorm2d"):
        layer_fans(nn.BatchNorm2d(2))


SIMULATED = [
    nn.Conv2d(64, 96, 3, groups=4, bias=False),
    nn.ConvTranspose2d(64, 96, 3, groups=4, bias=False),
    nn.ConvTranspose2d(32, 48, 3, bias=False),
    nn.Conv2d(32, 48, 3, bias=False),
]


@pytest.mark.parametrize("layer", SIMULATED, ids=repr)
@pytest.mark.parametrize("draw", [kaiming_normal_, kaiming_uniform_])
@pytest.mark.parametrize("fan_out", [False, True])
def test_kaiming_keeps_the_variance_of_its_pass(layer, draw, fan_out):
    draw(layer, gain=1.0, fan_out=fan_out, generator=generator())
    x = torch.randn(16, layer.in_channels, 14, 14, generator=generator(1), requires_grad=True)
    y = layer(x)
    backward = torch.autograd.grad(y, x, torch.randn(y.shape, generator=generator(2)))[0]
    signal = (backward if fan_out else y)[..., 3:-3, 3:-3]
    # all values share the weights, so it is these whose number sets the error: Var of a mean of n squares is 2 / n
    assert float(signal.var()) == pytest.approx(1, abs=5 * (2 / layer.weight.numel()) ** 0.5 + 5 * (2 / signal.numel()) ** 0.5)


@pytest.mark.parametrize("layer", [nn.Linear(64, 32), nn.Conv2d(16, 24, 3), *CONVOLUTIONS[2:6]], ids=repr)
@pytest.mark.parametrize("gain", [1.0, 2.5])
def test_xavier_uniform_has_its_bound(layer, gain):
    xavier_uniform_(layer, gain, generator())
    bound = gain * math.sqrt(6 / sum(layer_fans(layer)))
    largest = float(layer.weight.abs().max())
    assert largest <= bound * (1 + 1e-6)
    # P(all |w| < c · bound) = c^n, which is 1e-9 here
    assert largest >= bound * 10 ** (-9 / layer.weight.numel())


@pytest.mark.parametrize("layer", [nn.Linear(64, 32), nn.Conv2d(16, 24, 3), *CONVOLUTIONS[2:6]], ids=repr)
@pytest.mark.parametrize("gain", [1.0, 2.5])
def test_xavier_normal_has_its_standard_deviation(layer, gain):
    xavier_normal_(layer, gain, generator())
    expected = gain * math.sqrt(2 / sum(layer_fans(layer)))
    n = layer.weight.numel()
    assert float(layer.weight.square().mean().sqrt()) == pytest.approx(expected, rel=5 / math.sqrt(2 * n))


@pytest.mark.parametrize("layer", [nn.Linear(64, 32), nn.Conv2d(16, 24, 3)], ids=repr)
@pytest.mark.parametrize(
    ("ours", "torchs"),
    [
        (xavier_uniform_, nn.init.xavier_uniform_),
        (xavier_normal_, nn.init.xavier_normal_),
        (lambda m, gain, g: kaiming_normal_(m, gain, False, g), lambda w, gain, generator: he(w, "normal", gain, generator)),
        (lambda m, gain, g: kaiming_uniform_(m, gain, False, g), lambda w, gain, generator: he(w, "uniform", gain, generator)),
    ],
    ids=["xavier_uniform", "xavier_normal", "kaiming_normal", "kaiming_uniform"],
)
def test_ordinary_layers_get_torchs_draw(layer, ours, torchs):
    ours(layer, 1.0, generator(3))
    expected = torchs(torch.empty_like(layer.weight), gain=1.0, generator=generator(3))
    torch.testing.assert_close(layer.weight.detach(), expected)


def he(weight, distribution, gain, generator):
    assert gain == nn.init.calculate_gain("linear")
    return getattr(nn.init, f"kaiming_{distribution}_")(weight, nonlinearity="linear", generator=generator)


def test_the_printed_formula_is_gain_root_three():
    net = nn.Sequential(nn.Linear(300, 200))
    XavierNormal(gain=math.sqrt(3))(net, generator=generator())
    assert float(net[0].weight.std()) == pytest.approx(math.sqrt(6 / 500), rel=5 / math.sqrt(2 * 60000))


def kaiming_gains(network, **options):
    """Measure std · √fan of every layer, and its standard error."""
    Kaiming(**options)(network, generator=generator())
    measured = {}
    for name, layer in network.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            fan = layer_fans(layer)[options.get("mode") == "fan_out"]
            weight = layer.weight.detach()
            measured[name] = (float(weight.square().mean().sqrt()) * math.sqrt(fan), 1 / math.sqrt(2 * weight.numel()))
    return measured


def assert_gains(network, expected, **options):
    for name, (gain, error) in kaiming_gains(network, **options).items():
        assert gain == pytest.approx(expected(name), rel=6 * error), name


RELU = math.sqrt(2)


def second_moment_gain(activation):
    z = torch.linspace(-12, 12, 2_000_001, dtype=torch.float64)
    density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
    return float(torch.trapezoid(activation(z).square() * density, z)) ** -0.5


@pytest.mark.parametrize("options", [{}, {"mode": "fan_out"}, {"distribution": "uniform"}])
def test_kaiming_of_resnet18_is_that_of_relu_but_for_its_last_layer(options):
    assert_gains(torchvision.models.resnet18(), lambda name: 1.0 if name == "fc" else RELU, **options)


def test_kaiming_of_resnet18_follows_a_swap():
    net = torchvision.models.resnet18()
    SwapActivation(nn.GELU)(net)
    gelu = second_moment_gain(nn.GELU())
    assert_gains(net, lambda name: 1.0 if name == "fc" else gelu)


def efficientnet_gain(activation):
    def gain(name):
        gated_or_linear = name.endswith(("conv_expand", "conv_pwl")) or name in ("classifier", "blocks.0.0.conv_pw")
        return 1.0 if gated_or_linear else activation

    return gain


def test_kaiming_of_timms_efficientnet_knows_its_linear_bottlenecks_and_gates():
    net = timm.create_model("efficientnet_b0", pretrained=False)
    assert_gains(net, efficientnet_gain(second_moment_gain(nn.SiLU())))


def test_kaiming_of_timms_efficientnet_follows_a_swap():
    net = timm.create_model("efficientnet_b0", pretrained=False)
    SwapActivation(nn.Tanh)(net)
    assert_gains(net, efficientnet_gain(5 / 3))


@pytest.mark.parametrize("order", ["conv-act-norm", "conv-norm-act", "norm-act-conv"])
@pytest.mark.parametrize("swap", [None, nn.Mish])
def test_kaiming_of_the_plain_network_in_every_order(order, swap):
    net = ConvNet(widths=(16, 16), order=order, dense=(64, 32))
    gain = RELU
    if swap is not None:
        SwapActivation(swap)(net)
        gain = second_moment_gain(swap())
    linear = {"classifier", "head.1.dense"} if order == "norm-act-conv" else {"classifier"}
    assert_gains(net, lambda name: 1.0 if name in linear else gain)


def test_kaiming_knows_the_layers_of_an_added_squeeze_excite():
    net = torchvision.models.resnet18()
    SqueezeExcite(reduction=1)(net)
    assert_gains(net, lambda name: 1.0 if name == "fc" or name.endswith("squeeze_excite.fc2") else RELU)


class Decides(nn.Module):
    """Control flow that depends on data."""

    def __init__(self, activation):
        super().__init__()
        self.one, self.two = nn.Linear(200, 300), nn.Linear(300, 400)
        self.activation = activation

    def forward(self, x):
        x = self.one(x)
        if x.isnan().any():
            return x
        return self.two(self.activation(x))


def test_kaiming_follows_a_network_that_can_not_be_traced_by_running_it():
    net, sample = Decides(nn.functional.gelu), torch.rand(4, 200)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Kaiming()(net, sample, generator())
    gains = [float(layer.weight.square().mean().sqrt()) * layer.in_features**0.5 for layer in (net.one, net.two)]
    assert gains == pytest.approx([second_moment_gain(nn.GELU()), 1.0], rel=0.02)


@pytest.mark.parametrize("stated", [None, 2.0])
def test_kaiming_says_of_which_layers_it_can_not_tell_what_follows(stated, recwarn):
    net = Decides(nn.functional.gelu)
    Kaiming(unknown_gain=stated)(net, generator=generator())
    told = [str(warning.message) for warning in recwarn]
    if stated is None:
        [told] = told
        assert "which activation follows 2 of 2 layers of Decides, such as 'one' (torch.fx can't trace the code" in told
        assert all(remedy in told for remedy in ("They got gain 1.", "unknown_gain=", "attribute `gain`", "sample="))
    else:
        assert told == []
    gains = [float(layer.weight.square().mean().sqrt()) * layer.in_features**0.5 for layer in (net.one, net.two)]
    assert gains == pytest.approx([stated or 1.0] * 2, rel=0.02)


def test_kaiming_knows_an_activation_of_ones_own_by_what_it_computes():
    class Swish(nn.Module):
        def forward(self, x):
            return x * torch.sigmoid(x)

    net = nn.Sequential(nn.Linear(200, 300), Swish(), nn.Linear(300, 400))
    expected = second_moment_gain(nn.SiLU())
    Kaiming()(net, generator=generator())
    assert float(net[0].weight.square().mean().sqrt()) * 200**0.5 == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("initializer", [Kaiming(), XavierUniform(), XavierNormal()], ids=repr)
def test_marked_layers_are_left_alone_and_a_new_head_is_drawn(initializer):
    net = ConvNet()
    mark_pretrained(net)
    net.classifier = nn.Linear(128, 7)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert initializer(net, generator=generator()) == ["classifier"]
    changed = [name for name, value in net.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["classifier.weight", "classifier.bias"]
    mark_pretrained(net)
    with pytest.warns(UserWarning, match=r"initialized nothing: all 4 layers .* mark_pretrained\(network, False\)"):
        assert initializer(net, generator=generator()) == []
    mark_pretrained(net, False)
    assert len(initializer(net, generator=generator())) == 4


def test_how_many_layers_are_left_alone_is_said(caplog):
    net = ConvNet()
    mark_pretrained(net.stages)
    with caplog.at_level("INFO"):
        XavierUniform()(net)
    assert "XavierUniform(gain=1.0) leaves 2 of 4 layers alone: their weights are trained." in caplog.text


def test_a_network_that_has_seen_data_is_drawn_with_a_warning_unless_that_was_said():
    net = ConvNet()
    net(torch.rand(4, 1, 28, 28))
    with pytest.warns(UserWarning, match=r"not those of a new network.*mark_pretrained\(network\)"):
        assert len(XavierUniform()(net)) == 4
    mark_pretrained(net, False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(XavierUniform()(net)) == 4


@pytest.mark.parametrize("initializer", [Kaiming(), XavierUniform(), XavierNormal(), LSUV()], ids=repr)
@pytest.mark.parametrize("layer", [nn.LazyConv2d(4, 3), nn.LazyLinear(3)], ids=repr)
def test_layers_without_weights_are_refused_by_name(initializer, layer):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Sequential(layer))
    with pytest.raises(ConfigurationError, match=rf"1 layers have no weights to draw, such as '1.0', a {type(layer).__name__}"):
        initializer(net, torch.rand(2, 1, 8, 8))


@pytest.mark.parametrize("layer", [nn.LazyConv2d(4, 3), nn.LazyLinear(3)], ids=repr)
def test_a_layer_without_weights_has_no_fans(layer):
    with pytest.raises(ConfigurationError, match="has no weights; a lazy layer gets them"):
        xavier_uniform_(layer)


def test_a_lazy_layer_that_has_run_is_drawn():
    net = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(3))
    net(torch.rand(2, 1, 8, 8))
    assert XavierUniform()(net) == ["0", "2"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("initializer", [Kaiming(), XavierUniform(), XavierNormal()], ids=repr)
def test_the_draw_is_the_same_for_every_memory_format_and_dtype(initializer, dtype):
    plain, other = ConvNet(), ConvNet().to(memory_format=torch.channels_last)
    if dtype != torch.float64:  # whose draws are finer ones
        other = other.to(dtype)
    initializer(plain, generator=generator())
    initializer(other, generator=generator())
    for ours, theirs in zip(plain.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours.to(theirs.dtype), theirs)


@pytest.mark.parametrize("initializer", [Kaiming(), XavierUniform(), XavierNormal()], ids=repr)
def test_biases_are_zero_and_normalization_is_left_alone(initializer):
    net = ConvNet()
    norms = [p for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) for p in m.parameters()]
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.5)
    touched = initializer(net, generator=generator())
    layers = {n: m for n, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    assert touched == list(layers)
    assert all(float(layer.bias.abs().max()) == 0 for layer in layers.values())
    assert all(bool((parameter == 0.5).all()) for parameter in norms)


@pytest.mark.parametrize("initializer", [Kaiming(), XavierUniform(), XavierNormal()], ids=repr)
def test_a_generator_repeats_and_spares_the_global_state(initializer):
    first, second = ConvNet(), ConvNet()
    before = torch.get_rng_state()
    initializer(first, generator=generator(7))
    initializer(second, generator=generator(7))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_network_without_layers_warns():
    with pytest.warns(UserWarning, match="initialized nothing"):
        assert XavierUniform()(nn.Sequential(nn.ReLU())) == []


@pytest.mark.parametrize(
    "make", [lambda: Kaiming("norml"), lambda: Kaiming(mode="fan"), lambda: Kaiming(unknown_gain=0), lambda: XavierUniform(0)]
)
def test_arguments_out_of_range_are_refused(make):
    with pytest.raises(ConfigurationError):
        make()


@pytest.mark.gpu
@pytest.mark.parametrize("initializer", [Kaiming(), XavierUniform(), XavierNormal()], ids=repr)
def test_a_network_on_a_gpu_gets_the_draws_of_one_on_the_cpu(initializer):
    here, there = ConvNet(), ConvNet().cuda()
    initializer(here, generator=generator())
    initializer(there, generator=generator())
    assert all(torch.equal(a, b.cpu()) for a, b in zip(here.parameters(), there.parameters(), strict=True))
