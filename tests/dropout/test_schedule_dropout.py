from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from lightning.pytorch import Callback
from torch import nn

from lightning_cnnopt.architecture import EditNetwork
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.dropout import ScheduleDropout, StochasticDepth, dropout_layers
from lightning_cnnopt.learning_rate import Polynomial, Step
from tests.contracts.harness import TinyResNet
from tests.lightning_tools import Foreign, Killed, SaveAtBatch, plain_loader, quiet_trainer, resident_loader


class Dropping(Foreign):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Dropout(0.4), torchvision.ops.StochasticDepth(0.2, "row"))


class Rates(Callback):
    def __init__(self, *attributes):
        self.attributes, self.seen = attributes or ("2.p", "3.p"), []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.seen.append(tuple(self.read(pl_module)))

    def read(self, module):
        for path in self.attributes:
            name, _, attribute = path.rpartition(".")
            yield getattr(module.body.get_submodule(name), attribute)


def run(*callbacks, module=None, ckpt_path=None, **arguments):
    rates, module = Rates(), module or Dropping()
    trainer = quiet_trainer(*callbacks, rates, **{"max_epochs": 2, **arguments})
    trainer.fit(module, resident_loader(), ckpt_path=ckpt_path)
    return rates.seen, module


def test_every_layer_has_its_own_rate_times_the_factor_and_has_it_back_after_training():
    seen, module = run(ScheduleDropout(Polynomial()))
    assert seen == [pytest.approx((0.4 * (1 - step / 12), 0.2 * (1 - step / 12))) for step in range(12)]
    assert list(Rates().read(module)) == [0.4, 0.2]


def test_a_second_fit_starts_from_the_layers_own_rates():
    module, callback = Dropping(), ScheduleDropout(Polynomial(), start=0.1, end=0.5)
    first, _ = run(callback, module=module)
    assert first == [pytest.approx((0.1 + 0.4 * step / 12,) * 2) for step in range(12)]
    second, _ = run(ScheduleDropout(Polynomial()), module=module)
    assert second[0] == (0.4, 0.2)


def test_layers_chosen_by_class_or_by_name():
    seen, _ = run(
        ScheduleDropout(Step("6st", 0.5), layers=["StochasticDepth"]), ScheduleDropout(Step("6st", 2.0), layers=["body.2"])
    )
    assert seen == [(0.4, 0.2)] * 6 + [(0.8, 0.1)] * 6


@pytest.mark.parametrize("batches", [1, 6, 9])
def test_resumed_in_mid_epoch_the_rates_go_on(batches, tmp_path):
    whole, _ = run(ScheduleDropout(Polynomial()))
    path, module = tmp_path / "cut.ckpt", Dropping()
    with pytest.raises(Killed):
        run(ScheduleDropout(Polynomial()), SaveAtBatch(batches, path), module=module)
    assert list(Rates().read(module)) == [0.4, 0.2]  # after an exception, too
    assert run(ScheduleDropout(Polynomial()), ckpt_path=str(path))[0] == whole[batches:]


def test_the_rate_that_is_written_is_the_one_that_drops():
    class Mean(Foreign):
        def __init__(self):
            super().__init__()
            self.body.append(nn.Dropout(0.0))
            self.kept = []

        def training_step(self, batch, batch_idx):
            self.kept.append(float((self.body[2](torch.ones(10000)) > 0).float().mean()))
            return super().training_step(batch, batch_idx)

    module = Mean()
    quiet_trainer(ScheduleDropout(Step("3st", 0.5), start=0.8, end=0.0)).fit(module, plain_loader())
    assert module.kept == pytest.approx([0.2] * 3 + [0.6] * 3, abs=0.02)


def test_what_an_edit_has_inserted_is_driven_linear_in_depth():
    class Residual(Foreign):
        def __init__(self):
            super().__init__()
            self.body = TinyResNet(3)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module, rates = Residual(), Rates("blocks.0.bn2.stochastic_depth.p", "blocks.1.bn2.stochastic_depth.p", "dropout.p")
    callbacks = (
        EditNetwork(StochasticDepth(0.4), submodule="body"),
        ScheduleDropout(Step("2st", 0.5), layers=["StochasticDepth"]),
    )
    quiet_trainer(*callbacks, rates, max_steps=4).fit(module, plain_loader())
    assert rates.seen == [(0.2, 0.4, 0.3)] * 2 + [(0.1, 0.2, 0.3)] * 2


@pytest.mark.parametrize(
    ("network", "kinds"),
    [
        (torchvision.models.efficientnet_b0, {"StochasticDepth": "p", "Dropout": "p"}),
        (torchvision.models.vgg11, {"Dropout": "p"}),
        (lambda: timm.create_model("resnet18", drop_path_rate=0.1, drop_rate=0.2),
         {"DropPath": "drop_prob", "ResNet": "drop_rate"}),
        (lambda: timm.create_model("resnet18", drop_block_rate=0.1), {"DropBlock2d": "drop_prob"}),
        (lambda: nn.Sequential(torchvision.ops.DropBlock2d(0.1, 3), nn.AlphaDropout(0.1), nn.Dropout2d(0.1)),
         {"DropBlock2d": "p", "AlphaDropout": "p", "Dropout2d": "p"}),
    ],
)  # fmt: skip
def test_the_dropouts_of_torch_torchvision_and_timm_are_found(network, kinds):
    found = dropout_layers(network())
    assert {type(module).__name__: attribute for module, attribute in found.values()} == kinds


def test_the_rate_of_a_timm_network_that_drops_by_a_function_is_driven():
    class Timm(Foreign):
        def __init__(self):
            super().__init__()
            self.body = timm.create_model("resnet18", num_classes=3, in_chans=1, drop_rate=0.4)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    rates = Rates("drop_rate")
    quiet_trainer(ScheduleDropout(Step("2st", 0.5)), rates, max_steps=4).fit(Timm(), plain_loader())
    assert rates.seen == [(0.4,)] * 2 + [(0.2,)] * 2


def test_what_merely_has_a_p_is_left_alone_unless_it_is_named():
    net = nn.Sequential(nn.PairwiseDistance(), Norm(), nn.Dropout(0.1))
    assert list(dropout_layers(net)) == ["2"]
    assert list(dropout_layers(net, ["Norm"])) == ["1"]


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.p = 2.0


def test_a_pattern_without_a_match_is_named_with_what_there_is():
    with pytest.raises(ConfigurationError, match=r"layers='DropPath' matches no layer.*\['Dropout', 'StochasticDepth'\]"):
        run(ScheduleDropout(Polynomial(), layers=["DropPath"]))


def test_two_that_drive_one_layer_are_refused():
    with pytest.raises(ConfigurationError, match="the same layers; give each layers="):
        run(ScheduleDropout(Polynomial()), ScheduleDropout(Step(), layers=["StochasticDepth"]))


def test_a_network_without_dropout_is_said_to_have_none():
    with pytest.warns(UserWarning, match="ScheduleDropout changes nothing: there is no dropout rate"):
        quiet_trainer(ScheduleDropout(Polynomial())).fit(Foreign(), plain_loader())


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"start": 1.0, "end": 0.0}, "ScheduleDropout: start=1.0"),
        ({"start": 0.1}, "belong together"),
        ({"layers": "Dropout"}, "layers='Dropout' must be a list"),
    ],
)
def test_arguments_that_cant_be_right_are_refused_by_name(arguments, name):
    with pytest.raises(ConfigurationError, match=name):
        ScheduleDropout(Polynomial(), **arguments)
