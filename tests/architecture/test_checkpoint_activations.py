import copy
import pickle
import warnings

import pytest
import timm
import torch
import torchvision
from torch import nn

from lightning_cnnopt.architecture import CheckpointActivations, ConvNet, SmallResNet, SqueezeExcite
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.graph import NetworkGraph
from lightning_cnnopt.core.randomness import Stream
from lightning_cnnopt.dropout import StochasticDepth
from lightning_cnnopt.normalization import GhostBatchNorm2d, SwapNormalization


def with_ghosts():
    net = SmallResNet(4, 3, depth=8)
    SwapNormalization(lambda channels: GhostBatchNorm2d(channels, ghost_size=2))(net)
    return net


def with_stochastic_depth():
    net = SmallResNet(4, 3, depth=14)
    StochasticDepth(0.5)(net)
    return net


NETWORKS = {
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=4), 8),
    "mobilenet_v2 with dropout": (lambda: torchvision.models.mobilenet_v2(num_classes=4), 10),
    "densenet121": (lambda: torchvision.models.densenet121(num_classes=4, drop_rate=0.3), 61),
    "timm resnet18": (lambda: timm.create_model("resnet18", num_classes=4, drop_rate=0.3, drop_path_rate=0.5), 8),
    "ConvNet": (lambda: ConvNet(4, 3, (32, 32), widths=(4, 8), order="conv-norm-act"), 4),
    "SmallResNet": (lambda: SmallResNet(4, 3, depth=8), 3),
    "ghosts": (with_ghosts, 3),
    "stochastic depth": (with_stochastic_depth, 6),
}


def step(net, precision=None):
    """Return gradients, state and the next random number after one step."""
    torch.manual_seed(5)
    net.train()
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = net(x).float().square().sum()
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
    return gradients, {name: value.clone() for name, value in net.state_dict().items()}, torch.rand(2)


@pytest.mark.parametrize("precision", [None, "bf16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_statistics_and_draws_are_the_same_to_the_bit(name, precision):
    make, count = NETWORKS[name]
    plain = make()
    net = copy.deepcopy(plain)
    assert CheckpointActivations()(net) == count
    (gradients, state, draws), (expected_gradients, expected_state, expected_draws) = (
        step(net, precision),
        step(plain, precision),
    )
    for key, value in expected_gradients.items():
        assert torch.equal(gradients[key], value), key
    for key, value in expected_state.items():
        assert torch.equal(state[key], value), key
    assert torch.equal(draws, expected_draws)


def saved_bytes(net):
    """Bytes kept for backpropagation besides the parameters, each memory counted once."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    net.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = net(torch.randn(8, 3, 32, 32)).sum()
    del loss
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize(("name", "share"), [("resnet18", 0.6), ("SmallResNet", 0.5), ("ConvNet", 0.7)])
def test_less_is_kept(name, share):
    net = NETWORKS[name][0]()
    before = saved_bytes(net)
    CheckpointActivations()(net)
    assert saved_bytes(net) < share * before


def test_names_types_and_the_traced_structure_stay():
    net = torchvision.models.resnet18()
    before = str(net), list(net.state_dict()), NetworkGraph(net).residual_branches()
    CheckpointActivations()(net)
    assert (str(net), list(net.state_dict()), NetworkGraph(net).residual_branches()) == before
    assert SqueezeExcite()(net) == 8


def test_edits_before_and_after_it_are_computed_twice_rightly():
    plain = SmallResNet(4, 3, depth=8)
    net = copy.deepcopy(plain)
    CheckpointActivations()(net)
    for network in (plain, net):
        torch.manual_seed(3)
        SqueezeExcite(reduction=4)(network)
    for first, second in zip(step(net)[:2], step(plain)[:2], strict=True):
        assert all(torch.equal(first[key], second[key]) for key in second)


class DrawsFromItsOwnStream(nn.Module):
    """Noise from a stream of ours and from a generator, and a buffer that is read and written."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3, momentum=None)
        self.stream, self.generator = Stream("noise", seed=1), torch.Generator().manual_seed(2)
        self.register_buffer("factor", torch.tensor(1.0))

    def forward(self, x):
        noise = [torch.rand(x.shape, generator=generator) for generator in (self.stream.generator, self.generator)]
        factor = self.factor.clone()
        self.factor.mul_(1.5)
        return x + self.norm(self.conv(x * noise[0]) * noise[1]) * factor


def test_streams_and_buffers_of_layers_are_as_they_were():
    results = []
    for edits in ([], [CheckpointActivations(["0", "1"])]):
        torch.manual_seed(0)
        net = nn.Sequential(DrawsFromItsOwnStream(), DrawsFromItsOwnStream(), nn.Flatten())
        for edit in edits:
            assert edit(net) == 2
        for _ in range(2):  # the second step starts from where the first one left streams and buffers
            gradients, state, _ = step(net)
        draws = [torch.rand(2, generator=g) for part in net[:2] for g in (part.stream.generator, part.generator)]
        results.append((gradients, state, draws))
    (expected, expected_state, expected_draws), (gradients, state, draws) = results
    assert all(torch.equal(gradients[name], value) for name, value in expected.items())
    assert all(torch.equal(state[name], value) for name, value in expected_state.items())
    assert all(torch.equal(a, b) for a, b in zip(draws, expected_draws, strict=True))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["deepcopy", "pickle"])
def test_copies_compute_with_their_own_weights(copied):
    net = SmallResNet(4, 3, depth=8)
    CheckpointActivations()(net)
    other, x = copied(net), torch.randn(2, 3, 16, 16)
    expected = net(x)
    assert torch.equal(other(x), expected)
    with torch.no_grad():
        for parameter in net.stages.parameters():
            parameter.zero_()
    assert not torch.equal(net(x), expected)
    assert torch.equal(other.train()(x), expected)


def test_evaluation_without_gradients_is_the_plain_one():
    net = SmallResNet(4, 3, depth=8).eval()
    x = torch.randn(2, 3, 16, 16)
    expected = net(x)
    CheckpointActivations()(net)
    assert torch.equal(net(x), expected)
    with torch.no_grad():
        assert torch.equal(net(x), expected)


def test_it_compiles_and_moves_statistics_once():
    plain = SmallResNet(4, 3, depth=8)
    net = copy.deepcopy(plain)
    CheckpointActivations()(net)
    net.compile(backend="aot_eager")
    gradients, state, _ = step(net)
    expected, expected_state, _ = step(plain)
    for name, value in expected.items():
        torch.testing.assert_close(gradients[name], value, rtol=1e-4, atol=1e-5, msg=name)
    for name, value in expected_state.items():
        torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_blocks_can_be_chosen_and_the_outermost_count():
    net = torchvision.models.resnet18()
    assert CheckpointActivations(["layer1", "layer1.*", "layer2.0"])(net) == 2
    assert [name for name, module in net.named_modules() if "forward" in vars(module)] == ["layer1", "layer2.0"]
    assert CheckpointActivations(["layer1.0", "layer3"])(net) == 1  # layer1.0 is in a block that is computed again anyway


@pytest.mark.parametrize("make", [torchvision.models.vgg11, torchvision.models.alexnet])
def test_one_block_that_is_the_whole_network_would_save_nothing(make):
    with torch.device("meta"):
        net = make()
    with pytest.warns(UserWarning, match="changed nothing"):
        assert CheckpointActivations()(net) == 0


def test_a_second_call_changes_nothing():
    net = SmallResNet(depth=8)
    CheckpointActivations()(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert CheckpointActivations()(net) == 0
    with pytest.warns(UserWarning, match="changed nothing"):
        assert CheckpointActivations(["stages.0.0"])(net) == 0


@pytest.mark.parametrize(
    ("modules", "message"),
    [(["layr1"], "modules='layr1' matches no module of ResNet.*'layer1'"), ([], "names nothing"), ("layer1", "one string")],
)
def test_wrong_arguments_are_named(modules, message):
    with pytest.raises(ConfigurationError, match=message):
        CheckpointActivations(modules)(torchvision.models.resnet18())
