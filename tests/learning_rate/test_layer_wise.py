from __future__ import annotations

from functools import partial

import pytest
import torch
import torchvision
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lightning_cnnopt import ImageClassifier
from lightning_cnnopt.architecture import SqueezeExcite
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.learning_rate import (
    Cosine,
    LayerWiseRates,
    ScheduleLearningRate,
    layer_rates,
    network_layers,
    scale_rates,
)
from lightning_cnnopt.regularization import DecayWeights
from tests.contracts.harness import TinyResNet
from tests.lightning_tools import (
    Foreign,
    Killed,
    RecordRates,
    SaveAtBatch,
    assert_same_weights,
    quiet_trainer,
    resident_loader,
    weights_of,
)

timm = pytest.importorskip("timm")
timm_optim = pytest.importorskip("timm.optim")


class Deep(Foreign):
    """Three layers, two of them with norms, in one group with momentum."""

    def __init__(self, make=None, scheduler=None):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 4, 1),
            nn.BatchNorm2d(4),
            nn.Flatten(),
            nn.Linear(16, 3),
        )
        self.make, self.scheduler = make or partial(torch.optim.SGD, lr=0.1, momentum=0.9), scheduler

    def configure_optimizers(self):
        optimizer = self.make(self.parameters())
        if self.scheduler is None:
            return optimizer
        scale_rates(optimizer, layer_rates(self.body, 0.5))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler(optimizer), "interval": "step"}}


def fitted(module, *callbacks, **arguments):
    trainer = quiet_trainer(*callbacks, **{"max_steps": 2, **arguments})
    trainer.fit(module, resident_loader())
    return trainer


def rates_by_name(optimizer, module):
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    return {name: rates[id(p)] for name, p in module.named_parameters()}


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", "convnext_atto", "vit_tiny_patch16_224"])
def test_a_network_of_timm_has_the_rates_that_timm_scales_by(name):
    network = timm.create_model(name, num_classes=4)
    expected = {
        id(p): group["lr_scale"]
        for group in timm_optim.param_groups_layer_decay(network, layer_decay=0.7, min_scale=0.05)
        for p in group["params"]
    }
    found = {id(p): rate.factor for rate in layer_rates(network, 0.7, 0.05) for p in rate.parameters}
    assert found == pytest.approx(expected)


def test_a_head_behind_a_network_of_timm_is_a_layer_of_its_own():
    class WithHead(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Conv2d(1, 3, 1)
            self.backbone = timm.create_model("resnet18", num_classes=7)
            self.fc = nn.Linear(7, 4)  # by the name of a layer within

        def forward(self, x):
            return self.fc(self.backbone(self.embed(x)))

    layers = network_layers(WithHead())
    inner = [f"backbone.{name}" for name in network_layers(timm.create_model("resnet18"))]
    assert list(layers)[1:] == [*inner[1:], "fc"]
    assert layers["fc"] == ["fc.weight", "fc.bias"]
    assert {"embed.weight", "backbone.conv1.weight"} <= set(next(iter(layers.values())))


def test_a_network_of_torchvision_has_the_layers_of_the_same_one_of_timm():
    ours = network_layers(torchvision.models.resnet18())
    assert list(ours) == list(network_layers(timm.create_model("resnet18")))
    assert list(ours) == ["conv1", *(f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)), "fc"]
    assert ours["conv1"] == ["conv1.weight", "bn1.weight", "bn1.bias"]


@pytest.mark.parametrize("name", ["mobilenet_v2", "densenet121", "googlenet", "vit_b_16", "regnet_y_400mf"])
def test_every_parameter_is_in_one_layer_and_a_block_is_a_layer(name):
    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    network = torchvision.models.get_model(name, **options)
    layers = network_layers(network)
    assert sorted(n for names in layers.values() for n in names) == sorted(n for n, _ in network.named_parameters())
    # 1 stem, 17 blocks, 1 convolution, 1 head; 1 stem, 4 blocks, 3 transitions, 1 head; 3 convolutions, 9 blocks, 1 head; …
    assert len(layers) == {"mobilenet_v2": 20, "densenet121": 9, "googlenet": 13, "vit_b_16": 14, "regnet_y_400mf": 18}[name]


class Backwards(nn.Module):
    """Registered from its output to its input."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 1)
        self.first = nn.Conv2d(1, 4, 3)

    def forward(self, x):
        return self.head(self.norm(self.second(self.first(x))).mean((2, 3)))


def test_layers_come_in_the_order_of_their_use():
    layers = network_layers(Backwards())
    assert list(layers) == ["first", "second", "head"]
    assert [name for name in layers["second"] if name.startswith("norm")] == ["norm.weight", "norm.bias"]


def test_a_network_within_a_module_is_looked_through_and_what_an_edit_inserts_goes_with_its_layer():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.head = TinyResNet(8), nn.Linear(8, 4)
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.head(self.backbone(x) * self.scale)

    network = Wrapped()
    assert list(network_layers(network)) == ["backbone.stem", "backbone.blocks.0", "backbone.blocks.1", "backbone.head", "head"]
    assert "scale" in network_layers(network)["backbone.stem"]
    SqueezeExcite(reduction=4)(network)
    after = network_layers(network)
    assert list(after) == ["backbone.stem", "backbone.blocks.0", "backbone.blocks.1", "backbone.head", "head"]
    assert sorted(n for names in after.values() for n in names) == sorted(n for n, _ in network.named_parameters())


def test_patterns_choose_the_layers():
    assert list(network_layers(torchvision.models.resnet18(), ["conv1", "bn1", "layer?", "fc"])) == [
        *("conv1", "layer1", "layer2", "layer3", "layer4", "fc")
    ]
    with pytest.raises(ConfigurationError, match=r"layers='layr\?' matches none of"):
        network_layers(torchvision.models.resnet18(), ["layr?"])


@pytest.mark.parametrize("layers", ["0", []])
def test_layers_that_are_no_list_of_patterns_are_refused(layers):
    with pytest.raises(ConfigurationError, match=r"must be a list of patterns on names of modules"):
        LayerWiseRates(0.5, layers=layers)
    with pytest.raises(ConfigurationError, match=r"must be a list of patterns on names of modules"):
        network_layers(nn.Sequential(nn.Linear(2, 2)), layers)


def test_a_pattern_that_matches_nothing_is_told_the_nearest_name():
    with pytest.raises(ConfigurationError, match=r"matches none of .*Did you mean 'stem'"):
        network_layers(TinyResNet(4), ["stam"])


def test_the_rates_are_written_into_lr_beside_the_decay_of_each_group():
    model = ImageClassifier(
        TinyResNet, 4, layer_decay=0.5, optimizer=partial(torch.optim.AdamW, lr=0.08, weight_decay=0.1), image_size=(8, 8)
    )
    optimizer = model.configure_optimizers()
    factors = {"stem": 0.125, "norm": 0.125, "blocks.0": 0.25, "blocks.1": 0.5, "head": 1.0}
    for name, rate in rates_by_name(optimizer, model).items():
        layer = next(layer for layer in factors if name.startswith(f"network.{layer}."))
        assert rate == pytest.approx(0.08 * factors[layer])
    assert {(group["layer"], group["weight_decay"]) for group in optimizer.param_groups} == {
        (layer, decay) for layer in ("stem", "blocks.0", "blocks.1", "head") for decay in (0.1, 0.0)
    }
    assert not any("lr_scale" in group for group in optimizer.param_groups)


def test_a_subclass_names_rates_of_its_own():
    class HeadOnly(ImageClassifier):
        def layer_rates(self):
            return [rate for rate in layer_rates(self.network, 0.1) if rate.layer != "head"]

    model = HeadOnly(TinyResNet, 4, optimizer=partial(torch.optim.SGD, lr=1.0), image_size=(8, 8))
    rates = rates_by_name(model.configure_optimizers(), model)
    assert rates["network.head.weight"] == 1.0
    assert rates["network.stem.weight"] == pytest.approx(1e-3)


@pytest.mark.parametrize(
    "scheduler",
    [
        partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5),
        partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=10),
        partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: 1 / (1 + step)),
        None,
    ],
)
def test_schedules_of_torch_and_ours_keep_the_ratio(scheduler):
    record, module = RecordRates(), Deep(scheduler=scheduler)
    ours = [LayerWiseRates(0.5), ScheduleLearningRate(Cosine())] if scheduler is None else []
    fitted(module, *ours, record, max_steps=5)
    assert len({rates[-1] for rates in record.groups}) > 1
    for rates in record.groups:
        assert rates == pytest.approx([rates[-1] / 4, rates[-1] / 2, rates[-1]])


def test_splitting_keeps_what_the_optimizer_knows_and_the_names():
    module = Deep()
    optimizer = torch.optim.Adam(list(module.named_parameters()), lr=0.1)
    module.training_step(next(iter(resident_loader())), 0).backward()
    optimizer.step()
    before = {id(p): dict(state) for p, state in optimizer.state.items()}
    scale_rates(optimizer, layer_rates(module.body))
    assert {id(p): dict(state) for p, state in optimizer.state.items()} == before
    names = {id(p): name for name, p in module.named_parameters()}
    for group in optimizer.param_groups:
        assert group["param_names"] == [names[id(p)] for p in group["params"]]


def test_a_rate_that_is_a_tensor_stays_one_for_each_group():
    network = Backwards()
    optimizer = torch.optim.Adam(network.parameters(), lr=torch.tensor(0.1))
    scale_rates(optimizer, layer_rates(network, 0.5))
    assert all(isinstance(group["lr"], torch.Tensor) for group in optimizer.param_groups)
    assert sorted(float(group["lr"]) for group in optimizer.param_groups) == pytest.approx([0.025, 0.05, 0.1])


def test_a_run_that_is_killed_and_resumed_ends_with_the_same_bits(tmp_path):
    def run(*callbacks, **arguments):
        torch.manual_seed(0)
        module = Deep()
        rules = (LayerWiseRates(0.5), DecayWeights(0.25), ScheduleLearningRate(Cosine()))
        trainer = quiet_trainer(*rules, *callbacks, max_epochs=2)
        trainer.fit(module, resident_loader(), **arguments)
        return module, trainer

    whole, _ = run()
    with pytest.raises(Killed):
        run(SaveAtBatch(4, tmp_path / "half.ckpt"))
    resumed, trainer = run(ckpt_path=tmp_path / "half.ckpt")
    assert_same_weights(weights_of(whole), weights_of(resumed))
    assert len(trainer.optimizers[0].param_groups) == 6


def test_the_monitor_tells_the_groups_of_an_image_classifier_apart(tmp_path):
    from tests.contracts import harness

    monitor = LearningRateMonitor("step")
    model = harness.make_model(layer_decay=0.5, schedule=Cosine())
    harness.trainer([monitor], logger=CSVLogger(tmp_path)).fit(model, datamodule=harness.make_data())
    assert {"lr/weights/stem", "lr/biases_and_norms/head"} <= set(monitor.lrs)
    assert len(monitor.lrs) == 8


def test_a_scheduler_that_was_made_before_is_refused_with_the_remedy():
    with pytest.raises(ConfigurationError, match=r"FactorLR was made.*Put LayerWiseRates before"):
        fitted(Deep(), ScheduleLearningRate(Cosine()), LayerWiseRates())
    module = Foreign()
    make = module.configure_optimizers

    def configure_optimizers():
        optimizer = make()
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]

    module.configure_optimizers = configure_optimizers
    with pytest.raises(ConfigurationError, match=r"ExponentialLR was made.*scale_rates\(optimizer, layer_rates"):
        fitted(module, LayerWiseRates())


def test_layer_wise_twice_is_refused():
    from tests.contracts import harness

    with pytest.raises(ConfigurationError, match=r"layer-wise already.*keep one of layer_decay"):
        harness.trainer([LayerWiseRates()]).fit(harness.make_model(layer_decay=0.5), datamodule=harness.make_data())


def test_an_optimizer_that_finds_its_rate_is_refused():
    prodigyopt = pytest.importorskip("prodigyopt")
    with pytest.raises(ConfigurationError, match="Layer-wise rates and Prodigy exclude each other"):
        fitted(Deep(prodigyopt.Prodigy), LayerWiseRates())


def test_a_network_of_one_layer_is_told():
    with pytest.warns(UserWarning, match="Layer-wise rates change nothing: the network has a single layer"):
        fitted(Foreign(), LayerWiseRates())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decay": 0.0}, "decay=0.0 is out of range; expected 0 < decay <= 1"),
        ({"decay": 1.5}, "decay=1.5 is out of range"),
        ({"decay": float("nan")}, "decay=nan"),
        ({"decay": "0.5"}, "decay='0.5' is not a number"),
        ({"least": -0.1}, "least=-0.1 is out of range"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        LayerWiseRates(**arguments)


def test_an_argument_of_the_classifier_out_of_range_is_refused():
    with pytest.raises(ConfigurationError, match="ImageClassifier: layer_decay=2 is out of range"):
        ImageClassifier(layer_decay=2)
