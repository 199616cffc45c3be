from __future__ import annotations

import copy
import logging
import pickle
import warnings

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn import functional as F

from lightning_cnnopt import ImageClassifier, TensorData
from lightning_cnnopt.augmentation import AverageViews, TestTimeAugmentation
from lightning_cnnopt.augmentation.test_time.functional import average, certainty, look, views_of
from lightning_cnnopt.core.errors import ConfigurationError
from tests.lightning_tools import assert_same_weights, quiet_trainer, weights_of

SIX = "flip_and_shift"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Net(nn.Module):
    """Not symmetric; with statistics and dropout that training mode would move and draw."""

    def __init__(self, num_classes=3, in_channels=1):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6 * 6 * 6, num_classes)
        self.images = []

    def forward(self, images):
        self.images.append(images.detach().clone())
        return self.head(self.drop(self.norm(self.conv(images)).relu()).flatten(1))


def network(num_classes=3, **arguments):
    torch.manual_seed(3)
    net = Net(num_classes, **arguments).eval()
    net.norm.running_mean.normal_()
    net.head.weight.data.mul_(5)
    return net


def airbench(net, images, mean):
    """Jordan's evaluation, written out: mirrored, and padded by a pixel and cut at two corners."""
    padded, (height, width) = F.pad(images, (1,) * 4, "reflect"), images.shape[-2:]
    parts = [images, padded[:, :, :height, :width], padded[:, :, 2:, 2:]]
    of = (lambda x: net(x).softmax(1)) if mean == "probabilities" else net
    mirrored = [0.5 * of(part) + 0.5 * of(part.flip(-1)) for part in parts]
    return 0.5 * mirrored[0] + 0.25 * mirrored[1] + 0.25 * mirrored[2]


@pytest.mark.parametrize("mean", ["probabilities", "logits"])
def test_six_views_are_airbenchs(mean):
    net, images = network(), torch.rand(5, 1, 8, 8, generator=seeded())
    found = TestTimeAugmentation(net, SIX, mean).eval()(images)
    expected = airbench(net, images, mean)
    assert torch.allclose(found.softmax(1) if mean == "probabilities" else found, expected, atol=1e-5)
    assert not torch.allclose(found.softmax(1), net(images).softmax(1), atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_views_are_exact_copies(dtype):
    images = (torch.rand(3, 2, 5, 7, generator=seeded()) * 200).to(dtype)
    assert look(images, {}) is images
    assert torch.equal(look(images, {"vertical_flip": True}), images.flip(-2))
    assert torch.equal(look(images, {"vertical_flip": True, "horizontal_flip": True}), images.flip(-1, -2))
    padded = F.pad(images.double(), (3, 3, 2, 2), "reflect").to(dtype)
    assert torch.equal(look(images, {"down": 2, "right": -3}), padded[:, :, :5, 6:])
    assert torch.equal(look(images, {"down": 2, "right": -3, "horizontal_flip": True}), padded[:, :, :5, 6:].flip(-1))
    assert look(images[:0], {"down": 1}).shape == (0, 2, 5, 7)
    with pytest.raises(ConfigurationError, match=r"shifts by more than an image of \(5, 7\)"):
        look(images, {"down": 5})


@pytest.mark.parametrize("task", ["multiclass", "multilabel", "binary"])
def test_the_logits_of_mean_probabilities_give_them_back(task):
    logits = [torch.randn(4, 1 if task == "binary" else 5, generator=seeded(seed)) * 30 for seed in range(3)]
    exclusive, turn = task == "multiclass", (lambda x: x.softmax(1)) if task == "multiclass" else torch.sigmoid
    weights = [2.0, 1.0, 1.0]
    expected = sum(weight * turn(one.double()) for weight, one in zip(weights, logits, strict=True)) / 4
    found = average(logits, weights, "probabilities", exclusive)
    assert found.isfinite().all()
    assert torch.allclose(turn(found.double()), expected, atol=1e-6)
    of_logits = average(logits, weights, "logits", exclusive)
    assert torch.allclose(of_logits, (2 * logits[0] + logits[1] + logits[2]) / 4)


def test_far_logits_lose_nothing():
    views = [torch.tensor([[500.0, -500.0]]), torch.tensor([[-500.0, 500.0]])]
    assert torch.allclose(average(views, [1, 1]), torch.full((1, 2), 0.5).log())
    assert torch.allclose(average(views, [1, 1], exclusive=False), torch.zeros(1, 2), atol=1e-4)


def test_certainty_is_what_its_name_says():
    logits = torch.randn(6, 4, generator=seeded()) * 3
    first, second = logits.softmax(1).sort(1, descending=True).values[:, :2].unbind(1)
    assert torch.allclose(certainty(logits), first - second)
    assert torch.allclose(certainty(logits, "confidence"), first)
    labels = torch.tensor([[4.0, -0.1], [3.0, -3.0]])
    assert certainty(labels, "confidence", exclusive=False).tolist() == pytest.approx([0.52498, 0.95257], abs=1e-4)
    assert certainty(labels, "margin", exclusive=False).tolist() == pytest.approx([0.04996, 0.90515], abs=1e-4)
    assert torch.allclose(certainty(torch.tensor([2.0, -2.0]), exclusive=False), torch.tanh(torch.tensor([1.0, 1.0])))


@pytest.mark.parametrize("by", ["margin", "confidence"])
@pytest.mark.parametrize("mean", ["probabilities", "logits"])
def test_only_the_uncertain_are_looked_at_again_in_one_batch(by, mean):
    net, images = network(), torch.rand(40, 1, 8, 8, generator=seeded())
    plain, whole = net(images), TestTimeAugmentation(net, SIX, mean).eval()(images)
    sure = certainty(plain, by)
    threshold = float(sure.median())
    unsure = sure < threshold
    assert 10 < int(unsure.sum()) < 30
    net.images.clear()
    found = TestTimeAugmentation(net, SIX, mean, only_below=threshold, by=by).eval()(images)
    assert [len(seen) for seen in net.images] == [40] + [int(unsure.sum())] * 5
    assert torch.allclose(found[unsure].softmax(1), whole[unsure].softmax(1), atol=1e-6)
    assert torch.allclose(found[~unsure].softmax(1), plain[~unsure].softmax(1), atol=1e-6)
    net.images.clear()
    TestTimeAugmentation(net, SIX, mean, only_below=1e-9, by=by).eval()(images)
    assert [len(seen) for seen in net.images] == [40]


def test_training_is_the_network_alone_and_evaluation_moves_nothing():
    net, images = network(), torch.rand(5, 1, 8, 8, generator=seeded())
    wrapped = TestTimeAugmentation(net)
    before = weights_of(net)
    wrapped.eval()(images)
    assert_same_weights(weights_of(net), before)
    wrapped.train()
    net.images.clear()
    torch.manual_seed(1)
    found = wrapped(images)
    again = copy.deepcopy(net)
    again.load_state_dict(before)
    torch.manual_seed(1)
    assert torch.equal(found, again(images))
    assert len(net.images) == 1


def test_the_wrapper_takes_a_lightning_module_its_task_pickles_and_one_output_is_binary():
    model = ImageClassifier(Net, num_classes=4, image_size=(8, 8), task="multilabel")
    assert TestTimeAugmentation(model).task == "multilabel"
    assert TestTimeAugmentation(model, task="multiclass").task == "multiclass"
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    found = pickle.loads(pickle.dumps(TestTimeAugmentation(model))).eval()(images)
    model.eval()
    expected = (model(images).sigmoid() + model(images.flip(-1)).sigmoid()) / 2
    assert torch.allclose(found.sigmoid(), expected, atol=1e-6)
    single, floats = network(1), images.float() / 255
    expected = (single(floats).sigmoid() + single(floats.flip(-1)).sigmoid()) / 2
    assert torch.allclose(TestTimeAugmentation(single).eval()(floats).sigmoid(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"views": "flips"}, "views='flips' is unknown.*Did you mean 'flip'"),
        ({"views": []}, "has to begin with the image as it is"),
        ({"views": [{"down": 1}]}, "has to begin with the image as it is"),
        ({"views": [{}, {"dwon": 1}]}, "views='dwon'.*Did you mean 'down'"),
        ({"views": [{}, 3]}, "holds 3; expected a mapping"),
        ({"views": [{}, {"weight": 0}]}, "weight=0 is out of range"),
        ({"views": [{}, {"down": 1.5}]}, "down=1.5 is not a whole number"),
        ({"views": [{}, {"horizontal_flip": "false"}]}, "horizontal_flip='false' is neither true nor false"),
        ({"mean": "median"}, "mean='median'"),
        ({"only_below": 0}, "only_below=0"),
        ({"only_below": 1.5}, "only_below=1.5"),
        ({"by": "entropy"}, "by='entropy'"),
        ({"task": "regression"}, "task='regression'"),
    ],
)
@pytest.mark.parametrize("kind", ["wrapper", "callback"])
def test_arguments_that_can_not_be_right_are_refused_by_name(kind, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        TestTimeAugmentation(network(), **arguments) if kind == "wrapper" else AverageViews(**arguments)


def test_what_gives_no_logits_is_refused():
    with pytest.raises(ConfigurationError, match=r"TestTimeAugmentation averages logits.*gives \(2, 6, 6, 6\) for 2 images"):
        TestTimeAugmentation(nn.Conv2d(1, 6, 3)).eval()(torch.zeros(2, 1, 8, 8))
    assert views_of([{"weight": 2}]) == [{"weight": 2}]


# the callback


def own_data(classes=3, **arguments):
    images = torch.randint(0, 256, (50, 1, 8, 8), dtype=torch.uint8, generator=seeded(1))
    targets = torch.arange(50) % classes
    settings = {"batch_size": 10, "eval_batch_size": 20, "val_size": 15, **arguments}
    return TensorData(
        train_images=images, train_targets=targets, test_images=images[:30], test_targets=targets[:30], **settings
    )


def classifier():
    torch.manual_seed(3)
    model = ImageClassifier(Net, num_classes=3, image_size=(8, 8))
    model.network.head.weight.data.mul_(5)
    return model


@pytest.mark.parametrize("views", ["flip", SIX])
def test_metrics_and_predictions_of_an_image_classifier_are_those_of_mean_probabilities(views):
    model, data = classifier(), own_data()
    trainer = quiet_trainer(AverageViews(views))
    plain = quiet_trainer().test(model, data, verbose=False)[0]
    found = trainer.test(model, data, verbose=False)[0]
    predicted = torch.cat([batch["probabilities"] for batch in trainer.predict(model, data)])
    model.eval()
    images, targets = data.test_set.images, data.test_set.targets
    with torch.no_grad():
        seen = model.preprocessing(images)
        mirrored = (model.network(seen).softmax(1) + model.network(seen.flip(-1)).softmax(1)) / 2
        expected = mirrored if views == "flip" else airbench(model.network, seen, "probabilities")
    assert torch.allclose(predicted, expected, atol=1e-6)
    assert found["test_loss"] == pytest.approx(float(F.nll_loss(expected.log(), targets)), rel=1e-5)
    assert found["test_acc"] == pytest.approx(float((expected.argmax(1) == targets).float().mean()))
    assert plain["test_loss"] != pytest.approx(found["test_loss"], rel=1e-3)
    assert quiet_trainer().test(model, data, verbose=False)[0] == plain  # nothing is left on the module


class Foreign(LightningModule):
    """Calls itself, or a part of it, or neither."""

    def __init__(self, calls="itself"):
        super().__init__()
        torch.manual_seed(3)
        self.calls = calls
        if calls == "layers":
            self.first, self.second = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, 3)
        else:
            self.net = network()

    def forward(self, images):
        if self.calls == "layers":
            return self.second(self.first(images).relu().flatten(1))
        return self.net(images)

    def answer(self, images):
        if self.calls == "named":
            return self.net(images=images)
        return (
            self.net.head(self.net.norm(self.net.conv(images)).relu().flatten(1)) if self.calls == "neither" else self(images)
        )

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.answer(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", F.cross_entropy(self.answer(batch[0]), batch[1]))

    def test_step(self, batch, batch_idx):
        self.log("test_loss", F.cross_entropy(self.answer(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(count=30):
    images = torch.rand(count, 1, 8, 8, generator=seeded(1))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, torch.arange(count) % 3), batch_size=count)


@pytest.mark.parametrize("calls", ["itself", "named", "layers"])
@pytest.mark.parametrize("stages", [["test"], ["validate"]], ids=lambda stages: stages[0])
def test_a_foreign_module_is_averaged_in_the_stages_that_are_named(calls, stages):
    module = Foreign(calls).eval()
    images, targets = next(iter(loader()))
    with torch.no_grad():
        plain = float(F.cross_entropy(module(images), targets))
        mean = (module(images).softmax(1) + module(images.flip(-1)).softmax(1)) / 2
    averaged = float(F.nll_loss(mean.log(), targets))
    assert plain != pytest.approx(averaged, rel=1e-4)
    trainer = quiet_trainer(AverageViews(stages=stages))
    assert trainer.test(module, loader(), verbose=False)[0]["test_loss"] == pytest.approx(
        averaged if stages == ["test"] else plain, rel=1e-5
    )
    assert trainer.validate(module, loader(), verbose=False)[0]["val_loss"] == pytest.approx(
        averaged if stages == ["validate"] else plain, rel=1e-5
    )


@pytest.mark.parametrize(
    ("callback", "said"),
    [
        (AverageViews("flip_and_shift"), "the mean over 6 views of all images."),
        (AverageViews(only_below=0.9, by="confidence"), "the mean over 2 views of images whose confidence is below 0.9."),
    ],
)
def test_a_measurement_says_that_it_is_of_several_views_and_a_fit_does_not(callback, said, caplog):
    def lines():
        return [line for line in caplog.messages if line.startswith("AverageViews: predictions are")]

    module = Foreign("itself")
    callback.stages.append("validate")
    with caplog.at_level(logging.INFO):
        quiet_trainer(callback, max_epochs=1).fit(module, loader(), loader())
        assert lines() == []
        quiet_trainer(callback).test(module, loader(), verbose=False)
    assert [said in line for line in lines()] == [True]


def test_training_is_untouched_to_the_bit_with_validation_averaged_too():
    def run(*callbacks):
        module = Foreign()
        module.net.images.clear()
        trainer = quiet_trainer(*callbacks, max_epochs=2)
        torch.manual_seed(1)
        trainer.fit(module, loader(), loader())
        return module, trainer

    (plain, _), (averaged, trainer) = run(), run(AverageViews(stages=["validate", "test"]))
    assert_same_weights(weights_of(plain), weights_of(averaged))
    assert len(averaged.net.images) == len(plain.net.images) + 3  # the check before training, and an epoch's validation each
    assert trainer.callback_metrics["val_loss"] > 0


def test_a_module_that_goes_around_its_network_is_told_and_a_part_of_it_can_be_named():
    with pytest.warns(UserWarning, match="AverageViews averaged nothing: Foreign did not call Net with images"):
        quiet_trainer(AverageViews()).test(Foreign("neither"), loader(), verbose=False)
    with pytest.raises(ConfigurationError, match="gives \\(30, 6, 6, 6\\)"):
        quiet_trainer(AverageViews(submodule="net.conv")).test(Foreign("neither"), loader(), verbose=False)
    module = Foreign()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet_trainer(AverageViews(submodule="net")).test(module, loader(), verbose=False)
    assert not [one for one in caught if "averaged nothing" in str(one.message)]


def test_nothing_is_left_hooked_after_an_exception():
    class Failing(Foreign):
        def test_step(self, batch, batch_idx):
            super().test_step(batch, batch_idx)
            raise RuntimeError("on purpose")

    module = Failing()
    with pytest.raises(RuntimeError, match="on purpose"):
        quiet_trainer(AverageViews()).test(module, loader(), verbose=False)
    assert not module.net._forward_hooks
    quiet_trainer(AverageViews()).test(Foreign(), loader(), verbose=False)


def test_two_for_one_stage_are_refused_and_two_for_two_are_not():
    with pytest.raises(ConfigurationError, match="would both average test, one over the other's views"):
        quiet_trainer(AverageViews(), AverageViews("flip_and_shift", stages=["test"])).test(Foreign(), loader(), verbose=False)
    both = AverageViews(stages=["test"]), AverageViews(stages=["validate"])
    quiet_trainer(*both).test(Foreign(), loader(), verbose=False)


def test_a_compiled_network_is_averaged_as_it_is_eagerly():
    module = Foreign()
    expected = quiet_trainer(AverageViews(SIX)).test(module, loader(), verbose=False)
    module.net.images = []
    module.net.compile(backend="eager")
    assert quiet_trainer(AverageViews(SIX)).test(module, loader(), verbose=False)[0]["test_loss"] == pytest.approx(
        expected[0]["test_loss"], rel=1e-5
    )
