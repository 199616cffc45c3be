"""The contracts that need two processes. What a worker finds is asserted there, or written to a file."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader

from lightning_cnnopt import ImageClassifier
from lightning_cnnopt.augmentation import Transform
from lightning_cnnopt.core.randomness import gather
from lightning_cnnopt.data import resident
from lightning_cnnopt.initialization import InitializeWeights
from lightning_cnnopt.regularization import L1

from . import harness
from .cases import CASES
from .test_contracts import Kill

TWO = {"devices": 2, "strategy": "ddp_fork"}


class Plain(nn.Module):
    """Nothing in it depends on how a batch is cut: no batch statistics, no dropout."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.norm = nn.GroupNorm(2, 8)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


class Save(Callback):
    """Writes the weights, and every rank's first weights and draws, for the test to read."""

    def __init__(self, path):
        self.path = str(path)

    def on_train_start(self, trainer, module):
        self.first = gather([p.detach().clone() for p in module.parameters()])

    def on_train_end(self, trainer, module):
        draws = gather(torch.rand(4, generator=trainer.datamodule.augmentation.stream.generator))
        if trainer.is_global_zero:
            metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
            weights = {name: value.cpu() for name, value in module.state_dict().items()}
            torch.save({"weights": weights, "first": self.first, "draws": draws, "metrics": metrics}, self.path)


def run(path, model, data, **arguments):
    seed_everything(5, verbose=False)
    trainer = harness.trainer([Save(path)], **{"max_steps": -1, "max_epochs": 2, **arguments})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model(), datamodule=data())
    return torch.load(path)


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    model = partial(harness.make_model, network=Plain, initializer=CASES["Kaiming"](), penalties=[L1(1e-3)])
    one = run(folder / "one.pt", model, partial(harness.make_data, batch_size=16, eval_batch_size=3))
    two = run(folder / "two.pt", model, partial(harness.make_data, batch_size=8, eval_batch_size=3), **TWO)
    return one, two


def test_two_processes_take_the_steps_of_one_on_the_whole_batch(one_and_two):
    one, two = one_and_two
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, rtol=1e-5, atol=1e-6, msg=name)


def test_processes_start_equal(one_and_two):
    one, two = one_and_two
    assert len(two["first"]) == 2
    assert not harness.differences(two["first"][0], two["first"][1])
    assert not harness.differences(two["first"][0], one["first"][0])


def test_processes_augment_differently(one_and_two):
    _, two = one_and_two
    assert not torch.equal(two["draws"][0], two["draws"][1])


@pytest.mark.parametrize("metric", ["val_loss", "val_acc", "val_f1", "val_ece"])
def test_no_validation_sample_is_lost_or_doubled(one_and_two, metric):
    one, two = one_and_two  # 8 samples in batches of 3, over two ranks
    assert two["metrics"][metric] == pytest.approx(one["metrics"][metric], abs=1e-5)


def test_a_last_batch_that_two_can_not_share_out_is_the_step_of_one_on_what_both_take(tmp_path):
    def model(**arguments):
        return harness.make_model(network=Plain, **arguments)

    def data():
        return harness.make_data(val_size=9, batch_size=8)  # 43 to train on: batches of 16, 16 and 10, and one is left out

    two = run(tmp_path / "two.pt", model, data, max_epochs=1, **TWO)["weights"]
    parts = []
    for rank in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(resident, "world_size", lambda: 2)
            patch.setattr(resident, "rank", lambda rank=rank: rank)
            chosen = data().train_set
            parts.append(list(resident.ResidentLoader(chosen.images, chosen.targets, 8, shuffle=True, seed=5)))
    together = [[torch.cat(pair) for pair in zip(*batch, strict=True)] for batch in zip(*parts, strict=True)]
    assert [len(targets) for _, targets in together] == [16, 16, 10]
    seed_everything(5, verbose=False)
    mean, std = data().pixel_statistics()
    one = model(mean=mean, std=std)
    harness.trainer(max_steps=-1, max_epochs=1).fit(one, DataLoader(together, batch_size=None))
    for name, value in one.network.state_dict().items():
        torch.testing.assert_close(two[f"network.{name}"], value, rtol=1e-5, atol=1e-6, msg=name)


class SeededApart:
    """A module whose ranks have seeds of their own, as processes have that nobody seeded; it keeps the samples it sees."""

    def configure_callbacks(self):
        torch.manual_seed(100 + self.trainer.local_rank)
        return super().configure_callbacks()

    def training_step(self, batch, batch_idx):
        self.seen = [*getattr(self, "seen", []), *batch[0].flatten(1).float().sum(1).tolist()]
        return super().training_step([batch[0].float() / 255, batch[1]], batch_idx)


class ForeignSeededApart(SeededApart, harness.Foreign):
    pass


class ClassifierSeededApart(SeededApart, ImageClassifier):
    def initialize(self, network, sample):
        super().initialize(network, sample)
        nn.init.normal_(network.head.weight)  # as a user does who never heard of our streams


class Look(Callback):
    """Rank 0 looks at a batch, as it does to log some images; nobody waits for the others there."""

    def __init__(self, path):
        self.path = str(path)

    def on_train_start(self, trainer, module):
        self.first = gather([p.detach().clone() for p in module.parameters()])
        if trainer.is_global_zero and trainer.datamodule is not None:
            next(iter(trainer.datamodule.train_dataloader()))

    def on_train_end(self, trainer, module):
        seen = gather(module.seen)
        if trainer.is_global_zero:
            torch.save({"seen": seen, "first": self.first}, self.path)


@pytest.mark.parametrize("case", ["plain loader", "our data module", "ImageClassifier"])
def test_processes_with_seeds_of_their_own_start_equal_and_share_out_the_samples(case, tmp_path, monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)  # by which Lightning seeds its processes alike after seed_everything
    data = harness.make_data(normalize=False)
    images, targets = data.train_set.images, data.train_set.targets
    callbacks = [Look(tmp_path / "seen.pt")]
    if case == "ImageClassifier":
        module = ClassifierSeededApart(harness.TinyResNet, num_classes=4, image_size=(8, 8), initializer=CASES["LSUV"]())
    else:
        module = ForeignSeededApart()
        callbacks.append(InitializeWeights(CASES["Kaiming"]()))
    run = harness.trainer(callbacks, max_steps=-1, max_epochs=2, limit_val_batches=0, **TWO)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if case == "plain loader":
            run.fit(module, resident.ResidentLoader(images, targets, 8, shuffle=True))
        else:
            run.fit(module, datamodule=data)
    found = torch.load(tmp_path / "seen.pt")
    assert not harness.differences(found["first"][0], found["first"][1])
    every = sorted(images.flatten(1).float().sum(1).tolist())
    assert len(set(every)) > 40
    epochs = [[part[: len(part) // 2] for part in found["seen"]], [part[len(part) // 2 :] for part in found["seen"]]]
    for first, second in epochs:
        assert sorted(first + second) == every
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("step", [4, 3], ids=["within an epoch", "at the end of one"])
def test_all_techniques_resume_to_the_same_bits_in_two_processes(step, tmp_path):
    def fit(target, ckpt_path=None, seed=1, extra=()):
        seed_everything(seed, verbose=False)
        model = harness.make_model(
            edits=[CASES[name]() for name in ("SqueezeExcite", "SwapActivation", "SwapNormalization", "StochasticDepth")],
            initializer=CASES["LSUV"](),
            penalties=[CASES["L1"]()],
            schedule=CASES["Warmup"](),
        )
        augmentation = [make() for make in CASES.values() if isinstance(make(), Transform)]
        data = harness.make_data(augmentation=augmentation, mixing=CASES["MixUp"](), batch_size=4)
        techniques = [CASES[name]() for name in ("EMA", "ConstrainWeights", "ScaleRateWithBatchSize", "ClassWeights")]
        trainer = harness.trainer(
            [*techniques, *extra, Dump(target)], max_steps=8, val_check_interval=3, accumulate_grad_batches=2, **TWO
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)

    half, whole, resumed = (str(tmp_path / f"{name}.ckpt") for name in ("half", "whole", "resumed"))
    fit(whole)
    with pytest.raises(Exception, match="KeyboardInterruptedRun"):
        fit(str(tmp_path / "none"), extra=[harness.Keep(step, half), Kill(step)])
    fit(resumed, ckpt_path=half, seed=99)
    different = harness.differences(torch.load(whole), torch.load(resumed))
    # after the last batch of an epoch Lightning begins the next one without counting it
    assert not [place for place in different if step == 4 or "/fit_loop/epoch_progress/" not in place]


class Dump(Callback):
    def __init__(self, path):
        self.path = path

    def on_train_end(self, trainer, module):
        state = harness.state_of(trainer)
        if trainer.is_global_zero:
            torch.save(state, self.path)
