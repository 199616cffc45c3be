from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_cnnopt.architecture import EditNetwork, SqueezeExcite
from lightning_cnnopt.core import ConfigurationError, is_pretrained
from lightning_cnnopt.core.pretrained import is_pretrained_throughout, is_stated
from lightning_cnnopt.initialization import InitializeWeights, Kaiming, MarkPretrained
from tests.contracts import harness
from tests.lightning_tools import assert_same_weights, weights_of


def marked(network):
    return [name for name, module in network.named_modules() if is_pretrained(module)]


def network():
    return nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), nn.Linear(2, 3))


def test_all_of_a_network_is_marked_by_default():
    net = network()
    assert MarkPretrained()(net) == 3
    assert is_pretrained_throughout(net)


def test_parts_are_marked_with_what_is_in_them_but_for_others():
    net = network()
    assert MarkPretrained(modules=["1"])(net) == 1
    assert marked(net) == ["1", "1.0", "1.1"]
    net = network()
    MarkPretrained(but=["1", "2"])(net)
    assert marked(net) == ["", "0"]


def test_it_takes_the_mark_off():
    net = network()
    MarkPretrained()(net)
    MarkPretrained(False, but=["2"])(net)
    assert (marked(net), is_stated(net)) == (["2"], True)


def test_one_layer_is_a_network():
    layer = nn.Linear(2, 2)
    assert MarkPretrained()(layer) == 1
    assert is_pretrained(layer)


def trained_network():
    torch.manual_seed(7)
    return harness.TinyResNet(harness.CLASSES)


def changed_by_fit(model, *callbacks):
    """Return the names of the weights that a fit without learning changes."""
    before = weights_of(model)
    run = harness.trainer(callbacks, max_steps=1)
    run.fit(model, datamodule=harness.make_data(normalize=not hasattr(model, "preprocessing")))
    after = model.state_dict()
    parameters = [name for name, _ in model.named_parameters()]
    return [name for name in parameters if name not in before or not torch.equal(before[name], after[name])]


def still(parameters):
    return torch.optim.SGD(parameters, lr=0.0)


def test_a_ready_made_network_keeps_what_is_marked_and_draws_the_rest():
    mark = MarkPretrained(but=["head"])
    model = harness.make_model(network=trained_network(), initializer=Kaiming(), edits=[mark], optimizer=still)
    assert changed_by_fit(model) == ["network.head.weight", "network.head.bias"]


def test_what_a_later_edit_puts_in_is_drawn():
    mark, add = MarkPretrained(), SqueezeExcite(reduction=4)
    model = harness.make_model(network=trained_network(), initializer=Kaiming(), edits=[mark, add], optimizer=still)
    drawn = changed_by_fit(model)
    assert drawn
    assert {name for name in drawn if "conv" in name or "head" in name or "stem" in name} == set()


def test_a_ready_made_network_is_drawn_where_that_was_said():
    model = harness.make_model(network=trained_network(), initializer=Kaiming(), edits=[MarkPretrained(False)], optimizer=still)
    assert "network.stem.weight" in changed_by_fit(model)


def test_without_it_the_error_names_it():
    model = harness.make_model(network=trained_network(), initializer=Kaiming())
    with pytest.raises(ConfigurationError, match=r"among edits, in YAML too, MarkPretrained and MarkPretrained\(False\)"):
        changed_by_fit(model)


def test_it_marks_the_network_of_a_foreign_module():
    class Still(harness.Foreign):
        def configure_optimizers(self):
            return still(self.parameters())

    callbacks = [EditNetwork(MarkPretrained(but=["head"])), InitializeWeights(Kaiming())]
    assert changed_by_fit(Still(trained_network()), *callbacks) == ["network.head.weight", "network.head.bias"]


def test_a_checkpoint_loads_the_weights_whatever_was_said(tmp_path):
    run, model = harness.fit(MarkPretrained(False))
    run.save_checkpoint(tmp_path / "model.ckpt")
    loaded = type(model).load_from_checkpoint(tmp_path / "model.ckpt")
    assert is_pretrained_throughout(loaded.network)
    assert_same_weights(weights_of(loaded), weights_of(model))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modules": ["hed"]}, r"modules='hed' matches no module of TinyResNet, whose parts are stem, .*'head'"),
        ({"but": ["classifier"]}, r"but='classifier' matches no module of TinyResNet"),
        ({"modules": "head"}, r"modules='head' is one string; expected a list of patterns"),
        ({"modules": []}, r"modules=\[\] names nothing"),
    ],
)
def test_what_names_nothing_is_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        MarkPretrained(**arguments)(trained_network())
