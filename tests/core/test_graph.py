import functools

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from lightning_cnnopt.architecture import SqueezeExcite
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.graph import Branch, NetworkGraph, activations_after, gain_of, is_activation
from lightning_cnnopt.core.surgery import insert_after


class Untraceable(nn.Module):
    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return self.part(x) if x.sum() > 0 else x


class Functional(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.function = function

    def forward(self, x):
        return self.second(self.function(self.first(x)))


class GainStated(nn.Module):
    gain = 1.7

    def forward(self, x):
        return x.relu() ** 2


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


def test_the_order_of_computation_counts_and_not_that_of_registration():
    class Reversed(nn.Module):
        def __init__(self):
            super().__init__()
            self.tanh, self.layer, self.relu = nn.Tanh(), nn.Linear(2, 2), nn.ReLU()

        def forward(self, x):
            return self.tanh(self.layer(self.relu(x)))

    net = Reversed()
    assert NetworkGraph(net).activation_after("layer") is net.tanh


@pytest.mark.parametrize(
    ("function", "cls"),
    [
        (F.relu, nn.ReLU),
        (torch.relu, nn.ReLU),
        (lambda x: x.relu(), nn.ReLU),
        (F.gelu, nn.GELU),
        (F.silu, nn.SiLU),
        (F.mish, nn.Mish),
        (torch.tanh, nn.Tanh),
        (lambda x: x.sigmoid(), nn.Sigmoid),
        (F.hardswish, nn.Hardswish),
        (F.relu6, nn.ReLU6),
    ],
)
def test_activations_called_as_functions_are_seen(function, cls):
    graph_of = NetworkGraph(Functional(function))
    assert type(graph_of.activation_after("first")) is cls
    assert graph_of.activation_after("second") is None
    assert len(graph_of.functional_activations()) == 1


def test_the_slope_of_a_functional_leaky_relu_is_read():
    found = NetworkGraph(Functional(lambda x: F.leaky_relu(x, 0.3))).activation_after("first")
    assert found.negative_slope == 0.3


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


def test_the_traceable_parts_of_an_untraceable_network_are_followed():
    part = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    assert NetworkGraph(Untraceable(part)).activation_after("part.0") is part[1]


def test_a_network_without_traceable_parts_says_so():
    with pytest.raises(ConfigurationError, match="Untraceable"):
        NetworkGraph(Untraceable(nn.ReLU()))


def test_a_block_ends_behind_its_normalization_and_activation():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 2, 3))
    assert NetworkGraph(net).block_end("0") == "2"
    assert NetworkGraph(net).block_end("4") == "4"


def test_a_shared_activation_belongs_to_no_block():
    relu = nn.ReLU()
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), relu, nn.Conv2d(2, 2, 3), relu)
    assert NetworkGraph(net).block_end("0") == "1"


@pytest.mark.parametrize("name", ["ReLU", "GELU", "SiLU", "Mish", "Tanh", "Sigmoid", "PReLU", "Hardswish", "ReLU6"])
def test_activations_of_torch_are_recognized(name):
    assert is_activation(getattr(nn, name)())


@pytest.mark.parametrize("module", [nn.Softmax(1), nn.Dropout(), nn.Identity(), nn.BatchNorm2d(2), nn.Linear(2, 2)])
def test_other_layers_are_no_activations(module):
    assert not is_activation(module)


def test_a_layer_that_states_its_gain_is_an_activation_but_no_layer_with_weights():
    assert is_activation(GainStated())
    assert not is_activation(timm.layers.ScaledStdConv2d(2, 2, 3))


@pytest.mark.parametrize("name", ["Swish", "Mish", "Sigmoid", "Tanh", "HardSwish", "PReLU", "GELU"])
def test_timms_own_activations_are_recognized(name):
    assert is_activation(getattr(timm.layers.activations, name)())


@pytest.mark.parametrize(
    ("activation", "name"), [(nn.ReLU(), "relu"), (nn.Tanh(), "tanh"), (nn.Sigmoid(), "sigmoid"), (nn.SELU(), "selu")]
)
def test_the_gain_is_torchs_where_it_has_one(activation, name):
    assert gain_of(activation) == nn.init.calculate_gain(name)


@pytest.mark.parametrize("slope", [0.0, 0.01, 0.3])
def test_the_gain_of_leaky_relu_follows_its_slope(slope):
    assert gain_of(nn.LeakyReLU(slope)) == pytest.approx((2 / (1 + slope**2)) ** 0.5)


def test_nothing_behind_a_layer_has_gain_one():
    assert gain_of(None) == gain_of(nn.Identity()) == 1.0


def test_a_stated_gain_is_believed():
    assert gain_of(GainStated()) == 1.7


ACTIVATIONS = [nn.GELU(), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.ELU(), nn.ReLU6(), nn.PReLU(init=0.25)]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
@torch.no_grad()
def test_the_gain_keeps_the_second_moment_of_a_normal_signal(activation):
    z = torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    squares = activation(z).double().square()
    error = 5 * float(squares.std()) / len(z) ** 0.5
    assert float(squares.mean()) == pytest.approx(gain_of(activation) ** -2, abs=error)


def test_a_slope_per_channel_has_no_single_gain():
    with pytest.raises(ConfigurationError, match="gain"):
        gain_of(nn.PReLU(4))


def test_functional_activations_of_densenet_are_reported():
    assert graph("densenet121").functional_activations() == ["relu"]
    assert graph("resnet18").functional_activations() == []


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
