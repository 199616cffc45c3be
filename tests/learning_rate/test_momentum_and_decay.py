from __future__ import annotations

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from torch.optim import lr_scheduler

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.parameters import parameter_groups
from lightning_cnnopt.learning_rate import (
    Constant,
    Cosine,
    CounterCycle,
    OneCycle,
    ScheduleLearningRate,
    ScheduleMomentum,
    ScheduleWeightDecay,
    Step,
)
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


class RecordGroups(Callback):
    """The hyperparameters of every group at every optimizer step."""

    def __init__(self):
        self.steps = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.steps.append([{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups])

    def of(self, name, group=0):
        return [groups[group][name] for groups in self.steps]


class With(Foreign):
    def __init__(self, optimizer):
        super().__init__()
        self.make_optimizer = optimizer

    def configure_optimizers(self):
        return self.make_optimizer(parameter_groups(self))


SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.95, weight_decay=0.1)
ADAM = partial(torch.optim.AdamW, lr=0.1, betas=(0.95, 0.99), weight_decay=0.1)


def run(*callbacks, optimizer=SGD, ckpt_path=None, **arguments):
    record, module = RecordGroups(), With(optimizer)
    trainer = quiet_trainer(*callbacks, record, **{"max_epochs": 3, **arguments})
    trainer.fit(module, resident_loader(), ckpt_path=ckpt_path)
    return record, module


@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["momentum", "beta1"])
@pytest.mark.parametrize("arguments", [{}, {"pct_start": 0.4, "anneal_strategy": "linear", "three_phase": True}], ids=str)
def test_one_cycle_with_its_counter_cycle_is_torchs_one_cycle_with_momentum(optimizer, arguments):
    callbacks = ScheduleLearningRate(OneCycle(**arguments)), ScheduleMomentum(CounterCycle(**arguments))
    record, _ = run(*callbacks, optimizer=optimizer)
    oracle = optimizer([torch.nn.Parameter(torch.zeros(1))])
    scheduler = lr_scheduler.OneCycleLR(oracle, 0.1, 18, **arguments)
    for groups in record.steps:
        for group in groups:
            theirs = oracle.param_groups[0]
            assert group["lr"] == pytest.approx(theirs["lr"], rel=1e-9)
            if optimizer is SGD:
                assert group["momentum"] == pytest.approx(theirs["momentum"], rel=1e-9)
            else:
                assert group["betas"] == (pytest.approx(theirs["betas"][0], rel=1e-9), 0.99)
        oracle.step()
        if scheduler.last_epoch < 17:
            scheduler.step()


@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["momentum", "beta1"])
@pytest.mark.parametrize("batches", [1, 6, 8])
def test_resumed_the_run_ends_with_the_same_bits(optimizer, batches, tmp_path):
    def callbacks():
        return [ScheduleMomentum(CounterCycle(0.5)), ScheduleWeightDecay(Step("4st", 0.5))]

    whole, module = run(*callbacks(), optimizer=optimizer)
    path = tmp_path / "cut.ckpt"
    with pytest.raises(Killed):
        run(*callbacks(), SaveAtBatch(batches, path), optimizer=optimizer)
    rest, resumed = run(*callbacks(), optimizer=optimizer, ckpt_path=str(path))
    assert rest.steps == whole.steps[batches:]
    assert_same_weights(weights_of(module), weights_of(resumed))


def test_a_checkpoint_from_before_the_schedule_is_resumed_from_the_optimizers_own_values(tmp_path):
    path = tmp_path / "cut.ckpt"
    with pytest.raises(Killed):
        run(SaveAtBatch(6, path))
    record, _ = run(ScheduleMomentum(Cosine()), ScheduleWeightDecay(Cosine()), ckpt_path=str(path))
    factors = [Cosine().factor(step / 18) for step in range(6, 18)]
    assert record.of("momentum") == pytest.approx([0.95 * factor for factor in factors])
    assert record.of("weight_decay") == pytest.approx([0.1 * factor for factor in factors])


def test_a_beta_that_is_a_tensor_is_written_in_place():
    beta1 = torch.tensor(0.9)
    betas = (beta1, torch.tensor(0.99))
    optimizer = partial(torch.optim.Adam, lr=torch.tensor(0.1), betas=betas, capturable=False, foreach=False)
    record, _ = run(
        ScheduleMomentum(Step("9st", 0.5)), optimizer=lambda groups: optimizer([p for g in groups for p in g["params"]])
    )
    assert record.of("betas")[0][0] is beta1
    assert float(beta1) == pytest.approx(0.45)


def test_weight_decay_is_scheduled_where_there_is_one():
    record, _ = run(ScheduleWeightDecay(Cosine(), start=0.04, end=0.4))
    expected = [0.4 - 0.36 * Cosine().factor(step / 18) for step in range(18)]
    assert record.of("weight_decay") == pytest.approx(expected)
    assert record.of("weight_decay", group=1) == [0.0] * 18
    assert record.steps[0][1]["name"] == "biases_and_norms"


def test_the_decay_that_is_applied_is_the_scheduled_one():
    def first_step(*callbacks):
        _, module = run(*callbacks, optimizer=partial(torch.optim.SGD, lr=0.1, weight_decay=0.1), max_epochs=None, max_steps=1)
        return module.body[1].weight.detach()

    before = Foreign().body[1].weight
    without = first_step(ScheduleWeightDecay(Constant(), start=0.0, end=0.0))
    torch.testing.assert_close(first_step(ScheduleWeightDecay(Constant(), start=0.5, end=0.0)), without - 0.1 * 0.5 * before)


def test_an_optimizer_without_momentum_is_said_to_have_none():
    with pytest.warns(UserWarning, match="no momentum that is not 0"):
        quiet_trainer(ScheduleMomentum(Cosine())).fit(Foreign(), plain_loader())
    with pytest.warns(UserWarning, match="no weight decay in this training"):
        quiet_trainer(ScheduleWeightDecay(Cosine(), start=0.1, end=0.2)).fit(Foreign(), plain_loader())


def test_a_momentum_of_one_is_refused():
    with pytest.raises(ConfigurationError, match=r"takes the momentum to 1\.9"):
        run(ScheduleMomentum(Step("2st", 2.0)))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: ScheduleMomentum(Cosine(), start=1.0, end=0.5), "ScheduleMomentum: start=1.0"),
        (lambda: ScheduleMomentum(Cosine(), start=0.9), "belong together"),
        (lambda: ScheduleWeightDecay(Cosine(), start=-0.1, end=0.5), "ScheduleWeightDecay: start=-0.1"),
    ],
)
def test_arguments_that_cant_be_right_are_refused_by_name(make, name):
    with pytest.raises(ConfigurationError, match=name):
        make()
