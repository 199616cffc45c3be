import pickle
import warnings
from functools import partial

import pytest
import timm
import torch
import torchvision
from jsonargparse import ArgumentParser
from torch import nn
from torch.nn import functional as F

from lightning_cnnopt.architecture import ConvNet, SqueezeExcite
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.surgery import Edit
from lightning_cnnopt.dropout import DropBlock, Dropout, FittingDropBlock2d, ScheduleDropout, SpatialDropout, dropout_layers
from lightning_cnnopt.learning_rate import Polynomial
from tests.contracts import harness


def on_meta(make):
    with torch.device("meta"):
        return make()


def layers_of(net, cls):
    return {name: module for name, module in net.named_modules() if isinstance(module, cls)}


HEADS = {
    "resnet18": (torchvision.models.resnet18, "fc.dropout"),
    "mobilenet_v2, which drops": (torchvision.models.mobilenet_v2, "classifier.0"),
    "efficientnet_b0, which drops": (torchvision.models.efficientnet_b0, "classifier.0"),
    "squeezenet, whose head is a convolution": (torchvision.models.squeezenet1_1, "classifier.0"),
    "densenet121": (torchvision.models.densenet121, "classifier.dropout"),
    "ConvNet, which drops": (ConvNet, "head.0.dropout"),
    "ConvNet without dropout": (partial(ConvNet, dense=(), dropout=0.0), "classifier.dropout"),
    "TinyResNet, which drops": (partial(harness.TinyResNet, 4), "dropout"),
    "timm resnet18": (partial(timm.create_model, "resnet18"), "fc.dropout"),
    "timm convnext_atto": (partial(timm.create_model, "convnext_atto"), "head.drop"),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_head_drops_once_at_the_rate_and_no_name_changes(name):
    make, place = HEADS[name]
    net = on_meta(make)
    keys, before = list(net.state_dict()), len(layers_of(net, nn.Dropout))
    assert Dropout(0.35)(net) == 1
    found = layers_of(net, nn.Dropout)
    if name == "timm convnext_atto":  # made with rate 0, it has an Identity or a Dropout there, by version
        place = next(path for path, layer in found.items() if layer.p == 0.35)
    assert found[place].p == 0.35
    assert [path for path, layer in found.items() if layer.p == 0.35] == [place]
    assert len(found) == max(before, 1)
    assert list(net.state_dict()) == keys


def test_a_network_of_timm_that_drops_by_a_function_gets_the_new_rate_there():
    net = timm.create_model("resnet18", drop_rate=0.5, num_classes=4)
    assert Dropout(0.2)(net) == 1
    assert net.drop_rate == 0.2
    assert layers_of(net, nn.Dropout) == {}
    assert Dropout(0.3, "existing")(net) == 1
    assert net.drop_rate == 0.3


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(F.dropout(x, 0.5, self.training))


def test_dropout_called_as_a_function_in_front_of_the_head_is_named():
    with pytest.warns(UserWarning, match=r"Functional drops by a function in front of 'fc'.*beside"):
        assert Dropout(0.2)(Functional()) == 1


def test_the_head_gets_what_dropout_leaves():
    net = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    plain = nn.Linear(3, 2)
    plain.load_state_dict(net[1].state_dict())
    Dropout(0.5)(net)
    x = torch.randn(7, 3)
    torch.manual_seed(1)
    found = net(x)
    torch.manual_seed(1)
    assert torch.equal(found, plain(F.dropout(x, 0.5)))
    assert torch.equal(net.eval()(x), plain(x))
    assert torch.equal(pickle.loads(pickle.dumps(net))(x), plain(x))


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(3, 2))

    def forward(self, x):
        return self.head(x) if x.sum() > 0 else self.head(-x)


def test_dropout_in_front_of_the_head_of_a_network_that_cannot_be_traced_is_found():
    net = Untraceable()
    assert Dropout(0.4)(net) == 1
    assert [layer.p for layer in layers_of(net, nn.Dropout).values()] == [0.4]


CONVOLUTIONS = {
    "ConvNet": (ConvNet, 2),
    "resnet18": (torchvision.models.resnet18, 17),
    "resnet50": (torchvision.models.resnet50, 17),
    "mobilenet_v3_small": (torchvision.models.mobilenet_v3_small, 12),
    "timm seresnet18": (partial(timm.create_model, "seresnet18"), 17),
    "timm efficientnet_b0": (partial(timm.create_model, "efficientnet_b0"), 17),
}
ON_MAPS = {
    "SpatialDropout": (SpatialDropout, nn.Dropout2d, "spatial_dropout"),
    "DropBlock": (DropBlock, FittingDropBlock2d, "drop_block"),
}


@pytest.mark.parametrize("edit", ON_MAPS)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_every_convolution_wider_than_a_pixel_drops_behind_its_block(name, edit):
    make, count = CONVOLUTIONS[name]
    net = on_meta(make)
    keys = list(net.state_dict())
    technique, cls, child = ON_MAPS[edit]
    assert technique(0.2)(net) == count
    found = layers_of(net, cls)
    assert len(found) == count
    assert {layer.p for layer in found.values()} == {0.2}
    assert all(path.endswith(f".{child}") for path in found)
    assert not any(".se." in path or "squeeze" in path or "downsample" in path for path in found)
    assert list(net.state_dict()) == keys


@pytest.mark.parametrize("edit", ON_MAPS)
def test_a_second_rate_replaces_the_first_and_a_second_call_is_silent(edit):
    technique, cls, _ = ON_MAPS[edit]
    net = on_meta(torchvision.models.resnet18)
    technique(0.2)(net)
    assert technique(0.3)(net) == 17
    assert [layer.p for layer in layers_of(net, cls).values()] == [0.3] * 17
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert technique(0.3)(net) == 0


def test_dropout_that_follows_a_place_gets_the_rate():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Dropout2d(0.5), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3))
    assert SpatialDropout(0.1)(net) == 2
    assert [(path, layer.p) for path, layer in layers_of(net, nn.Dropout2d).items()] == [("2", 0.1), ("4.spatial_dropout", 0.1)]


@pytest.mark.parametrize("name", ["resnet18", "timm efficientnet_b0"])
@pytest.mark.parametrize("edit", [Dropout(0.5), SpatialDropout(0.5), DropBlock(0.3)], ids=lambda edit: type(edit).__name__)
def test_evaluation_is_untouched_and_training_is_not(name, edit):
    net = CONVOLUTIONS[name][0](num_classes=4).eval()
    x = torch.randn(2, 3, 64, 64)
    expected = net(x)
    edit(net)
    assert torch.equal(net(x), expected)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    assert not torch.equal(net.train()(x), net(x))


def test_patterns_name_the_places():
    net = torchvision.models.resnet18()
    assert DropBlock(0.1, 5, ["layer[34].?.bn1", "layer4.1"])(net) == 5
    places = ("layer3.0.bn1", "layer3.1.bn1", "layer4.0.bn1", "layer4.1", "layer4.1.bn1")
    assert set(layers_of(net, FittingDropBlock2d)) == {f"{path}.drop_block" for path in places}
    assert DropBlock(0.2, 3, ["*.drop_block"])(net) == 5
    assert {(layer.p, layer.block_size) for layer in layers_of(net, FittingDropBlock2d).values()} == {(0.2, 3)}


def test_what_is_there_gets_the_rate_and_nothing_else_changes():
    net = torchvision.models.vgg11(num_classes=2)
    modules = list(net.modules())
    assert Dropout(0.2, "existing")(net) == 2
    assert {layer.p for layer in layers_of(net, nn.Dropout).values()} == {0.2}
    assert list(net.modules()) == modules
    assert DropBlock(0.2, 3, "existing")(nn.Sequential(block := torchvision.ops.DropBlock2d(0.5, 7))) == 1
    assert (block.p, block.block_size) == (0.2, 3)


def test_it_stands_behind_squeeze_and_excitation_and_keeps_it():
    net = torchvision.models.resnet18(num_classes=2)
    SqueezeExcite()(net)
    SpatialDropout(0.3)(net)
    block = net.layer1[0].bn2
    assert [name for name, _ in block.named_children()] == ["squeeze_excite", "spatial_dropout"]
    net(torch.randn(2, 3, 32, 32)).sum().backward()


def test_schedules_drive_the_rates():
    net = harness.TinyResNet(4)
    for edit in (Dropout(0.4), DropBlock(0.2, 3)):
        edit(net)
    rates = []

    class Look(harness.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            rates.append({round(layer.p, 6) for layer in layers_of(module, FittingDropBlock2d).values()})

    harness.fit(ScheduleDropout(Polynomial(), 0.0, 0.2, ["*DropBlock2d"]), module=harness.Foreign(net), extra=[Look()])
    assert rates == [{0.0}, {0.05}, {0.1}, {0.15}]
    assert {layer.p for layer in layers_of(net, FittingDropBlock2d).values()} == {0.2}
    assert len(dropout_layers(net)) == 6


@pytest.mark.parametrize("edit", [Dropout(0.3), SpatialDropout(0.3), DropBlock(0.3, 3)], ids=lambda edit: type(edit).__name__)
def test_networks_without_such_a_place_are_warned_of(edit):
    with pytest.warns(UserWarning, match=r"changed nothing.*places for"):
        assert edit(nn.Sequential(nn.ReLU(), nn.Flatten())) == 0
    headless = timm.create_model("resnet18", num_classes=0)
    if isinstance(edit, Dropout):
        with pytest.warns(UserWarning, match="changed nothing"):
            edit(headless)


def test_patterns_without_a_match_name_the_nearest():
    with pytest.raises(ConfigurationError, match=r"where='layer5' matches no module of ResNet.*'layer4'"):
        DropBlock(where=["layer5"])(torchvision.models.resnet18())


@pytest.mark.parametrize(("where", "expected"), [("existing", "existing"), (["head*"], ["head*"]), ("head", "head")])
def test_yaml_names_a_rule_or_patterns(where, expected):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--edit", type=Edit)
    made = parser.instantiate(parser.parse_object({"edit": {"class_path": "Dropout", "init_args": {"where": where}}})).edit
    assert made.where == expected


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Dropout(1.0), "p=1.0"),
        (lambda: Dropout(-0.1), "p=-0.1"),
        (lambda: Dropout(where="haed"), "'haed'.*'head'"),
        (lambda: Dropout(where=[]), r"where=\[\]"),
        (lambda: Dropout(where=[1]), r"where=\[1\]"),
        (lambda: SpatialDropout(1.5), "p=1.5"),
        (lambda: SpatialDropout(where="head"), "where='head'.*'convolutions', 'existing'"),
        (lambda: DropBlock(2), "p=2"),
        (lambda: DropBlock(block_size=4), "block_size=4 is even"),
        (lambda: DropBlock(block_size=0), "block_size=0"),
        (lambda: DropBlock(where="head"), "where='head'"),
    ],
)
def test_wrong_arguments_are_refused(make, said):
    with pytest.raises(ConfigurationError, match=said):
        make()
