"""Checkpoints of subclasses of ImageClassifier: whatever arguments a class takes, its checkpoints rebuild it."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from lightning_cnnopt import ConvNet, ImageClassifier, TensorData
from lightning_cnnopt.activation import SwapActivation
from lightning_cnnopt.architecture import EditNetwork, SqueezeExcite
from lightning_cnnopt.core.errors import CheckpointError, ConfigurationError
from lightning_cnnopt.learning_rate import Cosine, Schedule, Warmup
from lightning_cnnopt.regularization import L1, L2
from tests.lightning_tools import assert_same_weights, quiet_trainer, weights_of

SMALL = partial(ConvNet, widths=(4,), depth=1, dense=(8,))


class HandsOn(ImageClassifier):
    """Adds an argument and hands the others on."""

    def __init__(self, strength: float = 1.0, **arguments):
        super().__init__(**arguments)
        self.strength = strength


class Grandchild(HandsOn):
    def __init__(self, shade: str, **arguments):
        super().__init__(**arguments)
        self.shade = shade


class FixesSome(ImageClassifier):
    """Gives values of its own to some arguments and hands the others on."""

    def __init__(self, width: int, **arguments):
        super().__init__(
            partial(ConvNet, widths=(width,), depth=1, dense=(8,)),
            optimizer=partial(torch.optim.SGD, lr=0.25),
            edits=[SqueezeExcite(2, 2)],
            **arguments,
        )


class TakesFew(ImageClassifier):
    """Takes less than its base, and changes what it was given before the base sees it."""

    def __init__(self, width: int, num_classes: int, in_channels: int = 1):
        width = 2 * width
        super().__init__(
            partial(ConvNet, widths=(width,), depth=1, dense=(8,)), num_classes, in_channels, (8, 8), schedule=Cosine()
        )


class NamesItsBase(ImageClassifier):
    def __init__(self, strength, network=SMALL, num_classes=3, image_size=(8, 8)):
        ImageClassifier.__init__(self, network, num_classes, image_size=image_size)
        self.strength = strength


class Saves(ImageClassifier):
    """Calls what Lightning's users are used to call."""

    def __init__(self, strength: float, scale=nn.Identity, **arguments):
        super().__init__(**arguments)
        self.save_hyperparameters()
        self.strength = strength


class MakesThings(ImageClassifier):
    """Calls its own arguments, which checkpoints hold as specs."""

    def __init__(self, tail, activations=(), schedules=(), **arguments):
        super().__init__(**arguments)
        self.tail = tail()
        self.activations = [make() for make in activations]
        self.schedules = schedules
        assert all(isinstance(schedule, Schedule) for schedule in schedules)


class Weighted(ImageClassifier):
    def __init__(self, weights, **arguments):
        super().__init__(**arguments)
        self.weights = weights


class TakesPositions(ImageClassifier):
    def __init__(self, *arguments, strength=1.0, **others):
        super().__init__(*arguments, **others)
        self.strength = strength


def data_of() -> TensorData:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (24, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return TensorData(train_images=images, train_targets=torch.arange(24) % 3, val_size=6, batch_size=6)


def common(**arguments):
    return {"network": SMALL, **data_of().model_args(), **arguments}


def saved(model, path, *callbacks):
    trainer = quiet_trainer(*callbacks, max_steps=1)
    trainer.fit(model, data_of())
    trainer.save_checkpoint(path)
    return path


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: HandsOn(2.5, **common()), {"strength": 2.5}),
        (lambda: HandsOn(**common(penalties=[L2(0.1)])), {"strength": 1.0, "penalties": [L2(0.1)]}),
        (lambda: Grandchild("red", strength=3.0, **common()), {"shade": "red", "strength": 3.0}),
        (lambda: Grandchild(shade="red", **common()), {"shade": "red", "strength": 1.0}),
        (lambda: FixesSome(6, **data_of().model_args(), schedule=Warmup(Cosine())), {"schedule": Warmup(Cosine())}),
        (lambda: TakesFew(3, num_classes=3), {"schedule": Cosine()}),
        (lambda: NamesItsBase(4.0), {"strength": 4.0}),
        (lambda: Saves(2.0, **common()), {"strength": 2.0}),
    ],
    ids=["own", "default", "two levels", "default of two levels", "fixed", "fewer", "no super", "saves by itself"],
)
def test_a_subclass_comes_back_with_its_own_arguments(make, expected, tmp_path):
    model = make()
    path = saved(model, tmp_path / "model.ckpt")
    loaded = type(model).load_from_checkpoint(path)
    for name, value in expected.items():
        assert getattr(loaded, name) == getattr(model, name) == value
    assert_same_weights(weights_of(loaded), weights_of(model))
    assert repr(loaded.network) == repr(model.network)
    ours, theirs = loaded.configure_optimizers(), model.configure_optimizers()
    assert type(ours) is type(theirs)
    assert ours.defaults == theirs.defaults
    again = saved(loaded, tmp_path / "again.ckpt")
    assert torch.load(again)["hyper_parameters"] == torch.load(path)["hyper_parameters"]


def test_what_is_passed_to_load_from_checkpoint_wins(tmp_path):
    path = saved(HandsOn(2.5, **common()), tmp_path / "model.ckpt")
    loaded = HandsOn.load_from_checkpoint(path, strength=7.0, schedule=Cosine())
    assert (loaded.strength, loaded.schedule) == (7.0, Cosine())


def test_a_subclass_is_given_classes_and_objects_and_never_their_specs(tmp_path):
    activations = [nn.ReLU, partial(nn.LeakyReLU, negative_slope=0.5)]
    model = MakesThings(partial(nn.Dropout, p=0.25), activations, [Cosine(0.5), Warmup(Cosine())], **common())
    loaded = MakesThings.load_from_checkpoint(saved(model, tmp_path / "model.ckpt"))
    assert loaded.tail.p == 0.25
    assert repr(loaded.activations) == repr(model.activations)
    assert loaded.schedules == [Cosine(0.5), Warmup(Cosine())]


def test_a_tensor_is_stored_and_an_array_is_asked_for(tmp_path):
    path = saved(Weighted(torch.tensor([1.0, 2.0]), **common()), tmp_path / "tensor.ckpt")
    assert Weighted.load_from_checkpoint(path).weights.tolist() == [1.0, 2.0]
    path = saved(Weighted(np.array([1.0, 2.0]), **common()), tmp_path / "array.ckpt")
    with pytest.raises(CheckpointError, match=r"weights= \(a ready-made ndarray\) of Weighted; pass it to load"):
        Weighted.load_from_checkpoint(path)
    assert Weighted.load_from_checkpoint(path, weights=np.array([3.0])).weights == 3.0


def test_a_class_that_is_no_part_of_a_network_is_asked_for(tmp_path):
    path = saved(HandsOn(np.random.Generator, **common()), tmp_path / "model.ckpt")
    with pytest.raises(CheckpointError, match=r"strength= .*can't be rebuilt.*pass strength= to load_from_checkpoint"):
        HandsOn.load_from_checkpoint(path)
    assert HandsOn.load_from_checkpoint(path, strength=1.0).strength == 1.0


def test_arguments_without_a_name_are_refused_at_once():
    with pytest.raises(ConfigurationError, match=r"TakesPositions takes \*arguments, .*pass them by name"):
        TakesPositions(SMALL, 3)
    assert TakesPositions(network=SMALL, num_classes=3, image_size=(8, 8)).hparams["num_classes"] == 3


def test_hyperparameters_are_there_before_the_constructor_runs():
    class Reads(ImageClassifier):
        def configure_network(self):
            return nn.Sequential(nn.Flatten(), nn.Linear(64, self.hparams["num_classes"]))

    model = Reads(num_classes=3, image_size=(8, 8))
    assert model.network[1].out_features == 3
    assert model.hparams_initial["num_classes"] == 3


def test_signatures_copies_and_wrong_arguments_are_as_ever():
    assert list(inspect.signature(HandsOn).parameters) == ["strength", "arguments"]
    assert "network" in inspect.signature(ImageClassifier).parameters
    model = HandsOn(2.5, **common())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert (twin.strength, twin.hparams) == (2.5, model.hparams)
    with pytest.raises(TypeError, match="unexpected keyword argument 'depht'"):
        ImageClassifier(depht=3)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'shade'"):
        Grandchild()


def test_a_stream_of_bytes_loads_too(tmp_path):
    path = saved(HandsOn(2.5, **common()), tmp_path / "model.ckpt")
    assert HandsOn.load_from_checkpoint(io.BytesIO(path.read_bytes())).strength == 2.5
    assert HandsOn.load_from_checkpoint(str(path)).strength == 2.5
    with pytest.raises(TypeError, match="cannot be called on an instance"):
        HandsOn(**common()).load_from_checkpoint(path)


@pytest.mark.parametrize("model", [lambda: ImageClassifier(**common(edits=[SwapActivation(nn.GELU)])), lambda: TakesFew(3, 3)])
def test_edits_of_a_callback_are_replayed_whatever_the_class_takes(model, tmp_path):
    model = model()
    path = saved(model, tmp_path / "model.ckpt", EditNetwork(SqueezeExcite(2, 2)))
    loaded = type(model).load_from_checkpoint(path)
    assert repr(loaded.network) == repr(model.network)
    assert_same_weights(weights_of(loaded), weights_of(model))
    again = saved(loaded, tmp_path / "again.ckpt")
    assert repr(type(model).load_from_checkpoint(again).network) == repr(model.network)


# the class of a checkpoint


def test_a_subclass_is_not_loaded_as_its_base(tmp_path):
    path = saved(HandsOn(2.5, **common()), tmp_path / "model.ckpt")
    said = r"one of tests.core.test_replay.HandsOn, and .*ImageClassifier is no subclass.*HandsOn.load_from_checkpoint"
    for other in (ImageClassifier, TakesFew):
        with pytest.raises(CheckpointError, match=said.replace("ImageClassifier", other.__name__)):
            other.load_from_checkpoint(path)
    with pytest.raises(CheckpointError, match=said):
        quiet_trainer(max_steps=2).fit(ImageClassifier(**common()), data_of(), ckpt_path=path)
    with pytest.raises(CheckpointError, match=said):
        quiet_trainer().validate(ImageClassifier(**common()), data_of(), ckpt_path=path, verbose=False)


def test_a_class_that_changes_more_takes_over_from_its_base(tmp_path):
    path = saved(ImageClassifier(**common()), tmp_path / "model.ckpt")
    assert HandsOn.load_from_checkpoint(path).strength == 1.0
    quiet_trainer(max_steps=2).fit(HandsOn(**common()), data_of(), ckpt_path=path)


def test_a_class_that_moved_to_another_module_is_still_itself(tmp_path):
    path = saved(HandsOn(2.5, **common()), tmp_path / "model.ckpt")
    checkpoint = torch.load(path)
    checkpoint["lightning_cnnopt"]["class_path"] = "__main__.HandsOn"  # trained by a script, loaded by another
    torch.save(checkpoint, path)
    assert HandsOn.load_from_checkpoint(path).strength == 2.5


# one technique alone


def test_one_technique_need_not_be_in_a_list(tmp_path):
    model = ImageClassifier(**common(edits=SqueezeExcite(2, 2), penalties=L1(0.1)))
    listed = ImageClassifier(**common(edits=[SqueezeExcite(2, 2)], penalties=[L1(0.1)]))
    assert repr(model.network) == repr(listed.network)
    assert model.penalties == listed.penalties == [L1(0.1)]
    loaded = ImageClassifier.load_from_checkpoint(saved(model, tmp_path / "model.ckpt"))
    assert repr(loaded.network) == repr(model.network)
    assert loaded.penalties == [L1(0.1)]
