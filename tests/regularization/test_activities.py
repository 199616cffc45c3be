from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torchvision
from lightning.pytorch import Callback, LightningModule, seed_everything
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.randomness import gather
from lightning_cnnopt.regularization import ActivityL1, ActivityL2, PenalizeActivations
from tests.lightning_tools import Killed, plain_loader, quiet_trainer, samples

PENALTIES = [ActivityL1(0.5), ActivityL2(0.5), ActivityL1(0.5, ["*body.1"])]
every_penalty = pytest.mark.parametrize("penalty", PENALTIES, ids=["L1", "L2", "a layer by name"])


class Foreign(LightningModule):
    """Written by someone who never heard of this project; logs its loss."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(inplace=True), nn.Linear(8, 3), nn.Tanh())
        self.losses = []

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.body(batch[0]), batch[1])
        self.log("train_loss", loss)
        self.losses.append(loss.detach())
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self.body(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def foreign():
    torch.manual_seed(0)
    return Foreign()


def charge_by_hand(module, images, penalty):
    """Return the charge as its formula says, from activations that are computed one by one."""
    hidden = module.body[1](module.body[0](images))
    if penalty.layers is not None:
        outputs = [hidden]
    else:
        outputs = [hidden.relu(), module.body[3](hidden.relu()).tanh()]
    if isinstance(penalty, ActivityL1):
        return sum(penalty.weight * a.abs().sum() / a.numel() for a in outputs)
    return sum(penalty.weight * a.square().sum() / (2 * a.numel()) for a in outputs)


class Gradients(Callback):
    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append({name: p.grad.clone() for name, p in pl_module.named_parameters()})


@every_penalty
def test_in_plain_pytorch_it_is_a_term_of_the_loss(penalty):
    images, targets = samples()
    module, reference = foreign(), foreign()
    module.body[2].inplace = False
    with penalty.watch(module) as charges:
        loss = nn.functional.cross_entropy(module.body(images), targets)
        charge = charges.total()
        (loss + charge).backward()
    expected = charge_by_hand(reference, images, penalty)
    (nn.functional.cross_entropy(reference.body(images), targets) + expected).backward()
    torch.testing.assert_close(charge, expected)
    for a, b in zip(module.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("cls", [ActivityL1, ActivityL2])
def test_the_gradient_is_that_of_the_value(cls):
    images = torch.randn(5, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(cls(0.3).measure, [images])


@every_penalty
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_gradient_is_that_of_the_mean_of_losses_with_their_charges(penalty, accumulate):
    module, gradients, reference = foreign(), Gradients(), foreign()
    module.body[2].inplace = False
    trainer = quiet_trainer(PenalizeActivations(penalty), gradients, max_steps=1, accumulate_grad_batches=accumulate)
    trainer.fit(module, plain_loader())
    for images, targets in list(plain_loader())[:accumulate]:
        loss = nn.functional.cross_entropy(reference.body(images), targets) + charge_by_hand(reference, images, penalty)
        (loss / accumulate).backward()
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(gradients.seen[0][name], parameter.grad)


class Scaled(MixedPrecision):
    """A gradient scaler as for float16, with float32 behind it, so that a CPU can run it and the result is exact."""

    def __init__(self):
        super().__init__("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))

    def autocast_context_manager(self):
        return torch.autocast("cpu", enabled=False)


def test_a_scaled_loss_scales_its_charge():
    module, gradients, reference = foreign(), Gradients(), foreign()
    penalty = ActivityL1(0.5)
    quiet_trainer(PenalizeActivations(penalty), gradients, max_steps=1, plugins=[Scaled()]).fit(module, plain_loader())
    images, targets = next(iter(plain_loader()))
    (nn.functional.cross_entropy(reference.body(images), targets) + charge_by_hand(reference, images, penalty)).backward()
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(gradients.seen[0][name], parameter.grad)


class Outputs(Callback):
    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(outputs["loss"])


class Dictionary(Foreign):
    def training_step(self, batch, batch_idx):
        return {"loss": super().training_step(batch, batch_idx), "more": batch_idx}


@pytest.mark.parametrize("cls", [Foreign, Dictionary])
def test_the_loss_that_is_returned_and_logged_stays_the_tasks_to_the_bit(cls):
    torch.manual_seed(0)
    module, outputs = cls(), Outputs()
    trainer = quiet_trainer(PenalizeActivations(ActivityL1(0.5)), outputs, log_every_n_steps=1)
    trainer.fit(module, plain_loader())
    assert outputs.losses == module.losses
    assert trainer.callback_metrics["train_loss"] == module.losses[-1]


def test_the_charge_is_logged_apart():
    module = foreign()
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.0)
    penalties = [ActivityL1(0.5), ActivityL2(0.25)]
    trainer = quiet_trainer(PenalizeActivations(penalties), log_every_n_steps=1)
    trainer.fit(module, plain_loader())
    images, _ = list(plain_loader())[-1]
    expected = sum(charge_by_hand(module, images, penalty) for penalty in penalties)
    torch.testing.assert_close(trainer.callback_metrics["train_activity_penalty"], expected.detach())


def test_a_layer_that_runs_twice_is_charged_twice():
    relu = nn.ReLU()
    network = nn.Sequential(relu, nn.Identity(), relu)
    images = torch.ones(2, 3)
    with ActivityL1(0.25).watch(network) as charges:
        network(images)
        assert charges.total() == 0.5


def test_activations_become_sparse():
    def zeros(callbacks):
        module = foreign()
        quiet_trainer(*callbacks, max_epochs=30).fit(module, plain_loader())
        return float((module.body[:3](samples()[0]) < 1e-2).float().mean())

    assert zeros([PenalizeActivations(ActivityL1(2.0))]) > zeros([]) + 0.1


def test_evaluation_computes_no_charge_and_after_the_fit_the_module_is_what_it_was():
    module, calls = foreign(), []

    class Counting(ActivityL1):
        def measure(self, activity):
            calls.append(module.training)
            return super().measure(activity)

    trainer = quiet_trainer(PenalizeActivations(Counting(0.5)), max_epochs=1)
    trainer.fit(module, plain_loader(), plain_loader())
    assert len(calls) == 2 * 6
    assert all(calls)
    assert "training_step" not in vars(module)
    assert not any(m._forward_hooks for m in module.modules())
    module.body(samples()[0])
    assert len(calls) == 12


def test_after_an_exception_the_module_is_what_it_was():
    class Fails(Foreign):
        def on_train_batch_end(self, *args):
            raise Killed

    module = Fails()
    with pytest.raises(Killed):
        quiet_trainer(PenalizeActivations(ActivityL1())).fit(module, plain_loader())
    assert "training_step" not in vars(module)
    assert not any(m._forward_hooks for m in module.modules())


def test_a_step_that_the_module_skips_is_skipped():
    class Skips(Foreign):
        def training_step(self, batch, batch_idx):
            return None if batch_idx % 2 else super().training_step(batch, batch_idx)

    trainer = quiet_trainer(PenalizeActivations(ActivityL1()))
    trainer.fit(Skips(), plain_loader())
    assert trainer.state.finished


class Checkpointed(Foreign):
    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant

    def training_step(self, batch, batch_idx):
        images = batch[0].requires_grad_()
        return nn.functional.cross_entropy(checkpoint(self.body, images, use_reentrant=self.reentrant), batch[1])


def test_layers_whose_outputs_are_recomputed_are_charged_once():
    gradients = []
    for module in (Checkpointed(False), Foreign()):
        torch.manual_seed(0)
        module.load_state_dict(foreign().state_dict())
        seen = Gradients()
        quiet_trainer(PenalizeActivations(ActivityL1(0.5)), seen, max_steps=2).fit(module, plain_loader())
        gradients.append(seen.seen)
    for checkpointed, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


def test_layers_that_never_run_with_gradients_are_named():
    with pytest.raises(ConfigurationError, match=r"None of the 2 layers .*'body.2'.*use_reentrant=True"):
        quiet_trainer(PenalizeActivations(ActivityL1())).fit(Checkpointed(True), plain_loader())


def test_a_compiled_network_is_charged():
    module, reference = foreign(), foreign()
    module.body.compile(backend="eager")
    seen = [Gradients(), Gradients()]
    for each, gradients in zip((module, reference), seen, strict=True):
        quiet_trainer(PenalizeActivations(ActivityL1(0.5)), gradients).fit(each, plain_loader(), plain_loader())
    for compiled, plain in zip(seen[0].seen, seen[1].seen, strict=True):
        torch.testing.assert_close(compiled, plain)


class Both(Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        """Two ranks hold the mean of what each of them would have alone."""
        reference = foreign()
        images = torch.cat(gather(self.images))
        targets = torch.cat(gather(self.targets))
        loss = nn.functional.cross_entropy(reference.body(images), targets)
        (loss + charge_by_hand(reference, images, ActivityL1(0.5))).backward()
        for name, parameter in reference.named_parameters():
            torch.testing.assert_close(dict(pl_module.named_parameters())[name].grad, parameter.grad)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.images, self.targets = batch


def test_two_processes_have_the_gradient_of_one_on_both_batches():
    seed_everything(0, verbose=False)
    arguments = {"max_steps": 1, "devices": 2, "strategy": "ddp_fork"}
    quiet_trainer(PenalizeActivations(ActivityL1(0.5)), Both(), **arguments).fit(foreign(), plain_loader())


@pytest.mark.parametrize("cls", [ActivityL1, ActivityL2])
@pytest.mark.parametrize("strength", [-1e-3, float("nan"), "1e-3"])
def test_a_strength_out_of_range_is_refused(cls, strength):
    with pytest.raises(ConfigurationError, match="weight"):
        cls(strength)


@pytest.mark.parametrize(
    ("penalty", "network", "message"),
    [
        (ActivityL1(layers=["haed*"]), nn.Sequential(nn.ReLU()), r"'haed\*' matches none of 1 layers.*'0'"),
        (ActivityL1(), nn.Sequential(nn.Linear(2, 2)), "no activation layers in Sequential.*layers="),
    ],
)
def test_layers_that_are_not_there_are_refused(penalty, network, message):
    with pytest.raises(ConfigurationError, match=message):
        penalty.choose(network)


def test_a_layer_that_puts_out_no_tensor_is_refused():
    network = nn.Sequential(nn.LSTM(2, 2))
    with pytest.raises(ConfigurationError, match="'0' puts out a tuple"), ActivityL1(layers=["0"]).watch(network):
        network(torch.zeros(1, 1, 2))


def test_modules_that_step_by_hand_are_refused_and_told_what_to_do():
    module = foreign()
    module.automatic_optimization = False
    with pytest.raises(ConfigurationError, match=r"by hand.*penalty\.watch"):
        PenalizeActivations(ActivityL1()).setup(SimpleNamespace(), module, "fit")


def test_an_output_that_the_next_layer_writes_over_is_refused_by_torch():
    with ActivityL1(layers=["body.1"]).watch(module := foreign()) as charges:
        loss = module.body(samples()[0]).sum()
        with pytest.raises(RuntimeError, match="inplace operation"):
            (loss + charges.total()).backward()


def test_activation_layers_of_torchvision_networks_are_found():
    found = ActivityL1().choose(torchvision.models.resnet18())
    assert len(found) == 9
    assert all(isinstance(layer, nn.ReLU) for layer in found.values())


def test_squares_of_half_precision_outputs_do_not_overflow():
    network = nn.Sequential(nn.ReLU())
    with ActivityL2(2.0).watch(network) as charges:
        network(torch.full((2, 2), 300.0, dtype=torch.float16))
        assert float(charges.total()) == 90000


def test_what_runs_after_the_total_is_not_recorded():
    network = nn.Sequential(nn.ReLU())
    with ActivityL1(1.0).watch(network) as charges:
        network(torch.ones(2))
        assert charges.total() == 1
        network(torch.ones(2))  # as a recomputation in the backward pass
        with pytest.raises(ConfigurationError, match="None of the 1 layers"):
            charges.total()
