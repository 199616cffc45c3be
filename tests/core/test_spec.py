import pickle
import sys
from functools import partial

import pytest
import timm
import torch
import torchvision
from jsonargparse import ArgumentParser
from torch import nn

from lightning_cnnopt.activation import SwapActivation
from lightning_cnnopt.architecture import ConvNet, SqueezeExcite
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.spec import (
    Configurable,
    build,
    call_with_known,
    factory_of,
    has_spec,
    import_path,
    is_spec,
    to_spec,
)
from lightning_cnnopt.core.surgery import Edit
from lightning_cnnopt.dropout import StochasticDepth
from lightning_cnnopt.initialization import LSUV, Initializer, Kaiming, XavierNormal, XavierUniform
from lightning_cnnopt.normalization import GhostBatchNorm2d, SwapNormalization
from lightning_cnnopt.regularization import L1, L2, MaxNorm


class Outer(Configurable):
    def __init__(self, inner: Configurable, others: list[Configurable], layer: type = nn.ReLU) -> None:
        self.inner = inner
        self.others = list(others)
        self.layer = layer


TECHNIQUES = [
    Kaiming("uniform", "fan_out"),
    XavierUniform(0.5),
    XavierNormal(3**0.5),
    LSUV(0.1, 3),
    L1(1e-4, ["head.*"]),
    L2(0.1),
    MaxNorm(2.0),
    StochasticDepth(0.3),
    SqueezeExcite(8, 4, nn.SiLU),
    SwapActivation(nn.GELU, ["ReLU"]),
    SwapActivation(partial(nn.LeakyReLU, negative_slope=0.2)),
    SwapNormalization(partial(GhostBatchNorm2d, ghost_size=4)),
    Outer(Kaiming(), [L1(0.5), Outer(L2(), [])], nn.Tanh),
]


def holds_builtins_only(value):
    if isinstance(value, dict):
        return all(isinstance(key, str) and holds_builtins_only(item) for key, item in value.items())
    if isinstance(value, list):
        return all(holds_builtins_only(item) for item in value)
    return value is None or type(value) in (bool, int, float, str)


@pytest.mark.parametrize("technique", TECHNIQUES, ids=repr)
def test_a_technique_comes_back_from_its_spec(technique):
    spec = to_spec(technique)
    assert is_spec(spec)
    assert holds_builtins_only(spec)
    rebuilt = build(spec, Configurable)
    assert type(rebuilt) is type(technique)
    assert rebuilt == technique
    assert to_spec(rebuilt) == spec


@pytest.mark.parametrize("technique", TECHNIQUES, ids=repr)
def test_repr_rebuilds_a_technique(technique):
    assert eval(repr(technique), globals()) == technique


@pytest.mark.parametrize("technique", TECHNIQUES, ids=repr)
def test_a_technique_pickles(technique):
    assert pickle.loads(pickle.dumps(technique)) == technique


def test_nested_techniques_come_back_as_objects():
    rebuilt = build(to_spec(Outer(Kaiming(), [L1(0.5)])), Outer)
    assert rebuilt.inner == Kaiming()
    assert rebuilt.others == [L1(0.5)]


@pytest.mark.parametrize("other", [L1(0.2), L2(0.1), L1(0.1, ["*.weight"]), 0.1])
def test_techniques_differ_where_class_or_arguments_do(other):
    assert L1(0.1) != other


def test_equal_techniques_have_one_hash():
    assert len({L1(0.1), L1(weight=0.1), L2(0.1)}) == 2


@pytest.mark.parametrize("value", [None, True, 3, 0.1, "text", [1, "a"], {"a": [1.0, None]}])
def test_builtins_are_their_own_spec(value):
    assert to_spec(value) == value


@pytest.mark.parametrize("cls", [nn.GELU, GhostBatchNorm2d, torch.optim.SGD, ConvNet, torchvision.models.ResNet])
def test_a_class_comes_back_from_its_spec(cls):
    assert factory_of(to_spec(cls)) is cls


@pytest.mark.parametrize("builder", [torchvision.models.resnet18, torchvision.models.get_model, timm.create_model])
def test_builders_of_networks_come_back_from_their_spec(builder):
    assert factory_of(to_spec(builder)) is builder


def test_a_timm_model_function_is_found_by_name():
    assert factory_of("timm.models.resnet18") is timm.models.resnet18


def test_a_partial_comes_back_with_its_arguments():
    rebuilt = factory_of(to_spec(partial(nn.LeakyReLU, negative_slope=0.3)), nn.Module)
    assert rebuilt.func is nn.LeakyReLU
    assert rebuilt.keywords == {"negative_slope": 0.3}


def test_a_layer_class_inside_a_partial_stays_a_factory():
    rebuilt = factory_of(to_spec(partial(ConvNet, activation=nn.Tanh, widths=[4])))
    net = rebuilt()
    assert sum(isinstance(module, nn.Tanh) for module in net.modules()) == 3


def test_a_partial_of_a_partial_keeps_both_arguments():
    spec = to_spec(partial(partial(ConvNet, depth=1), widths=[4]))
    assert spec["init_args"] == {"depth": 1, "widths": [4]}


def test_what_jsonargparse_hands_over_has_the_spec_of_its_class():
    from collections.abc import Callable, Iterable

    def train(optimizer: Callable[[Iterable], torch.optim.Optimizer]) -> None: ...

    parser = ArgumentParser()
    parser.add_function_arguments(train)
    given = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.25}}
    optimizer = parser.instantiate(parser.parse_object({"optimizer": given})).optimizer
    spec = to_spec(optimizer)
    assert spec["class_path"] == import_path(torch.optim.SGD)
    made = factory_of(spec, torch.optim.Optimizer)([nn.Parameter(torch.zeros(1))])
    assert isinstance(made, torch.optim.SGD)
    assert made.defaults["lr"] == 0.25


@pytest.mark.parametrize("value", [nn.ReLU(), lambda: nn.ReLU(), partial(nn.LeakyReLU, 0.1), torch.zeros(1), {1, 2}])
def test_what_has_no_spec_says_so(value):
    assert not has_spec(value)
    with pytest.raises(ConfigurationError, match="can't be stored"):
        to_spec(value)


def test_a_class_defined_inside_a_function_has_no_spec():
    class Local(nn.Module):
        pass

    with pytest.raises(ConfigurationError, match="Define it in a module"):
        to_spec(Local)


UNTRUSTED = [
    "os.system",
    "subprocess.Popen",
    "builtins.eval",
    "builtins.dict",
    "torch.hub.load",
    "torch.load",
    "torch.hub.load_state_dict_from_url",
    "torchvision.models._api.load_state_dict_from_url",
    "torchvision.models.list_models",
    "torchvision.datasets.FakeData",
    "timm.models.load_checkpoint",
    "functools.partial",
    "lightning_cnnopt.core.spec.build",
    "lightning.pytorch.Trainer",
]


@pytest.mark.parametrize("path", UNTRUSTED)
@pytest.mark.parametrize("base", [object, nn.Module, Configurable])
def test_code_that_is_no_part_of_a_network_is_refused(path, base):
    import subprocess  # noqa: F401

    with pytest.raises(ConfigurationError):
        build({"class_path": path, "init_args": {}}, base)


@pytest.mark.parametrize("path", UNTRUSTED)
def test_code_is_refused_inside_other_arguments_too(path):
    inner = {"class_path": path, "init_args": {"args": "true"}}
    with pytest.raises(ConfigurationError):
        build({"class_path": import_path(SqueezeExcite), "init_args": {"activation": inner}}, Edit)


def test_a_package_that_nobody_imported_stays_so():
    assert "antigravity" not in sys.modules
    with pytest.raises(ConfigurationError):
        factory_of("antigravity.fly")
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    ("path", "base", "nearest"),
    [
        ("torch.nn.GELUU", nn.Module, "GELU"),
        ("lightning_cnnopt.initialization.Kaimming", Initializer, "Kaiming"),
        ("lightning_cnnopt.architecture.ConvNett", nn.Module, "ConvNet"),
        ("torch.optim.AdamWW", torch.optim.Optimizer, "AdamW"),
    ],
)
def test_a_misspelt_class_names_the_right_one(path, base, nearest):
    with pytest.raises(ConfigurationError, match=rf"Did you mean .*'{nearest}'"):
        factory_of(path, base)


def test_a_class_of_another_kind_is_refused_by_name_and_by_object():
    with pytest.raises(ConfigurationError, match="expected a subclass of Edit"):
        build({"class_path": import_path(L1)}, Edit)
    with pytest.raises(ConfigurationError, match="expected a Edit"):
        build(L1, Edit)


def test_arguments_that_a_constructor_refuses_are_a_configuration_error():
    with pytest.raises(ConfigurationError, match="wieght"):
        build({"class_path": import_path(L1), "init_args": {"wieght": 1.0}}, Configurable)


def test_an_object_that_exists_is_returned_as_it_is():
    technique = L1(0.1)
    assert build(technique, L1) is technique


@pytest.mark.parametrize("value", [3, [nn.ReLU], {"class": "torch.nn.ReLU"}])
def test_what_names_nothing_is_refused(value):
    with pytest.raises(ConfigurationError, match="names nothing to build"):
        factory_of(value, nn.Module)


def test_offered_arguments_go_by_name_and_given_ones_stay():
    def network(num_classes, image_size=None):
        return num_classes, image_size

    assert call_with_known(network, num_classes=3, in_channels=1, image_size=(8, 8)) == (3, (8, 8))
    assert call_with_known(partial(network, num_classes=7), num_classes=3, in_channels=1) == (7, None)


@pytest.mark.parametrize("builder", [torchvision.models.resnet18, partial(torchvision.models.resnet18, weights=None)])
def test_torchvision_builders_learn_the_number_of_classes(builder):
    assert call_with_known(builder, num_classes=3, in_channels=3, image_size=(8, 8)).fc.out_features == 3


@pytest.mark.parametrize("target", [nn.GELU, nn.BatchNorm2d, GhostBatchNorm2d, torchvision.ops.StochasticDepth, ConvNet])
def test_an_import_path_leads_back(target):
    module, _, name = import_path(target).rpartition(".")
    assert getattr(sys.modules[module], name) is target
