from functools import partial

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from lightning_cnnopt import ImageClassifier
from lightning_cnnopt.architecture import ConvNet
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.initialization import LSUV, InitializeWeights, Kaiming, XavierUniform


class Foreign(LightningModule):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Tanh())
        self.head = nn.Linear(8, 2)
        self.start = None

    def forward(self, x):
        return self.head(self.body(x))

    def on_fit_start(self):
        self.start = {name: value.clone() for name, value in self.state_dict().items()}

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    validation_step = training_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def loader():
    images = torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, torch.arange(8) % 2), batch_size=4)


def trainer(tmp_path, *callbacks, **options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"max_epochs": 1, **options}
    return Trainer(default_root_dir=tmp_path, callbacks=list(callbacks), accelerator="cpu", **quiet, **options)


def test_a_fit_starts_from_the_drawn_weights(tmp_path):
    model = Foreign()
    trainer(tmp_path, InitializeWeights(XavierUniform(1e-6))).fit(model, loader())
    assert float(model.start["head.weight"].abs().max()) <= 1e-6
    assert float(model.start["head.bias"].abs().max()) == 0


def test_runs_of_one_seed_start_equal_and_of_another_differ(tmp_path):
    starts = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        callback = InitializeWeights(Kaiming())
        torch.rand(len(starts))
        model = Foreign()
        trainer(tmp_path, callback).fit(model, loader())
        starts.append(model.start["head.weight"])
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_a_second_fit_goes_on_with_the_trained_weights(tmp_path):
    model, callback = Foreign(), InitializeWeights(Kaiming())
    runner = trainer(tmp_path, callback)
    runner.fit(model, loader())
    trained = model.head.weight.detach().clone()
    runner.fit_loop.max_epochs = 2
    runner.fit(model, loader())
    assert torch.equal(model.start["head.weight"], trained)


def test_validation_draws_nothing(tmp_path):
    model = Foreign()
    before = model.head.weight.detach().clone()
    trainer(tmp_path, InitializeWeights(Kaiming())).validate(model, loader(), verbose=False)
    assert torch.equal(model.head.weight, before)


def test_a_resumed_fit_keeps_the_restored_weights(tmp_path):
    first = trainer(tmp_path, InitializeWeights(Kaiming()))
    model = Foreign()
    first.fit(model, loader())
    first.save_checkpoint(tmp_path / "last.ckpt")
    resumed = Foreign()
    runner = trainer(tmp_path, InitializeWeights(XavierUniform(1e-6)), max_epochs=2)
    runner.fit(resumed, loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert float(resumed.head.weight.detach().abs().max()) > 1e-3


def test_only_the_named_part_is_drawn(tmp_path):
    model = Foreign()
    head = model.head.weight.detach().clone()
    trainer(tmp_path, InitializeWeights(XavierUniform(1e-6), submodule="body")).fit(model, loader())
    assert torch.equal(model.start["head.weight"], head)
    assert float(model.start["body.1.weight"].abs().max()) <= 1e-6


def test_lsuv_uses_the_given_sample(tmp_path):
    model, sample = Foreign(), 5 * torch.randn(64, 1, 4, 4)
    trainer(tmp_path, InitializeWeights(LSUV(), sample)).fit(model, loader())
    model.load_state_dict(model.start)
    assert float(model.body[1](sample.flatten(1)).detach().var(unbiased=False)) == pytest.approx(1, abs=0.011)


def test_lsuv_without_data_says_how_to_give_some(tmp_path):
    with pytest.raises(ConfigurationError, match="sample="):
        trainer(tmp_path, InitializeWeights(LSUV())).fit(Foreign(), loader())


def test_two_initializers_of_the_same_weights_are_refused(tmp_path):
    network = partial(ConvNet, widths=(4,), depth=1, dense=())
    model = ImageClassifier(network, num_classes=2, image_size=(4, 4), initializer=Kaiming())
    with pytest.raises(ConfigurationError, match="InitializeWeights"):
        trainer(tmp_path, InitializeWeights(XavierUniform())).fit(model, loader())
