from __future__ import annotations

import copy
import random
import threading
from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cnnopt.augmentation import HorizontalFlip, MixUp, PaddedCrop
from lightning_cnnopt.core.errors import ConfigurationError, DivergenceError
from lightning_cnnopt.core.randomness import ResumeRandomState
from lightning_cnnopt.initialization import LSUV
from lightning_cnnopt.learning_rate import Cosine, LayerWiseRates, RangeTest, ScheduleLearningRate, Warmup, range_test
from lightning_cnnopt.learning_rate.functional import descent, smooth, steepest, valley
from lightning_cnnopt.optimizers import EMA
from lightning_cnnopt.parallel import ScaleRateWithBatchSize
from lightning_cnnopt.regularization import L1, ConstrainWeights, MaxNorm
from tests.contracts import harness
from tests.lightning_tools import Foreign, RecordRates, quiet_trainer, resident_loader, samples

QUICK = {"min_lr": 1e-4, "max_lr": 1.0, "steps": 20}


def test_smoothing_moves_neither_a_line_nor_a_minimum():
    line = [float(i) for i in range(20)]
    assert smooth(line, 5) == pytest.approx(line)
    bowl = [(i - 7) ** 2 for i in range(20)]
    assert min(range(20), key=smooth(bowl, 4).__getitem__) == 7
    assert smooth([3.0, 1.0, 2.0], 0) == [3.0, 1.0, 2.0]


def test_on_a_noisy_sigmoid_that_explodes_the_suggestions_are_where_its_formula_has_them():
    generator = np.random.default_rng(0)
    x = np.linspace(-7, 0, 101)  # the loss falls around 1e-3 and is least about 1e-1.5
    losses = 2.0 - 1.5 / (1 + np.exp(-(x + 3) * 3)) + 10 ** (3 * (x + 0.8)) + generator.normal(0, 0.02, 101)
    smoothed = smooth(losses.tolist(), 5)
    begin, end = descent(smoothed, first=7)
    part = smoothed[begin : end + 1]
    assert -4.6 < x[begin] < -3.6
    assert x[end] == pytest.approx(-1.7, abs=0.3)
    assert x[begin + steepest(part)] == pytest.approx(-3, abs=0.3)
    assert x[begin + valley(part)] == pytest.approx((x[begin] + x[end]) / 2, abs=0.3)


def test_the_longest_descent_goes_on_through_single_values_that_rise():
    assert valley([9.0, 8.0, 8.5, 7.0, 6.0, 6.5, 5.0, 20.0, 19.0]) == 3
    assert valley([1.0, 2.0, 3.0]) == 0


@pytest.mark.parametrize("values", [[1.0] * 20, [float(i) for i in range(20)], [1.0, 1.01] * 10])
def test_what_never_falls_has_no_descent(values):
    assert descent(values, first=4) is None


class Shared(RecordRates):
    """Not copied, so that what it sees can be looked at."""

    def __deepcopy__(self, memo):
        return self


# nothing is left behind


def random_states():
    return {
        "torch": torch.get_rng_state(),
        "numpy": [x.tolist() if hasattr(x, "tolist") else x for x in np.random.get_state()],
        "python": str(random.getstate()),
    }


def full_classifier():
    seed_everything(1, verbose=False)
    model = harness.make_model(initializer=LSUV(), penalties=[L1(0.01)], schedule=Warmup(Cosine()), layer_decay=0.5)
    data = harness.make_data(augmentation=[HorizontalFlip(), PaddedCrop(1)], mixing=MixUp(0.5))
    return model, data, [EMA(0.9), ConstrainWeights(MaxNorm(0.5))]


@pytest.mark.filterwarnings("ignore")
def test_a_fit_after_it_is_to_the_bit_the_fit_without_it(tmp_path):
    def run(with_test, folder):
        model, data, callbacks = full_classifier()
        save = ModelCheckpoint(tmp_path / folder, save_last=True)
        options = {
            "logger": CSVLogger(tmp_path / folder),
            "enable_checkpointing": True,
            "max_steps": 9,
            "val_check_interval": 3,
        }
        trainer = harness.trainer([*callbacks, save], **options)
        if with_test:
            before = random_states(), copy.deepcopy(model.state_dict())
            result = range_test(trainer, model, datamodule=data, **QUICK)
            assert len(result.losses) > 5
            assert not harness.differences(before, (random_states(), model.state_dict()))
            assert trainer.global_step == 0
            assert not (tmp_path / folder).exists()
        trainer.fit(model, datamodule=data)
        return harness.state_of(trainer), random_states()

    (plain, plain_states), (tested, tested_states) = run(False, "plain"), run(True, "tested")
    for state in (plain, tested):
        state["callbacks"] = {k: v for k, v in state["callbacks"].items() if not k.startswith("ModelCheckpoint")}
    assert not harness.differences(plain, tested)
    assert not harness.differences(plain_states, tested_states)
    assert sorted(p.name for p in (tmp_path / "plain").rglob("*")) == sorted(p.name for p in (tmp_path / "tested").rglob("*"))


@pytest.mark.filterwarnings("ignore")
def test_between_two_fits_of_a_foreign_module_it_leaves_everything_as_it_was():
    def run(with_test):
        seed_everything(3, verbose=False)
        module = harness.Foreign()
        images, targets = torch.rand(40, 1, 8, 8), torch.arange(40) % 4
        loader = DataLoader(TensorDataset(images, targets), batch_size=8, shuffle=True)
        trainer = quiet_trainer(ScheduleLearningRate(Cosine()), ResumeRandomState(), max_epochs=1)
        trainer.fit(module, loader)
        if with_test:
            before = copy.deepcopy(harness.state_of(trainer)), random_states()
            assert range_test(trainer, module, loader, **QUICK).losses
            assert not harness.differences(before, (harness.state_of(trainer), random_states()))
        trainer.fit_loop.max_epochs = 3
        trainer.fit(module, loader)
        return harness.state_of(trainer), random_states()

    assert not harness.differences(run(False), run(True))


@pytest.mark.filterwarnings("ignore")
def test_the_random_streams_are_put_back_when_it_fails_too():
    class Bad(Foreign):
        def training_step(self, batch, batch_idx):
            torch.rand(1), np.random.rand(), random.random()
            raise RuntimeError("broken")

    module = Bad()
    before = random_states()
    with pytest.raises(RuntimeError, match="broken"):
        range_test(quiet_trainer(), module, resident_loader(), **QUICK)
    assert not harness.differences(before, random_states())


# what is measured


def losses_of_a_fit(callbacks, steps, **arguments):
    class Losses(Callback):
        def __init__(self):
            self.losses = []

        def on_train_batch_end(self, trainer, pl_module, outputs, *args):
            self.losses.append(float(outputs["loss"]))

    record = Losses()
    model, data, more = full_classifier()
    trainer = harness.trainer([*more, *callbacks, record], max_steps=steps, limit_val_batches=0, **arguments)
    trainer.fit(model, datamodule=data)
    return record.losses


@pytest.mark.filterwarnings("ignore")
def test_it_trains_on_what_a_fit_trains_on_from_the_weights_it_starts_from():
    class Rates(Callback):  # the same rates by hand, over the schedule
        def on_train_batch_start(self, trainer, *args):
            for group, share in zip(trainer.optimizers[0].param_groups, shares, strict=True):
                group["lr"] = share * QUICK["min_lr"] * (QUICK["max_lr"] / QUICK["min_lr"]) ** (trainer.global_step / 19)

    shares = [group["lr"] / 0.05 for group in full_classifier()[0].configure_optimizers().param_groups]
    model, data, more = full_classifier()
    result = range_test(harness.trainer(more), model, datamodule=data, **QUICK)
    assert result.losses == losses_of_a_fit([Rates()], 20)[: len(result.losses)]


@pytest.mark.filterwarnings("ignore")
def test_the_rates_grow_by_a_constant_factor_and_groups_keep_their_ratio():
    keep = Shared()
    result = range_test(quiet_trainer(keep), Foreign(lr=0.1, bias_lr=0.01), resident_loader(), None, 1e-5, 1e-1, steps=10)
    assert result.rates == pytest.approx([1e-5 * 10 ** (4 * i / 9) for i in range(10)])
    assert [group[0] for group in keep.groups] == pytest.approx(result.rates)
    assert all(first == pytest.approx(10 * second) for first, second in keep.groups)


@pytest.mark.filterwarnings("ignore")
def test_accumulated_batches_are_one_step_at_one_rate():
    keep = Shared()
    result = range_test(quiet_trainer(keep, accumulate_grad_batches=3), Foreign(), resident_loader(), **QUICK)
    assert len(result.losses) == len(keep.groups) == 20
    assert keep.rates == pytest.approx(result.rates)


@pytest.mark.filterwarnings("ignore")
def test_layer_wise_rates_are_kept_and_the_last_layer_has_the_rate():
    keep = Shared()
    module = harness.Foreign()
    range_test(quiet_trainer(LayerWiseRates(0.5), keep), module, datamodule=harness.make_data(normalize=True), **QUICK)
    assert keep.groups[0] == pytest.approx([1e-4 * f for f in (0.125, 0.25, 0.5, 1.0)])


@pytest.mark.filterwarnings("ignore")
def test_schedules_do_not_act_and_batch_size_scaling_is_taken_into_account():
    plain = range_test(quiet_trainer(), Foreign(), resident_loader(), **QUICK)
    scheduled = range_test(quiet_trainer(ScheduleLearningRate(Cosine())), Foreign(), resident_loader(), **QUICK)
    assert scheduled == plain

    class WithScheduler(Foreign):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.1, 0.01], total_steps=100, cycle_momentum=False)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}

    assert range_test(quiet_trainer(), WithScheduler(), resident_loader(), **QUICK) == plain
    keep = Shared()
    scaled = range_test(quiet_trainer(ScaleRateWithBatchSize(1), keep), Foreign(), resident_loader(batch_size=2), **QUICK)
    assert scaled.rates == plain.rates
    assert keep.rates == pytest.approx([2 * rate for rate in plain.rates])


@pytest.mark.filterwarnings("ignore")
def test_callbacks_of_a_kind_can_be_left_out():
    keep = Shared()
    range_test(quiet_trainer(keep), Foreign(), resident_loader(), **QUICK, without=[Shared])
    assert keep.groups == []


@pytest.mark.filterwarnings("ignore")
def test_it_stops_early_when_the_loss_diverges():
    result = range_test(quiet_trainer(), Foreign(), resident_loader(), min_lr=1e-3, max_lr=1e9, steps=60)
    assert result.diverged
    assert len(result.rates) == len(result.losses) < 60
    assert all(np.isfinite(result.losses))
    assert result.suggestions == {"steepest": result.steepest, "valley": result.valley, "minimum": result.minimum}
    assert result.recommended == result.valley < result.rates[-1]


# what can't be right


class Alone(Foreign):
    """With an optimizer that is given."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def configure_optimizers(self):
        return self.make(self.parameters())


class WithoutRate(torch.optim.Optimizer):
    def __init__(self, parameters):
        super().__init__(parameters, {})

    def step(self, closure=None):
        closure()


class Manual(Foreign):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class Locked(Foreign):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Alone(WithoutRate), "WithoutRate has no lr"),
        (Manual, "needs automatic optimization, and Manual steps"),
        (Locked, r"a part of this Trainer, Locked or its data can't be copied: cannot pickle '_thread.lock'"),
        (lambda: Alone(lambda p: pytest.importorskip("prodigyopt").Prodigy(p)), "A range test and Prodigy exclude"),
    ],
    ids=["no rate", "manual", "not copied", "prodigy"],
)
def test_modules_that_can_not_be_tested_are_refused(make, message):
    with pytest.raises(ConfigurationError, match=message):
        range_test(quiet_trainer(), make(), resident_loader(), **QUICK)


@pytest.mark.filterwarnings("ignore")
def test_two_optimizers_are_refused():
    module = Foreign()
    module.configure_optimizers = lambda: [torch.optim.SGD([p], lr=0.1) for p in module.parameters()]
    with pytest.raises((ConfigurationError, RuntimeError), match="optimizer"):
        range_test(quiet_trainer(), module, resident_loader(), **QUICK)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_lr": 0}, "min_lr=0 is out of range; expected 0 < min_lr"),
        ({"max_lr": 1e-9}, "max_lr=1e-09 is out of range; expected 1e-07 < max_lr"),
        ({"max_lr": float("inf")}, "max_lr=inf is out of range"),
        ({"steps": 9}, "steps=9 is out of range; expected 10 <= steps"),
        ({"steps": 10.5}, "steps=10.5 is no whole number"),
        ({"divergence": 1.0}, "divergence=1.0 is out of range; expected 1 < divergence"),
        ({"min_lr": "low"}, "min_lr='low' is not a number"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        range_test(quiet_trainer(), Foreign(), resident_loader(), **arguments)


def test_several_processes_and_fast_dev_run_are_refused():
    with pytest.raises(ConfigurationError, match="has 2 devices on 1 nodes: set devices=1"):
        range_test(quiet_trainer(devices=2), Foreign(), resident_loader())
    with pytest.raises(ConfigurationError, match="take fast_dev_run away"):
        range_test(quiet_trainer(fast_dev_run=1), Foreign(), resident_loader())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("arguments", [{"limit_train_batches": 0}, {"strategy": "ddp_spawn"}])
def test_a_run_without_a_step_here_is_refused(arguments):
    with pytest.raises(ConfigurationError, match="made no step in this process: there are no training"):
        range_test(quiet_trainer(**arguments), Foreign(), resident_loader(), **QUICK)


@pytest.mark.filterwarnings("ignore")
def test_a_loss_that_is_not_finite_from_the_start_is_no_matter_of_the_rate():
    images, targets = samples()
    bad = DataLoader(TensorDataset(images * float("nan"), targets), batch_size=2)
    with pytest.raises(DivergenceError, match=r"The loss is nan at step 1 of the range test, at the rate 0\.0001, where"):
        range_test(quiet_trainer(), Foreign(), bad, **QUICK)


def test_a_loss_that_never_falls_has_no_suggestion_and_says_why():
    rising = RangeTest([1e-3, 1e-2], [1.0, 2.0], [1.0, 2.0], True)
    assert rising.suggestions == {}
    assert rising.recommended is None
    assert rising.remark.startswith("The loss never fell between 0.001 and 0.01")
    falling = RangeTest([1e-3, 1e-2], [2.0, 1.0], [2.0, 1.0], False, 2e-3, 2e-3, 1e-3)
    assert falling.remark == "The loss was still falling at 0.01, the highest rate tested: test higher ones."


@pytest.mark.filterwarnings("ignore")
def test_a_layer_that_can_not_learn_has_no_suggestion():
    module = Alone(partial(torch.optim.SGD, lr=0.1))
    module.training_step = lambda batch, batch_idx: module.body(batch[0]).sum() * 0 + 1.0
    result = range_test(quiet_trainer(), module, resident_loader(), **QUICK)
    assert result.losses == [1.0] * 20
    assert result.recommended is None
    assert isinstance(module.body, nn.Module)
