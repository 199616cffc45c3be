"""What ``sync_batchnorm`` and other code that replaces layers does to what edits made."""

import copy
import warnings
from functools import partial

import pytest
import timm
import torch
import torchvision
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn

from lightning_cnnopt import ImageClassifier
from lightning_cnnopt.activation import SwapActivation
from lightning_cnnopt.architecture import EditNetwork, SqueezeExcite
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.intact import check_intact, special_norms
from lightning_cnnopt.core.surgery import insert_after, lost_layers
from lightning_cnnopt.dropout import StochasticDepth
from lightning_cnnopt.normalization import GhostBatchNorm2d, SwapNormalization
from tests.contracts.harness import TinyResNet, make_data
from tests.lightning_tools import quiet_trainer


def synchronized(network):
    """Return the network as Lightning hands it to DDP with ``sync_batchnorm``."""
    return nn.SyncBatchNorm.convert_sync_batchnorm(network)


def settled(network):
    """Give every normalization statistics that are not those of the start, so that each layer counts."""
    network.train()(torch.randn(4, *network.shape))
    return network.eval()


def resnet():
    net = torchvision.models.resnet18(num_classes=4)
    net.shape = (3, 32, 32)
    return net


def efficientnet():
    net = timm.create_model("efficientnet_b0", num_classes=4)
    net.shape = (3, 32, 32)
    return net


@pytest.mark.parametrize("edits", [[SqueezeExcite(4)], [StochasticDepth(0.9)], [SqueezeExcite(4), StochasticDepth(0.9)]])
def test_inserted_layers_run_behind_synchronized_normalization_and_after_it_is_undone(edits):
    net = resnet()
    for edit in edits:
        edit(net)
    x = torch.randn(2, *net.shape)
    expected = settled(net)(x)
    keys = list(net.state_dict())

    torch.manual_seed(1)
    trained = copy.deepcopy(net).train()(x)  # stochastic depth drops here

    net = synchronized(net)
    assert sum(type(module) is nn.SyncBatchNorm for module in net.modules()) == 20
    assert lost_layers(net) == []
    assert list(net.state_dict()) == keys
    torch.testing.assert_close(net(x), expected)
    torch.manual_seed(1)
    torch.testing.assert_close(copy.deepcopy(net).train()(x), trained)

    net = TorchSyncBatchNorm().revert(net)
    assert lost_layers(net) == []
    torch.testing.assert_close(net.eval()(x), expected)


def test_an_activation_that_a_swap_put_behind_the_normalization_survives_it_too():
    net = efficientnet()
    SwapNormalization(nn.BatchNorm2d)(net)
    SwapActivation(nn.GELU)(net)
    x = torch.randn(2, *net.shape)
    expected = settled(net)(x)
    torch.testing.assert_close(synchronized(net)(x), expected)


def test_a_layer_is_run_once_behind_each_place_it_is_carried_to():
    net = nn.Sequential(nn.BatchNorm1d(3))
    insert_after(net, "0", "twice", Twice())
    x = torch.ones(2, 3)
    expected = net.eval()(x)
    for _ in range(3):
        net = TorchSyncBatchNorm().revert(synchronized(net)).eval()
        assert torch.equal(net(x), expected)
    net[0].twice = net[0].twice
    assert torch.equal(net(x), expected)


class Twice(nn.Module):
    def forward(self, x):
        return 2 * x


def test_an_inserted_layer_that_is_used_elsewhere_changes_nothing_there():
    net = nn.Sequential(nn.BatchNorm1d(3))
    insert_after(net, "0", "twice", Twice())
    other = nn.Linear(3, 3)
    x = torch.ones(2, 3)
    expected = other(x)
    other.twice = net[0].twice
    assert torch.equal(other(x), expected)


class Foreign(LightningModule):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Synchronizing(SingleDeviceStrategy):
    """Does on one CPU what DDP does with ``sync_batchnorm``, and undoes it as DDP does; DDP itself refuses CPUs."""

    def setup(self, trainer):
        if trainer.state.fn == "fit":
            self.model = TorchSyncBatchNorm().apply(self.model)
        super().setup(trainer)

    def teardown(self):
        self.model = TorchSyncBatchNorm().revert(self.model)
        super().teardown()


def start(module, *callbacks):
    trainer = quiet_trainer(*callbacks, accelerator="auto", strategy=Synchronizing("cpu"), max_steps=2, limit_val_batches=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, datamodule=make_data())


def test_a_run_with_synchronized_normalization_trains_what_was_inserted():
    module = ImageClassifier(TinyResNet, 4, 1, (8, 8), edits=[SqueezeExcite(4)])
    before = {name: value.clone() for name, value in module.named_parameters() if "squeeze_excite" in name}
    seen = []

    class Look(Callback):
        def on_train_start(self, trainer, pl_module):
            seen.append(sum(isinstance(layer, nn.SyncBatchNorm) for layer in pl_module.modules()))

    start(module, Look())
    assert seen == [5]
    assert lost_layers(module.network) == []
    assert all(not torch.equal(module.get_parameter(name), value) for name, value in before.items() if "weight" in name)


GHOSTS = SwapNormalization(partial(GhostBatchNorm2d, ghost_size=4))


@pytest.mark.parametrize(
    "make",
    [
        lambda: (ImageClassifier(TinyResNet, 4, 1, (8, 8), edits=[GHOSTS]),),
        lambda: (ImageClassifier(TinyResNet, 4, 1, (8, 8), normalization=GhostBatchNorm2d, edits=[SqueezeExcite(4)]),),
        lambda: (Foreign(TinyResNet(4)), EditNetwork(GHOSTS)),
    ],
    ids=["edit", "argument", "callback"],
)
def test_ghost_batches_and_synchronized_normalization_are_refused_together(make):
    with pytest.raises(ConfigurationError, match=r"sync_batchnorm=True .* 5 layers GhostBatchNorm2d .*norm'.* off") as caught:
        start(*make())
    assert "SwapNormalization" not in str(caught.value)


def test_activations_that_synchronized_normalization_would_lose_are_refused_with_a_remedy_that_works():
    network = partial(timm.create_model, model_name="efficientnet_b0", in_chans=1)
    with pytest.raises(ConfigurationError, match=r"49 layers BatchNormAct2d .*activation.*SwapNormalization"):
        start(ImageClassifier(network, 4, 1, (8, 8)))
    start(ImageClassifier(network, 4, 1, (8, 8), edits=[SwapNormalization(nn.BatchNorm2d)]))


@pytest.mark.parametrize("how", ["replaced", "taken out", "hooks cleared"])
def test_layers_that_other_code_has_dropped_are_named(how):
    net = TinyResNet(4)
    SqueezeExcite(4)(net)
    norms = special_norms(net)
    check_intact(net, norms)
    if how == "replaced":
        net.blocks[0].bn2 = nn.BatchNorm2d(16)
    elif how == "taken out":
        del net.blocks[0].bn2.squeeze_excite
    else:
        net.blocks[0].bn2._forward_hooks.clear()
    assert lost_layers(net) == ["blocks.0.bn2.squeeze_excite"]
    with pytest.raises(ConfigurationError, match=r"1 layers .*TinyResNet.*'blocks\.0\.bn2\.squeeze_excite'"):
        check_intact(net, norms)


def test_a_run_whose_inserted_layers_are_gone_does_not_start():
    class Replace(Callback):
        def setup(self, trainer, pl_module, stage):
            pl_module.network.blocks[0].bn2 = nn.BatchNorm2d(16)

    module = Foreign(TinyResNet(4))
    with pytest.raises(ConfigurationError, match="no longer run"):
        quiet_trainer(EditNetwork(SqueezeExcite(4)), Replace()).fit(module, datamodule=make_data())


def test_a_network_that_was_wrapped_or_copied_is_intact():
    net = TinyResNet(4)
    SqueezeExcite(4)(net)
    net.blocks = nn.Sequential(nn.Sequential(*net.blocks))
    assert lost_layers(net) == lost_layers(copy.deepcopy(net)) == []
