"""Focal loss, logit adjustment and label-distribution-aware margins."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from lightning_cnnopt import ConvNet, Digits, ImageClassifier
from lightning_cnnopt.augmentation import MixUp
from lightning_cnnopt.core.errors import ConfigurationError, DataError
from lightning_cnnopt.imbalance import (
    LDAM,
    BindClassCounts,
    ClassWeights,
    CosineHead,
    CosineLinear,
    FocalLoss,
    LogitAdjustment,
    label_distribution_aware_margin_loss,
    margins,
)
from tests.lightning_tools import Foreign, plain_loader, quiet_trainer

WEIGHT = [0.5, 2.0, 1.0, 3.0]


def batch(count=16, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator, dtype=torch.float64) * 3
    return logits.requires_grad_(), torch.randint(classes, (count,), generator=generator)


def mixed(targets, classes=4, share=0.7):
    one_hot = F.one_hot(targets, classes).double()
    return share * one_hot + (1 - share) * one_hot.roll(1, 0)


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_a_focal_loss_of_gamma_zero_is_cross_entropy(weight, smoothing, soft):
    logits, targets = batch()
    targets = mixed(targets) if soft else targets
    theirs = nn.CrossEntropyLoss(None if weight is None else torch.tensor(weight).double(), label_smoothing=smoothing)
    expected = theirs(logits, targets)
    ours = FocalLoss(0, weight, smoothing)(logits, targets)
    assert torch.allclose(ours, expected)
    assert torch.allclose(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, expected)))


@given(gamma=st.floats(0, 5))
def test_the_focal_loss_is_its_formula(gamma):
    logits, targets = batch()
    p = logits.softmax(1).gather(1, targets[:, None]).squeeze(1)
    assert torch.allclose(FocalLoss(gamma)(logits, targets), (-((1 - p) ** gamma) * p.log()).mean())


def test_of_two_classes_the_focal_loss_is_torchvisions():
    logits, targets = batch(classes=2)
    theirs = sigmoid_focal_loss(logits[:, 1] - logits[:, 0], targets.double(), alpha=-1, gamma=2, reduction="mean")
    assert torch.allclose(FocalLoss()(logits, targets), theirs)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_a_focal_loss_of_images_that_are_surely_right_or_wrong_has_a_finite_gradient(gamma):
    logits = torch.tensor([[200.0, 0.0], [0.0, 0.0], [-200.0, 0.0]], requires_grad=True)
    loss = FocalLoss(gamma)(logits, torch.tensor([0, 0, 0]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()
    assert float(loss) == pytest.approx((0 + 0.5**gamma * 0.693147 + 200) / 3, rel=1e-5)


def test_logits_are_adjusted_by_the_prior_in_training_and_are_plain_in_evaluation():
    logits, targets = batch()
    counts = [100, 10, 5, 1]
    prior = torch.tensor(counts).double() / 116
    for soft in (targets, mixed(targets)):
        criterion = LogitAdjustment(tau=1.5, counts=counts, label_smoothing=0.1)
        expected = F.cross_entropy(logits + 1.5 * prior.log(), soft, label_smoothing=0.1)
        assert torch.allclose(criterion(logits, soft), expected)
        assert torch.equal(criterion.eval()(logits, soft), F.cross_entropy(logits, soft, label_smoothing=0.1))


def test_a_bayes_optimal_network_under_adjustment_is_balanced():
    # two classes, 9:1, of which the images tell nothing: the best bare logits prefer neither
    bias = torch.zeros(1, 2, requires_grad=True)
    optimizer = torch.optim.LBFGS([bias], line_search_fn="strong_wolfe")
    targets = torch.tensor([0] * 9 + [1])
    criterion = LogitAdjustment(counts=[9, 1])

    def closure():
        optimizer.zero_grad()
        loss = criterion(bias.expand(10, 2), targets)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert torch.allclose(bias[0, 0], bias[0, 1], atol=1e-3)


def test_margins_go_as_the_fourth_root_and_the_rarest_class_has_the_widest():
    widths = margins(torch.tensor([10_000, 625, 16]), max_margin=0.4)
    assert widths[2] == pytest.approx(0.4)
    products = widths.double() * torch.tensor([10_000, 625, 16]).double() ** 0.25
    assert torch.allclose(products, products[:1].expand(3))


def by_the_paper(logits, targets, widths, scale, weight=None):
    own = F.one_hot(targets, logits.shape[1]).bool()
    return F.cross_entropy(scale * torch.where(own, logits - widths, logits), targets, weight)


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_margins_are_taken_off_the_true_class(weight, scale):
    logits, targets = batch()
    logits = (logits / logits.abs().max()).detach().requires_grad_()
    widths = margins(torch.tensor([100, 10, 5, 1])).double()
    weight = None if weight is None else torch.tensor(weight).double()
    ours = label_distribution_aware_margin_loss(logits, targets, widths, scale, weight)
    expected = by_the_paper(logits, targets, widths, scale, weight)
    assert torch.allclose(ours, expected)
    assert torch.allclose(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, expected)))
    soft = mixed(targets)
    per_class = [by_the_paper(logits[[i]], torch.tensor([c]), widths, scale) * soft[i, c] for i in range(16) for c in range(4)]
    assert torch.allclose(label_distribution_aware_margin_loss(logits, soft, widths, scale), sum(per_class) / 16)


def test_margins_of_images_that_are_surely_right_or_wrong_have_a_finite_gradient():
    cosines = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [0.0, 0.0]], requires_grad=True)
    loss = LDAM(counts=[100, 1], scale=100)(cosines, torch.tensor([0, 0, 1]))
    loss.backward()
    assert torch.isfinite(cosines.grad).all()
    expected = by_the_paper(cosines, torch.tensor([0, 0, 1]), margins(torch.tensor([100, 1])), 100)
    assert torch.allclose(loss, expected)


def test_ldam_is_plain_in_evaluation_and_wants_cosines():
    logits, targets = batch()
    criterion = LDAM(counts=[4, 4, 4, 1])
    assert torch.equal(criterion.eval()(logits, targets), F.cross_entropy(30 * logits, targets))
    with pytest.raises(ConfigurationError, match=r"scale=30 is for cosines, and the logits reach .* Add the edit CosineHead"):
        criterion.train()(logits, targets)
    assert torch.isfinite(LDAM(scale=1, counts=[4, 4, 4, 1])(logits, targets))


def test_a_cosine_head_gives_cosines_and_keeps_weights_and_names():
    network = ConvNet(image_size=(8, 8))
    weight = network.classifier.weight
    names = [name for name in network.state_dict() if name != "classifier.bias"]
    assert CosineHead()(network) == 1
    assert CosineHead()(network) == 0
    assert network.classifier.weight is weight
    assert list(network.state_dict()) == names
    features = torch.randn(5, 128)
    expected = F.cosine_similarity(features[:, None], weight[None], dim=2)
    assert torch.allclose(network.classifier(features), expected, atol=1e-6)
    assert isinstance(network.head[0].dense, nn.Linear)
    assert not isinstance(network.head[0].dense, CosineLinear)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: FocalLoss(-1), "gamma=-1"),
        (lambda: FocalLoss(label_smoothing=2), "label_smoothing=2"),
        (lambda: LogitAdjustment(-1), "tau=-1"),
        (lambda: LogitAdjustment(counts=[3, 0]), "counts=0"),
        (lambda: LDAM(max_margin=-1), "max_margin=-1"),
        (lambda: LDAM(scale=0), "scale=0"),
        (lambda: ClassWeights(start=1.5), "start=1.5"),
        (lambda: ClassWeights(start="soon"), "start='soon'"),
    ],
    ids=["gamma", "smoothing", "tau", "counts", "margin", "scale", "late", "words"],
)
def test_arguments_are_checked(make, said):
    with pytest.raises(ConfigurationError, match=said):
        make()


def test_targets_and_counts_that_do_not_fit_are_named():
    logits, targets = batch()
    with pytest.raises(DataError, match=r"targets of shape \(16, 3\)"):
        FocalLoss()(logits, torch.rand(16, 3))
    with pytest.raises(DataError, match=r"counts of shape \(2,\) for 4 classes"):
        LogitAdjustment(counts=[1, 2])(logits, targets)
    with pytest.raises(ConfigurationError, match="LogitAdjustment does not know how frequent the classes are"):
        LogitAdjustment()(logits, targets)


# in a training

CRITERIA = {
    "FocalLoss": FocalLoss,
    "LogitAdjustment": LogitAdjustment,
    "LDAM": partial(LDAM, scale=1.0, max_margin=2.0),
}


def classifier(data, criterion, **arguments):
    torch.manual_seed(0)
    return ImageClassifier(partial(ConvNet, widths=(8,)), criterion=criterion, **data.model_args(), **arguments)


@pytest.mark.parametrize("name", CRITERIA)
def test_a_classifier_trains_by_the_frequencies_of_its_data_resumes_exactly_and_loads_without_them(name, tmp_path):
    def parts():
        data = Digits(long_tail=20, batch_size=32, mixing=MixUp(0.4))
        return classifier(data, CRITERIA[name]), data

    model, data = parts()
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1)
    quiet_trainer(keep, max_steps=7).fit(model, data)
    if name != "FocalLoss":
        assert model.criterion.counts.tolist() == data.class_counts()
    assert not [key for key in model.state_dict() if key.startswith("criterion")]
    resumed, data = parts()
    torch.manual_seed(9)
    quiet_trainer(keep, max_steps=7).fit(resumed, data, ckpt_path=keep.best_model_path)
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in model.state_dict().items())
    loaded = ImageClassifier.load_from_checkpoint(keep.best_model_path)
    quiet_trainer().test(loaded, data, verbose=False)


def test_a_second_fit_takes_the_frequencies_of_its_own_data_and_given_ones_stay():
    model = classifier(Digits(), LogitAdjustment)
    for ratio in (10, 20):
        data = Digits(long_tail=ratio)
        quiet_trainer(max_steps=1).fit(model, data)
        assert model.criterion.counts.tolist() == data.class_counts()
    given = classifier(Digits(), partial(LogitAdjustment, counts=[1] * 10))
    quiet_trainer(max_steps=1).fit(given, Digits())
    assert given.criterion.counts.tolist() == [1] * 10


def test_a_foreign_module_is_told_by_the_callback_or_asks_for_it():
    module = Foreign()
    module.criterion = LogitAdjustment()
    with pytest.raises(ConfigurationError, match="LogitAdjustment: the data module states no class counts"):
        quiet_trainer(BindClassCounts(), max_steps=1).fit(module, plain_loader())
    quiet_trainer(BindClassCounts([6, 3, 3]), max_steps=1).fit(module, plain_loader())
    assert module.criterion.counts.tolist() == [6, 3, 3]
    with pytest.warns(UserWarning, match="Foreign has no criterion that goes by the frequencies"):
        quiet_trainer(BindClassCounts([6, 3, 3]), max_steps=1).fit(Foreign(), plain_loader())
    with pytest.raises(ConfigurationError, match=r"classes \[1\] have no training samples"):
        quiet_trainer(BindClassCounts([6, 0, 3]), max_steps=1).fit(module, plain_loader())


class Weights(Callback):
    """The weight of the criterion in each training batch and each validation."""

    def __init__(self):
        self.trained, self.validated = [], []

    def on_before_backward(self, trainer, pl_module, loss):
        self.trained.append(pl_module.criterion.weight is not None)

    def on_validation_batch_end(self, trainer, pl_module, *rest):
        self.validated.append(pl_module.criterion.weight is not None)


@pytest.mark.parametrize("start", [0.5, "4st", "2ep"])
def test_deferred_weights_start_with_their_optimizer_step(start):
    seen = Weights()
    trainer = quiet_trainer(ClassWeights(counts=[6, 3, 3], start=start), seen, max_epochs=4, accumulate_grad_batches=3)
    trainer.fit(Foreign(), plain_loader(12, 2), plain_loader(4, 2))
    assert trainer.global_step == 8
    assert seen.trained == [False] * 12 + [True] * 12
    assert not any(seen.validated)


def test_every_criterion_that_takes_weights_has_them_during_training_alone():
    for criterion in (FocalLoss(), LDAM(counts=[6, 3, 3], scale=1)):
        module, seen = Foreign(), Weights()
        module.criterion = criterion
        callback = ClassWeights("effective", counts=[6, 3, 3])
        quiet_trainer(callback, seen, max_steps=1).fit(module, plain_loader())
        assert seen.trained == [True]
        assert criterion.weight is None, "taken away when the training ends"


def test_two_corrections_for_one_frequency_are_refused():
    data = Digits(sampling="balanced")
    with pytest.raises(ConfigurationError, match=r"ClassWeights and data.sampling='balanced' make up for the same"):
        quiet_trainer(ClassWeights(), max_steps=1).fit(classifier(data, None), data)
    with pytest.raises(ConfigurationError, match=r"LogitAdjustment and data.sampling='balanced' make up for the same"):
        quiet_trainer(max_steps=1).fit(classifier(data, LogitAdjustment), data)
