import copy
import pickle
import warnings

import pytest
import timm
import torch
import torchvision
from lightning.pytorch import Callback
from torch import nn

from lightning_cnnopt import ImageClassifier
from lightning_cnnopt.architecture import ConvNet, EditNetwork, Freeze, SqueezeExcite, freeze
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.normalization import SwapNormalization
from tests.contracts import harness
from tests.lightning_tools import weights_of


def network():
    return torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=4)


def frozen(net):
    return {name for name, parameter in net.named_parameters() if not parameter.requires_grad}


def evaluating(net):
    return {name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d) and not module.training}


def test_a_modules_name_stands_for_all_that_is_in_it():
    net = network()
    freeze(net, ["conv1", "layer1"])
    assert frozen(net) == {name for name, _ in net.named_parameters() if name.startswith(("conv1.", "layer1."))}
    assert evaluating(net) == {"layer1.0.bn1", "layer1.0.bn2"}


def test_what_is_excepted_stays_trainable():
    net = network()
    freeze(net, but=["fc", "layer4.0.bn?"])
    assert {name for name, _ in net.named_parameters()} - frozen(net) == {
        "fc.weight",
        "fc.bias",
        *(f"layer4.0.bn{i}.{name}" for i in (1, 2) for name in ("weight", "bias")),
    }
    assert evaluating(net.train()) == {n for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)} - {
        "layer4.0.bn1",
        "layer4.0.bn2",
    }


def test_patterns_reach_single_parameters_and_leave_their_norms_training():
    net = network()
    freeze(net, ["*bn*.weight"])
    assert frozen(net) == {name for name, _ in net.named_parameters() if "bn" in name and name.endswith("weight")}
    assert evaluating(net) == set()


def test_it_counts_layers_and_each_once():
    net = network()
    assert freeze(net, ["layer1"]) == 4
    assert freeze(net, ["layer1", "layer2"]) == 6
    with pytest.warns(UserWarning, match="trainable layers of these names"):
        Freeze(["layer1"])(net)


def test_frozen_statistics_stay_in_evaluation_whatever_the_network_is_switched_to():
    net = network()
    freeze(net, ["layer1"])
    for switch in (net.train, net.eval, net.train, lambda: net.requires_grad_(True), lambda: net.train(False), net.train):
        switch()
        assert {"layer1.0.bn1", "layer1.0.bn2"} <= evaluating(net)
    assert net.layer2[0].bn1.training
    before = copy.deepcopy(net.state_dict())
    net(torch.randn(4, 3, 32, 32))
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert not [name for name in moved if name.startswith("layer1")]


def test_statistics_can_be_left_moving():
    net = network().train()
    freeze(net, ["layer1"], statistics=False)
    assert evaluating(net) == set()
    assert "held_statistics" not in dict(net.named_modules())


def test_without_affine_parameters_there_are_still_statistics_to_freeze():
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, affine=False)).train()
    assert freeze(net, ["1"]) == 1
    assert not net.train()[1].training


def test_state_keys_and_evaluation_are_unchanged():
    net, x = network().eval(), torch.randn(2, 3, 32, 32)
    keys, out = list(net.state_dict()), net(x)
    freeze(net)
    assert list(net.state_dict()) == keys
    assert torch.equal(net(x), out)


def test_dropout_in_a_frozen_part_still_drops():
    net = ConvNet()
    freeze(net)
    assert net.train().head[0].dropout.training


def test_layers_of_timm_that_hold_norm_and_activation_are_held():
    net = timm.create_model("mobilenetv3_small_050")
    freeze(net, ["conv_stem", "bn1", "blocks"])
    net.train()
    norms = {n: m for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert norms
    assert not any(module.training for module in norms.values())


def test_copies_hold_their_own_layers():
    net = network()
    freeze(net, ["layer1"])
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        net.layer1[0].bn1.training = True  # that of the original must not be what the copy holds
        copied.train()
        assert not copied.layer1[0].bn1.training
        assert net.layer1[0].bn1.training
        net.train()


def test_what_takes_the_place_of_a_held_layer_is_held():
    net = network()
    freeze(net, ["layer1"])
    nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert isinstance(net.layer1[0].bn1, nn.SyncBatchNorm)
    assert not net.train().layer1[0].bn1.training
    net = network()
    freeze(net, ["layer1"])
    SwapNormalization(nn.InstanceNorm2d)(net)
    assert not net.train().layer1[0].bn1.training


class Modes(Callback):
    """Which norms evaluate in each training batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, module, *args):
        self.seen.append({n for n, m in module.network.named_modules() if isinstance(m, nn.BatchNorm2d) and not m.training})


@pytest.mark.parametrize("foreign", [False, True], ids=["ImageClassifier", "foreign module"])
def test_a_trainer_leaves_frozen_parts_as_they_are_over_epochs_and_validations(foreign):
    modes = Modes()
    module = harness.Foreign() if foreign else harness.make_model()
    before = weights_of(module)
    edit = EditNetwork(Freeze(["stem", "norm", "blocks.0"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = harness.trainer([edit, modes], max_steps=-1, max_epochs=3, val_check_interval=2)
        run.fit(module, datamodule=harness.make_data(normalize=foreign or None))
    assert len(modes.seen) == 18
    assert all(seen == {"norm", "blocks.0.bn1", "blocks.0.bn2"} for seen in modes.seen)
    after = module.state_dict()
    for name, value in before.items():
        if name.startswith("network."):
            is_frozen = name.split(".", 1)[1].startswith(("stem", "norm", "blocks.0"))
            assert torch.equal(after[name], value) is is_frozen, name


def test_only_trainable_parameters_are_in_the_optimizer():
    model = harness.make_model(edits=[Freeze(but=["head"])])
    groups = model.configure_optimizers().param_groups
    held = {id(parameter) for group in groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in model.network.head.parameters()}


def test_a_checkpoint_loads_frozen(tmp_path):
    run, _ = harness.fit(Freeze(["blocks"]))
    run.save_checkpoint(tmp_path / "model.ckpt")
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "model.ckpt")
    assert frozen(loaded.network) == {n for n, _ in loaded.network.named_parameters() if n.startswith("blocks")}
    assert "blocks.0.bn1" in evaluating(loaded.network.train())


class Same(Callback):
    """Asserts on each rank, since nothing comes back from a worker."""

    def on_fit_start(self, trainer, module):
        self.before = {name: value.clone() for name, value in module.network.blocks.state_dict().items()}

    def on_train_end(self, trainer, module):
        for name, value in module.network.blocks.state_dict().items():
            assert torch.equal(value, self.before[name]), name


def test_it_holds_in_two_processes():
    model = harness.make_model(edits=[Freeze(["blocks"])])
    run = harness.trainer([Same()], max_steps=-1, max_epochs=2, devices=2, strategy="ddp_fork")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.fit(model, datamodule=harness.make_data())


def test_what_a_later_edit_adds_is_trained():
    model = harness.make_model(edits=[Freeze(["blocks"]), SqueezeExcite(reduction=4)])
    added = [p for name, p in model.named_parameters() if "squeeze_excite" in name]
    assert added
    assert all(parameter.requires_grad for parameter in added)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modules": ["layre1"]}, r"modules='layre1' matches no module and no parameter of ResNet.*conv1.*'layer1'"),
        ({"but": ["head"]}, r"but='head' matches no .*whose parts are .*fc"),
        ({"modules": []}, "names nothing"),
        ({"modules": "fc"}, "one string"),
        ({"but": "fc"}, "one string"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        Freeze(**arguments)(network())


def test_nothing_left_to_train_is_an_error_that_says_so():
    model = harness.make_model(edits=[Freeze()])
    with pytest.raises(ConfigurationError, match=r"empty parameter list"):
        model.configure_optimizers()
