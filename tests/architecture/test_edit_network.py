from functools import partial

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn

from lightning_cnnopt import ImageClassifier
from lightning_cnnopt.activation import SwapActivation
from lightning_cnnopt.architecture import ConvNet, EditNetwork, SqueezeExcite
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.surgery import applied_edits

EDITS = [SwapActivation(nn.Tanh), SqueezeExcite(min_channels=4)]


def network():
    return ConvNet(2, image_size=(8, 8), widths=(4,), depth=1, dense=())


class Foreign(LightningModule):
    def __init__(self):
        super().__init__()
        self.net, self.other = network(), nn.Sequential(nn.ReLU())

    def forward(self, images):
        return self.other(self.net(images))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.training_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader():
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, torch.arange(4) % 2), batch_size=2)


def trainer(tmp_path, *callbacks, **options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"max_epochs": 1, **options}
    return Trainer(default_root_dir=tmp_path, callbacks=list(callbacks), accelerator="cpu", **quiet, **options)


def added(module):
    return [name for name, _ in module.named_parameters() if "squeeze_excite" in name]


def test_edits_are_applied_and_their_parameters_are_trained(tmp_path):
    model = Foreign()
    runner = trainer(tmp_path, EditNetwork(EDITS))
    runner.fit(model, loader(), loader())
    assert applied_edits(model) == EDITS
    assert not any(isinstance(module, nn.ReLU) for name, module in model.named_modules() if "squeeze" not in name)
    trained = {id(p) for group in runner.optimizers[0].param_groups for p in group["params"]}
    assert len(added(model)) == 4
    assert all(id(model.get_parameter(name)) in trained for name in added(model))


def test_only_the_named_part_is_edited(tmp_path):
    model = Foreign()
    trainer(tmp_path, EditNetwork(SwapActivation(nn.Tanh), submodule="net")).fit(model, loader())
    assert isinstance(model.other[0], nn.ReLU)
    assert any(isinstance(module, nn.Tanh) for module in model.net.modules())


@pytest.mark.parametrize("stage", ["validate", "test", "predict", "fit"])
def test_edits_are_applied_once_at_any_stage(tmp_path, stage):
    model = Foreign()
    model.test_step = model.validation_step
    model.predict_step = lambda batch, batch_idx: model.net(batch[0])
    runner = trainer(tmp_path, EditNetwork(EDITS))
    for _ in range(2):
        getattr(runner, stage)(model, loader())
        assert len(added(model)) == 4


def test_a_part_that_does_not_exist_is_named_with_those_that_do(tmp_path):
    with pytest.raises(ConfigurationError, match=r"'backbone'.*'net', 'other'"):
        trainer(tmp_path, EditNetwork(EDITS, submodule="backbone")).fit(Foreign(), loader())


def test_behind_weight_averaging_it_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="Put EditNetwork before"):
        trainer(tmp_path, WeightAveraging(), EditNetwork(EDITS)).fit(Foreign(), loader())


def test_before_weight_averaging_the_average_has_the_edits(tmp_path):
    model, averaging = Foreign(), WeightAveraging()
    trainer(tmp_path, EditNetwork(EDITS), averaging).fit(model, loader())
    assert len(added(model)) == 4


def test_a_foreign_checkpoint_is_restored_with_the_callback(tmp_path):
    model = Foreign()
    runner = trainer(tmp_path, EditNetwork(EDITS))
    runner.fit(model, loader())
    runner.save_checkpoint(tmp_path / "last.ckpt")
    restored = Foreign()
    trainer(tmp_path, EditNetwork(EDITS)).validate(
        restored, loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=True, verbose=False
    )
    torch.testing.assert_close(dict(restored.state_dict()), dict(model.state_dict()), rtol=0, atol=0)


def test_a_classifiers_checkpoint_needs_no_callback(tmp_path):
    factory = partial(ConvNet, widths=[4], depth=1, dense=[])
    model = ImageClassifier(factory, num_classes=2, image_size=(8, 8))
    runner = trainer(tmp_path, EditNetwork(EDITS))
    runner.fit(model, loader())
    runner.save_checkpoint(tmp_path / "last.ckpt")
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    assert applied_edits(loaded.network) == EDITS
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(loaded.eval()(images), model.cpu().eval()(images))
