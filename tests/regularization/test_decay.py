from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.parameters import parameter_groups
from lightning_cnnopt.learning_rate import Cosine, ScheduleLearningRate
from lightning_cnnopt.regularization import DecayWeights
from tests.lightning_tools import Foreign as TwoGroups
from tests.lightning_tools import Killed, SaveAtBatch, assert_same_weights, quiet_trainer, resident_loader, weights_of


class Foreign(TwoGroups):
    """One group with a decay for all, norms and biases included."""

    def __init__(self, decay=0.5, make=torch.optim.AdamW, **options):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
        self.make = lambda: make(self.parameters(), lr=0.1, **({} if decay is None else {"weight_decay": decay}), **options)

    def configure_optimizers(self):
        return self.make()


def fitted(module, *callbacks, **arguments):
    trainer = quiet_trainer(*callbacks, **{"max_steps": 2, **arguments})
    trainer.fit(module, resident_loader())
    return trainer


def decay_by_name(trainer, module):
    decay = {id(p): group["weight_decay"] for group in trainer.optimizers[0].param_groups for p in group["params"]}
    return {name: decay[id(p)] for name, p in module.named_parameters()}


@pytest.mark.parametrize(("given", "expected"), [(None, 0.5), (0.25, 0.25), (0.0, 0.0)])
def test_weights_keep_their_decay_or_are_given_one_and_the_rest_has_none(given, expected):
    module = Foreign()
    found = decay_by_name(fitted(module, DecayWeights(given)), module)
    assert found == {
        "body.0.weight": expected,
        "body.0.bias": 0.0,
        "body.1.weight": 0.0,
        "body.1.bias": 0.0,
        "body.3.weight": expected,
        "body.3.bias": 0.0,
    }


def test_the_steps_are_those_of_groups_made_by_hand():
    torch.manual_seed(0)
    module = Foreign()
    by_hand = Foreign()
    by_hand.load_state_dict(module.state_dict())
    by_hand.make = lambda: torch.optim.AdamW(parameter_groups(by_hand), lr=0.1, weight_decay=0.5)
    fitted(module, DecayWeights())
    fitted(by_hand)
    assert_same_weights(weights_of(module), weights_of(by_hand))


def test_other_options_of_a_group_stay_with_both_parts():
    module = TwoGroups()
    module.body = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    layer = module.body[1]
    groups = [{"params": [layer.weight, layer.bias], "lr": 0.01, "betas": (0.5, 0.6), "name": "all"}]
    module.configure_optimizers = lambda: torch.optim.AdamW(groups, lr=0.1, weight_decay=0.5)
    optimizer = fitted(module, DecayWeights()).optimizers[0]
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1]
    assert all(group["betas"] == (0.5, 0.6) and group["lr"] == 0.01 for group in optimizer.param_groups)
    assert [group["name"] for group in optimizer.param_groups] == ["all", "all_not_decayed"]


def test_names_of_parameters_follow_them():
    module = Foreign()
    module.make = lambda: torch.optim.AdamW(module.named_parameters(), lr=0.1, weight_decay=0.5)
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    optimizer = fitted(module, DecayWeights()).optimizers[0]
    assert len(optimizer.param_groups) == 2
    for group in optimizer.param_groups:
        assert group["param_names"] == [names[id(parameter)] for parameter in group["params"]]


def test_groups_that_are_split_already_stay_as_they_are():
    module = TwoGroups()
    optimizer = fitted(module, DecayWeights(0.5)).optimizers[0]
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1]
    assert decay_by_name(type("", (), {"optimizers": [optimizer]}), module) == {"body.1.weight": 0.5, "body.1.bias": 0.0}


def test_patterns_choose_what_is_decayed():
    module = Foreign()
    found = decay_by_name(fitted(module, DecayWeights(parameters=["body.3.*"])), module)
    assert [name for name, decay in found.items() if decay] == ["body.3.weight", "body.3.bias"]
    with pytest.raises(ConfigurationError, match="haed"):
        fitted(Foreign(), DecayWeights(parameters=["haed*"]))


def test_a_run_that_is_killed_and_resumed_ends_with_the_same_bits(tmp_path):
    def run(*callbacks, **arguments):
        torch.manual_seed(0)
        module = Foreign()
        trainer = quiet_trainer(DecayWeights(0.25), ScheduleLearningRate(Cosine()), *callbacks, max_epochs=2)
        trainer.fit(module, resident_loader(), **arguments)
        return module, trainer

    whole, _ = run()
    with pytest.raises(Killed):
        run(SaveAtBatch(4, tmp_path / "half.ckpt"))
    resumed, trainer = run(ckpt_path=tmp_path / "half.ckpt")
    assert_same_weights(weights_of(whole), weights_of(resumed))
    assert len(trainer.optimizers[0].param_groups) == 2


def test_a_schedule_behind_it_moves_both_parts_and_the_monitor_tells_them_apart(tmp_path):
    logger = CSVLogger(tmp_path)
    monitor = LearningRateMonitor("step")
    trainer = fitted(Foreign(), DecayWeights(), ScheduleLearningRate(Cosine()), monitor, logger=logger, max_steps=3)
    assert len({group["lr"] for group in trainer.optimizers[0].param_groups}) == 1
    assert trainer.optimizers[0].param_groups[0]["lr"] < 0.1
    assert len(monitor.lrs) == 2


def test_a_schedule_in_front_of_it_is_refused_with_the_remedy():
    with pytest.raises(ConfigurationError, match=r"of AdamW, and FactorLR was made.*Put DecayWeights before"):
        fitted(Foreign(), ScheduleLearningRate(Cosine()), DecayWeights())


def test_a_scheduler_of_the_module_is_refused_only_where_groups_are_split():
    def with_scheduler(module):
        make = module.configure_optimizers

        def configure_optimizers():
            optimizer = make()
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]

        module.configure_optimizers = configure_optimizers
        return module

    with pytest.raises(ConfigurationError, match=r"ExponentialLR was made.*parameter_groups\(self\)"):
        fitted(with_scheduler(Foreign()), DecayWeights())
    fitted(with_scheduler(TwoGroups()), DecayWeights(0.5))


def test_an_optimizer_without_decay_is_refused():
    with pytest.raises(ConfigurationError, match="LBFGS has no weight_decay"):
        fitted(Foreign(decay=None, make=torch.optim.LBFGS), DecayWeights())


def test_a_decay_of_nothing_is_told():
    with pytest.warns(UserWarning, match="decays nothing: SGD has weight_decay=0"):
        fitted(Foreign(decay=None, make=torch.optim.SGD), DecayWeights())


@pytest.mark.parametrize("decay", [-0.1, float("nan"), "0.1"])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ConfigurationError, match="weight_decay"):
        DecayWeights(decay)
