import warnings
from functools import partial

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from lightning_cnnopt import ImageClassifier, TensorData
from lightning_cnnopt.architecture import ConvNet
from lightning_cnnopt.core import mark_pretrained
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


def test_one_callback_initializes_every_module_that_it_is_used_with(tmp_path):
    callback = InitializeWeights(XavierUniform(1e-6))
    for model in (Foreign(), Foreign()):
        trainer(tmp_path, callback).fit(model, loader())
        assert float(model.start["head.weight"].abs().max()) <= 1e-6


@pytest.mark.parametrize("submodule", [None, "head"])
def test_another_callback_in_another_trainer_does_not_draw_a_fitted_module_anew(tmp_path, submodule):
    model = Foreign()
    trainer(tmp_path, InitializeWeights(Kaiming(), submodule="body")).fit(model, loader())
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    trainer(tmp_path, InitializeWeights(XavierUniform(1e-6), submodule=submodule)).fit(model, loader())
    assert all(torch.equal(model.start[name], value) for name, value in trained.items())


def test_two_callbacks_initialize_two_parts(tmp_path):
    model = Foreign()
    parts = [InitializeWeights(XavierUniform(gain), submodule=name) for gain, name in ((1e-6, "body"), (1e-3, "head"))]
    trainer(tmp_path, *parts).fit(model, loader())
    assert float(model.start["body.1.weight"].abs().max()) <= 1e-6
    assert 1e-6 < float(model.start["head.weight"].abs().max()) <= 1e-3


def test_a_fit_that_failed_before_it_trained_is_no_fit(tmp_path):
    model = Foreign()
    with pytest.raises(ConfigurationError):
        trainer(tmp_path, InitializeWeights(Kaiming()), InitializeWeights(LSUV())).fit(model, loader())
    trainer(tmp_path, InitializeWeights(XavierUniform(1e-6))).fit(model, loader())
    assert float(model.start["head.weight"].abs().max()) <= 1e-6


def test_a_pretrained_part_stays(tmp_path):
    model = Foreign()
    body = model.body[1].weight.detach().clone()
    mark_pretrained(model.body)
    trainer(tmp_path, InitializeWeights(XavierUniform(1e-6))).fit(model, loader())
    assert torch.equal(model.start["body.1.weight"], body)
    assert float(model.start["head.weight"].abs().max()) <= 1e-6


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


class Keeps(LSUV):
    """LSUV that keeps what it is given."""

    def __call__(self, network, sample=None, generator=None):
        type(self).network, type(self).sample = network, sample
        return super().__call__(network, sample, generator)


def data(**arguments):
    images = torch.randint(0, 256, (40, 1, 4, 4), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return TensorData(train_images=images, train_targets=torch.arange(40) % 2, val_size=0, **arguments)


def classifier(**arguments):
    network = partial(ConvNet, widths=(4,), depth=1, dense=(), normalization=None)
    return ImageClassifier(network, num_classes=2, image_size=(4, 4), **arguments)


def shifted(images):
    return (images.float() / 255 - 0.25) / 2


@pytest.mark.parametrize("face", ["argument", "callback", "callback on the network"])
@pytest.mark.parametrize("given", [True, False], ids=["statistics of its own", "those of the data"])
def test_the_sample_is_what_the_network_is_really_fed(tmp_path, face, given):
    own = {"mean": [0.25], "std": [2.0]} if given else {}
    model = classifier(initializer=Keeps() if face == "argument" else None, **own)
    callbacks = [] if face == "argument" else [InitializeWeights(Keeps(), submodule="network" if "on" in face[8:] else None)]
    fed = []
    model.network.register_forward_pre_hook(lambda module, args: fed.append(args[0]))
    trainer(tmp_path, *callbacks).fit(model, data())
    train = data()
    raw = train.train_set.images
    expected = shifted(raw) if given else (raw / 255 - train.mean[0]) / train.std[0]
    during = [batch for batch in fed if len(batch) == len(raw)]  # LSUV runs on the whole set, training on parts of it
    assert during
    for batch in during:
        distance, which = (batch.flatten(1)[:, None] - expected.flatten(1)).abs().amax(2).min(1)
        assert distance.max() < 1e-4
        assert sorted(which.tolist()) == list(range(len(raw)))


def test_the_sample_of_a_module_with_its_own_preprocessing_is_what_that_makes_of_it(tmp_path):
    class Normalizes(Foreign):
        def __init__(self):
            super().__init__()
            self.preprocessing = nn.Identity()

        def forward(self, x):
            return super().forward(shifted(x))

        def training_step(self, batch, batch_idx):
            assert batch[0].dtype == torch.uint8
            return super().training_step(batch, batch_idx)

    model = Normalizes()
    trainer(tmp_path, InitializeWeights(Keeps())).fit(model, data())
    assert Keeps.sample.dtype == torch.uint8
    model.load_state_dict(model.start)
    output = model.body[1](shifted(data().train_set.images).flatten(1))
    assert float(output.detach().var(unbiased=False)) == pytest.approx(1, abs=0.011)


def test_the_sample_goes_through_a_preprocessing_that_a_subclass_put_in_place(tmp_path):
    class Shift(nn.Module):
        def forward(self, images):
            return shifted(images)

    class Shifts(ImageClassifier):
        def __init__(self, **arguments):
            super().__init__(**arguments)
            self.preprocessing = Shift()

    network = partial(ConvNet, widths=(4,), depth=1, dense=(), normalization=None)
    trainer(tmp_path).fit(Shifts(network=network, num_classes=2, image_size=(4, 4), initializer=Keeps()), data())
    low, high = -0.125, 0.375
    assert low <= float(Keeps.sample.min()) < float(Keeps.sample.max()) <= high


def test_images_that_nobody_normalizes_are_no_sample(tmp_path):
    with pytest.raises(ConfigurationError, match="sample="):
        trainer(tmp_path, InitializeWeights(LSUV())).fit(Foreign(), data(normalize=False))


def test_an_initializer_that_can_do_without_a_sample_is_given_one_where_there_is_one(tmp_path):
    class Decides(Foreign):
        def forward(self, x):
            x = self.body[1](self.body[0](x))
            return x if x.isnan().any() else self.head(torch.tanh(x))

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*can't tell which activation")
        trainer(tmp_path, InitializeWeights(Kaiming())).fit(Decides(), data())
    with pytest.warns(UserWarning, match="can't tell which activation"):
        trainer(tmp_path, InitializeWeights(Kaiming())).fit(Decides(), loader())
