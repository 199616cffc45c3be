import itertools
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lightning_cnnopt import ImageClassifier
from lightning_cnnopt.architecture import ConvNet
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.parameters import named_weights
from lightning_cnnopt.regularization import L1, L2, ConstrainWeights, MaxNorm, PenalizeWeights


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
