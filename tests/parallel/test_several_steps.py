"""A run with ``SeveralSteps`` is held against the same run without, to the bit and hook by hook."""

from __future__ import annotations

import csv
import functools
import inspect
import warnings

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    ProgressBar,
    StochasticWeightAveraging,
    ThroughputMonitor,
    Timer,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_cnnopt.augmentation import HorizontalFlip, MixUp, PaddedCrop
from lightning_cnnopt.core import ConfigurationError
from lightning_cnnopt.learning_rate import Cosine, CounterCycle, ScheduleMomentum, ScheduleWeightDecay, Warmup
from lightning_cnnopt.normalization import FreezeStatistics
from lightning_cnnopt.optimizers import EMA
from lightning_cnnopt.parallel import SeveralSteps
from lightning_cnnopt.regularization import L2, ActivityL1, ConstrainWeights, MaxNorm, PenalizeActivations
from tests.contracts import harness
from tests.lightning_tools import Foreign, Killed, SaveAtBatch, plain_loader, quiet_trainer, resident_loader

ONLY_TRAINING = {"max_steps": -1, "max_epochs": 3, "log_every_n_steps": 50}


class CountOwn:
    """Counts the steps of the Trainer's own."""

    def __init__(self, monkeypatch):
        self.batches = []
        advance = _TrainingEpochLoop.advance

        def counted(loop, fetcher):
            advance(loop, fetcher)
            self.batches.append(loop.batch_idx)

        monkeypatch.setattr(_TrainingEpochLoop, "advance", counted)


@pytest.fixture
def own_steps(monkeypatch):
    return CountOwn(monkeypatch).batches


def recipe(several=None, ckpt_path=None, seed=1, extra=(), per="sample", **arguments):
    """Train with all that acts on a step, and return the Trainer."""
    seed_everything(seed, verbose=False)
    model = harness.make_model(schedule=Warmup(Cosine(), "3st"), penalties=[L2(1e-3)])
    data = harness.make_data(augmentation=[HorizontalFlip(), PaddedCrop(1)], mixing=MixUp(0.5, per=per))
    callbacks = [ScheduleMomentum(CounterCycle(0.5)), ScheduleWeightDecay(Cosine(), start=0.1, end=0.5), EMA(0.9)]
    callbacks += [ConstrainWeights(MaxNorm(0.5)), PenalizeActivations(ActivityL1(0.1)), FreezeStatistics(0.7), *extra]
    run = harness.trainer(
        [*callbacks, *([SeveralSteps(several)] if several else [])],
        **{**ONLY_TRAINING, "gradient_clip_val": 0.5, **arguments},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return run


@pytest.mark.parametrize("several", [2, 4, 6, 100])
def test_the_whole_state_after_training_is_that_of_a_run_without(several, own_steps):
    expected = harness.state_of(recipe(val_check_interval=4))
    own_steps.clear()
    found = harness.state_of(recipe(several, val_check_interval=4))
    assert own_steps == [batch for _ in range(3) for batch in range(6) if (batch + 1) % several == 0 or batch == 5]
    assert found["global_step"] == 18
    assert not harness.differences(expected, found)


@pytest.mark.parametrize("max_steps", [7, 8, 9, 11])
def test_training_ends_at_max_steps(max_steps):
    expected = recipe(max_steps=max_steps, max_epochs=-1)
    found = recipe(4, max_steps=max_steps, max_epochs=-1)
    assert found.global_step == max_steps
    assert not harness.differences(harness.state_of(expected), harness.state_of(found))


@pytest.mark.parametrize("accumulated", [1, 2])
def test_mixing_with_one_draw_a_step_draws_as_in_a_run_without(accumulated):
    expected = harness.state_of(recipe(per="batch", accumulate_grad_batches=accumulated))
    assert not harness.differences(expected, harness.state_of(recipe(4, per="batch", accumulate_grad_batches=accumulated)))
    assert harness.differences(expected, harness.state_of(recipe(accumulate_grad_batches=accumulated)))


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Return, by a step, the checkpoint of a run killed there, with and without."""

    @functools.cache
    def path(step, several):
        file = tmp_path_factory.mktemp("killed") / "half.ckpt"
        with pytest.raises(Killed):
            recipe(several, extra=[SaveAtBatch(step, file)])
        return str(file)

    return path


@pytest.mark.parametrize("step", [3, 4, 5, 6, 9])
def test_a_checkpoint_of_any_step_is_that_of_a_run_without(step, killed):
    expected, found = (torch.load(killed(step, several), weights_only=True) for several in (None, 4))
    assert not harness.differences(expected, found)


@pytest.mark.parametrize("step", [3, 6, 8])
@pytest.mark.parametrize("several", [3, 4])
def test_a_run_killed_at_any_step_goes_on_as_without(step, several, killed):
    expected = harness.state_of(recipe(ckpt_path=killed(step, None), seed=98))
    found = harness.state_of(recipe(several, ckpt_path=killed(step, 4), seed=99))
    assert not harness.differences(expected, found)
    if step != 6:  # an epoch's last step, after which Lightning counts the epochs otherwise
        assert not harness.differences(harness.state_of(recipe()), found)


def test_logs_checkpoints_and_rates_are_at_the_steps_where_they_are_without(tmp_path):
    def run(folder, *several):
        save = ModelCheckpoint(folder, every_n_train_steps=5, save_top_k=-1, filename="{step}")
        logger = CSVLogger(folder, name="", version="")
        arguments = {"logger": logger, "enable_checkpointing": True, "log_every_n_steps": 7, "val_check_interval": 4}
        recipe(*several, extra=[save, LearningRateMonitor()], **arguments)
        with open(folder / "metrics.csv") as file:
            return sorted(path.name for path in folder.glob("*.ckpt")), list(csv.DictReader(file))

    files, rows = run(tmp_path / "without")
    assert files == ["step=10.ckpt", "step=15.ckpt", "step=5.ckpt"]
    assert {row["step"] for row in rows if row["train_loss"]} >= {"6", "13"}
    assert run(tmp_path / "with", 4) == (files, rows)
    for name in files:
        states = [torch.load(tmp_path / folder / name, weights_only=True) for folder in ("without", "with")]
        for state in states:
            state["callbacks"] = {key: value for key, value in state["callbacks"].items() if "ModelCheckpoint" not in key}
        assert not harness.differences(*states)


# hook by hook

HOOKS = [name for name, _ in inspect.getmembers(Callback, inspect.isfunction) if name.startswith("on_")]


class Tape(Callback):
    """Writes every hook down, with what the Trainer and its arguments are at the time."""

    def __init__(self):
        self.lines = []
        for name in HOOKS:
            if name not in ("on_exception", "on_load_checkpoint"):
                setattr(self, name, functools.partial(self.write, name))

    def write(self, name, trainer, module, *arguments, **keywords):
        loop = trainer.fit_loop.epoch_loop
        given = [value.detach() if isinstance(value, torch.Tensor) else value for value in (*arguments, *keywords.values())]
        shown = [repr(value) for value in given if isinstance(value, (int, torch.Tensor, dict, list))]
        where = (trainer.global_step, trainer.current_epoch, loop.batch_progress.state_dict(), loop.total_batch_idx)
        counters = (loop.automatic_optimization.optim_progress.state_dict(), loop.scheduler_progress.state_dict())
        rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
        grads = [None if p.grad is None else p.grad.sum().item() for p in module.parameters()]
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
        state = (trainer.state.stage, trainer.should_stop, loop.batch_progress.is_last_batch, module._current_fx_name)
        self.lines.append(repr((name, *shown, *where, *counters, rates, grads, metrics, *state, loop._batches_that_stepped)))


class Logs(Foreign):
    """Logs at every step, and has a scheduler that Lightning steps every epoch and one after every step."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("per_epoch", loss * 2, on_step=False, on_epoch=True)
        return {"loss": loss, "more": batch_idx}

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.log("more", float(outputs["more"]))

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        epoch = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        step = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
        return [optimizer], [epoch, {"scheduler": step, "interval": "step", "monitor": "loss_step"}]


class EveryHook(Foreign):
    """Overrides whatever Lightning calls in a step."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def on_before_batch_transfer(self, batch, dataloader_idx):
        self.calls.append("before")
        return batch

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        self.calls.append(("transfer", str(device)))
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.calls.append("after")
        return [batch[0] + 1, batch[1]]

    def on_train_batch_start(self, batch, batch_idx):
        self.calls.append(("start", batch_idx))

    def on_before_zero_grad(self, optimizer):
        self.calls.append(("before zero_grad", type(optimizer).__name__))

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        self.calls.append(("zero_grad", epoch, batch_idx))
        optimizer.zero_grad(set_to_none=False)

    def on_before_backward(self, loss):
        self.calls.append("before backward")

    def backward(self, loss, *args, **kwargs):
        self.calls.append("backward")
        (2 * loss).backward()

    def on_after_backward(self):
        self.calls.append("after backward")

    def on_before_optimizer_step(self, optimizer):
        self.calls.append("before step")

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.calls.append(("clip", gradient_clip_val, str(gradient_clip_algorithm)))
        self.clip_gradients(optimizer, 0.01, "value")

    def lr_scheduler_step(self, scheduler, metric):
        self.calls.append("scheduler")
        super().lr_scheduler_step(scheduler, metric)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.calls.append(("end", batch_idx, float(outputs["loss"]), float(batch[0].sum())))

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9), "interval": "step"}]


class StepsItself(Foreign):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (1 + batch_idx)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)


class Manual(Foreign):
    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(self.parameters(), lr=0.1), torch.optim.SGD(self.parameters(), lr=0.01)]


class Skips(Foreign):
    def training_step(self, batch, batch_idx):
        return None if batch_idx % 3 == 1 else super().training_step(batch, batch_idx)


class EndsItsEpochs(Foreign):
    def on_train_batch_start(self, batch, batch_idx):
        return -1 if batch_idx == 3 + self.current_epoch else None


class WithoutIndex(Foreign):
    def training_step(self, batch):
        return self.criterion(self(batch[0]), batch[1])


class ClosureTwice(Foreign):
    """An optimizer that calls its closure several times a step."""

    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


class Stops(Callback):
    def on_train_batch_end(self, trainer, *args):
        trainer.should_stop = trainer.should_stop or trainer.global_step == 6


class Unsized(IterableDataset):
    def __iter__(self):
        images, targets = plain_loader().dataset.tensors
        return iter([(image, target) for image, target in zip(images, targets, strict=True)] * 2)


class WithNone:
    """A loader some of whose batches are none."""

    def __iter__(self):
        return iter([None if index in (2, 5) else batch for index, batch in enumerate(plain_loader(24))])

    def __len__(self):
        return 12


RUNS = {
    "plain": (Foreign, {}),
    "logs": (Logs, {"val_check_interval": 5}),
    "logs often": (Logs, {"log_every_n_steps": 3, "val_check_interval": 4}),
    "every hook": (EveryHook, {"gradient_clip_val": 0.01}),
    "clips by norm": (Foreign, {"gradient_clip_val": 0.1}),
    "clips by value": (Foreign, {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}),
    "steps itself": (StepsItself, {}),
    "manual": (Manual, {}),
    "manual, to a step": (Manual, {"max_steps": 10, "max_epochs": -1}),
    "skips steps": (Skips, {}),
    "ends its epochs": (EndsItsEpochs, {}),
    "without index": (WithoutIndex, {}),
    "closure twice": (ClosureTwice, {}),
    "accumulates": (Logs, {"accumulate_grad_batches": 3}),
    "bf16": (Foreign, {"precision": "bf16-mixed"}),
    "double": (Foreign, {"precision": "64-true"}),
    "half": (Foreign, {"precision": "bf16-true"}),
    "stops": (Logs, {"extra": [Stops]}),
    "stops not before": (Logs, {"extra": [Stops], "min_steps": 15}),
    "time": (Foreign, {"extra": [functools.partial(Timer, {"hours": 1})]}),
    "changes accumulation": (Foreign, {"extra": [functools.partial(GradientAccumulationScheduler, {0: 1, 1: 3})]}),
    "averages": (Foreign, {"extra": [functools.partial(EMAWeightAveraging, decay=0.9)]}),
    "swa": (harness.Foreign, {"extra": [functools.partial(StochasticWeightAveraging, 0.01, 1)], "max_epochs": 3}),
    "limited": (Logs, {"limit_train_batches": 7}),
    "unsized": (Logs, {"loader": lambda: DataLoader(Unsized(), batch_size=2)}),
    "unsized and limited": (Logs, {"loader": lambda: DataLoader(Unsized(), batch_size=2), "limit_train_batches": 7}),
    "none": (Foreign, {"loader": WithNone}),
    "overfits": (Foreign, {"overfit_batches": 5}),
    "fast_dev_run": (Logs, {"fast_dev_run": 7}),
    "validates on and on": (Logs, {"val_check_interval": 5, "check_val_every_n_epoch": None}),
}


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.filterwarnings("ignore")
def test_every_hook_is_called_as_without(name):
    cls, arguments = RUNS[name]

    def run(*several):
        rest = dict(arguments)
        extra, loader = rest.pop("extra", []), rest.pop("loader", lambda: plain_loader(24))
        if cls is harness.Foreign:
            seed_everything(0, verbose=False)
            images = TensorDataset(torch.rand(24, 1, 8, 8), torch.arange(24) % harness.CLASSES)
            loader = functools.partial(DataLoader, images, batch_size=2)
        module, tape = cls(), Tape()
        validation = [] if rest.get("overfit_batches") else [loader() if cls is harness.Foreign else plain_loader(4)]
        callbacks = [tape, *(make() for make in extra), *several]
        seed_everything(0, verbose=False)
        trainer = quiet_trainer(*callbacks, **{"max_epochs": 2, "num_sanity_val_steps": 0, **rest})
        trainer.fit(module, loader(), *validation)
        return tape.lines, getattr(module, "calls", None), trainer, module

    lines, calls, expected, module = run()
    for several in (2, 5):
        lines_with, calls_with, found, module_with = run(SeveralSteps(several))
        assert len(lines_with) == len(lines)
        for line, line_with in zip(lines, lines_with, strict=True):
            assert line == line_with
        assert calls == calls_with
        assert not harness.differences(module.state_dict(), module_with.state_dict())
        assert not harness.differences(expected.fit_loop.state_dict(), found.fit_loop.state_dict())
        assert {k: float(v) for k, v in expected.callback_metrics.items()} == {
            k: float(v) for k, v in found.callback_metrics.items()
        }


# what it leaves out, and what it refuses


class Bar(ProgressBar):
    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.seen.append(batch_idx + 1)


def test_a_progress_bar_is_shown_the_steps_of_the_trainers_own():
    bar = Bar()
    quiet_trainer(SeveralSteps(4), bar, enable_progress_bar=True).fit(Foreign(), plain_loader(22))
    assert bar.seen == [4, 8, 11]


def test_the_trainers_own_steps_are_few(own_steps):
    quiet_trainer(SeveralSteps(4), log_every_n_steps=6).fit(Foreign(), plain_loader(22))
    assert own_steps == [3, 5, 7, 10]  # the sixth is logged, and the eleventh is the last one


def test_throughput_counts_every_batch():
    def run(*several):
        monitor = ThroughputMonitor(lambda batch: len(batch[0]), window_size=3)
        quiet_trainer(monitor, *several, logger=CSVLogger("."), log_every_n_steps=4).fit(Foreign(), plain_loader(24))
        return monitor._samples

    assert run(SeveralSteps(3)) == run()


@pytest.mark.parametrize("fails", [False, True])
def test_it_leaves_the_trainer_as_it_was(fails):
    trainer = quiet_trainer(SeveralSteps(4), *([SaveAtBatch(3, "x.ckpt")] if fails else []))
    try:
        trainer.fit(Foreign(), plain_loader())
    except Killed:
        assert fails
    assert "advance" not in vars(trainer.fit_loop.epoch_loop)


def test_a_second_fit_of_the_same_trainer_is_as_without():
    def run(*several):
        trainer, module = quiet_trainer(*several, max_epochs=1), Foreign()
        trainer.fit(module, resident_loader())
        trainer.fit_loop.max_epochs = 2
        trainer.fit(module, resident_loader())
        return module.state_dict()

    assert not harness.differences(run(SeveralSteps(4)), run())


def test_hooks_added_in_a_later_epoch_are_called():
    class Later(Callback):
        def __init__(self):
            self.seen = []

        def on_train_epoch_start(self, trainer, module):
            if trainer.current_epoch == 1:
                self.on_after_backward = lambda trainer, module: self.seen.append(trainer.global_step)

    later = Later()
    quiet_trainer(later, SeveralSteps(100), max_epochs=2).fit(Foreign(), plain_loader(8))
    assert later.seen == [4, 5, 6, 7]


def test_two_of_them_are_refused():
    with pytest.raises(ConfigurationError, match="The Trainer has two callbacks SeveralSteps; keep one"):
        quiet_trainer(SeveralSteps(4), SeveralSteps(5)).fit(Foreign(), plain_loader())


def test_one_step_is_no_several():
    with pytest.raises(ConfigurationError, match="SeveralSteps: steps_per_execution=1 "):
        SeveralSteps(1)


def test_a_module_that_takes_its_batches_itself_is_refused():
    class Takes(Foreign):
        def training_step(self, dataloader_iter):
            batch, _, _ = next(dataloader_iter)
            return self.criterion(self(batch[0]), batch[1])

    with pytest.raises(ConfigurationError, match=r"Takes\.training_step takes batches from dataloader_iter itself"):
        quiet_trainer(SeveralSteps(4)).fit(Takes(), plain_loader())


def test_it_says_where_logging_takes_the_gain_away():
    with pytest.warns(UserWarning, match="log_every_n_steps=2 makes every 2-th step one of the Trainer's own; set it to 4"):
        quiet_trainer(SeveralSteps(4), log_every_n_steps=2).fit(Foreign(), plain_loader())


def test_it_says_that_a_profiler_does_not_see_all():
    with pytest.warns(UserWarning, match="SimpleProfiler sees only those steps that"):
        quiet_trainer(SeveralSteps(4), profiler="simple").fit(Foreign(), plain_loader())


def test_it_says_that_it_follows_a_lightning_that_is_older(monkeypatch):
    monkeypatch.setattr("lightning.__version__", "2.7.0")
    with pytest.warns(UserWarning, match="follows the epoch loop of Lightning 2.6 and has not been tried with 2.7.0"):
        quiet_trainer(SeveralSteps(4)).fit(Foreign(), plain_loader())


def test_a_signal_to_end_is_heard_at_the_next_step():
    class Signal(Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer._signal_connector.received_sigterm = trainer.global_step == 3

    trainer = quiet_trainer(Signal(), SeveralSteps(100))
    with pytest.raises(SIGTERMException):
        trainer.fit(Foreign(), plain_loader())
    assert trainer.global_step == 3


class Save(Callback):
    def __init__(self, path):
        self.path = path

    def on_train_end(self, trainer, module):
        if trainer.is_global_zero:
            torch.save(module.state_dict(), self.path)


def test_two_processes_end_with_the_bits_of_two_without(tmp_path):
    def run(name, *several):
        seed_everything(3, verbose=False)
        trainer = harness.trainer([Save(tmp_path / name), *several], devices=2, strategy="ddp_fork", **ONLY_TRAINING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(harness.make_model(), datamodule=harness.make_data())
        return torch.load(tmp_path / name)

    assert not harness.differences(run("without"), run("with", SeveralSteps(3)))
