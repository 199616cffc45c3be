"""Focal loss, logit adjustment and label-distribution-aware margins."""

from __future__ import annotations

import copy
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

from lightning_cnnopt import ConvNet, Digits, ImageClassifier, TensorData
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
    SigmoidFocalLoss,
    label_distribution_aware_margin_loss,
    margins,
)
from tests.lightning_tools import Foreign, Killed, SaveAtBatch, plain_loader, quiet_trainer, resident_loader, weights_of

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
    cosines = (logits / logits.abs().max()).detach().requires_grad_()
    widths = margins(torch.tensor([100, 10, 5, 1])).double()
    weight = None if weight is None else torch.tensor(weight).double()
    ours = label_distribution_aware_margin_loss(scale * cosines, targets, scale * widths, weight)
    expected = by_the_paper(cosines, targets, widths, scale, weight)
    assert torch.allclose(ours, expected)
    assert torch.allclose(*(torch.autograd.grad(loss, cosines)[0] for loss in (ours, expected)))
    soft = mixed(targets)
    per_class = [by_the_paper(cosines[[i]], torch.tensor([c]), widths, scale) * soft[i, c] for i in range(16) for c in range(4)]
    ours = label_distribution_aware_margin_loss(scale * cosines, soft, scale * widths)
    assert torch.allclose(ours, sum(per_class) / 16)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("level", [0.0, 0.3, -0.7, 1.1])
def test_where_logits_are_equal_the_gradient_is_still_the_papers(classes, level):
    # as under a head that starts at zero: neither class of two is then the more probable one
    logits = torch.full((3, classes), level, requires_grad=True)
    targets, widths = torch.tensor([0, 1, 1]), margins(torch.tensor([100, 5, 5, 5][:classes]))
    ours = label_distribution_aware_margin_loss(logits, targets, widths)
    expected = by_the_paper(logits, targets, widths, 1.0)
    assert torch.allclose(*(torch.autograd.grad(loss, logits)[0] for loss in (ours, expected)), atol=1e-6)


def test_gradients_are_those_of_finite_differences():
    logits, targets = batch(count=3)
    soft = mixed(targets)
    adjusted, wide = LogitAdjustment(counts=[9, 3, 2, 1]), LDAM(counts=[9, 3, 2, 1], scale=2)
    for criterion in (FocalLoss(1.5), adjusted.double(), wide.double()):
        assert torch.autograd.gradcheck(criterion, (logits, targets))
        assert torch.autograd.gradcheck(criterion, (logits, soft))


def test_margins_of_images_that_are_surely_right_or_wrong_have_a_finite_gradient():
    cosines = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [0.0, 0.0]], requires_grad=True)
    loss = LDAM(counts=[100, 1], scale=100)(100 * cosines, torch.tensor([0, 0, 1]))
    loss.backward()
    assert torch.isfinite(cosines.grad).all()
    expected = by_the_paper(cosines, torch.tensor([0, 0, 1]), margins(torch.tensor([100, 1])), 100)
    assert torch.allclose(loss, expected)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_ldam_is_plain_in_evaluation(scale):
    logits, targets = batch()
    criterion = LDAM(counts=[4, 4, 4, 1], scale=scale)
    assert torch.equal(criterion.eval()(logits, targets), F.cross_entropy(logits, targets))


def test_ldam_behind_a_cosine_head_is_the_papers():
    head, counts = CosineLinear(6, 4, scale=30), [100, 10, 5, 1]
    features, targets = torch.randn(16, 6), torch.arange(16) % 4
    cosines = F.cosine_similarity(features[:, None], head.weight[None], dim=2)
    expected = by_the_paper(cosines, targets, margins(torch.tensor(counts), 0.4), 30)
    assert torch.allclose(LDAM(0.4, 30, counts)(head(features), targets), expected, atol=1e-5)


def test_a_head_of_cosines_is_left_alone_and_so_is_the_layer_below_it():
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), CosineLinear(8, 3, scale=5.0))
    with pytest.warns(UserWarning, match="changed nothing: Sequential has no last linear layer left to change"):
        assert CosineHead()(network) == 0
    assert type(network[0]) is nn.Linear
    assert network[2].scale == 5.0


@pytest.mark.parametrize(("scale", "of_head"), [(1.0, 30.0), (30.0, 10.0)])
def test_margins_of_another_scale_than_the_head_are_refused(scale, of_head):
    data = Digits()
    model = classifier(data, partial(LDAM, scale=scale), edits=[CosineHead(of_head)])
    with pytest.raises(
        ConfigurationError, match=rf"LDAM has scale={scale:g}, and the head is CosineLinear\(scale={of_head:g}\)"
    ):
        quiet_trainer(max_steps=1).fit(model, data)


def test_margins_for_cosines_without_a_head_of_cosines_are_warned_of():
    data = Digits()
    model = classifier(data, partial(LDAM, scale=30.0))
    with pytest.warns(
        UserWarning, match=r"has no CosineLinear: they are up to 15 in its logits. Add the edit CosineHead\(scale=30"
    ):
        quiet_trainer(max_steps=1).fit(model, data)


def test_a_cosine_head_gives_cosines_and_keeps_weights_and_names():
    network = ConvNet(image_size=(8, 8))
    weight = network.classifier.weight
    names = [name for name in network.state_dict() if name != "classifier.bias"]
    assert CosineHead()(network) == 1
    assert CosineHead()(network) == 0
    assert network.classifier.weight is weight
    assert list(network.state_dict()) == names
    features = torch.randn(5, 128)
    expected = 30 * F.cosine_similarity(features[:, None], weight[None], dim=2)
    assert torch.allclose(network.classifier(features), expected, atol=1e-4)
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
        (lambda: LDAM(scale=0), "LDAM: scale=0"),
        (lambda: CosineHead(0), "CosineHead: scale=0"),
        (lambda: SigmoidFocalLoss(alpha=2), "alpha=2"),
        (lambda: SigmoidFocalLoss(gamma=-1), "gamma=-1"),
        (lambda: ClassWeights(start=1.5), "start=1.5"),
        (lambda: ClassWeights(start="soon"), "start='soon'"),
    ],
    ids=["gamma", "smoothing", "tau", "counts", "margin", "scale", "head", "alpha", "gamma2", "late", "words"],
)
def test_arguments_are_checked(make, said):
    with pytest.raises(ConfigurationError, match=said):
        make()


def test_targets_and_counts_that_do_not_fit_are_named():
    logits, targets = batch()
    with pytest.raises(DataError, match=r"targets of shape \(16, 3\)"):
        FocalLoss()(logits, torch.rand(16, 3))
    for criterion in (LogitAdjustment(counts=[1, 2]), LogitAdjustment(counts=[1, 2]).eval()):
        with pytest.raises(ConfigurationError, match=r"counts of 2 classes, and the logits are of shape \(16, 4\)"):
            criterion(logits, targets)
    with pytest.raises(ConfigurationError, match="LogitAdjustment does not know how frequent the classes are"):
        LogitAdjustment()(logits, targets)


@pytest.mark.parametrize(
    "criterion",
    [
        FocalLoss(1.0, [1.0, 2.0], 0.1),
        SigmoidFocalLoss(None, 1.0),
        LogitAdjustment(0.5, [2, 1], 0.1),
        LDAM(0.3, 2.0, [2, 1]),
    ],
    ids=lambda criterion: type(criterion).__name__,
)
def test_what_a_criterion_shows_of_itself_rebuilds_it(criterion):
    again = eval(repr(criterion))
    assert repr(again) == repr(criterion)
    logits, targets = torch.randn(8, 2), torch.rand(8, 2)
    assert torch.equal(again(logits, targets), criterion(logits, targets))


@pytest.mark.parametrize("alpha", [None, 0.25])
def test_the_focal_loss_of_labels_is_its_formula(alpha):
    logits, labels = torch.randn(8, 3), torch.randint(2, (8, 3)).float()
    p = torch.where(labels > 0, logits.sigmoid(), 1 - logits.sigmoid())
    share = torch.ones(()) if alpha is None else torch.where(labels > 0, alpha, 1 - alpha)
    assert torch.allclose(SigmoidFocalLoss(alpha, 1.5)(logits, labels), (-share * (1 - p) ** 1.5 * p.log()).mean())


@pytest.mark.parametrize(
    "criterion",
    [FocalLoss(2, WEIGHT), LogitAdjustment(counts=[4, 3, 2, 1]), LDAM(counts=[4, 3, 2, 1])],
    ids=lambda c: type(c).__name__,
)
def test_a_training_step_reads_no_number_off_the_device(criterion):
    # tensors without values: whatever asked for one would fail, where on a GPU it would wait
    logits = torch.zeros(8, 4, device="meta", requires_grad=True)
    criterion = copy.deepcopy(criterion).to("meta")
    for targets in (torch.zeros(8, dtype=torch.long, device="meta"), torch.zeros(8, 4, device="meta")):
        criterion(logits, targets).backward()


# in a training

CRITERIA = {
    "FocalLoss": FocalLoss,
    "LogitAdjustment": LogitAdjustment,
    "LDAM": partial(LDAM, max_margin=2.0),
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


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("name", CRITERIA)
def test_it_trains_in_half_precision(name, precision):
    data = Digits(long_tail=20, batch_size=32)
    model = classifier(data, CRITERIA[name])
    quiet_trainer(max_steps=2, precision=precision, limit_val_batches=1).fit(model, data)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


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


@pytest.mark.parametrize("killed_at", [8, 10, 14, 16])  # within an epoch of six batches, before and after the start
def test_deferred_weights_start_at_the_same_step_of_a_resumed_run(killed_at, tmp_path):
    def run(*more, ckpt_path=None):
        module, seen = Foreign(), Weights()
        trainer = quiet_trainer(
            ClassWeights("effective", counts=[6, 3, 3], start="6st"), seen, *more, max_epochs=4, accumulate_grad_batches=2
        )
        trainer.fit(module, resident_loader(12, 2), ckpt_path=ckpt_path)
        return module, seen

    whole, seen = run()
    assert seen.trained == [False] * 12 + [True] * 12
    path = tmp_path / "killed.ckpt"
    with pytest.raises(Killed):
        run(SaveAtBatch(killed_at, path))
    resumed, seen = run(ckpt_path=path)
    assert seen.trained == ([False] * 12 + [True] * 12)[killed_at:]
    assert all(torch.equal(value, weights_of(resumed)[key]) for key, value in weights_of(whole).items())


def test_a_training_too_short_for_deferred_weights_says_so():
    with pytest.warns(UserWarning, match=r"ClassWeights\(.*\) weighs nothing: this training ends before start='500st'"):
        quiet_trainer(ClassWeights(counts=[6, 3, 3], start="500st"), max_steps=3).fit(Foreign(), plain_loader())


def test_a_criterion_left_in_evaluation_mode_is_told():
    module = Foreign()
    module.criterion = LogitAdjustment()
    module.eval()
    with pytest.warns(UserWarning, match="is in evaluation mode, where it is plain cross entropy"):
        quiet_trainer(BindClassCounts([6, 3, 3]), max_steps=1).fit(module, plain_loader())


def labelled(task):
    images = torch.randint(0, 256, (40, 1, 8, 8), dtype=torch.uint8)
    positive = torch.tensor([1] * 10 + [0] * 30)
    targets = positive if task == "binary" else torch.stack([positive, 1 - positive, positive], 1)
    return TensorData(train_images=images, train_targets=targets, val_size=0, batch_size=40, task=task)


class Steps(Callback):
    def __init__(self):
        self.count = 0

    def on_train_batch_start(self, *args):
        self.count += 1


@pytest.mark.parametrize("task", ["binary", "multilabel"])
@pytest.mark.parametrize("criterion", [*CRITERIA.values(), nn.CrossEntropyLoss], ids=[*CRITERIA, "CrossEntropyLoss"])
def test_a_loss_over_exclusive_classes_is_refused_for_labels_before_training(criterion, task):
    data, steps = labelled(task), Steps()
    with pytest.raises(ConfigurationError, match=rf"is a loss for the task multiclass, and the model has task='{task}'"):
        quiet_trainer(steps, max_steps=1).fit(classifier(data, criterion), data)
    assert steps.count == 0


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_the_focal_loss_of_labels_trains_on_labels_alone(task):
    data = labelled(task)
    quiet_trainer(max_steps=1).fit(classifier(data, SigmoidFocalLoss), data)
    with pytest.raises(ConfigurationError, match=r"task binary or multilabel, and the model has task='multiclass'"):
        quiet_trainer(max_steps=1).fit(classifier(Digits(), SigmoidFocalLoss), Digits())


def test_counts_of_another_number_of_classes_are_refused_before_training():
    steps = Steps()
    with pytest.raises(ConfigurationError, match="counts of 2 classes"):
        quiet_trainer(steps, max_steps=1).fit(classifier(Digits(), partial(LogitAdjustment, counts=[2, 1])), Digits())
    assert steps.count == 0


def test_frequencies_of_labels_are_no_frequencies_of_classes():
    module = Foreign()
    module.criterion = LogitAdjustment()
    with pytest.raises(ConfigurationError, match="classes that are exclusive, and the data module has task='multilabel'"):
        quiet_trainer(BindClassCounts(), max_steps=1).fit(module, labelled("multilabel"))


def test_every_criterion_that_takes_weights_has_them_during_training_alone():
    for criterion in (FocalLoss(), LDAM(counts=[6, 3, 3])):
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
