import functools

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from lightning_cnnopt.architecture import SqueezeExcite
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.graph import Branch, NetworkGraph, Unknown, activations_after
from lightning_cnnopt.core.surgery import insert_after


class Untraceable(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return self.part(x) if x.sum() > 0 else x


class Functional(nn.Module):
    def __init__(self, function, outputs=2):
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(outputs, 2)
        self.function = function

    def forward(self, x):
        return self.second(self.function(self.first(x)))


NETWORKS = {
    "resnet18": (torchvision.models.resnet18, 8),
    "resnet50": (torchvision.models.resnet50, 16),
    "convnext_tiny": (torchvision.models.convnext_tiny, 18),
    "efficientnet_b0": (torchvision.models.efficientnet_b0, 9),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, 10),
    "mobilenet_v3_small": (torchvision.models.mobilenet_v3_small, 6),
    "timm regnety_002": (functools.partial(timm.create_model, "regnety_002"), 13),
    "timm resnet18": (functools.partial(timm.create_model, "resnet18"), 8),
    "timm seresnet18": (functools.partial(timm.create_model, "seresnet18"), 8),
    "timm efficientnet_b0": (functools.partial(timm.create_model, "efficientnet_b0"), 9),
    "timm convnext_atto": (functools.partial(timm.create_model, "convnext_atto"), 12),
    "densenet121": (torchvision.models.densenet121, 0),
    "vgg11": (functools.partial(torchvision.models.vgg11, num_classes=2), 0),
}


@functools.cache
def network(name):
    with torch.device("meta"):
        return NETWORKS[name][0]().eval()


@functools.cache
def graph(name):
    return NetworkGraph(network(name))


@pytest.mark.parametrize("name", NETWORKS)
def test_all_residual_branches_are_found(name):
    assert len(graph(name).residual_branches()) == NETWORKS[name][1]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_branch_is_another_and_holds_layers(name):
    branches = graph(name).residual_branches()
    assert len({branch.end for branch in branches}) == len(branches)
    modules = dict(network(name).named_modules())
    assert all(any(isinstance(modules[m], nn.Conv2d) for m in branch.modules) for branch in branches)


@pytest.mark.parametrize("block", [f"layer{stage}.{index}" for stage in range(1, 5) for index in range(2)])
def test_the_branch_is_the_side_beside_the_shortcut(block):
    branches = {branch.end: branch for branch in graph("resnet18").residual_branches()}
    assert branches[f"{block}.bn2"].modules[-4:] == tuple(f"{block}.{name}" for name in ("bn1", "relu", "conv2", "bn2"))


def test_zeroing_all_branches_leaves_the_shortcuts_alone():
    net = timm.create_model("seresnet18", num_classes=4).eval()
    for branch in NetworkGraph(net).residual_branches():
        net.get_submodule(branch.end).register_forward_hook(lambda module, args, output: output * 0)
    x = torch.rand(1, 3, 32, 32)
    shortcut = net.maxpool(net.act1(net.bn1(net.conv1(x))))
    for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
        for block in layer:
            shortcut = F.relu(shortcut if block.downsample is None else block.downsample(shortcut))
    torch.testing.assert_close(net.forward_features(x), shortcut)


def test_adding_a_value_to_itself_or_to_a_constant_is_no_branch():
    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            y = self.layer(x)
            return y + y + 1.0

    assert NetworkGraph(Sums()).residual_branches() == []


@pytest.mark.parametrize("how", ["operator", "in place", "method", "torch"])
@pytest.mark.parametrize("swapped", [False, True])
def test_every_form_of_addition_ends_a_branch(how, swapped):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            a, b = (x, self.layer(x)) if swapped else (self.layer(x), x)
            if how == "operator":
                return a + b
            if how == "in place":
                a += b
                return a
            return a.add(b) if how == "method" else torch.add(a, b)

    assert NetworkGraph(Block()).residual_branches() == [Branch("layer", ("layer",))]


def test_normalization_pooling_dropout_and_reshaping_are_looked_through():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.MaxPool2d(2), nn.Dropout(), nn.Flatten(), nn.Tanh())
    assert NetworkGraph(net).activation_after("0") is net[5]


def test_another_layer_with_weights_comes_before_its_activation():
    net = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2), nn.GELU(), nn.Linear(2, 2))
    after = activations_after(net, {name: net.get_submodule(name) for name in "024"})
    assert after == {"0": None, "2": net[3], "4": None}


def test_what_a_block_weighs_its_channels_with_hides_no_activation():
    found = graph("timm seresnet18")
    assert found.activation_after("layer1.0.conv2") is network("timm seresnet18").layer1[0].act2
    assert isinstance(found.activation_after("layer1.0.se.fc1"), nn.ReLU)
    assert found.activation_after("layer1.0.se.fc2") is network("timm seresnet18").layer1[0].se.gate


def test_the_order_of_computation_counts_and_not_that_of_registration():
    class Reversed(nn.Module):
        def __init__(self):
            super().__init__()
            self.tanh, self.layer, self.relu = nn.Tanh(), nn.Linear(2, 2), nn.ReLU()

        def forward(self, x):
            return self.tanh(self.layer(self.relu(x)))

    net = Reversed()
    assert NetworkGraph(net).activation_after("layer") is net.tanh


CALLED = [
    (F.relu, nn.ReLU()),
    (lambda x: F.relu(x, inplace=True), nn.ReLU()),
    (F.relu_, nn.ReLU()),
    (torch.relu, nn.ReLU()),
    (lambda x: x.relu(), nn.ReLU()),
    (lambda x: x.relu_(), nn.ReLU()),
    (lambda x: x.clamp(min=0), nn.ReLU()),
    (lambda x: torch.clamp(x, 0), nn.ReLU()),
    (lambda x: x.clamp_min(0.0), nn.ReLU()),
    (lambda x: x.clamp(0, 6), nn.Hardtanh(0, 6)),
    (F.relu6, nn.ReLU6()),
    (lambda x: F.leaky_relu(x, 0.3), nn.LeakyReLU(0.3)),
    (lambda x: F.leaky_relu(x, negative_slope=0.2, inplace=True), nn.LeakyReLU(0.2)),
    (lambda x: F.rrelu(x, 0.1, 0.2, True), nn.RReLU(0.1, 0.2)),
    (lambda x: F.elu(x, alpha=2.0), nn.ELU(2.0)),
    (lambda x: F.celu(x, 1.5), nn.CELU(1.5)),
    (F.selu, nn.SELU()),
    (lambda x: F.gelu(x, approximate="tanh"), nn.GELU("tanh")),
    (F.silu, nn.SiLU()),
    (F.mish, nn.Mish()),
    (torch.tanh, nn.Tanh()),
    (F.tanh, nn.Tanh()),
    (lambda x: x.sigmoid(), nn.Sigmoid()),
    (F.hardswish, nn.Hardswish()),
    (F.hardsigmoid, nn.Hardsigmoid()),
    (lambda x: F.hardtanh(x, -2, 2), nn.Hardtanh(-2, 2)),
    (F.logsigmoid, nn.LogSigmoid()),
    (F.softsign, nn.Softsign()),
    (lambda x: F.softplus(x, 2), nn.Softplus(2)),
    (lambda x: F.threshold(x, 0.1, 20), nn.Threshold(0.1, 20)),
    (F.tanhshrink, nn.Tanhshrink()),
    (lambda x: F.softshrink(x, 0.2), nn.Softshrink(0.2)),
    (lambda x: F.hardshrink(x, lambd=0.2), nn.Hardshrink(0.2)),
    (F.glu, nn.GLU()),
]


@pytest.mark.parametrize("recorded", [False, True], ids=["traced", "recorded"])
@pytest.mark.parametrize(("function", "expected"), CALLED, ids=[f"{i} {m!r}" for i, (_, m) in enumerate(CALLED)])
def test_activations_called_as_functions_are_seen_with_their_arguments(function, expected, recorded):
    net = Functional(function, outputs=1 if isinstance(expected, nn.GLU) else 2)
    graph_of = NetworkGraph(Untraceable(net), torch.rand(3, 2)) if recorded else NetworkGraph(net)
    prefix = "part." if recorded else ""
    found = graph_of.activation_after(f"{prefix}first")
    assert repr(found) == repr(expected)
    assert graph_of.activation_after(f"{prefix}second") is None
    assert len(graph_of.functional_activations()) == 1


def test_every_activation_of_torch_that_is_a_function_too_is_seen():
    classes = {name.lower() for name in nn.modules.activation.__all__} - {
        "softmax",
        "softmin",
        "logsoftmax",
        "multiheadattention",
    }
    functions = [name for name in dir(F) if name.replace("_", "") in classes]
    seen = {type(module).__name__.lower() for _, module in CALLED}
    assert {name.replace("_", "") for name in functions} - seen == {"prelu"}  # its slope is learned


def test_the_activation_inside_timms_normalization_counts():
    net = network("timm efficientnet_b0")
    assert graph("timm efficientnet_b0").activation_after("conv_stem") is net.bn1.act
    assert graph("timm efficientnet_b0").activation_after("blocks.1.0.conv_pwl") is None


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
def test_an_inserted_layer_hides_and_adds_no_activation_for_the_layers_before_it(name):
    net = NETWORKS[name][0]()
    before = NetworkGraph(net)
    convolutions = [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d)]
    expected = [before.activation_after(n) for n in convolutions]
    SqueezeExcite()(net)
    after = NetworkGraph(net)
    assert [after.activation_after(n) for n in convolutions] == expected


def test_layers_inside_an_inserted_layer_are_followed_too():
    net = torchvision.models.resnet18()
    SqueezeExcite(activation=nn.SiLU)(net)
    added = net.layer1[0].bn2.squeeze_excite
    found = NetworkGraph(net)
    assert found.activation_after("layer1.0.bn2.squeeze_excite.fc1") is added.activation
    assert found.activation_after("layer1.0.bn2.squeeze_excite.fc2") is added.scale_activation


def scaled_exp(x):
    return torch.exp(x) * 2


UNKNOWN = {
    "exp": scaled_exp,
    "where": lambda x: torch.where(torch.ones(2) > 0, x, 0.1 * x),
    "pow": lambda x: x**2,
    "erf": torch.erf,
    "prelu": lambda x: F.prelu(x, torch.ones(1)),
    "clamp": lambda x: x.clamp(max=1),
    "gt": lambda x: x * (x > 0),
    "formula": lambda x: x * torch.sigmoid(x),
    "formula ": lambda x: x * (F.relu6(x + 3) / 6),
    "formula  ": lambda x: x * torch.tanh(F.softplus(x)),
    "formula   ": lambda x: F.relu(x) ** 2,
    "formula    ": lambda x: torch.sigmoid(x[:, :1]) * x[:, 1:] * torch.ones(2),
}


@pytest.mark.parametrize("recorded", [False, True], ids=["traced", "recorded"])
@pytest.mark.parametrize("name", UNKNOWN)
def test_what_may_be_an_activation_is_unknown_and_named(name, recorded):
    net = Functional(UNKNOWN[name])
    graph_of = NetworkGraph(Untraceable(net), torch.rand(3, 2)) if recorded else NetworkGraph(net)
    prefix = "part." if recorded else ""
    found = graph_of.activation_after(f"{prefix}first")
    assert isinstance(found, Unknown)
    assert name.strip() in found.reason
    assert graph_of.activation_after(f"{prefix}second") is None


LINEAR = [
    lambda x: x.view(x.shape[0], -1) * 0.5 + 1 - x / 2,
    lambda x: torch.cat([x[:, :1], -x[:, 1:]], dim=1),
    lambda x: F.dropout(x.flatten(1), 0.1).reshape(x.size(0), 2),
    lambda x: F.adaptive_avg_pool2d(x[:, :, None, None], 1).squeeze(-1).squeeze(-1),
    lambda x: F.max_pool2d(F.interpolate(x[:, :, None, None], scale_factor=2), 2).mean((2, 3)),
    lambda x: F.layer_norm(F.normalize(x.transpose(0, 1).permute(1, 0)), (2,)),
    lambda x: torchvision.ops.stochastic_depth(x, 0.1, "row"),
    lambda x: x + torch.zeros_like(x).exp() * x.new_ones(2),
]


@pytest.mark.parametrize("function", LINEAR, ids=range(len(LINEAR)))
def test_functions_that_are_no_activation_are_looked_through(function):
    assert type(NetworkGraph(Functional(lambda x: F.relu(function(x)))).activation_after("first")) is nn.ReLU
    assert NetworkGraph(Functional(function)).activation_after("first") is None


@pytest.mark.parametrize("recorded", [False, True], ids=["traced", "recorded"])
def test_an_operation_in_place_counts_though_nobody_takes_what_it_returns(recorded):
    class InPlace(nn.Module):
        def __init__(self, untraceable):
            super().__init__()
            self.one, self.two, self.three = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
            self.relu = nn.ReLU(inplace=True)
            self.untraceable = untraceable

        def forward(self, x):
            if self.untraceable and x.sum() < 0:
                return x
            x = self.one(x)
            x.tanh_()
            x = self.two(x)
            self.relu(x)
            return self.three(x)

    net = InPlace(recorded)
    graph_of = NetworkGraph(net, torch.rand(2, 2))
    assert isinstance(graph_of.activation_after("one"), nn.Tanh)
    assert graph_of.activation_after("two") is net.relu
    assert graph_of.activation_after("three") is None


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


class Scaled(nn.Module):
    def forward(self, x):
        return F.gelu(x).mul(1.7)


class Halved(nn.Module):
    def forward(self, x):
        return x / 2


class LearnedSlope(nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return F.prelu(x, self.slope)


class Decides(nn.Module):
    def forward(self, x):
        return x if x.mean() > 0 else -x


class OwnLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(2))

    def forward(self, x):
        return F.linear(x, self.matrix)


def test_layers_of_ones_own_are_looked_into():
    def after(layer):
        return NetworkGraph(nn.Sequential(nn.Linear(2, 2), layer, nn.ReLU())).activation_after("0")

    swish, scaled = Swish(), Scaled()
    assert after(swish) is swish
    assert after(scaled) is scaled
    assert type(after(Halved())) is nn.ReLU
    assert after(OwnLayer()) is None
    assert "LearnedSlope" in after(LearnedSlope()).reason
    assert "Decides" in after(Decides()).reason


def test_a_layer_inside_one_that_is_not_looked_into_is_unknown():
    block = nn.TransformerEncoderLayer(4, 1, 8)
    graph_of = NetworkGraph(nn.Sequential(nn.Linear(2, 4), block))
    assert "TransformerEncoderLayer" in graph_of.activation_after("1.linear1").reason


def test_what_follows_attention_follows_its_last_layer():
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.act = nn.MultiheadAttention(4, 1), nn.GELU()

        def forward(self, x):
            return self.act(self.attention(x, x, x)[0])

    net = Attends()
    assert NetworkGraph(net).activation_after("attention.out_proj") is net.act


def test_behind_the_last_layer_of_a_traced_part_is_unknown_and_not_nothing():
    part = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    graph_of = NetworkGraph(Untraceable(part))
    assert graph_of.activation_after("part.0") is part[1]
    assert graph_of.activation_after("part.2") == Unknown("torch.fx can't trace what becomes of the output of 'part'")


def test_a_layer_outside_of_all_traced_parts_is_unknown():
    found = NetworkGraph(Untraceable(nn.Linear(2, 2))).activation_after("part")
    assert found == Unknown("torch.fx can't trace the code that calls it")


def test_a_layer_that_is_never_called_has_nothing_behind_it():
    net = Functional(F.relu)
    net.unused = nn.Linear(2, 2)
    assert NetworkGraph(net).activation_after("unused") is None


def test_what_was_inserted_behind_a_layer_goes_on_to_what_follows_the_layer():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.GELU())
    insert_after(net, "1", "more", nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
    found = NetworkGraph(net)
    assert found.activation_after("1.more.0") is net[2]


def test_a_network_without_traceable_parts_says_so():
    with pytest.raises(ConfigurationError, match="Untraceable"):
        NetworkGraph(Untraceable(nn.ReLU()))
    assert NetworkGraph(Untraceable(nn.ReLU()), torch.ones(2, 2)).residual_branches() == []


def test_a_block_ends_behind_its_normalization_and_activation():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 2, 3))
    assert NetworkGraph(net).block_end("0") == "2"
    assert NetworkGraph(net).block_end("4") == "4"


def test_a_shared_activation_belongs_to_no_block():
    relu = nn.ReLU()
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), relu, nn.Conv2d(2, 2, 3), relu)
    assert NetworkGraph(net).block_end("0") == "1"


def test_functional_activations_of_densenet_are_reported():
    assert graph("densenet121").functional_activations() == ["relu"]
    assert graph("resnet18").functional_activations() == []


def test_an_activation_inserted_behind_the_layer_itself_is_what_follows():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    insert_after(net, "0", "act", nn.Tanh())
    assert isinstance(NetworkGraph(net).activation_after("0"), nn.Tanh)


def test_an_inserted_activation_is_what_follows():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2), nn.ReLU())
    insert_after(net, "1", "act", nn.Tanh())
    assert isinstance(NetworkGraph(net).activation_after("0"), nn.Tanh)


class Shared(nn.Module):
    def __init__(self, function=None):
        super().__init__()
        self.first, self.norm, self.second, self.act = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.Conv2d(1, 1, 1), nn.ReLU()
        self.function = function or self.act

    def forward(self, x):
        return self.act(self.second(self.function(self.norm(self.first(x)))))


@pytest.mark.parametrize("function", [None, F.relu, torch.tanh])
def test_a_value_is_activated_in_front_of_the_next_layer_where_no_module_is_its_own(function):
    assert NetworkGraph(Shared(function)).activated_at("first") == ("second", True)


@pytest.mark.parametrize(
    ("name", "path", "place"),
    [
        ("resnet18", "conv1", ("relu", False)),
        ("resnet18", "layer2.0.conv1", ("layer2.0.conv2", True)),
        ("resnet18", "layer2.0.conv2", ("layer2.0.bn2", False)),
        ("resnet18", "layer2.0.downsample.0", ("layer2.0.downsample.1", False)),
        ("resnet50", "layer2.0.conv2", ("layer2.0.conv3", True)),
        ("mobilenet_v2", "features.2.conv.1.0", ("features.2.conv.1.2", False)),
        ("vgg11", "features.0", ("features.1", False)),
    ],
)
def test_where_layers_of_torchvision_are_activated(name, path, place):
    assert graph(name).activated_at(path) == place


def test_identities_are_passed_and_held_activations_count():
    with torch.device("meta"):
        net = timm.create_model("resnet18")
    assert NetworkGraph(net).activated_at("layer2.0.conv1") == ("layer2.0.act1", False)


def test_function_calls_are_found():
    assert len(NetworkGraph(Shared(F.relu)).function_calls(F.relu)) == 1
    assert NetworkGraph(Shared()).function_calls(F.relu) == []


def test_convolutions_of_timm_stay_whole_with_what_was_inserted():
    net = timm.create_model("tf_efficientnet_b0")
    name = next(name for name, module in net.named_modules() if type(module).__name__ == "Conv2dSame")
    insert_after(net, name, "blur", nn.Sequential(nn.Identity()))
    assert isinstance(NetworkGraph(net).activation_after(name), nn.SiLU)
