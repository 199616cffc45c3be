import pickle
import warnings

import pytest
import torch
from torch import nn

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.surgery import (
    Edit,
    adopt,
    applied_edits,
    insert_after,
    insert_before,
    inserted,
    inserted_before,
    replace_modules,
)


class Halve(nn.Module):
    def forward(self, x):
        return x / 2


class ReplaceReLU(Edit):
    looks_for = "rectifiers"

    def __init__(self, slope: float = 0.1) -> None:
        self.slope = slope

    def apply(self, network):
        return replace_modules(network, is_relu, lambda _: nn.LeakyReLU(self.slope))


def is_relu(module):
    return isinstance(module, nn.ReLU)


def test_every_wanted_module_is_replaced_under_its_name():
    net = nn.ModuleDict({"a": nn.ReLU(), "b": nn.ModuleDict({"c": nn.ReLU(), "d": nn.Tanh()})})
    names = [name for name, _ in net.named_modules()]
    assert replace_modules(net, is_relu, lambda _: nn.GELU()) == 2
    assert [name for name, _ in net.named_modules()] == names
    assert isinstance(net["a"], nn.GELU)
    assert isinstance(net["b"]["c"], nn.GELU)
    assert isinstance(net["b"]["d"], nn.Tanh)


def test_a_shared_module_is_replaced_once_by_one_module():
    relu = nn.ReLU()
    net = nn.Sequential(relu, nn.Sequential(relu), relu)
    assert replace_modules(net, is_relu, lambda _: nn.GELU()) == 1
    assert isinstance(net[0], nn.GELU)
    assert net[0] is net[1][0] is net[2]


def test_what_was_made_is_not_searched_again():
    net = nn.Sequential(nn.ReLU())
    assert replace_modules(net, is_relu, lambda old: nn.Sequential(old, nn.ReLU())) == 1
    assert isinstance(net[0][0], nn.ReLU)


def test_empty_places_and_the_root_are_left_alone():
    net = nn.Sequential(nn.ReLU())
    net.register_module("empty", None)
    assert replace_modules(net, lambda _: True, lambda _: nn.GELU()) == 1
    assert net.empty is None
    assert replace_modules(nn.ReLU(), is_relu, lambda _: nn.GELU()) == 0


def test_a_network_that_holds_itself_is_searched_once():
    net = nn.Sequential(nn.Sequential(nn.ReLU()))
    net[0].add_module("around", net)
    assert replace_modules(net, is_relu, lambda _: nn.GELU()) == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_the_new_module_takes_over_dtype_and_mode(dtype, training):
    net = nn.Sequential(nn.BatchNorm2d(4)).to(dtype).train(training)
    replace_modules(net, lambda m: isinstance(m, nn.BatchNorm2d), lambda _: nn.GroupNorm(2, 4))
    assert net[0].weight.dtype == dtype
    assert net[0].training is training


def test_the_new_module_takes_over_the_device():
    old, new = nn.Linear(2, 2, device="meta"), nn.Linear(2, 2)
    adopt(old, new)
    assert new.weight.device.type == "meta"


def test_the_dtype_is_that_of_a_buffer_where_there_is_no_parameter():
    new = nn.Linear(2, 2)
    adopt(nn.BatchNorm2d(2, affine=False).double(), new)
    assert new.weight.dtype == torch.float64


@pytest.mark.parametrize("module", [nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3)), nn.Identity()])
def test_an_inserted_layer_processes_the_output(module):
    net = nn.Sequential(module, nn.Linear(3, 2))
    x = torch.randn(4, 3)
    expected = net[1](module(x) / 2)
    keys = list(net.state_dict())
    insert_after(net, "0", "halve", Halve())
    assert torch.equal(net(x), expected)
    assert list(net.state_dict()) == keys


def test_an_inserted_layer_survives_pickling_and_follows_the_mode():
    net = nn.Sequential(nn.Linear(3, 3))
    insert_after(net, "0", "drop", nn.Dropout(0.5))
    copy = pickle.loads(pickle.dumps(net)).eval()
    x = torch.randn(4, 3)
    assert torch.equal(copy(x), net.eval()(x))
    assert isinstance(copy[0].drop, nn.Dropout)
    assert copy[0].drop.training is False
    assert inserted(copy[0]) == ["drop"]


def test_a_name_that_is_taken_is_refused():
    net = nn.Sequential(nn.Linear(3, 3))
    insert_after(net, "0", "halve", Halve())
    with pytest.raises(ConfigurationError, match="'halve'"):
        insert_after(net, "0", "halve", Halve())


def test_an_edit_is_applied_once_and_then_silent():
    net = nn.Sequential(nn.ReLU(), nn.ReLU())
    assert ReplaceReLU()(net) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ReplaceReLU()(net) == 0
    assert applied_edits(net) == [ReplaceReLU()]


def test_an_edit_that_changes_nothing_warns_once_of_what_it_looked_for():
    net = nn.Sequential(nn.Tanh())
    with pytest.warns(UserWarning, match=r"ReplaceReLU\(slope=0.1\) changed nothing.*rectifiers"):
        assert ReplaceReLU()(net) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ReplaceReLU()(net)


def test_edits_are_remembered_in_their_order_and_do_not_reach_other_networks():
    net, other = nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU())
    ReplaceReLU(0.1)(net)
    with pytest.warns(UserWarning, match="changed nothing"):
        ReplaceReLU(0.2)(net)
    assert applied_edits(net) == [ReplaceReLU(0.1), ReplaceReLU(0.2)]
    assert applied_edits(other) == []


@pytest.mark.parametrize("swap", ["normalization", "activation"])
def test_what_was_inserted_behind_a_layer_stays_when_that_layer_is_swapped(swap):
    from lightning_cnnopt.activation import SwapActivation
    from lightning_cnnopt.architecture import ConvNet, SqueezeExcite
    from lightning_cnnopt.normalization import SwapNormalization

    order = "conv-act-norm" if swap == "normalization" else "conv-norm-act"
    net = ConvNet(order=order)
    assert SqueezeExcite(reduction=4)(net) == 2
    before = {name for name, _ in net.named_parameters() if "squeeze_excite" in name}
    edit = SwapNormalization(lambda channels: nn.GroupNorm(8, channels)) if swap == "normalization" else SwapActivation(nn.GELU)
    assert edit(net) >= 2
    assert {name for name, _ in net.named_parameters() if "squeeze_excite" in name} == before
    net(torch.rand(4, 1, 28, 28)).square().sum().backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for n, p in net.named_parameters() if n in before and "weight" in n
    )


def test_a_layer_in_front_changes_the_input_alone():
    net, x = nn.Sequential(nn.Linear(3, 3), nn.Tanh()), torch.randn(4, 3)
    expected = torch.tanh(net[0](x / 2))
    keys = list(net.state_dict())
    insert_before(net, "0", "halve", Halve())
    assert torch.equal(net(x), expected)
    assert list(net.state_dict()) == keys
    assert inserted_before(net[0]) == ["halve"]
    assert inserted(net[0]) == []
    assert torch.equal(pickle.loads(pickle.dumps(net))(x), expected)


def test_a_sequential_takes_no_layer_in_front():
    net = nn.Sequential(nn.Sequential(nn.Tanh()))
    with pytest.raises(ConfigurationError, match="Sequential"):
        insert_before(net, "0", "halve", Halve())


def test_what_was_inserted_in_front_of_a_layer_stays_when_that_layer_is_swapped():
    net, x = nn.Sequential(nn.ReLU()), torch.tensor([-2.0, 2.0])
    insert_before(net, "0", "halve", Halve())
    replace_modules(net, is_relu, lambda _: nn.LeakyReLU(0.5))
    assert net(x).tolist() == [-0.5, 1.0]
