from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional as F

from lightning_cnnopt.core.errors import ConfigurationError, DataError
from lightning_cnnopt.data import TensorData
from lightning_cnnopt.imbalance import ClassWeights, class_weights, effective_number, positive_weights
from lightning_cnnopt.module import ImageClassifier
from tests.lightning_tools import Foreign, assert_same_weights, plain_loader, quiet_trainer, samples, weights_of

COUNTS = [6, 3, 3]
some_counts = st.lists(st.integers(1, 500), min_size=2, max_size=8)


@given(counts=some_counts)
def test_balanced_weights_are_scikit_learns(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    expected = compute_class_weight("balanced", classes=np.arange(len(counts)), y=labels)
    assert class_weights(torch.tensor(counts)).numpy() == pytest.approx(expected, rel=1e-6)


@given(counts=some_counts, beta=st.floats(0.1, 0.9999))
def test_the_effective_number_is_the_sum_of_a_geometric_series(counts, beta):
    expected = [sum(beta**k for k in range(n)) for n in counts]
    assert effective_number(torch.tensor(counts), beta).tolist() == pytest.approx(expected, rel=1e-6)


def test_effective_weights_go_from_none_to_balanced():
    counts = torch.tensor([5000, 500, 50])
    assert torch.allclose(class_weights(counts, "effective", 0.0), torch.ones(3))
    assert torch.allclose(class_weights(counts, "effective", 1 - 1e-9), class_weights(counts), rtol=1e-4)
    ratios = effective_number(counts, 0.999) / effective_number(counts, 0.999)[2]
    assert torch.allclose(class_weights(counts, "effective").double()[2] / class_weights(counts, "effective").double(), ratios)


def test_a_beta_out_of_range_is_refused():
    with pytest.raises(ConfigurationError, match=r"beta=1.0 is out of range; expected 0 <= beta < 1"):
        ClassWeights("effective", beta=1.0)


@given(counts=some_counts, scheme=st.sampled_from(["balanced", "sqrt", "effective"]))
def test_the_mean_weight_of_a_sample_is_one(counts, scheme):
    tensor = torch.tensor(counts)
    assert float((class_weights(tensor, scheme) * tensor).sum() / tensor.sum()) == pytest.approx(1, rel=1e-5)


@given(counts=some_counts)
def test_root_weights_go_as_one_over_the_root_of_the_counts(counts):
    products = class_weights(torch.tensor(counts), "sqrt").double() * torch.tensor(counts).double().sqrt()
    assert torch.allclose(products, products[:1].expand_as(products), rtol=1e-5)


@given(counts=some_counts, rest=st.integers(1, 500))
def test_with_positive_weights_positives_and_negatives_of_a_label_weigh_the_same(counts, rest):
    tensor, total = torch.tensor(counts), max(counts) + rest
    assert torch.allclose(positive_weights(tensor, total) * tensor, (total - tensor).float(), rtol=1e-5)


def test_a_class_without_samples_is_named():
    with pytest.raises(DataError, match=r"\[1, 3\]"):
        class_weights(torch.tensor([5, 0, 2, 0]))
    with pytest.raises(DataError, match=r"\[0\]"):
        positive_weights(torch.tensor([0, 2]), 10)


def test_more_positives_than_samples_are_refused():
    with pytest.raises(DataError, match="total=10"):
        positive_weights(torch.tensor([11, 2]), 10)


class Gradients(Callback):
    def __init__(self) -> None:
        self.seen: list[torch.Tensor] = []
        self.state_keys: list[list[str]] = []

    def on_after_backward(self, trainer, pl_module):
        self.seen.append(pl_module.body[1].weight.grad.clone())
        self.state_keys.append(list(pl_module.state_dict()))


def test_the_gradient_is_that_of_a_criterion_built_with_the_weights():
    module, reference, gradients = Foreign(), Foreign(), Gradients()
    quiet_trainer(ClassWeights(counts=COUNTS), gradients, max_steps=1).fit(module, plain_loader(12, 12))
    images, targets = samples(12)
    weight = torch.tensor(compute_class_weight("balanced", classes=np.arange(3), y=np.repeat(np.arange(3), COUNTS))).float()
    nn.CrossEntropyLoss(weight=weight)(reference(images), targets).backward()
    assert torch.allclose(gradients.seen[0], reference.body[1].weight.grad, atol=1e-7)
    plain = Foreign()
    nn.CrossEntropyLoss()(plain(images), targets).backward()
    assert not torch.allclose(gradients.seen[0], plain.body[1].weight.grad, atol=1e-4)


class Recording(Foreign):
    """Keeps every evaluation loss together with the plain one of the same logits."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: list[tuple[str, float, float]] = []

    def evaluate(self, name, batch):
        logits = self(batch[0])
        self.pairs.append((name, float(self.criterion(logits, batch[1])), float(F.cross_entropy(logits, batch[1]))))

    def validation_step(self, batch, batch_idx):
        self.evaluate("val", batch)

    def test_step(self, batch, batch_idx):
        self.evaluate("test", batch)

    def training_step(self, batch, batch_idx):
        self.evaluate("train", batch)
        return super().training_step(batch, batch_idx)


def test_evaluation_keeps_the_plain_loss_during_and_after_the_fit():
    module = Recording()
    trainer = quiet_trainer(ClassWeights(counts=[1, 5, 6]), max_epochs=2, val_check_interval=2)
    trainer.fit(module, plain_loader(12, 2), plain_loader(12, 4))
    trainer.validate(module, plain_loader(12, 4), verbose=False)
    trainer.test(module, plain_loader(12, 4), verbose=False)
    for stage in ("val", "test"):
        pairs = [(ours, plain) for name, ours, plain in module.pairs if name == stage]
        assert pairs
        assert all(ours == plain for ours, plain in pairs)
    assert all(ours != plain for name, ours, plain in module.pairs if name == "train")


def test_the_criterion_stays_the_same_object_and_adds_no_key_to_the_state(tmp_path):
    module, gradients = Foreign(), Gradients()
    criterion, keys = module.criterion, list(module.state_dict())
    trainer = quiet_trainer(ClassWeights(counts=COUNTS), gradients, max_epochs=2)
    trainer.fit(module, plain_loader(), plain_loader())
    trainer.save_checkpoint(tmp_path / "weighted.ckpt")
    assert module.criterion is criterion
    assert all(seen == keys for seen in gradients.state_keys)
    assert list(torch.load(tmp_path / "weighted.ckpt", weights_only=True)["state_dict"]) == keys
    assert criterion.weight is None


def test_it_can_be_used_for_a_second_fit():
    module, callback = Foreign(), ClassWeights(counts=COUNTS)
    for _ in range(2):
        quiet_trainer(callback).fit(module, plain_loader(), plain_loader())
    assert module.criterion.weight is None


def test_after_an_exception_the_criterion_is_what_it_was():
    class Fails(Foreign):
        def on_train_batch_end(self, *args):
            raise RuntimeError("on purpose")

    module = Fails()
    with pytest.raises(RuntimeError, match="on purpose"):
        quiet_trainer(ClassWeights(counts=COUNTS)).fit(module, plain_loader())
    assert module.criterion.weight is None


class Labels(Foreign):
    def __init__(self) -> None:
        super().__init__()
        self.criterion = nn.BCEWithLogitsLoss()

    def training_step(self, batch, batch_idx):
        return self.criterion(self(batch[0]), F.one_hot(batch[1], 3).float())

    def validation_step(self, batch, batch_idx):
        pass


def test_labels_get_positive_weights():
    module, reference, gradients = Labels(), Labels(), Gradients()
    quiet_trainer(ClassWeights(counts=[1, 4, 6], total=12), gradients, max_steps=1).fit(module, plain_loader(12, 12))
    images, targets = samples(12)
    weighted = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([11.0, 2.0, 1.0]))
    weighted(reference(images), F.one_hot(targets, 3).float()).backward()
    assert torch.allclose(gradients.seen[0], reference.body[1].weight.grad, atol=1e-7)


def test_the_counts_are_read_off_our_data_module():
    images = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8)
    targets = torch.tensor([0] * 28 + [1] * 12)
    data = TensorData(train_images=images, train_targets=targets, val_size=0, batch_size=40)
    seen = []

    class Look(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            seen.append(pl_module.criterion.weight.clone())

    model = ImageClassifier(**data.model_args())
    quiet_trainer(ClassWeights(), Look(), max_steps=1).fit(model, data)
    assert torch.allclose(seen[0], torch.tensor([40 / (2 * 28), 40 / (2 * 12)]))


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_our_data_module_gives_the_counts_of_positives(task):
    images = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8)
    positive = torch.tensor([1] * 10 + [0] * 30)
    targets = positive if task == "binary" else torch.stack([positive, 1 - positive], 1)
    data = TensorData(train_images=images, train_targets=targets, val_size=0, batch_size=40, task=task)
    seen = []

    class Look(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            seen.append(pl_module.criterion.pos_weight.tolist())

    quiet_trainer(ClassWeights(), Look(), max_steps=1).fit(ImageClassifier(**data.model_args()), data)
    assert seen == [pytest.approx([3.0] if task == "binary" else [3.0, 1 / 3])]


def with_criterion(*criteria: nn.Module) -> Foreign:
    module = Foreign()
    module.criterion = criteria[0] if criteria else nn.Identity()
    module.more = nn.ModuleList(criteria[1:])
    return module


@pytest.mark.parametrize(
    ("module", "callback", "message"),
    [
        (with_criterion(), ClassWeights(counts=COUNTS), "no criterion that takes weights"),
        (with_criterion(nn.MSELoss()), ClassWeights(counts=COUNTS), "no criterion that takes weights"),
        (with_criterion(nn.NLLLoss(), nn.CrossEntropyLoss()), ClassWeights(counts=COUNTS), "2 criteria"),
        (with_criterion(nn.CrossEntropyLoss(torch.ones(3))), ClassWeights(counts=COUNTS), "has a weight already"),
        (with_criterion(nn.CrossEntropyLoss()), ClassWeights(), "counts="),
        (with_criterion(nn.BCEWithLogitsLoss()), ClassWeights(counts=COUNTS), "total="),
    ],
)
def test_what_cant_be_weighted_is_refused_and_says_what_is_missing(module, callback, message):
    before = weights_of(module)
    with pytest.raises(ConfigurationError, match=message):
        quiet_trainer(callback).fit(module, plain_loader())
    assert_same_weights(weights_of(module), before)


def test_an_unknown_scheme_is_refused():
    with pytest.raises(ConfigurationError, match="Did you mean 'balanced'"):
        ClassWeights("balance")
