from __future__ import annotations

import pytest
import torch

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.rates import FactorLR, RateCallback
from tests.lightning_tools import Foreign, plain_loader, quiet_trainer


def two_groups() -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.zeros(1)], "lr": 0.4}, {"params": [torch.zeros(1)], "lr": 0.02}])


def test_factors_multiply_the_base_rates_closed_and_keep_the_ratio_between_groups():
    optimizer = two_groups()
    scheduler = FactorLR(optimizer)
    scheduler.factors = {"halves": lambda step: 0.5**step, "third": lambda step: 1 / 3}
    scheduler.refresh()
    for step in range(5):
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([0.4 * 0.5**step / 3, 0.02 * 0.5**step / 3])
        assert scheduler.get_last_lr() == rates
        optimizer.step()
        scheduler.step()


def test_a_rate_that_is_a_tensor_is_written_in_place():
    rate = torch.tensor(0.4)
    optimizer = torch.optim.Adam([torch.zeros(1)], lr=rate, capturable=False, foreach=False)
    scheduler = FactorLR(optimizer)
    scheduler.factors["f"] = lambda step: 0.25
    scheduler.refresh()
    assert optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(0.1)


def test_the_state_of_the_scheduler_holds_builtins_only_and_puts_it_back_in_place():
    first = FactorLR(two_groups())
    first.factors["f"] = lambda step: 1 / (1 + step)
    for _ in range(3):
        first.optimizer.step()
        first.step()
    state = first.state_dict()
    assert "factors" not in state
    second = FactorLR(two_groups())
    second.factors["f"] = lambda step: 1 / (1 + step)
    second.load_state_dict(state)
    second.refresh()
    assert [g["lr"] for g in second.optimizer.param_groups] == [g["lr"] for g in first.optimizer.param_groups]


class Halve(RateCallback):
    def make_factor(self, trainer, length):
        return lambda progress: 0.5


class Third(RateCallback):
    def make_factor(self, trainer, length):
        return lambda progress: 1 / 3


def test_techniques_that_multiply_the_rate_share_one_scheduler():
    first, second = Halve(), Third()
    trainer = quiet_trainer(first, second)
    trainer.fit(Foreign(), plain_loader())
    assert first.schedulers[0] is second.schedulers[0]
    assert len(trainer.lr_scheduler_configs) == 1
    scheduler = first.schedulers[0]
    assert scheduler.get_last_lr() == pytest.approx([base / 6 for base in scheduler.base_lrs])


def test_one_technique_twice_is_refused():
    with pytest.raises(ConfigurationError, match="Two callbacks apply Halve"):
        quiet_trainer(Halve(), Halve()).fit(Foreign(), plain_loader())


class ManualModule(Foreign):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


@pytest.mark.parametrize("callbacks", [(Halve,), (Halve, Third), (Third, Halve)])
def test_under_manual_optimization_the_scheduler_is_stepped_once_a_batch(callbacks):
    made = [callback() for callback in callbacks]
    trainer = quiet_trainer(*made)
    trainer.fit(ManualModule(), plain_loader())
    assert made[0].schedulers[0].last_epoch == trainer.num_training_batches * trainer.max_epochs


def test_a_second_fit_of_the_same_trainer_goes_on_where_the_first_ended():
    callback = Halve()
    trainer = quiet_trainer(callback)
    module = Foreign()
    trainer.fit(module, plain_loader())
    steps = trainer.global_step
    trainer.fit_loop.max_epochs += 1
    trainer.fit(module, plain_loader())
    assert callback.schedulers[0].last_epoch == trainer.global_step > steps
