from __future__ import annotations

from datetime import timedelta

import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, Timer
from lightning.pytorch.loggers import CSVLogger

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.learning_rate import Cosine, Plateau, ScheduleLearningRate, Step, Warmup
from tests.lightning_tools import (
    Foreign,
    Killed,
    RecordRates,
    SaveAtBatch,
    plain_loader,
    quiet_trainer,
    resident_loader,
)

RUNS = [
    ({"max_epochs": 3}, 18),
    ({"max_steps": 7}, 7),
    ({"max_epochs": 3, "accumulate_grad_batches": 4}, 6),
    ({"max_epochs": 2, "limit_train_batches": 3}, 6),
    ({"max_steps": 5, "accumulate_grad_batches": 4}, 5),
]
SCHEDULES = [Cosine(), Step("2st", 0.5), Warmup(Cosine(0.1), "2st")]


def recorded(schedule, loader=None, module=None, callbacks=(), ckpt_path=None, val=None, **arguments) -> list[list[float]]:
    rates = RecordRates()
    trainer = quiet_trainer(ScheduleLearningRate(schedule), rates, *callbacks, **arguments)
    trainer.fit(module or Foreign(), loader or plain_loader(), val, ckpt_path=ckpt_path)
    return rates.groups


@pytest.mark.parametrize(("arguments", "total"), RUNS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_every_optimizer_step_has_the_rate_of_its_progress_in_every_group(schedule, arguments, total):
    groups = recorded(schedule, **arguments)
    if isinstance(schedule, Cosine):
        factors = [Cosine().factor(step / total) for step in range(total)]
    elif isinstance(schedule, Step):
        factors = [0.5 ** (step // 2) for step in range(total)]
    else:
        line = [1e-3, 1e-3 + (1 - 1e-3) / 2]
        factors = line + [Cosine(0.1).factor(step / (total - 2)) for step in range(total - 2)]
    assert len(groups) == total
    assert [group[0] for group in groups] == pytest.approx([0.1 * f for f in factors])
    assert [group[1] for group in groups] == pytest.approx([0.01 * f for f in factors])


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize(
    ("arguments", "batches"),
    [
        ({"max_epochs": 3}, 8),
        ({"max_epochs": 3, "accumulate_grad_batches": 2}, 8),
        ({"max_steps": 15}, 8),
        ({"max_epochs": 3}, 12),
    ],
)
def test_resumed_in_mid_epoch_the_rates_go_on_as_if_uninterrupted(schedule, arguments, batches, tmp_path):
    whole = recorded(schedule, resident_loader(), **arguments)
    path, before = tmp_path / "cut.ckpt", RecordRates()
    with pytest.raises(Killed):
        recorded(schedule, resident_loader(), callbacks=[before, SaveAtBatch(batches, path)], **arguments)
    after = recorded(schedule, resident_loader(), ckpt_path=str(path), **arguments)
    assert before.groups + after == whole


def test_a_longer_training_resumed_follows_the_schedule_of_the_new_length(tmp_path):
    path = tmp_path / "cut.ckpt"
    with pytest.raises(Killed):
        recorded(Cosine(), resident_loader(), callbacks=[SaveAtBatch(6, path)], max_epochs=2)
    groups = recorded(Cosine(), resident_loader(), ckpt_path=str(path), max_epochs=4)
    assert [g[0] for g in groups] == pytest.approx([0.1 * Cosine().factor(step / 24) for step in range(6, 24)])


class OwnScheduler(Foreign):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def test_a_scheduler_of_the_modules_own_is_named_and_refused():
    with pytest.raises(ConfigurationError, match=r"StepLR.*configure_optimizers"):
        recorded(Cosine(), module=OwnScheduler())


@pytest.mark.parametrize("arguments", [{"max_epochs": 0}, {"max_steps": 0}, {"max_epochs": -1}])
def test_a_training_without_length_or_end_is_refused(arguments):
    with pytest.raises(ConfigurationError, match="max_steps"):
        recorded(Cosine(), **arguments)


def test_a_warmup_longer_than_the_training_is_refused_before_the_first_step():
    rates = RecordRates()
    with pytest.raises(ConfigurationError, match="Warmup: duration='2ep'"):
        quiet_trainer(ScheduleLearningRate(Warmup(Cosine(), "2ep")), rates, max_epochs=2).fit(Foreign(), plain_loader())
    assert rates.groups == []


def test_warmup_in_epochs_counts_optimizer_steps_under_accumulation():
    groups = recorded(Warmup(Cosine(), "1ep", start=0.0), max_epochs=2, accumulate_grad_batches=2)
    assert [g[0] for g in groups[:4]] == pytest.approx([0, 0.1 / 3, 0.2 / 3, 0.1])


class Manual(Foreign):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.seen: list[tuple[float, float]] = []

    def configure_optimizers(self):
        weight, bias = self.body[1].weight, self.body[1].bias
        return [torch.optim.SGD([weight], lr=0.1), torch.optim.SGD([bias], lr=0.5)]

    def training_step(self, batch, batch_idx):
        self.seen.append(tuple(optimizer.param_groups[0]["lr"] for optimizer in self.optimizers()))
        loss = super().training_step(batch, batch_idx)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()


def test_under_manual_optimization_every_optimizer_follows_once_a_batch():
    module = Manual()
    recorded(Cosine(), module=module, max_epochs=2)
    factors = [Cosine().factor(batch / 12) for batch in range(12)]
    assert [first for first, _ in module.seen] == pytest.approx([0.1 * f for f in factors])
    assert [second for _, second in module.seen] == pytest.approx([0.5 * f for f in factors])


class StepClock(Timer):
    """A clock by which every batch takes one second."""

    batches = 0

    def on_train_batch_end(self, *args):
        self.batches += 1
        super().on_train_batch_end(*args)

    def time_elapsed(self, *args):
        return float(self.batches)


def test_under_max_time_progress_is_that_of_the_clock():
    clock = StepClock(timedelta(seconds=10))
    groups = recorded(Cosine(), callbacks=[clock], max_epochs=-1)
    assert len(groups) == 10
    rates = [g[0] for g in groups]
    # Lightning steps the scheduler before the batch ends, so its clock is one batch behind
    assert rates == pytest.approx([0.1 * Cosine().factor(max(0, second - 1) / 10) for second in range(10)])


def test_of_steps_and_time_the_one_further_on_counts():
    groups = recorded(Cosine(), callbacks=[StepClock(timedelta(seconds=1000))], max_epochs=1)
    assert [g[0] for g in groups] == pytest.approx([0.1 * Cosine().factor(step / 6) for step in range(6)])


class Worsening(Foreign):
    def __init__(self, losses) -> None:
        super().__init__()
        self.losses = list(losses)

    def validation_step(self, batch, batch_idx):
        pass

    def on_validation_epoch_end(self):
        self.log("val_loss", self.losses[self.current_epoch])


def test_plateau_reacts_to_the_validations_as_torch_does():
    losses = [1.0, 0.5, 0.6, 0.7, 0.4, 0.45, 0.45, 0.45]
    groups = recorded(
        Plateau("val_loss", gamma=0.5, patience=1),
        module=Worsening(losses),
        val=plain_loader(4),
        max_epochs=len(losses),
    )
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    oracle = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1, eps=0)
    expected = []
    for loss in losses:
        expected += [optimizer.param_groups[0]["lr"]] * 6
        oracle.step(loss)
    assert [g[0] for g in groups] == pytest.approx(expected)
    assert len(set(expected)) > 1


def test_plateau_resumed_goes_on_as_if_uninterrupted(tmp_path):
    losses, schedule = [1.0] * 6, Plateau("val_loss", gamma=0.5, patience=0)

    def run(callbacks=(), ckpt_path=None):
        return recorded(
            Plateau(**schedule.init_args()),
            resident_loader(),
            Worsening(losses),
            callbacks,
            ckpt_path,
            plain_loader(4),
            max_epochs=6,
        )

    whole, path, before = run(), tmp_path / "cut.ckpt", RecordRates()
    with pytest.raises(Killed):
        run([before, SaveAtBatch(21, path)])
    assert before.groups + run(ckpt_path=str(path)) == whole


def test_a_metric_that_nobody_logs_is_named():
    with pytest.raises(ConfigurationError, match="val_accuracy"):
        recorded(Plateau("val_accuracy"), val=plain_loader(4))


def test_lightnings_monitor_sees_the_rates(tmp_path):
    monitor = LearningRateMonitor("step")
    logger = CSVLogger(tmp_path)
    recorded(Cosine(), callbacks=[monitor], logger=logger, log_every_n_steps=1)
    assert set(monitor.lrs) == {"lr/pg1", "lr/pg2"}


def test_two_of_them_are_refused():
    # by Lightning: their states, which are found again when the schedule's arguments were changed, have one key
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `ScheduleLearningRate`"):
        quiet_trainer(ScheduleLearningRate(Cosine()), ScheduleLearningRate(Step(0.5)))


@pytest.mark.parametrize("schedule", [Plateau("val_loss"), Warmup(Plateau("val_loss"), "2st")], ids=repr)
@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({}, "no validation data"),
        ({"val": plain_loader(4), "limit_val_batches": 0}, "limit_val_batches=0"),
        ({"val": []}, "no samples"),
        ({"val": plain_loader(4), "check_val_every_n_epoch": 4}, "check_val_every_n_epoch=4, max_epochs=3"),
    ],
)
def test_a_plateau_that_would_never_see_a_metric_is_refused_before_training(schedule, arguments, why):
    rates = RecordRates()
    with pytest.raises(ConfigurationError, match=f"Plateau.*reacts to validation.*{why}.*Cosine"):
        recorded(schedule, callbacks=[rates], max_epochs=3, **arguments)
    assert rates.groups == []


def test_a_plateau_that_sees_one_validation_is_not_refused():
    assert recorded(Plateau("val_loss"), val=plain_loader(4), max_epochs=3, check_val_every_n_epoch=3)


def test_a_plateau_whose_patience_was_changed_goes_on_with_its_drops(tmp_path):
    def run(patience, ckpt_path=None, max_epochs=2):
        schedule = ScheduleLearningRate(Plateau("val_loss", gamma=0.5, patience=patience, threshold=10.0))
        trainer = quiet_trainer(schedule, max_epochs=max_epochs, num_sanity_val_steps=0)
        trainer.fit(Foreign(), plain_loader(), plain_loader(4), ckpt_path=ckpt_path)
        trainer.save_checkpoint(tmp_path / "end.ckpt")
        return trainer.optimizers[0].param_groups[0]["lr"]

    assert run(0) == 0.025  # with such a threshold no validation is an improvement
    assert run(5, ckpt_path=str(tmp_path / "end.ckpt"), max_epochs=4) == 0.025
