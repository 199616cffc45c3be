import copy
import warnings
from itertools import pairwise

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_cnnopt import ImageClassifier
from lightning_cnnopt.augmentation import HorizontalFlip
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.randomness import gather
from lightning_cnnopt.normalization import FoldBatchNorm, FreezeStatistics, PreciseBN
from lightning_cnnopt.optimizers import EMA
from tests.contracts import harness


class Watch(Callback):
    """Keeps the statistics of the first normalization, and the weights before it, at the end of each validation."""

    def __init__(self):
        self.seen = []

    def on_validation_end(self, trainer, module):
        self.seen.append(copy.deepcopy(nn.ModuleDict({"stem": module.network.stem, "norm": module.network.norm})))


def fit(*callbacks, model=None, data=None, **arguments):
    seed_everything(1, verbose=False)
    model = harness.make_model() if model is None else model
    trainer = harness.trainer(callbacks, **{"max_steps": 6, "val_check_interval": 3, **arguments})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, datamodule=harness.make_data() if data is None else data)
    return trainer, model


@torch.no_grad()
def expected_of(stem, images):
    reaching = stem(images)
    return reaching.mean((0, 2, 3)), reaching.var((0, 2, 3))


def normalized(data):
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in data.pixel_statistics())
    return (data.train_set.images / 255 - mean) / std


def test_before_each_validation_the_statistics_are_those_of_the_training_set():
    data, watch = harness.make_data(batch_size=11), Watch()  # four whole batches
    _, model = fit(PreciseBN(44), watch, data=data, max_steps=5, val_check_interval=2)
    assert len(watch.seen) == 2
    for seen in watch.seen:
        mean, var = expected_of(seen["stem"], normalized(data))
        torch.testing.assert_close(seen["norm"].running_mean, mean)
        torch.testing.assert_close(seen["norm"].running_var, var)
    # training went on by a step, and has ended
    mean, var = expected_of(model.network.stem, normalized(data))
    torch.testing.assert_close(model.network.norm.running_mean, mean)
    torch.testing.assert_close(model.network.norm.running_var, var)
    assert not torch.equal(watch.seen[-1]["norm"].running_mean, mean)


@pytest.mark.parametrize("val_check_interval", [2, 3])
def test_training_is_as_without(val_check_interval):
    def weights(*callbacks):
        data = harness.make_data(augmentation=[HorizontalFlip()])
        _, model = fit(*callbacks, data=data, val_check_interval=val_check_interval, max_steps=8)
        draws = torch.rand(3, generator=data.augmentation.stream.generator), torch.rand(3)
        return [p.detach() for p in model.parameters()], draws

    (plain, plain_draws), (precise, precise_draws) = weights(), weights(PreciseBN(16))
    assert all(torch.equal(a, b) for a, b in zip(plain, precise, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(plain_draws, precise_draws, strict=True))


def test_a_checkpoint_holds_the_statistics_that_were_validated(tmp_path):
    save = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=-1, filename="{step}-{val_loss:.6f}")
    fit(PreciseBN(44), save, enable_checkpointing=True)
    paths = sorted(tmp_path.glob("*.ckpt"))
    assert len(paths) == 2
    for path in paths:
        loaded = ImageClassifier.load_from_checkpoint(path)
        (metrics,) = harness.trainer().validate(loaded, datamodule=harness.make_data(), verbose=False)
        assert f"val_loss={metrics['val_loss']:.6f}" in path.name


def test_without_validation_they_are_measured_when_training_ends():
    data = harness.make_data(batch_size=11)
    _, model = fit(PreciseBN(44), data=data, limit_val_batches=0)
    torch.testing.assert_close(model.network.norm.running_var, expected_of(model.network.stem, normalized(data))[1])


def test_a_foreign_module_with_a_loader_of_torchs_is_served_too():
    images = torch.randn(40, 1, 8, 8)
    loader = DataLoader(TensorDataset(images, torch.arange(40) % 4), batch_size=10, shuffle=True)
    module = harness.Foreign()
    seed_everything(1, verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        harness.trainer([PreciseBN(40)], max_steps=6).fit(module, loader)
    mean, var = expected_of(module.network.stem, images)
    torch.testing.assert_close(module.network.norm.running_mean, mean)
    torch.testing.assert_close(module.network.norm.running_var, var)


def test_layers_that_are_frozen_in_training_keep_their_statistics():
    class FreezeFirst(Callback):
        def on_train_start(self, trainer, module):
            module.network.norm.eval()

    _, model = fit(FreezeFirst(), PreciseBN(16))
    assert torch.equal(model.network.norm.running_mean, torch.zeros(16))
    assert not torch.equal(model.network.blocks[0].bn1.running_mean, torch.zeros(16))


def test_two_processes_measure_what_one_does(tmp_path):
    def run(path, **arguments):
        class Save(Callback):
            def on_train_end(self, trainer, module):
                everywhere = gather({name: value.clone() for name, value in module.network.norm.state_dict().items()})
                if trainer.is_global_zero:
                    torch.save(everywhere, path)

        def plain(num_classes):  # nothing of the training depends on how a batch is cut
            net = harness.TinyResNet(num_classes)
            net.blocks, net.dropout = nn.Sequential(), nn.Dropout(0.0)
            for parameter in net.stem.parameters():
                parameter.requires_grad_(False)
            return net

        seed_everything(1, verbose=False)
        trainer = harness.trainer([PreciseBN(44), Save()], max_steps=2, **arguments)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(harness.make_model(network=plain(4)), datamodule=harness.make_data(batch_size=11))
        return torch.load(path)

    [one] = run(tmp_path / "one.pt")
    first, second = run(tmp_path / "two.pt", devices=2, strategy="ddp_fork")
    for name in ("running_mean", "running_var"):
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], one[name])


@pytest.mark.parametrize("other", [lambda: EMA(0.9), EMAWeightAveraging])
@pytest.mark.parametrize("first", [True, False])
def test_averaged_weights_and_precise_statistics_are_refused_together(other, first):
    callbacks = [PreciseBN(16), other()]
    with pytest.raises(
        ConfigurationError, match=r"(EMA|EMAWeightAveraging) averages the running statistics.*precise_statistics"
    ):
        fit(*(callbacks if first else reversed(callbacks)))


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.randn(1, 8, 8), 0


def test_a_loader_that_no_samples_can_be_drawn_from_is_refused_before_the_first_step():
    module = harness.Foreign()
    trainer = harness.trainer([PreciseBN(16)])
    with pytest.raises(ConfigurationError, match=r"can't draw from DataLoader.*precise_statistics\(model, loader\)"):
        trainer.fit(module, DataLoader(Endless(), batch_size=4))
    assert trainer.global_step == 0


@pytest.mark.parametrize("callback", [PreciseBN(16), FreezeStatistics()], ids=repr)
def test_a_network_without_batch_normalization_is_named_in_a_warning(callback):
    module = harness.Foreign(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))
    with pytest.warns(UserWarning, match=r"nothing: Foreign has no batch normalization"):
        harness.trainer([callback], limit_val_batches=0).fit(module, datamodule=harness.make_data(normalize=True))


def statistics(network):
    return {name: value.clone() for name, value in network.named_buffers() if "running" in name}


def test_frozen_statistics_stay_and_normalize_in_training():
    model = harness.make_model()
    model.network.norm.running_mean.fill_(0.25)
    before = statistics(model.network)
    outputs = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, module, *args):
            x = torch.randn(2, 16, 4, 4)
            outputs.append((module.network.norm(x), copy.deepcopy(module.network.norm).eval()(x)))

    _, model = fit(FreezeStatistics(), Look(), model=model)
    assert not harness.differences(before, statistics(model.network))
    assert len(outputs) == 6
    assert all(torch.equal(*pair) for pair in outputs)
    assert not torch.equal(model.network.norm.weight, torch.ones(16))
    assert all(module.training for module in model.network.modules())


@pytest.mark.parametrize("start", [0.5, "3st"])
def test_statistics_are_frozen_from_the_given_moment_on(start):
    seen = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, module, *args):
            seen.append(statistics(module.network))

    fit(FreezeStatistics(start), Look())
    moved = [bool(harness.differences(a, b)) for a, b in pairwise(seen)]
    assert moved == [True, True, False, False, False]


def test_code_that_switches_the_module_to_training_does_not_thaw_them():
    class Switch(Callback):
        def on_train_batch_end(self, trainer, module, *args):
            module.train()

    model = harness.make_model()
    before = statistics(model.network)
    fit(FreezeStatistics(), Switch(), model=model)
    assert not harness.differences(before, statistics(model.network))


def trained():
    data = harness.make_data()
    _, model = fit(data=data)
    return model, data


def test_testing_folded_gives_the_same_results_and_leaves_the_network_as_it_was():
    model, data = trained()
    modules, structure = list(model.modules()), str(model)
    (expected,) = harness.trainer().test(model, datamodule=data, verbose=False)
    inside = []

    class Look(Callback):
        def on_test_batch_end(self, trainer, module, *args):
            inside.append(sum(isinstance(layer, nn.BatchNorm2d) for layer in module.modules()))

    (found,) = harness.trainer([FoldBatchNorm(), Look()]).test(model, datamodule=data, verbose=False)
    assert set(inside) == {0}
    assert found == pytest.approx(expected, rel=1e-5)
    assert list(model.modules()) == modules
    assert str(model) == structure


def test_predictions_are_the_same_folded():
    model, data = trained()
    expected = harness.trainer().predict(model, datamodule=data)
    found = harness.trainer([FoldBatchNorm()]).predict(model, datamodule=data)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(b["probabilities"], a["probabilities"])
    assert isinstance(model.network.norm, nn.BatchNorm2d)


def test_the_network_is_as_it_was_after_an_error_too():
    class Fail(Callback):
        def on_test_batch_end(self, trainer, module, *args):
            raise RuntimeError("on purpose")

    model, data = trained()
    with pytest.raises(RuntimeError, match="on purpose"):
        harness.trainer([FoldBatchNorm(), Fail()]).test(model, datamodule=data, verbose=False)
    assert isinstance(model.network.norm, nn.BatchNorm2d)


def test_nothing_to_fold_is_said():
    module = harness.make_model(network=lambda num_classes: nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes)))
    with pytest.warns(UserWarning, match="folded nothing"):
        harness.trainer([FoldBatchNorm()]).test(module, datamodule=harness.make_data(), verbose=False)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: PreciseBN(1), "samples=1"),
        (lambda: PreciseBN("all"), "samples='all'"),
        (lambda: FreezeStatistics(5), "start=5"),
        (lambda: FreezeStatistics("soon"), "start='soon'"),
    ],
)
def test_arguments_out_of_range_are_refused(make, said):
    with pytest.raises(ConfigurationError, match=said):
        make()


def test_a_network_that_is_not_there_to_fold_is_named():
    model, data = trained()
    with pytest.raises(ConfigurationError, match="no submodule 'backbone'"):
        harness.trainer([FoldBatchNorm("backbone")]).test(model, datamodule=data, verbose=False)
