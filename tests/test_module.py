from __future__ import annotations

import copy
import csv
from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from sklearn import metrics as sk
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassRecall
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from lightning_cnnopt import ConvNet, Digits, ImageClassifier, TensorData
from lightning_cnnopt.architecture import EditNetwork, SqueezeExcite
from lightning_cnnopt.augmentation import HorizontalFlip, MixUp
from lightning_cnnopt.core import mark_pretrained
from lightning_cnnopt.core.divergence import StopOnDivergence
from lightning_cnnopt.core.errors import CheckpointError, ConfigurationError
from lightning_cnnopt.core.randomness import ResumeRandomState
from lightning_cnnopt.core.spec import factory_of
from lightning_cnnopt.initialization import Kaiming, XavierNormal
from lightning_cnnopt.learning_rate import Cosine, ScheduleLearningRate, Step, Warmup
from lightning_cnnopt.regularization import L2
from tests.contracts import harness
from tests.lightning_tools import Killed, RecordRates, SaveAtBatch, assert_same_weights, quiet_trainer, weights_of

SMALL = partial(ConvNet, widths=(4,), depth=1, dense=(8,))


class Linear(nn.Sequential):
    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(in_channels * 64, num_classes))


def data_of(task="multiclass", count=60, channels=1, classes=3, **arguments) -> TensorData:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, channels, 8, 8), generator=generator, dtype=torch.uint8)
    numbers = torch.arange(count)
    targets = {
        "multiclass": numbers % classes,
        "binary": (numbers % 3 == 0).long(),
        "multilabel": torch.stack([numbers % 2, numbers % 3 // 2, numbers % 5 // 4], 1),
    }[task]
    arguments = {"val_size": 12, "batch_size": 8, "eval_batch_size": 7, **arguments}
    return TensorData(
        train_images=images,
        train_targets=targets,
        test_images=images[:20],
        test_targets=targets[:20],
        task=task,
        **arguments,
    )


def classifier(data=None, network=SMALL, **arguments) -> ImageClassifier:
    return ImageClassifier(network, **{**(data or data_of()).model_args(), **arguments})


def logits_of(model: ImageClassifier, images: torch.Tensor) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(images)


def evaluated(task, **arguments):
    data = data_of(task, **arguments)
    model = classifier(data)
    result = quiet_trainer().test(model, data, verbose=False)[0]
    return result, logits_of(model, data.test_set.images), data.test_set.targets


# tasks and their metrics


@pytest.mark.parametrize("classes", [3, 12])
def test_multiclass_metrics_are_scikit_learns(classes):
    result, logits, targets = evaluated("multiclass", classes=classes, val_size=0)
    guess, probabilities = logits.argmax(1), logits.softmax(1)
    labels = np.arange(classes)
    assert result["test_acc"] == pytest.approx(sk.accuracy_score(targets, guess))
    seen = sorted(set(targets.tolist()) | set(guess.tolist()))
    assert result["test_f1"] == pytest.approx(
        sk.f1_score(targets, guess, labels=seen, average="macro", zero_division=0), abs=1e-6
    )
    assert result["test_loss"] == pytest.approx(sk.log_loss(targets, probabilities.double(), labels=labels), rel=1e-4)
    assert result["test_ece"] == pytest.approx(float(multiclass_calibration_error(probabilities, targets, classes)), abs=1e-6)
    if classes >= 10:
        expected = sk.top_k_accuracy_score(targets, probabilities, k=5, labels=labels)
        assert result["test_acc_top5"] == pytest.approx(expected)
    else:
        assert "test_acc_top5" not in result


def test_binary_metrics_are_scikit_learns():
    result, logits, targets = evaluated("binary")
    probabilities = logits.sigmoid().flatten()
    guess = (probabilities > 0.5).float()
    assert result["test_acc"] == pytest.approx(sk.accuracy_score(targets, guess))
    assert result["test_f1"] == pytest.approx(sk.f1_score(targets, guess, zero_division=0))
    assert result["test_loss"] == pytest.approx(sk.log_loss(targets, probabilities.double()), rel=1e-4)
    assert result["test_ece"] == pytest.approx(float(binary_calibration_error(probabilities, targets.long())), abs=1e-6)


def test_multilabel_metrics_are_scikit_learns():
    result, logits, targets = evaluated("multilabel")
    guess = (logits > 0).float()
    assert result["test_acc"] == pytest.approx(float((guess == targets).float().mean(0).mean()))
    assert result["test_f1"] == pytest.approx(sk.f1_score(targets, guess, average="macro", zero_division=0), abs=1e-6)
    expected = nn.functional.binary_cross_entropy_with_logits(logits, targets)
    assert result["test_loss"] == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
def test_every_task_learns_what_can_be_learnt(task):
    data = data_of(task, val_size=0, batch_size=60)
    torch.manual_seed(0)
    model = classifier(data, Linear, optimizer=partial(torch.optim.Adam, lr=0.05))
    trainer = quiet_trainer(max_epochs=40)
    trainer.fit(model, data)
    assert float(trainer.callback_metrics["train_acc"]) > 0.95
    assert quiet_trainer().test(model, data, verbose=False)[0]["test_acc"] > 0.95


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
def test_every_task_trains_on_mixed_targets(task):
    data = data_of(task, augmentation=[HorizontalFlip()], mixing=MixUp(1.0))
    trainer = quiet_trainer()
    trainer.fit(classifier(data), data)
    assert torch.isfinite(trainer.callback_metrics["train_loss"])
    assert 0 <= trainer.callback_metrics["train_acc"] <= 1


def test_the_training_loss_logged_is_the_mean_over_the_samples_of_the_epoch():
    data = data_of(val_size=0, batch_size=9)
    model = classifier(data, Linear, optimizer=partial(torch.optim.SGD, lr=1e-12))
    trainer = quiet_trainer(log_every_n_steps=2)
    trainer.fit(model, data)
    logits = logits_of(model, data.train_set.images)
    expected = nn.functional.cross_entropy(logits, data.train_set.targets)
    assert float(trainer.callback_metrics["train_loss"]) == pytest.approx(float(expected), rel=1e-4)
    accuracy = (logits.argmax(1) == data.train_set.targets).float().mean()
    assert float(trainer.callback_metrics["train_acc"]) == pytest.approx(float(accuracy))


def test_training_is_logged_at_every_nth_step_of_the_run_as_the_mean_of_the_epoch_so_far(tmp_path):
    class Seen(Callback):
        losses = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.losses.append((batch_idx, float(outputs["loss"])))

    data, logger, seen = data_of(val_size=0, batch_size=10), CSVLogger(tmp_path), Seen()
    quiet_trainer(seen, logger=logger, max_epochs=3, log_every_n_steps=8).fit(classifier(data, Linear), data)
    with open(f"{logger.log_dir}/metrics.csv", newline="") as stream:
        logged = [(int(row["step"]), float(row["train_loss"])) for row in csv.DictReader(stream) if row["train_loss"]]
    expected = []
    for step in (5, 7, 11, 15, 17):  # epochs end at 5, 11, 17; the 8th and the 16th step lie within one
        epoch = [loss for _, loss in seen.losses[: step + 1][-seen.losses[step][0] - 1 :]]
        expected.append((step, pytest.approx(sum(epoch) / len(epoch), rel=1e-4)))
    assert logged == expected


@pytest.mark.parametrize("batches", [5, 6, 7, 12])
def test_each_epoch_after_a_resume_logs_its_own_training_loss(batches, tmp_path):
    class AtEnd(Callback):
        def on_train_end(self, trainer, pl_module):
            self.loss = float(trainer.callback_metrics["train_loss"])

        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                self.former = float(trainer.callback_metrics["train_loss"])

    def run(*callbacks, ckpt_path=None):
        torch.manual_seed(1)
        data, losses = data_of(val_size=0, batch_size=10), AtEnd()
        quiet_trainer(losses, *callbacks, max_epochs=3).fit(classifier(data, Linear), data, ckpt_path=ckpt_path)
        return losses

    with pytest.raises(Killed):
        run(SaveAtBatch(batches, tmp_path / "cut.ckpt"))
    whole, resumed = run(), run(ckpt_path=str(tmp_path / "cut.ckpt"))
    assert resumed.loss == whole.loss
    assert batches == 12 or resumed.former == whole.former


def test_metrics_of_ones_own_are_logged_beside_the_default_ones():
    data = data_of()
    model = classifier(data, metrics={"recall": partial(MulticlassRecall, average="macro")})
    result = quiet_trainer().test(model, data, verbose=False)[0]
    guess = logits_of(model, data.test_set.images).argmax(1)
    expected = sk.recall_score(data.test_set.targets, guess, average="macro", zero_division=0)
    assert result["test_recall"] == pytest.approx(expected, abs=1e-6)


# hooks


class Hooked(ImageClassifier):
    """Overrides every hook and notes that it was called."""

    def __init__(self, **arguments):
        self.__dict__["called"] = []
        super().__init__(**arguments)

    def configure_network(self):
        self.called.append("configure_network")
        return Linear(self.num_classes, self.in_channels)

    def configure_normalization(self, network):
        self.called.append("configure_normalization")

    def configure_activation(self, network):
        self.called.append("configure_activation")

    def initialize(self, network, sample):
        self.called.append("initialize")
        nn.init.constant_(network[1].weight, 0.125)

    def loss(self, logits, targets):
        self.called.append("loss")
        return logits.square().mean()

    def regularization(self):
        self.called.append("regularization")
        return self.network[1].bias.sum()

    def parameter_groups(self):
        self.called.append("parameter_groups")
        return [{"params": list(self.parameters()), "lr": 0.25}]

    def configure_metrics(self):
        self.called.append("configure_metrics")
        return MetricCollection({"recall": MulticlassRecall(self.num_classes)})


def test_each_hook_is_called_and_what_it_returns_is_used():
    data = data_of()
    model = Hooked(**data.model_args())
    built = ["configure_network", "configure_normalization", "configure_activation", "configure_metrics"]
    assert model.called == built
    assert isinstance(model.network, Linear)
    seen = []

    class Look(Callback):
        def on_train_start(self, trainer, pl_module):
            seen.append(float(pl_module.network[1].weight.max()))
            seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    trainer = quiet_trainer(Look(), log_every_n_steps=1)
    trainer.fit(model, data)
    assert set(model.called) == {*built, "initialize", "loss", "regularization", "parameter_groups"}
    assert seen == [0.125, 0.25]
    assert "val_recall" in trainer.callback_metrics
    assert "train_penalty" in trainer.callback_metrics


def test_a_parameter_left_out_of_the_groups_is_named():
    class Forgets(ImageClassifier):
        def parameter_groups(self):
            return [{"params": [self.network[1].weight]}]

    data = data_of()
    with pytest.raises(ConfigurationError, match=r"leaves out 1 .*'network.1.bias'"):
        quiet_trainer().fit(Forgets(Linear, **data.model_args()), data)


def test_biases_and_norms_are_spared_the_weight_decay():
    data, groups = data_of(), []

    class Look(Callback):
        def on_train_start(self, trainer, pl_module):
            groups.extend(trainer.optimizers[0].param_groups)

    model = classifier(data, optimizer=partial(torch.optim.SGD, lr=0.1, weight_decay=0.5))
    quiet_trainer(Look(), max_steps=1).fit(model, data)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.5 if parameter.ndim >= 2 else 0.0), name


# checkpoints


FULL = {
    "schedule": Warmup(Cosine(), 0.1),
    "optimizer": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "activation": partial(nn.LeakyReLU, negative_slope=0.2),
    "normalization": nn.InstanceNorm2d,
    "initializer": XavierNormal(),
    "penalties": [L2(1e-3)],
    "edits": [SqueezeExcite(reduction=2, min_channels=2)],
    "criterion": partial(nn.CrossEntropyLoss, label_smoothing=0.1),
    "metrics": {"recall": partial(MulticlassRecall, average="macro")},
}


def saved(tmp_path, data=None, model=None, callbacks=(), **arguments):
    data = data or data_of()
    model = model or classifier(data, **arguments)
    path = tmp_path / "model.ckpt"
    trainer = quiet_trainer(*callbacks, max_epochs=1)
    trainer.fit(model, data)
    trainer.save_checkpoint(path)
    return path, model, data


@pytest.mark.parametrize("name", [*FULL, "everything", "nothing"])
def test_a_checkpoint_alone_rebuilds_the_model(name, tmp_path):
    arguments = FULL if name == "everything" else {name: FULL[name]} if name in FULL else {}
    path, model, data = saved(tmp_path, **arguments)
    loaded = ImageClassifier.load_from_checkpoint(path)
    assert torch.equal(logits_of(loaded, data.test_set.images), logits_of(model, data.test_set.images))
    assert repr(loaded.network) == repr(model.network)
    assert loaded.schedule == model.schedule
    assert loaded.penalties == model.penalties
    assert loaded.initializer == model.initializer
    assert repr(loaded.criterion) == repr(model.criterion)
    ours, theirs = loaded.configure_optimizers(), model.configure_optimizers()
    assert type(ours) is type(theirs)
    assert ours.defaults == theirs.defaults
    assert (loaded.class_names, loaded.image_size, loaded.task) == (model.class_names, (8, 8), "multiclass")


def test_a_checkpoint_holds_builtins_and_tensors_only(tmp_path):
    path, *_ = saved(tmp_path, **FULL)
    network = torch.load(path, weights_only=True)["hyper_parameters"]["network"]
    assert network["init_args"] == {"widths": [4], "depth": 1, "dense": [8]}
    assert factory_of(network, nn.Module).func is ConvNet


def test_what_model_checkpoint_saves_gives_the_same_outputs_when_loaded(tmp_path):
    data = data_of()
    outputs = {}

    class Outputs(Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            outputs[trainer.global_step] = pl_module(data.test_set.images).detach()

    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=-1, filename="{step}")
    quiet_trainer(Outputs(), checkpoint, max_epochs=3).fit(classifier(data), data)
    assert len(list(tmp_path.glob("*.ckpt"))) == 3
    for path in tmp_path.glob("*.ckpt"):
        loaded = ImageClassifier.load_from_checkpoint(path)
        step = int(path.stem.partition("=")[2])
        assert torch.equal(logits_of(loaded, data.test_set.images), outputs[step])


def test_edits_that_a_callback_applied_are_replayed_without_it(tmp_path):
    path, model, data = saved(tmp_path, callbacks=[EditNetwork(SqueezeExcite(2, 2))])
    loaded = ImageClassifier.load_from_checkpoint(path)
    assert torch.equal(logits_of(loaded, data.test_set.images), logits_of(model, data.test_set.images))


def test_a_ready_made_network_has_to_be_passed_again_and_then_works(tmp_path):
    path, model, data = saved(tmp_path, network=Linear(3, 1))
    with pytest.raises(CheckpointError, match=r"network= \(a ready-made Linear\).*pass it to load_from_checkpoint"):
        ImageClassifier.load_from_checkpoint(path)
    loaded = ImageClassifier.load_from_checkpoint(path, network=Linear(3, 1))
    assert torch.equal(logits_of(loaded, data.test_set.images), logits_of(model, data.test_set.images))


def test_a_checkpoint_of_other_shapes_or_of_another_network_says_what_differs(tmp_path):
    path, _, data = saved(tmp_path)
    wider = classifier(data, partial(ConvNet, widths=(6,), depth=1, dense=(8,)))
    with pytest.raises(CheckpointError, match=r"network.stages.0.0.conv.weight.*\(4, 1, 3, 3\) there and \(6, 1, 3, 3\) here"):
        quiet_trainer().test(wider, data, ckpt_path=str(path), verbose=False)
    with pytest.raises(CheckpointError, match=r"missing there.*no place here"):
        quiet_trainer(max_epochs=2).fit(classifier(data, Linear), data, ckpt_path=str(path))


def test_a_checkpoint_of_a_newer_format_is_refused(tmp_path):
    path, *_ = saved(tmp_path)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["lightning_cnnopt"]["format"] += 1
    torch.save(checkpoint, path)
    with pytest.raises(CheckpointError, match="Upgrade"):
        ImageClassifier.load_from_checkpoint(path)


def test_preprocessing_belongs_to_the_weights(tmp_path):
    path, model, data = saved(tmp_path)
    loaded = ImageClassifier.load_from_checkpoint(path)
    assert loaded.preprocessing.mean.flatten().tolist() == pytest.approx(data.mean)
    other = data_of(count=90)
    other._statistics = ([0.9], [0.01])
    quiet_trainer().test(loaded, other, verbose=False)
    quiet_trainer(max_epochs=1).fit(loaded, other)
    assert torch.equal(loaded.preprocessing.mean, model.preprocessing.mean)
    assert torch.equal(loaded.preprocessing.std, model.preprocessing.std)


def test_a_run_resumed_in_mid_epoch_ends_with_the_same_bits(tmp_path):
    def run(*callbacks, ckpt_path=None):
        torch.manual_seed(1)
        data = data_of(augmentation=[HorizontalFlip()], mixing=MixUp())
        model = classifier(data, initializer=Kaiming(), schedule=Cosine(), penalties=[L2(1e-3)])
        torch.manual_seed(2)
        quiet_trainer(*callbacks, max_epochs=3).fit(model, data, ckpt_path=ckpt_path)
        return weights_of(model)

    whole, path = run(), tmp_path / "cut.ckpt"
    with pytest.raises(Killed):
        run(SaveAtBatch(8, path))
    assert_same_weights(run(ckpt_path=str(path)), whole)


# network and data


def test_data_of_another_number_of_classes_or_channels_names_both_sides():
    model = classifier(data_of())
    with pytest.raises(ConfigurationError, match=r"TensorData has num_classes=5 and ImageClassifier .* num_classes=3"):
        quiet_trainer().fit(model, data_of(classes=5))
    with pytest.raises(ConfigurationError, match="in_channels=3"):
        quiet_trainer().test(model, data_of(channels=3), verbose=False)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (partial(nn.Linear, in_features=10, out_features=10), "Linear.* images of shape"),
        (
            partial(nn.Conv2d, out_channels=2, kernel_size=3),
            r"Conv2d gives outputs of shape \(2, 2, 6, 6\).*expected \(2, 3\)",
        ),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), r"\(2, 4\).*expected \(2, 3\)"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_before_training(network, message):
    data = data_of()
    with pytest.raises(ConfigurationError, match=message):
        quiet_trainer().fit(ImageClassifier(network, **data.model_args()), data)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "multi"}, "task='multi'"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"mean": [0.5]}, "mean and std belong together"),
        ({"mean": [0.5, 0.5], "std": [1.0, 1.0]}, "2 numbers for 1 channels"),
        ({"mean": [0.5], "std": [0.0]}, "std=0.0"),
        ({"class_names": ["a"]}, "1 class_names for num_classes=3"),
        ({"network": 5}, "names nothing to build"),
        ({"network": partial(ConvNet, width=(4,))}, "width"),
    ],
)
def test_arguments_that_cant_be_right_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        ImageClassifier(**{"network": SMALL, "num_classes": 3, "image_size": (8, 8), **arguments})


def test_an_optimizer_that_cant_be_made_is_named():
    data = data_of()
    with pytest.raises(ConfigurationError, match=r"SGD can't be made.*-1"):
        quiet_trainer().fit(classifier(data, optimizer=partial(torch.optim.SGD, lr=-1.0)), data)


def test_two_schedules_are_refused():
    data = data_of()
    with pytest.raises(ConfigurationError, match="keep one"):
        quiet_trainer(ScheduleLearningRate(Cosine())).fit(classifier(data, schedule=Cosine()), data)


def test_its_own_callbacks_are_attached_once_however_often_it_is_fitted():
    data = data_of()
    model, trainer = classifier(data, schedule=Cosine()), quiet_trainer()
    for _ in range(2):
        trainer.fit(model, data)
        trainer.test(model, data, verbose=False)
        for kind in (StopOnDivergence, ResumeRandomState, ScheduleLearningRate):
            assert sum(isinstance(callback, kind) for callback in trainer.callbacks) == 1


class Plain(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.body = Linear(3, 1)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.body(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("second", [None, Cosine(), Plain], ids=["no schedule", "its own schedule", "foreign module"])
def test_a_trainer_that_goes_on_with_another_model_leaves_the_first_ones_schedule_behind(second):
    def model(schedule):
        return classifier(data, optimizer=partial(torch.optim.SGD, lr=0.1), schedule=schedule)

    data, rates = data_of(), RecordRates()
    trainer = quiet_trainer(rates, max_epochs=1, limit_val_batches=0)
    trainer.fit(model(Step("1st", 0.5)), data)
    assert rates.rates == pytest.approx([0.1 * 0.5**step for step in range(6)])
    rates.groups.clear()
    trainer.fit_loop.max_epochs = 2
    trainer.fit(Plain() if second is Plain else model(second), data)
    expected = [0.1 * Cosine().factor(step / 12) for step in range(6, 12)] if second == Cosine() else [0.1] * 6
    assert rates.rates == pytest.approx(expected)


# initialization


class Counting(ImageClassifier):
    count = 0

    def initialize(self, network, sample):
        self.count += 1
        super().initialize(network, sample)


def frozen(data) -> Counting:
    """Its optimizer moves nothing, so that only initialization could."""
    return Counting(Linear, **data.model_args(), initializer=XavierNormal(), optimizer=partial(torch.optim.SGD, lr=0.0))


def test_weights_start_from_the_initializer_once_and_never_on_a_second_fit():
    data = data_of()
    model = frozen(data)
    before = weights_of(model.network)
    quiet_trainer().fit(model, data)
    started = weights_of(model.network)
    assert not torch.equal(started["1.weight"], before["1.weight"])
    assert float(started["1.weight"].std()) == pytest.approx((2 / (64 + 3)) ** 0.5, rel=0.25)
    assert not started["1.bias"].any()
    quiet_trainer().fit(model, data)
    assert model.count == 1
    assert_same_weights(weights_of(model.network), started)


def test_weights_that_were_loaded_are_never_drawn_anew(tmp_path):
    data = data_of()
    path, *_ = saved(tmp_path, data, frozen(data))
    trained = torch.load(path, weights_only=True)["state_dict"]
    by_hand = frozen(data)
    by_hand.load_state_dict(trained)
    for way, model in (
        ("load_state_dict", by_hand),
        ("load_from_checkpoint", Counting.load_from_checkpoint(path)),
        ("resume", frozen(data)),
    ):
        quiet_trainer(max_epochs=2).fit(model, data, ckpt_path=str(path) if way == "resume" else None)
        assert way == "resume" or model.count == 0, way
        assert_same_weights(weights_of(model), trained)


def test_a_resumed_run_does_not_even_call_the_initialization(tmp_path):
    data = data_of()
    path, *_ = saved(tmp_path, data, frozen(data))
    model = frozen(data)
    quiet_trainer(max_epochs=2).fit(model, data, ckpt_path=str(path))
    assert model.count == 0


@pytest.mark.parametrize("way", ["network", "layer", "whole", "marked"])
def test_weights_that_were_loaded_in_any_way_stay(way):
    data = data_of()
    model, trained = frozen(data), Linear(3, 1)
    state = trained.state_dict()
    if way == "network":
        model.network.load_state_dict(state)
    elif way == "layer":
        model.network[1].load_state_dict(trained[1].state_dict())
    elif way == "whole":
        model.load_state_dict({f"network.{key}": value for key, value in state.items()}, strict=False)
    else:
        model.network.load_state_dict(state, assign=True)
    quiet_trainer().fit(model, data)
    assert model.count == 0
    assert_same_weights(weights_of(model.network), weights_of(trained))


def test_a_head_that_was_not_loaded_is_drawn_and_the_rest_stays():
    data = data_of()
    torch.manual_seed(0)
    model, other = (classifier(data, initializer=XavierNormal(), optimizer=partial(torch.optim.SGD, lr=0.0)) for _ in range(2))
    state = {key: value for key, value in other.network.state_dict().items() if not key.startswith("classifier")}
    before = model.network.classifier.weight.detach().clone()
    model.network.load_state_dict(state, strict=False)
    quiet_trainer(limit_train_batches=0, num_sanity_val_steps=0, limit_val_batches=0).fit(model, data)
    assert not torch.equal(model.network.classifier.weight, before)
    assert_same_weights({key: weights_of(model.network)[key] for key in state}, state)


def test_a_head_put_on_a_fitted_model_is_drawn_and_the_rest_stays():
    data = data_of()
    model = classifier(data, initializer=XavierNormal(1e-6), optimizer=partial(torch.optim.SGD, lr=0.0))
    quiet_trainer().fit(model, data)
    model.network.head = nn.Sequential(nn.Linear(64, 8), nn.ReLU())
    kept = {key: value for key, value in weights_of(model.network).items() if key.endswith("weight") and "head" not in key}
    quiet_trainer().fit(model, data)
    assert float(model.network.head[0].weight.detach().abs().max()) < 1e-4
    assert all(torch.equal(value, weights_of(model.network)[key]) for key, value in kept.items())


def test_a_resumed_run_draws_nothing_though_its_checkpoint_lacks_a_layer(tmp_path):
    data = data_of()
    path, *_ = saved(tmp_path, data, frozen(data))
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["state_dict"]["network.1.weight"], checkpoint["state_dict"]["network.1.bias"]
    torch.save(checkpoint, path)
    model = frozen(data)
    model.strict_loading = False
    before = weights_of(model.network)
    quiet_trainer(max_epochs=2).fit(model, data, ckpt_path=str(path))
    assert model.count == 0
    assert_same_weights(weights_of(model.network), before)


def test_a_layer_that_a_module_makes_in_setup_keeps_what_is_loaded_into_it(tmp_path):
    class Late(Counting):
        def setup(self, stage):
            if not hasattr(self, "made"):
                self.made = self.network[1] = nn.Linear(64, 3)
            super().setup(stage)

    data = data_of()
    arguments = {**data.model_args(), "initializer": XavierNormal(), "optimizer": partial(torch.optim.SGD, lr=0.0)}
    path, trained, _ = saved(tmp_path, data, Late(Linear, **arguments))
    model = Late(Linear, **arguments)
    quiet_trainer(max_epochs=2).fit(model, data, ckpt_path=str(path))
    assert model.count == 0
    assert_same_weights(weights_of(model), weights_of(trained))


def test_a_ready_made_network_is_not_drawn_unless_that_was_said():
    data = data_of()
    arguments = {**data.model_args(), "initializer": XavierNormal(1e-6), "optimizer": partial(torch.optim.SGD, lr=0.0)}
    network = Linear(3, 1)
    trained = weights_of(network)
    with pytest.raises(ConfigurationError, match=r"ready-made Linear, and initializer=XavierNormal.*mark_pretrained"):
        quiet_trainer().fit(ImageClassifier(network, **arguments), data)
    mark_pretrained(network)
    quiet_trainer().fit(ImageClassifier(network, **arguments), data)
    assert_same_weights(weights_of(network), trained)
    mark_pretrained(network, False)
    quiet_trainer().fit(ImageClassifier(network, **arguments), data)
    assert float(network[1].weight.detach().abs().max()) < 1e-4


def test_a_network_put_in_place_of_the_made_one_is_not_drawn_unless_that_was_said():
    data = data_of()
    model = frozen(data)
    model.network = Linear(3, 1)
    with pytest.raises(ConfigurationError, match="ready-made Linear"):
        quiet_trainer().fit(model, data)


def test_a_ready_made_network_with_a_checkpoint_of_its_own_needs_no_word(tmp_path):
    data = data_of()
    network = Linear(3, 1)
    mark_pretrained(network)
    path, *_ = saved(tmp_path, data, Counting(network, **data.model_args(), initializer=XavierNormal()))
    loaded = Counting.load_from_checkpoint(path, network=Linear(3, 1))
    trained = weights_of(loaded.network)
    quiet_trainer(max_epochs=1, limit_train_batches=0, num_sanity_val_steps=0, limit_val_batches=0).fit(loaded, data)
    assert loaded.count == 0
    assert_same_weights(weights_of(loaded.network), trained)


@pytest.mark.parametrize("missing", [("mean", "std"), ("std",), ()])
def test_statistics_that_were_not_loaded_are_those_of_the_data(missing):
    data = data_of()
    source = classifier(data, Linear, mean=[0.9], std=[0.01])
    state = {key: value for key, value in source.state_dict().items() if key.rpartition(".")[2] not in missing}
    model = classifier(data, Linear)
    model.load_state_dict(state, strict=False)
    quiet_trainer().fit(model, data)
    expected = ([0.9], [0.01]) if not missing else (data.mean, data.std)
    assert model.preprocessing.mean.flatten().tolist() == pytest.approx(expected[0])
    assert model.preprocessing.std.flatten().tolist() == pytest.approx(expected[1])


def test_weights_trained_without_statistics_get_none_later():
    data = data_of()
    model = classifier(data, Linear)
    quiet_trainer().fit(model, DataLoader(TensorDataset(data.train_set.images, data.train_set.targets), batch_size=8))
    quiet_trainer().test(model, data, verbose=False)
    assert (float(model.preprocessing.mean), float(model.preprocessing.std)) == (0, 1)


def test_validation_and_test_never_initialize():
    data = data_of()
    model = frozen(data)
    before = weights_of(model.network)
    quiet_trainer().validate(model, data, verbose=False)
    quiet_trainer().test(model, data, verbose=False)
    assert model.count == 0
    assert_same_weights(weights_of(model.network), before)


# prediction


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
def test_predictions_are_probabilities_with_the_index_of_each_image(task):
    data = data_of(task)
    model = classifier(data)
    batches = quiet_trainer().predict(model, data)
    logits = logits_of(model, data.test_set.images)
    expected = logits.softmax(1) if task == "multiclass" else logits.sigmoid()
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(20))
    assert torch.allclose(torch.cat([batch["probabilities"] for batch in batches]), expected, atol=1e-6)


def test_floats_in_the_unit_interval_and_uint8_give_the_same_logits():
    data = Digits()
    model = ImageClassifier(Linear, **data.model_args(), mean=[0.3], std=[0.2])
    images = data.test_set.images[:8]
    expected = model.network((images / 255 - 0.3) / 0.2)
    assert torch.allclose(model(images), expected, atol=1e-5)
    assert torch.allclose(model(images / 255), expected, atol=1e-5)


def test_images_are_not_normalized_twice(tmp_path):
    data = Digits(normalize=True)
    with pytest.raises(ConfigurationError, match="normalizes them again"):
        quiet_trainer().fit(ImageClassifier(**data.model_args()), data)


def test_a_ready_made_network_is_in_the_module_once(tmp_path):
    network = harness.TinyResNet(harness.CLASSES)
    model = harness.make_model(network=network)
    assert all(name.startswith("network.") for name, _ in model.named_parameters())
    fresh = harness.make_model()
    fresh.load_state_dict(model.state_dict())
    assert copy.deepcopy(model).configure_network() is not network
    model.network = harness.TinyResNet(harness.CLASSES)
    held = {id(parameter) for group in model.configure_optimizers().param_groups for parameter in group["params"]}
    assert not held & {id(parameter) for parameter in network.parameters()}
