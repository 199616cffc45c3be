import itertools
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn

from lightning_cnnopt import ImageClassifier
from lightning_cnnopt.architecture import ConvNet
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.parameters import named_weights
from lightning_cnnopt.regularization import L1, L2, ConstrainWeights, MaxNorm, PenalizeWeights, Penalty, ProximalL1, weights


class Foreign(LightningModule):
    """A task whose gradient is ``push`` for every parameter; 0 by default."""

    def __init__(self, push=0.0, lr=1.0):
        super().__init__()
        self.layer, self.norm, self.head = nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)
        self.push, self.lr = push, lr

    def training_step(self, batch, batch_idx):
        loss = self.push * torch.stack([parameter.sum() for parameter in self.parameters()]).sum()
        self.log("train_loss", loss)
        return loss

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.zeros(12, 4), batch_size=2)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Look(Callback):
    """Keeps the largest norm of a unit after each batch."""

    def __init__(self):
        self.norms = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        weights = [weight.detach() for _, weight in named_weights(pl_module)]
        self.norms.append(max(float(weight.norm(dim=1).max()) for weight in weights))


class Snapshots(Callback):
    def __init__(self):
        self.taken = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.taken.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})


def trainer(tmp_path, *callbacks, **options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    options = {"max_epochs": 1, "log_every_n_steps": 1, **options}
    return Trainer(default_root_dir=tmp_path, callbacks=list(callbacks), accelerator="cpu", **quiet, **options)


def start(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("strength", [1e-3, 0.1])
def test_a_step_on_accumulated_batches_is_charged_once_to_the_bit(tmp_path, strength):
    model, snapshots = Foreign(), Snapshots()
    states = [start(model)]
    trainer(tmp_path, PenalizeWeights(L1(strength)), snapshots, accumulate_grad_batches=3).fit(model)
    states += [snapshots.taken[2], snapshots.taken[5]]
    weights = {name for name, _ in named_weights(model)}
    for before, after in itertools.pairwise(states):
        for name in before:
            change = strength * before[name].sign() if name in weights else torch.zeros_like(before[name])
            assert torch.equal(after[name], before[name] - change)
    assert all(torch.equal(snapshots.taken[0][name], states[0][name]) for name in weights)


def test_the_penalty_is_logged_apart_from_the_loss_of_the_task(tmp_path):
    model = Foreign(lr=0.0)
    runner = trainer(tmp_path, PenalizeWeights([L1(0.1), L2(0.2)]))
    runner.fit(model)
    weights = torch.cat([weight.detach().flatten() for _, weight in named_weights(model)])
    expected = 0.1 * weights.abs().sum() + 0.2 * weights.square().sum() / 2
    torch.testing.assert_close(runner.callback_metrics["train_penalty"], expected)
    assert float(runner.callback_metrics["train_loss"]) == 0


def test_the_charge_adds_to_the_gradient_of_the_task(tmp_path):
    model = Foreign(push=0.5)
    before = start(model)
    trainer(tmp_path, PenalizeWeights(L1(0.25)), max_steps=1).fit(model)
    weights = {name for name, _ in named_weights(model)}
    for name, value in before.items():
        step = 0.5 + 0.25 * value.sign() if name in weights else torch.full_like(value, 0.5)
        torch.testing.assert_close(dict(model.named_parameters())[name].detach(), value - step)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_classifier_charges_as_the_callback_does(tmp_path, accumulate):
    torch.manual_seed(0)
    network = partial(ConvNet, widths=(4,), depth=1, dense=(), dropout=0.0, normalization=None)
    arguments = {"num_classes": 2, "image_size": (4, 4), "optimizer": partial(torch.optim.SGD, lr=0.1)}
    images = torch.randint(0, 256, (12, 1, 4, 4), dtype=torch.uint8)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, torch.arange(12) % 2), batch_size=2)
    own = ImageClassifier(network, penalties=[L1(0.01)], **arguments)
    charged = ImageClassifier(network, **arguments)
    charged.load_state_dict(own.state_dict())
    with pytest.raises(ConfigurationError, match="both would be charged"):
        trainer(tmp_path, PenalizeWeights(L1(0.01))).fit(own, data)
    logged = []
    for model, callbacks in ((own, []), (charged, [PenalizeWeights(L1(0.01))])):
        runner = trainer(tmp_path, *callbacks, accumulate_grad_batches=accumulate)
        runner.fit(model, data)
        logged.append((runner.callback_metrics["train_penalty"], runner.callback_metrics["train_loss"]))
    for a, b in zip(own.parameters(), charged.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(logged[0], logged[1])


@pytest.mark.parametrize("first", [True, False])
def test_every_callback_sees_projected_weights_in_any_order(tmp_path, first):
    look, constrain = Look(), ConstrainWeights(MaxNorm(0.5))
    callbacks = [constrain, look] if first else [look, constrain]
    trainer(tmp_path, *callbacks).fit(Foreign(push=-1.0))
    assert len(look.norms) == 6
    assert max(look.norms) <= 0.5 * (1 + 1e-5)


def test_without_the_constraint_the_same_run_leaves_the_limit(tmp_path):
    look = Look()
    trainer(tmp_path, look).fit(Foreign(push=-1.0))
    assert min(look.norms) > 0.5


def test_a_step_is_the_optimizers_followed_by_renorm(tmp_path):
    model = Foreign(push=-0.3)
    expected = {
        name: torch.renorm(value + 0.3, 2, 0, 0.5) if value.ndim == 2 else value + 0.3 for name, value in start(model).items()
    }
    trainer(tmp_path, ConstrainWeights(MaxNorm(0.5)), max_steps=1).fit(model)
    torch.testing.assert_close(start(model), expected)


def test_a_trained_modules_optimizer_keeps_no_projection(tmp_path):
    model = Foreign(push=-1.0)
    runner = trainer(tmp_path, ConstrainWeights(MaxNorm(0.5)))
    runner.fit(model)
    before = start(model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, -1.0)
    runner.optimizers[0].step()
    torch.testing.assert_close(start(model), {name: value + 1 for name, value in before.items()})


def test_a_constraint_that_finds_no_weights_is_refused(tmp_path):
    model = Foreign()
    model.requires_grad_(False)
    model.norm.requires_grad_(True)
    with pytest.raises(ConfigurationError, match="finds no weights"):
        trainer(tmp_path, ConstrainWeights(MaxNorm(0.5))).fit(model)


def test_callbacks_with_other_arguments_keep_other_states():
    keys = [
        callback.state_key for callback in (PenalizeWeights(L1(0.1)), PenalizeWeights(L1(0.2)), ConstrainWeights(MaxNorm()))
    ]
    assert len(set(keys)) == 3


class Cubes(Penalty):
    """A user's own, which says nothing about its gradient."""

    def measure(self, weights):
        return torch.stack([weight.abs().pow(3).sum() / 3 for weight in weights]).sum()


def test_a_penalty_that_states_no_gradient_has_autograds(tmp_path):
    model = Foreign()
    before = start(model)
    trainer(tmp_path, PenalizeWeights(Cubes(0.25)), max_steps=1).fit(model)
    for name in ("layer.weight", "head.weight"):
        change = 0.25 * before[name] * before[name].abs()
        torch.testing.assert_close(start(model)[name], before[name] - change)


class Freeze(Callback):
    """Freezes the head from the second batch to the fourth."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pl_module.head.requires_grad_(not 1 <= batch_idx <= 3)


@pytest.mark.parametrize(
    "callback", [PenalizeWeights(L1(2.0**-10)), ConstrainWeights(MaxNorm(2.0**-10))], ids=["penalty", "constraint"]
)
def test_weights_that_are_frozen_in_the_middle_of_a_fit_are_left_alone_until_they_are_not(tmp_path, callback):
    model, snapshots = Foreign(), Snapshots()
    states = [start(model)]
    trainer(tmp_path, Freeze(), callback, snapshots).fit(model)
    states += snapshots.taken
    changed = [not torch.equal(a["head.weight"], b["head.weight"]) for a, b in itertools.pairwise(states)]
    assert changed[:5] == [True, False, False, False, isinstance(callback, PenalizeWeights)]
    if isinstance(callback, PenalizeWeights):
        assert all(not torch.equal(a["layer.weight"], b["layer.weight"]) for a, b in itertools.pairwise(states))


class Grows(Foreign):
    """Steps the head from the third batch on only, as gradual unfreezing does."""

    def on_train_batch_start(self, batch, batch_idx):
        if batch_idx == 2:
            self.optimizers().optimizer.add_param_group({"params": list(self.head.parameters())})

    def configure_optimizers(self):
        return torch.optim.SGD([*self.layer.parameters(), *self.norm.parameters()], lr=self.lr)


def test_parameters_that_the_optimizer_is_given_later_are_charged_from_then_on(tmp_path):
    model, snapshots = Grows(), Snapshots()
    states = [start(model)]
    trainer(tmp_path, PenalizeWeights(L1(2.0**-10)), snapshots).fit(model)
    states += snapshots.taken
    for index, (before, after) in enumerate(itertools.pairwise(states)):
        charged = before["head.weight"].sign() * 2.0**-10 if index >= 2 else torch.zeros(2, 3)
        assert torch.equal(after["head.weight"], before["head.weight"] - charged)


class TwoOptimizers(Foreign):
    """Steps one part and then the other, by hand."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()[batch_idx % 2]
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()

    def configure_optimizers(self):
        parts = [*self.layer.parameters(), *self.norm.parameters()], self.head.parameters()
        return [torch.optim.SGD(part, lr=1.0) for part in parts]


@pytest.mark.parametrize(
    ("callback", "hold"),
    [
        (PenalizeWeights(L1(2.0**-10)), lambda weight: weight - weight.sign() * 2.0**-10),
        (ConstrainWeights(MaxNorm(0.25)), lambda weight: weight.renorm(2, 0, 0.25)),
    ],
    ids=["penalty", "constraint"],
)
def test_an_optimizers_step_acts_on_its_own_weights_alone(tmp_path, callback, hold):
    model, snapshots = TwoOptimizers(), Snapshots()
    states = [start(model)]
    trainer(tmp_path, callback, snapshots, max_steps=2).fit(model)
    states += snapshots.taken
    for name, turn in (("layer.weight", 0), ("head.weight", 1)):
        for index in (0, 1):
            before, after = states[index][name], states[index + 1][name]
            assert torch.equal(after, hold(before) if index == turn else before)


@pytest.mark.parametrize("callback", [PenalizeWeights(L1()), ConstrainWeights(MaxNorm())])
def test_strategies_that_shard_weights_are_refused(callback):
    with pytest.raises(ConfigurationError, match=f"{type(callback).__name__} needs whole weights.*FSDPStrategy"):
        callback.setup(SimpleNamespace(strategy=FSDPStrategy()), Foreign(), "fit")


def test_the_weights_are_chosen_once_for_a_fit(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(weights, "named_weights", lambda *args, **kwargs: calls.append(args) or named_weights(*args, **kwargs))
    trainer(tmp_path, PenalizeWeights(L1(0.1)), ConstrainWeights(MaxNorm())).fit(Foreign())
    assert len(calls) == 2


class TwoRates(Foreign):
    def configure_optimizers(self):
        rest = [*self.layer.parameters(), *self.norm.parameters()]
        return torch.optim.SGD([{"params": rest}, {"params": self.head.parameters(), "lr": 0.25}], lr=self.lr)


def test_a_proximal_step_goes_as_far_as_the_rate_of_each_group_says(tmp_path):
    model = TwoRates(push=0.125)
    before = start(model)
    trainer(tmp_path, ConstrainWeights(ProximalL1(0.2)), max_steps=1).fit(model)
    for name, rate in (("layer.weight", 1.0), ("head.weight", 0.25)):
        expected = torch.nn.functional.softshrink(before[name] - rate * 0.125, rate * 0.2)
        torch.testing.assert_close(start(model)[name], expected)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_proximal_step_follows_every_optimizer_step_and_the_rate_at_that_time(tmp_path, accumulate):
    class Decays(Foreign):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    model = Decays()
    expected = start(model)["layer.weight"]
    trainer(tmp_path, ConstrainWeights(ProximalL1(0.05)), accumulate_grad_batches=accumulate).fit(model)
    for step in range(6 // accumulate):
        expected = torch.nn.functional.softshrink(expected, 0.05 * 0.5**step)
    torch.testing.assert_close(start(model)["layer.weight"], expected)


def test_the_share_of_zeros_is_logged(tmp_path):
    model = Foreign()
    runner = trainer(tmp_path, ConstrainWeights([MaxNorm(), ProximalL1(0.1, ["layer.*"])]))
    runner.fit(model)
    held = torch.cat([model.layer.weight.detach().flatten(), model.layer.bias.detach()])
    zeros = int((held == 0).sum())
    assert zeros > 0
    assert float(runner.callback_metrics["sparsity"]) == pytest.approx(zeros / 15)
    runner = trainer(tmp_path, ConstrainWeights(MaxNorm()))
    runner.fit(Foreign())
    assert "sparsity" not in runner.callback_metrics
