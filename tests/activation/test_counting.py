import csv
import warnings
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F

from lightning_cnnopt.activation import ReLUSquared, ReLUStar, SwapActivation, WatchActivations, count_activations
from lightning_cnnopt.activation.functional import is_rectifier, slope_of
from lightning_cnnopt.architecture import ConvNet
from lightning_cnnopt.core.errors import ConfigurationError
from tests.contracts import harness

SATURATING = [
    nn.Sigmoid(),
    nn.Tanh(),
    nn.Hardsigmoid(),
    nn.Hardtanh(),
    nn.Hardtanh(-3.0, 2.0),
    nn.Softsign(),
    timm.layers.activations.Sigmoid(),
    timm.layers.activations.Tanh(),
]


@pytest.mark.parametrize("activation", SATURATING, ids=repr)
def test_the_slope_is_the_derivative(activation):
    x = torch.linspace(-5.05, 5.05, 200, dtype=torch.float64, requires_grad=True)
    y = activation(x)
    y.sum().backward()
    torch.testing.assert_close(slope_of(activation)(y.detach()).double(), x.grad, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.GELU(), nn.Linear(2, 2), nn.BatchNorm2d(2)])
def test_what_does_not_saturate_has_no_slope(activation):
    assert slope_of(activation) is None


@pytest.mark.parametrize("activation", [nn.LeakyReLU(), nn.Sigmoid(), nn.ELU(), nn.Linear(2, 2)])
def test_what_passes_some_gradient_everywhere_is_no_rectifier(activation):
    assert not is_rectifier(activation)


@pytest.mark.parametrize("activation", SATURATING[:6], ids=repr)
@pytest.mark.parametrize("threshold", [0.05, 0.2])
def test_saturated_outputs_are_those_of_a_slope_below_the_threshold(activation, threshold):
    net = nn.Sequential(nn.Flatten(), activation)
    batches = [3 * torch.randn(size, 2, 3, 3) for size in (5, 8)]
    [count] = count_activations(net, batches, threshold)
    x = torch.cat([batch.flatten() for batch in batches]).requires_grad_()
    activation(x).sum().backward()
    assert (count.layer, count.values) == ("1", 13 * 18)
    assert count.saturated == int((x.grad < threshold).sum())
    assert 0 < count.saturated_share == count.saturated / (13 * 18) <= 1
    assert count.units == 0


RECTIFIERS = [nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(inplace=True), ReLUSquared(), ReLUStar(), ReLUStar(bias=0.5)]


@pytest.mark.parametrize("activation", RECTIFIERS, ids=repr)
@pytest.mark.parametrize("dense", [False, True])
def test_a_unit_is_dead_if_no_gradient_ever_passes_it(activation, dense):
    shape = (6, 7) if dense else (6, 7, 3, 3)
    batches = [torch.randn(shape) - 1.5 for _ in range(2)]
    for batch in batches:
        batch[:, [1, 4]] -= 100
        batch[:, 5] = 0
    batches[1][2, 1].fill_(1.0)  # alive for one sample of the second batch
    expected = torch.zeros(7)
    for batch in batches:
        x = batch.clone().requires_grad_()
        activation(x + 0).sum().backward()
        expected += x.grad.abs().transpose(0, 1).flatten(1).sum(1)
    [count] = count_activations(nn.Sequential(activation), [batch.clone() for batch in batches])
    assert (count.units, count.dead) == (7, int((expected == 0).sum()))
    assert count.dead >= 2
    assert count.values == 0


def test_the_calls_of_a_shared_layer_are_counted_apart():
    net = torchvision.models.resnet18(num_classes=2).eval()
    nn.init.constant_(net.layer1[0].bn1.bias, -1000.0)
    counts = {count.layer: count for count in count_activations(net, [torch.randn(2, 3, 32, 32) for _ in range(2)])}
    assert counts["layer1.0.relu"].dead == 64
    assert counts["layer1.0.relu#2"].dead < 64
    assert len(counts) == 17
    assert list(counts)[:3] == ["relu", "layer1.0.relu", "layer1.0.relu#2"]


def test_activations_inside_timms_normalization_and_those_swapped_in_are_counted():
    net = timm.create_model("efficientnet_b0", num_classes=2).eval()
    gates = len(count_activations(net, [torch.randn(2, 3, 32, 32)]))
    SwapActivation(nn.ReLU)(net)
    counts = count_activations(net, [torch.randn(2, 3, 32, 32)])
    assert gates == 16
    assert len(counts) == 16 + 49


def test_counting_changes_nothing_and_leaves_no_hook():
    net = ConvNet(activation=nn.Sigmoid).eval()
    x = torch.randn(2, 1, 28, 28)
    expected, state = net(x), torch.get_rng_state()
    seen = []
    net.register_forward_hook(lambda module, args, output: seen.append(output))
    count_activations(net, [x])
    assert torch.equal(seen[0], expected)
    assert torch.equal(torch.get_rng_state(), state)
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()) == 1


# by a Trainer


class Deadly(nn.Module):
    """Half of the units behind the rectifier are dead, and all of the sigmoid is saturated."""

    def __init__(self, num_classes):
        super().__init__()
        self.first, self.act = nn.Linear(64, 8), nn.ReLU()
        self.second, self.gate = nn.Linear(8, 8), nn.Sigmoid()
        self.head = nn.Linear(8, num_classes)
        self.first.bias.data[:5] = -1e4
        self.second.bias.data[:] = 1e4

    def forward(self, x):
        return self.head(self.gate(self.second(self.act(self.first(x.flatten(1))))))


def fit(callback, network=Deadly, extra=(), **arguments):
    seed_everything(1, verbose=False)
    model = harness.make_model(network=network)
    trainer = harness.trainer([callback, *extra], **{"max_steps": 6, "val_check_interval": 3, **arguments})
    trainer.fit(model, datamodule=harness.make_data())
    return trainer, model


def rows_of(path):
    return list(csv.DictReader(Path(path).read_text().splitlines()))


def warnings_of(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in caught if "gradient passes" in str(warning.message)]


def test_layers_are_named_once_and_written_down_at_each_validation():
    callback = WatchActivations(directory="here")
    told = warnings_of(lambda: fit(callback))
    assert len(told) == 1
    assert "act (ReLU): 5 of 8 units are dead" in told[0]
    assert "gate (Sigmoid): 100% of the outputs are saturated" in told[0]
    rows = rows_of("here/activations.csv")
    assert [(row["step"], row["layer"], row["dead"], row["saturated"]) for row in rows] == [
        ("3", "network.act", "5", "0"),
        ("3", "network.gate", "0", "64"),
        ("6", "network.act", "5", "0"),
        ("6", "network.gate", "0", "64"),
    ]
    assert [count.layer for count in callback.counts] == ["network.act", "network.gate"]


def test_the_shares_go_to_the_loggers_and_to_no_metric():
    logger = CSVLogger("logs")
    trainer, _ = fit(WatchActivations(warn_above=1.0), logger=logger)
    logger.save()
    rows = rows_of(Path(logger.log_dir, "metrics.csv"))
    assert {row["val_dead_units"] for row in rows if row.get("val_dead_units")} == {"0.625"}
    assert {row["val_saturated"] for row in rows if row.get("val_saturated")} == {"1.0"}
    assert not any("dead" in name or "saturated" in name for name in trainer.callback_metrics)


@pytest.mark.parametrize("warn_above", [0.625, 1.0])
def test_layers_below_the_share_are_not_named(warn_above):
    told = warnings_of(lambda: fit(WatchActivations(warn_above=warn_above)))
    assert not any("dead" in text for text in told)


def test_only_every_so_manyth_validation_counts_and_outside_there_are_no_hooks():
    hooks = []

    class Look(Callback):
        def on_validation_batch_end(self, trainer, module, *args, **kwargs):
            hooks.append(len(module.network.act._forward_hooks))

        def on_train_batch_end(self, trainer, module, *args):
            hooks.append(-len(module.network.act._forward_hooks))

    fit(WatchActivations(every=2), extra=[Look()], max_steps=4, val_check_interval=1)
    assert hooks == [0, 0, 0, 1, 0, 0, 0, 1]


def test_a_resumed_run_goes_on_counting_validations_and_writing(tmp_path):
    path = str(tmp_path / "half.ckpt")
    fit(WatchActivations(every=2, directory="here"), extra=[harness.Keep(4, path)], max_steps=4, val_check_interval=3)
    model = harness.make_model(network=Deadly)
    trainer = harness.trainer([WatchActivations(every=2, directory="here")], max_steps=8, val_check_interval=3)
    trainer.fit(model, datamodule=harness.make_data(), ckpt_path=path)
    assert {row["step"] for row in rows_of("here/activations.csv")} == {"6"}


def test_a_validation_alone_is_watched_too():
    callback = WatchActivations(directory="here")
    model = harness.make_model(network=Deadly)
    (without,) = harness.trainer().validate(model, datamodule=harness.make_data(), verbose=False)
    (found,) = harness.trainer([callback]).validate(model, datamodule=harness.make_data(), verbose=False)
    assert found == without
    assert callback.counts[0].dead == 5


class ByRank(nn.Module):
    """Its second unit is dead for all images but the first of the validation set, which one rank sees alone."""

    def __init__(self, num_classes):
        super().__init__()
        self.act, self.head = nn.ReLU(), nn.Linear(2, num_classes)
        self.first = None

    def forward(self, x):
        x = x.flatten(1)
        marks = (x[:, 0] - self.mark).abs() < 1e-6
        return self.head(self.act(torch.stack([torch.ones(len(x)), marks.float() - 0.5], 1)))


def test_two_processes_count_what_one_does(tmp_path):
    data = harness.make_data()
    model = harness.make_model(network=ByRank)
    pixels = data.val_set.images[:, 0, 0, 0].float() / 255
    model.network.mark = (float(pixels[0]) - data.mean[0]) / data.std[0]

    class Save(Callback):
        def on_validation_end(self, trainer, module):
            found = [(count.layer, count.units, count.dead) for count in trainer.callbacks[0].counts]
            Path(tmp_path / f"{trainer.world_size}-{trainer.global_rank}").write_text(repr(found))

    for arguments in ({}, {"devices": 2, "strategy": "ddp_fork"}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = harness.trainer(
                [WatchActivations(directory=str(tmp_path)), Save()], max_steps=1, val_check_interval=1, **arguments
            )
            trainer.fit(model, datamodule=harness.make_data(), ckpt_path=None)
    read = {path.name: path.read_text() for path in tmp_path.glob("?-?")}
    assert set(read) == {"1-0", "2-0", "2-1"}
    assert set(read.values()) == {"[('network.act', 2, 0)]"}


class Functional(Deadly):
    def forward(self, x):
        return self.head(self.gate(F.relu(self.first(x.flatten(1)))))


def test_activations_called_as_functions_are_said_to_be_unseen():
    with pytest.warns(UserWarning, match=r"1 activations of .*called as functions \(relu\); WatchActivations does not see"):
        fit(WatchActivations(warn_above=1.0), network=Functional)


def test_a_network_in_which_nothing_saturates_or_dies_is_named():
    with pytest.warns(UserWarning, match="has no layer that can saturate or die"):
        fit(WatchActivations(), network=lambda num_classes: nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes), nn.GELU()))


def test_after_an_error_there_are_no_hooks():
    class Fail(Callback):
        def on_validation_batch_end(self, trainer, module, *args, **kwargs):
            self.module = module
            raise RuntimeError("on purpose")

    fail = Fail()
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(WatchActivations(), extra=[fail])
    assert not fail.module.network.act._forward_hooks


@pytest.mark.parametrize(
    "arguments", [{"threshold": 0.0}, {"threshold": 1.5}, {"warn_above": -0.1}, {"warn_above": 2}, {"every": 0}]
)
def test_arguments_out_of_range_are_refused(arguments):
    with pytest.raises(ConfigurationError, match=f"WatchActivations: {next(iter(arguments))}="):
        WatchActivations(**arguments)
