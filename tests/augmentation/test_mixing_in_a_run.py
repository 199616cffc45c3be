"""What a batch draws as one is drawn once an optimizer step; criteria are kept, and refused where they can't take it."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from scipy import stats
from torch import nn

from lightning_cnnopt import ImageClassifier, TensorData
from lightning_cnnopt.augmentation import AugmentBatches, CutMix, MixUp, MixUpOrCutMix
from lightning_cnnopt.augmentation.mixing import StepDraws
from lightning_cnnopt.augmentation.pipeline import Augmentation
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.randomness import gather
from tests.lightning_tools import Foreign, Killed, SaveAtBatch, plain_loader, quiet_trainer, resident_loader

CLASSES = 24


class Shares(Foreign):
    """Keeps each batch's share of itself, read off the targets: every sample is a class of its own."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__(classes)
        self.steps: list[int] = []
        self.shares: list[float] = []

    def training_step(self, batch, batch_idx):
        _, targets = batch
        of_mixed = targets[targets.count_nonzero(1) > 1]  # of four, all may be their own partners
        self.shares.append(float(of_mixed.max(1).values.max()) if len(of_mixed) else 1.0)
        self.steps.append(self.trainer.global_step)
        return super().training_step(batch, batch_idx)


def own_data(mixing=None, **arguments):
    images = torch.rand(CLASSES, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    settings = {"val_size": 0, "batch_size": 4, "normalize": False, "mixing": mixing, **arguments}
    return TensorData(train_images=images, train_targets=torch.arange(CLASSES), **settings)


def by_step(module: Shares) -> dict[int, set[float]]:
    found: dict[int, set[float]] = {}
    for step, share in zip(module.steps, module.shares, strict=True):
        found.setdefault(step, set()).update({round(share, 4)} - {1.0})
    return found


@pytest.mark.parametrize("as_callback", [False, True], ids=["data module", "callback"])
@pytest.mark.parametrize("per", ["batch", "sample"])
def test_all_batches_of_an_optimizer_step_have_one_lambda(as_callback, per):
    module, mixing = Shares(), MixUp(2.0, per)
    callbacks = [AugmentBatches(mixing=mixing, num_classes=CLASSES)] if as_callback else []
    trainer = quiet_trainer(*callbacks, max_epochs=4, accumulate_grad_batches=4)
    trainer.fit(module, own_data(None if as_callback else mixing))
    steps = by_step(module)
    # six batches an epoch: a step of four, and the epoch's end steps on two
    assert sorted(steps) == list(range(8))
    alike = [len(shares) == 1 for shares in steps.values()]
    assert all(alike) if per == "batch" else not any(alike)
    assert len(set.union(*steps.values())) >= 8  # and no two steps have the same


def test_the_law_of_lambda_over_steps_is_that_of_the_whole_batch():
    draws, mixing, generator = StepDraws(seed=5), MixUp(0.6, "batch"), torch.Generator().manual_seed(1)
    shares = []
    for step in range(3000):
        parts = []
        for _ in range(2):
            _, soft = mixing(torch.zeros(2, 1, 1, 1), torch.arange(2), 2, generator, draws.generator(step))
            parts += [float(soft[0, 0])] if soft[0].count_nonzero() > 1 else []
        assert len(set(parts)) <= 1
        shares += parts[:1]
    assert len(shares) > 2000
    assert stats.kstest(shares, stats.beta(0.6, 0.6).cdf).pvalue > 1e-3


@pytest.mark.parametrize("as_callback", [False, True], ids=["data module", "callback"])
@pytest.mark.parametrize(
    "mixing", [CutMix(per="batch"), MixUpOrCutMix(per="batch", p=0.8)], ids=lambda mixing: type(mixing).__name__
)
def test_a_run_resumed_while_gradients_accumulate_goes_on_with_the_draws_of_its_step(mixing, as_callback, tmp_path):
    seen: list[list[torch.Tensor]] = []

    class Watching(Shares):
        def training_step(self, batch, batch_idx):
            seen[-1].append(torch.cat([batch[0].flatten(), batch[1].flatten()]))
            return super().training_step(batch, batch_idx)

    def run(callbacks=(), ckpt_path=None, seed=11):
        seen.append([])
        torch.manual_seed(seed)
        callbacks = [*callbacks, *([AugmentBatches(mixing=mixing, num_classes=CLASSES)] if as_callback else [])]
        trainer = quiet_trainer(*callbacks, max_epochs=3, accumulate_grad_batches=3)
        trainer.fit(Watching(), own_data(None if as_callback else mixing), ckpt_path=ckpt_path)
        return seen[-1]

    whole, path = run(), tmp_path / "cut.ckpt"
    with pytest.raises(Killed):
        run([SaveAtBatch(8, path)])  # the second of three batches of a step
    rest = run(ckpt_path=str(path), seed=99)
    assert len(rest) == 10
    assert all(torch.equal(a, b) for a, b in zip(whole[8:], rest, strict=True))


def test_ranks_with_one_seed_draw_alike_what_a_batch_has_one_of_and_differently_what_it_has_not(monkeypatch):
    def batch_on(rank, seed):
        torch.manual_seed(seed)  # as different ranks may be seeded
        monkeypatch.setattr("lightning_cnnopt.core.randomness.rank", lambda: rank)
        augmentation = Augmentation(mixing=MixUp(2.0, "batch"), num_classes=30)
        augmentation.begin(7)
        return augmentation([torch.zeros(30, 1, 1, 1), torch.arange(30)], step=0)[1]

    first, second = batch_on(0, 1), batch_on(1, 2)
    shares = [soft.diag()[soft.count_nonzero(1) > 1] for soft in (first, second)]
    assert torch.allclose(shares[0][:1], shares[1][:1])
    assert not torch.equal(first, second)  # partners are each rank's own


def test_a_second_fit_begins_a_step_of_its_own():
    module, data = Shares(), own_data(MixUp(2.0, "batch"))
    for _ in range(2):
        quiet_trainer(max_steps=1, max_epochs=None).fit(module, data)
    assert module.steps == [0, 0]
    assert round(module.shares[0], 4) != round(module.shares[1], 4)


def test_without_steps_every_call_is_one():
    draws = StepDraws(seed=1)
    assert len({float(torch.rand(1, generator=draws.generator())) for _ in range(5)}) == 5


@pytest.mark.parametrize("criterion", [nn.NLLLoss, nn.MultiMarginLoss])
@pytest.mark.parametrize("as_callback", [False, True], ids=["data module", "callback"])
def test_a_criterion_of_classes_is_refused_before_training_and_what_helps_is_said(criterion, as_callback):
    mixing = CutMix()
    callbacks = [AugmentBatches(mixing=mixing)] if as_callback else []
    data = own_data(None if as_callback else mixing, normalize=None)
    model = ImageClassifier(**data.model_args(), network=Flat, criterion=criterion)
    started = []
    model.on_train_start = lambda: started.append(True)
    message = rf"CutMix\(.*makes targets of probabilities, and criterion={criterion.__name__}.* Take a criterion that has them"
    with pytest.raises(ConfigurationError, match=message):
        quiet_trainer(*callbacks).fit(model, data)
    assert not started
    quiet_trainer(max_steps=1, max_epochs=None).fit(model, own_data(normalize=None))  # without mixing it is as good as any


class Flat(nn.Sequential):
    def __init__(self, num_classes, in_channels=1):
        super().__init__(nn.Flatten(), nn.Linear(16, num_classes))


def test_a_foreign_module_whose_only_criterion_takes_classes_is_refused():
    module = Foreign()
    module.criterion = nn.NLLLoss()
    mixing = AugmentBatches(mixing=MixUp(), num_classes=3)
    with pytest.raises(
        ConfigurationError, match=r"Foreign has the criterion NLLLoss\(\), which takes class numbers, and MixUp"
    ):
        quiet_trainer(mixing).fit(module, plain_loader())
    assert "on_after_batch_transfer" not in module.__dict__
    module.soft = nn.CrossEntropyLoss()  # which of the two is called with what can't be known
    module.training_step = lambda batch, batch_idx: module.soft(module(batch[0]), batch[1])
    quiet_trainer(AugmentBatches(mixing=MixUp(), num_classes=3)).fit(module, plain_loader())


@pytest.mark.parametrize("per", ["batch", "sample"])
def test_a_shuffled_run_of_batches_that_do_not_divide_resumes_exactly(per, tmp_path):
    def run(callbacks=(), ckpt_path=None):
        module = Shares(3)
        augment = AugmentBatches(mixing=MixUpOrCutMix(per=per), num_classes=3)
        torch.manual_seed(11)
        trainer: Trainer = quiet_trainer(augment, *callbacks, max_epochs=3, accumulate_grad_batches=2)
        trainer.fit(module, resident_loader(13, 3), ckpt_path=ckpt_path)
        return module.shares

    whole, path = run(), tmp_path / "cut.ckpt"
    with pytest.raises(Killed):
        run([SaveAtBatch(7, path)])
    assert run(ckpt_path=str(path)) == whole[7:]


def test_training_accuracy_counts_the_largest_share_and_of_labels_each_share_above_a_half():
    model = ImageClassifier(num_classes=3, in_channels=1, image_size=(4, 4), network=Flat)
    logits = torch.tensor([[3.0, 0, 0], [0, 3, 0], [0, 0, 3]])
    targets = torch.tensor([[0.6, 0.4, 0], [0.6, 0.4, 0], [0.0, 0.5, 0.5]])  # of equal shares, the first
    assert float(model._correct(logits, targets)) == 1
    labels = ImageClassifier(num_classes=3, in_channels=1, image_size=(4, 4), network=Flat, task="multilabel")
    found = labels._correct(torch.tensor([[1.0, -1, 1]]), torch.tensor([[0.7, 0.2, 0.5]]))
    assert float(found) == pytest.approx(2 / 3)


class Gather(Callback):
    def __init__(self, path):
        self.path = str(path)

    def on_train_end(self, trainer, module):
        found = gather((module.steps, module.shares))
        if trainer.is_global_zero:
            torch.save(found, self.path)


def test_two_processes_are_parts_of_one_batch(tmp_path):
    torch.manual_seed(3)
    module = Shares()
    trainer = quiet_trainer(Gather(tmp_path / "x.pt"), max_epochs=3, accumulate_grad_batches=2, devices=2, strategy="ddp_fork")
    trainer.fit(module, own_data(MixUp(2.0, "batch")))
    steps, ranks = {}, torch.load(tmp_path / "x.pt")
    assert len(ranks) == 2
    for numbers, shares in ranks:
        for step, share in zip(numbers, shares, strict=True):
            steps.setdefault(step, set()).update({round(share, 4)} - {1.0})
    assert [len(shares) for shares in steps.values()] == [1] * 6
    assert len(set.union(*steps.values())) == 6
