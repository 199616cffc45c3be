"""The contracts that need two processes. What a worker finds is asserted there, or written to a file."""

from __future__ import annotations

import warnings
from functools import partial

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback
from torch import nn

from lightning_cnnopt.augmentation import Transform
from lightning_cnnopt.core.randomness import gather
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
    trainer = harness.trainer([Save(path)], max_steps=-1, max_epochs=2, **arguments)
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


def test_all_techniques_resume_to_the_same_bits_in_two_processes(tmp_path):
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
        fit(str(tmp_path / "none"), extra=[harness.Keep(4, half), Kill(4)])
    fit(resumed, ckpt_path=half, seed=99)
    assert not harness.differences(torch.load(whole), torch.load(resumed))


class Dump(Callback):
    def __init__(self, path):
        self.path = path

    def on_train_end(self, trainer, module):
        state = harness.state_of(trainer)
        if trainer.is_global_zero:
            torch.save(state, self.path)
