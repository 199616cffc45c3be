from __future__ import annotations

import copy
import sys
import warnings
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from torch import nn

from lightning_cnnopt import ImageClassifier
from lightning_cnnopt.__main__ import main
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.spec import factory_of
from lightning_cnnopt.learning_rate import Cosine, ScheduleLearningRate, range_test
from lightning_cnnopt.normalization import PreciseBN
from lightning_cnnopt.normalization.functional import batch_norms
from lightning_cnnopt.optimizers import EMA, SwitchOptimizerMode, has_modes
from lightning_cnnopt.parallel import ScaleRateWithBatchSize
from tests.contracts import harness
from tests.lightning_tools import (
    Foreign,
    Killed,
    SaveAtBatch,
    assert_same_weights,
    plain_loader,
    quiet_trainer,
    resident_loader,
    weights_of,
)

schedulefree = pytest.importorskip("schedulefree", reason="needs the extra optimizers")
prodigyopt = pytest.importorskip("prodigyopt", reason="needs the extra optimizers")
pytestmark = pytest.mark.filterwarnings("ignore")

SCHEDULE_FREE = {
    "AdamW": partial(schedulefree.AdamWScheduleFree, lr=0.05, weight_decay=0.01, warmup_steps=3),
    "SGD": partial(schedulefree.SGDScheduleFree, lr=0.5, weight_decay=0.01),
    "RAdam": partial(schedulefree.RAdamScheduleFree, lr=0.05),
}
every_schedule_free = pytest.mark.parametrize("make", SCHEDULE_FREE.values(), ids=SCHEDULE_FREE)
every_optimizer = pytest.mark.parametrize(
    "make", [*SCHEDULE_FREE.values(), partial(prodigyopt.Prodigy, weight_decay=0.01)], ids=[*SCHEDULE_FREE, "Prodigy"]
)


class Alone(Foreign):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def configure_optimizers(self):
        return self.make(self.parameters())


class SeenInValidation(Callback):
    def __init__(self):
        self.weights = []

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, *args):
        if batch_idx == 0:
            self.weights.append(weights_of(pl_module))


def by_hand(make, steps, clip=None):
    """Return x after each step, and y and x at the end, of a loop that never leaves the training."""
    module = Alone(make)
    optimizer = module.configure_optimizers()
    optimizer.train()
    evaluated = []
    batches = [batch for _ in range(steps) for batch in plain_loader()][:steps]
    for batch in batches:
        loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
        aside = copy.deepcopy((module, optimizer))
        aside[1].eval()
        evaluated.append(weights_of(aside[0]))
    return evaluated, weights_of(module)


def test_only_optimizers_that_have_both_modes_are_switched():
    assert has_modes(schedulefree.AdamWScheduleFree)
    assert has_modes(schedulefree.SGDScheduleFree([nn.Parameter(torch.ones(1))]))
    assert not has_modes(prodigyopt.Prodigy)
    assert not has_modes(torch.optim.AdamW)


@every_schedule_free
@pytest.mark.parametrize("clip", [None, 0.1])
def test_validated_and_kept_is_the_average_of_a_loop_by_hand_and_trained_is_its_other_point(make, clip, tmp_path):
    seen, module = SeenInValidation(), Alone(make)
    trainer = quiet_trainer(SwitchOptimizerMode(), seen, max_epochs=2, val_check_interval=1, gradient_clip_val=clip)
    trainer.fit(module, plain_loader(), plain_loader())
    evaluated, trained = by_hand(make, 12, clip)
    for found, expected in zip(seen.weights[-12:], evaluated, strict=True):
        assert_same_weights(found, expected)
    assert_same_weights(weights_of(module), evaluated[-1])
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    checkpoint = torch.load(tmp_path / "end.ckpt", weights_only=True)
    assert_same_weights(checkpoint["state_dict"], evaluated[-1])
    kept = checkpoint["callbacks"]["SwitchOptimizerMode"]["trained"]
    assert all(torch.equal(a, b) for a, b in zip(kept, trained.values(), strict=True))


@every_schedule_free
def test_validating_and_saving_change_nothing_in_the_training(make, tmp_path):
    def run(*callbacks, **arguments):
        seed_everything(0, verbose=False)
        module = Alone(make)
        trainer = quiet_trainer(SwitchOptimizerMode(), *callbacks, max_epochs=2, **arguments)
        trainer.fit(module, resident_loader(), plain_loader())
        return weights_of(module)

    save = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1)
    assert_same_weights(run(limit_val_batches=0), run(save, val_check_interval=1, num_sanity_val_steps=2))


@every_optimizer
@pytest.mark.parametrize("foreign", [False, True], ids=["ImageClassifier", "foreign module"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_that_is_killed_and_resumed_ends_with_the_same_bits(make, foreign, accumulate, tmp_path):
    def run(*callbacks, seed=1, **arguments):
        seed_everything(seed, verbose=False)
        module = Alone(make) if foreign else harness.make_model(optimizer=make)
        options = {"max_epochs": 3, "val_check_interval": 2, "accumulate_grad_batches": accumulate}
        if foreign:
            trainer = quiet_trainer(SwitchOptimizerMode(), *callbacks, **options)
            trainer.fit(module, resident_loader(), plain_loader(), **arguments)
        else:
            trainer = quiet_trainer(*callbacks, **options)
            trainer.fit(module, datamodule=harness.make_data(), **arguments)
        return trainer

    whole = run()
    path = str(tmp_path / "half.ckpt")
    with pytest.raises(Killed):
        run(SaveAtBatch(8, path))  # in the second epoch, after a validation and a batch
    resumed = run(seed=1 if foreign else 99, ckpt_path=path)
    assert not harness.differences(harness.state_of(whole), harness.state_of(resumed))


@every_schedule_free
def test_a_fit_goes_on_from_the_checkpoint_of_its_end(make, tmp_path):
    def run(epochs, **arguments):
        seed_everything(1, verbose=False)
        module = Alone(make)
        trainer = quiet_trainer(SwitchOptimizerMode(), max_epochs=epochs)
        trainer.fit(module, plain_loader(), **arguments)
        return trainer, weights_of(module)

    _, whole = run(3)
    trainer, _ = run(2)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    _, resumed = run(3, ckpt_path=tmp_path / "end.ckpt")
    assert_same_weights(whole, resumed)


@every_schedule_free
def test_an_image_classifier_switches_by_itself_and_its_checkpoint_loads_as_what_was_validated(make, tmp_path):
    seed_everything(1, verbose=False)
    seen, model = SeenInValidation(), harness.make_model(optimizer=make)
    save = ModelCheckpoint(tmp_path, filename="best", monitor="val_acc", save_top_k=1)
    trainer = harness.trainer([seen, save], max_steps=6, val_check_interval=6, enable_checkpointing=True)
    trainer.fit(model, datamodule=harness.make_data())
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "best.ckpt")
    assert_same_weights(weights_of(loaded), seen.weights[-1])
    checkpoint = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert not any(group["train_mode"] for group in checkpoint["optimizer_states"][0]["param_groups"])
    trained = checkpoint["callbacks"]["SwitchOptimizerMode"]["trained"]
    assert not all(torch.equal(a, b) for a, b in zip(trained, loaded.parameters(), strict=False))
    assert type(loaded.configure_optimizers()) is make.func


def test_the_checkpoint_of_a_loop_that_saved_in_evaluation_mode_is_gone_on_from():
    """What schedulefree's documentation tells to do by hand, without this callback."""
    make = SCHEDULE_FREE["SGD"]
    module = Alone(make)
    optimizer = module.configure_optimizers()
    optimizer.train()
    module.training_step(next(iter(plain_loader())), 0).backward()
    optimizer.step()
    y = weights_of(module)
    optimizer.eval()
    again = Alone(make)
    again.load_state_dict(module.state_dict())

    class Restore(Callback):
        def on_fit_start(self, trainer, pl_module):
            trainer.optimizers[0].load_state_dict(optimizer.state_dict())

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            for name, value in weights_of(pl_module).items():
                assert torch.allclose(value, y[name], atol=1e-6)
            trainer.should_stop = True

    quiet_trainer(SwitchOptimizerMode(), Restore(), Look(), max_steps=1).fit(again, plain_loader())


def test_precise_bn_measures_in_what_is_evaluated():
    def run(*callbacks):
        seed_everything(1, verbose=False)
        model = harness.make_model(optimizer=SCHEDULE_FREE["SGD"])
        data = harness.make_data(batch_size=22)
        harness.trainer(callbacks, max_steps=5).fit(model, datamodule=data)  # the last step is not followed by a validation
        return model, data

    model, data = run(PreciseBN(1000))
    norms = batch_norms(model)
    measured = {name: norm.running_mean.clone() for name, norm in norms.items()}
    first = next(iter(norms))
    images = data.train_set.images
    seen = []
    handle = norms[first].register_forward_hook(lambda module, args, output: seen.append(args[0].mean((0, 2, 3))))
    with torch.no_grad():
        model.eval()(images)
    handle.remove()
    assert torch.allclose(measured[first], seen[0], atol=1e-4)
    without, _ = run()
    assert not torch.allclose(batch_norms(without)[first].running_mean, measured[first], atol=1e-4)
    assert torch.equal(without.network.head.weight, model.network.head.weight)


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (lambda: EMA(0.9), "AdamWScheduleFree evaluates an average of its own, and EMA would"),
        (lambda: StochasticWeightAveraging(0.1), "and StochasticWeightAveraging would"),
        (lambda: ModelCheckpoint("x", save_weights_only=True), "save_weights_only=True.*AdamWScheduleFree trains"),
    ],
)
def test_other_averages_are_refused(callback, message):
    model = harness.make_model(optimizer=SCHEDULE_FREE["AdamW"])
    with pytest.raises(ConfigurationError, match=message):
        harness.trainer([callback()], enable_checkpointing=True).fit(model, datamodule=harness.make_data())


@pytest.mark.filterwarnings("default")
def test_a_schedule_and_statistics_of_other_weights_are_told():
    def fit(*callbacks, **arguments):
        model = harness.make_model(optimizer=SCHEDULE_FREE["AdamW"], **arguments)
        harness.trainer(callbacks).fit(model, datamodule=harness.make_data())

    with pytest.warns(UserWarning, match="AdamWScheduleFree replaces a schedule by an average.*warmup_steps"):
        fit(PreciseBN(16), schedule=Cosine())
    with pytest.warns(UserWarning, match=r"statistics of 5 layers of batch normalization.*Add the callback PreciseBN"):
        fit()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fit(PreciseBN(16), ScaleRateWithBatchSize(8))
    assert not [w for w in told if "AdamWScheduleFree" in str(w.message)]


@pytest.mark.filterwarnings("default")
def test_an_optimizer_without_modes_is_told_where_the_callback_was_given_and_not_where_it_came_by_itself():
    with pytest.warns(UserWarning, match=r"SwitchOptimizerMode switches nothing: SGD has"):
        quiet_trainer(SwitchOptimizerMode(), max_steps=1).fit(Foreign(), plain_loader())


def test_given_beside_the_classifiers_own_it_is_there_once():
    model = harness.make_model(optimizer=SCHEDULE_FREE["SGD"])
    trainer = harness.trainer([SwitchOptimizerMode()])
    trainer.fit(model, datamodule=harness.make_data())
    assert sum(isinstance(callback, SwitchOptimizerMode) for callback in trainer.callbacks) == 1
    other = harness.make_model(optimizer=SCHEDULE_FREE["SGD"])
    trainer = harness.trainer()
    trainer.fit(model, datamodule=harness.make_data())
    trainer.fit_loop.epoch_loop.max_steps = 8
    trainer.fit(other, datamodule=harness.make_data())
    switching = [callback for callback in trainer.callbacks if isinstance(callback, SwitchOptimizerMode)]
    assert len(switching) == 1
    assert switching[0] in other.own_callbacks


def test_a_range_test_leaves_a_schedule_free_training_as_it_was():
    def run(with_test):
        seed_everything(1, verbose=False)
        model, data = harness.make_model(optimizer=SCHEDULE_FREE["AdamW"]), harness.make_data()
        trainer = harness.trainer(max_steps=6)
        if with_test:
            assert range_test(trainer, model, datamodule=data, min_lr=1e-4, steps=12).losses
        trainer.fit(model, datamodule=data)
        return harness.state_of(trainer)

    assert not harness.differences(run(False), run(True))


def test_a_schedule_on_prodigy_multiplies_its_factor():
    model = Alone(prodigyopt.Prodigy)
    trainer = quiet_trainer(ScheduleLearningRate(Cosine()), max_steps=4)
    trainer.fit(model, plain_loader())
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-9)
    assert trainer.optimizers[0].param_groups[0]["d"] > 1e-6


@pytest.mark.parametrize("path", ["schedulefree.AdamWScheduleFree", "prodigyopt.Prodigy"])
def test_a_missing_package_is_one_paragraph_that_names_the_extra(path, monkeypatch, capfd):
    package = path.partition(".")[0]
    assert issubclass(factory_of({"class_path": path, "init_args": {"lr": 0.5}}).func, torch.optim.Optimizer)
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Hidden(package), *sys.meta_path])
    hint = r'pip install "lightning-cnnopt\[optimizers\]"'
    with pytest.raises(ConfigurationError, match=rf"'{path}' can't be imported: .*{package}.*{hint}"):
        factory_of({"class_path": path})
    assert main(["fit", "--data", "Digits", "--model.optimizer", path]) == 2
    said = capfd.readouterr().err
    assert 'It comes with pip install "lightning-cnnopt[optimizers]"' in said
    assert len(said.strip().splitlines()) == 1


class Hidden:
    def __init__(self, package):
        self.package = package

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
