"""The contracts of the house, over every exported technique."""

from __future__ import annotations

import copy
import importlib
import pickle
import warnings

import pytest
import torch
import torchvision
from jsonargparse import ArgumentParser
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import nn

from lightning_cnnopt import ImageClassifier
from lightning_cnnopt import callbacks as all_callbacks
from lightning_cnnopt.augmentation import Mixing, Transform
from lightning_cnnopt.core.randomness import ResumeRandomState
from lightning_cnnopt.core.schedule import Schedule, TrainingLength
from lightning_cnnopt.core.spec import build, to_spec
from lightning_cnnopt.core.surgery import Edit
from lightning_cnnopt.initialization import Initializer
from lightning_cnnopt.regularization import ActivityPenalty, Constraint, Penalty

from . import harness
from .cases import ALIKE, CASES, WITHOUT_EFFECT_ON_TRAINING, exported_techniques

BASES = (Edit, Initializer, Penalty, ActivityPenalty, Constraint, Schedule, Transform, Mixing, Callback)

every_technique = pytest.mark.parametrize("name", sorted(CASES))
every_kind = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ALIKE)) for name in sorted(CASES)]
)
every_edit = pytest.mark.parametrize("name", sorted(n for n, make in CASES.items() if isinstance(make(), Edit)))


def test_every_exported_technique_has_a_case():
    assert exported_techniques() == sorted(CASES)


@every_technique
def test_repr_rebuilds(name):
    technique = CASES[name]()
    names = {}
    for room in all_callbacks.ROOMS:
        module = importlib.import_module(f"lightning_cnnopt.{room}")
        names.update({n: getattr(module, n) for n in module.__all__})
    again = eval(repr(technique), names)
    assert type(again) is type(technique)
    assert repr(again) == repr(technique)
    assert to_spec(again.init_args()) == to_spec(technique.init_args())


@every_technique
def test_pickles(name):
    technique = CASES[name]()
    assert repr(pickle.loads(pickle.dumps(technique))) == repr(technique)


@every_technique
def test_spec_rebuilds(name):
    technique = CASES[name]()
    assert repr(build(to_spec(technique), type(technique))) == repr(technique)


@every_technique
def test_yaml_names_it_by_its_short_name(name):
    technique = CASES[name]()
    base = next(base for base in BASES if isinstance(technique, base))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--technique", type=base)
    spec = {"class_path": name, "init_args": to_spec(technique.init_args())}
    made = parser.instantiate(parser.parse_object({"technique": spec})).technique
    assert type(made) is type(technique)
    assert without_layer_defaults(to_spec(made.init_args())) == without_layer_defaults(to_spec(technique.init_args()))


def without_layer_defaults(spec):
    # jsonargparse writes the defaults of layers out
    if isinstance(spec, dict):
        module, _, cls = str(spec.get("class_path", "")).rpartition(".")
        is_layer = bool(module) and issubclass(getattr(importlib.import_module(module), cls), nn.Module)
        return {key: without_layer_defaults(value) for key, value in spec.items() if not (is_layer and key == "init_args")}
    return [without_layer_defaults(item) for item in spec] if isinstance(spec, list) else spec


@every_technique
def test_its_effect_is_seen(name):
    _, without = harness.fit(val_check_interval=1)
    _, plain = harness.fit(val_check_interval=1)
    assert not harness.differences(without.state_dict(), plain.state_dict())
    _, with_it = harness.fit(CASES[name](), val_check_interval=1)
    changed = bool(harness.differences(without.state_dict(), with_it.state_dict()))
    assert changed is (name not in WITHOUT_EFFECT_ON_TRAINING)


def test_constant_keeps_the_rate():
    run, _ = harness.fit(CASES["Constant"]())
    assert [group["lr"] for group in run.optimizers[0].param_groups] == [0.05, 0.05]


@every_edit
def test_applied_twice_is_applied_once(name):
    edit, network = CASES[name](), harness.TinyResNet(4)
    assert edit(network) > 0
    before = str(network), [n for n, _ in network.named_parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert CASES[name]()(network) == 0
    assert (str(network), [n for n, _ in network.named_parameters()]) == before


@every_kind
def test_attached_at_two_stages_is_attached_once(name):
    _, model, callbacks = None, *harness.assemble()[:1], [harness.as_callback(CASES[name]())]
    seed_everything(1, verbose=False)
    run = harness.trainer(callbacks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.fit(model, datamodule=harness.make_data())
        structure = str(model.network)
        weights = copy.deepcopy(model.state_dict())
        run.validate(model, datamodule=harness.make_data(), verbose=False)
        run.test(model, datamodule=harness.make_data(), verbose=False)
    assert str(model.network) == structure
    assert not harness.differences(weights, model.state_dict())


@every_kind
def test_what_it_adds_is_in_the_optimizer_once_and_trains(name):
    seed_everything(1, verbose=False)
    model = harness.make_model()
    before = {n: p.detach().clone() for n, p in harness.make_model().named_parameters()}
    run = harness.trainer([harness.as_callback(CASES[name]())], max_steps=6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.fit(model, datamodule=harness.make_data())
    held = [id(p) for group in run.optimizers[0].param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    added = {n: p for n, p in model.named_parameters() if n not in before}
    assert all(run.optimizers[0].state[p]["momentum_buffer"].abs().sum() > 0 for p in added.values())
    if name in ("SqueezeExcite", "EditNetwork"):
        assert added


@pytest.mark.parametrize(
    ("name", "accumulate"),
    [
        pytest.param(name, accumulate, id=f"{said}-{name}", marks=[pytest.mark.slow] * (name in ALIKE and accumulate > 1))
        for name in sorted(CASES)
        for accumulate, said in ((1, "every batch"), (2, "accumulated"))
    ],
)
def test_a_resumed_run_ends_with_the_same_bits(name, accumulate, tmp_path):
    path = str(tmp_path / "half.ckpt")
    arguments = {"max_steps": 8, "accumulate_grad_batches": accumulate, "val_check_interval": 3}
    whole, _ = harness.fit(CASES[name](), **arguments)
    # the run that is killed ends right after step 4, in the middle of an epoch
    with pytest.raises(KeyboardInterruptedRun):
        harness.fit(CASES[name](), extra=[harness.Keep(4, path), Kill(4)], **arguments)
    resumed, _ = harness.fit(CASES[name](), ckpt_path=path, seed=99, **arguments)
    expected, found = harness.state_of(whole), harness.state_of(resumed)
    assert found["global_step"] == expected["global_step"] == 8
    assert not harness.differences(expected, found)


@pytest.mark.parametrize("foreign", [False, True], ids=["ImageClassifier", "foreign module"])
def test_a_run_resumed_from_the_checkpoint_of_any_epoch_ends_with_the_same_bits(foreign, tmp_path):
    def run(folder, ckpt_path=None, seed=1):
        module = harness.Foreign() if foreign else None
        save = ModelCheckpoint(folder, monitor="val_loss", save_top_k=-1, filename="{step}")
        extra = [save, ResumeRandomState()] if foreign else [save]
        technique = CASES["AugmentBatches"]()
        arguments = {"max_steps": -1, "max_epochs": 4, "enable_checkpointing": True}
        return harness.fit(technique, ckpt_path=ckpt_path, seed=seed, module=module, extra=extra, **arguments)[0]

    expected = harness.state_of(run(tmp_path / "whole"))
    for step in (6, 12, 18):
        resumed = harness.state_of(run(tmp_path / str(step), ckpt_path=str(tmp_path / "whole" / f"step={step}.ckpt"), seed=99))
        for name in ("state_dict", "optimizer_states", "TensorData", "global_step"):
            assert not harness.differences(expected[name], resumed[name]), (step, name)


class KeyboardInterruptedRun(Exception):
    pass


class Kill(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            raise KeyboardInterruptedRun


@every_kind
def test_load_from_checkpoint_needs_nothing_else(name, tmp_path):
    run, model = harness.fit(CASES[name]())
    path = tmp_path / "model.ckpt"
    run.save_checkpoint(path)
    loaded = ImageClassifier.load_from_checkpoint(path, weights_only=True)
    images = harness.make_data().test_set.images
    model.to(memory_format=torch.contiguous_format)  # a matter of the run, not of its checkpoint
    model.eval(), loaded.eval()
    assert torch.equal(model(images), loaded(images))
    assert [type(m) for m in model.network.modules()] == [type(m) for m in loaded.network.modules()]
    assert type(model.configure_optimizers()) is type(loaded.configure_optimizers())


@every_kind
def test_attached_callback_on_an_image_classifier_loads_without_it(name, tmp_path):
    seed_everything(1, verbose=False)
    model = harness.make_model()
    run = harness.trainer([harness.as_callback(CASES[name]())])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.fit(model, datamodule=harness.make_data())
    run.save_checkpoint(tmp_path / "model.ckpt")
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "model.ckpt")
    images = harness.make_data().test_set.images
    model.to(memory_format=torch.contiguous_format)
    assert torch.equal(model.eval()(images), loaded.eval()(images))


@every_kind
def test_bf16_mixed_runs(name):
    _, model = harness.fit(CASES[name](), precision="bf16-mixed")
    assert all(value.isfinite().all() for value in model.state_dict().values())


@every_kind
def test_evaluation_is_untouched(name):
    def validate(callbacks):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return harness.trainer(callbacks).validate(model, datamodule=data, verbose=False)

    technique = CASES[name]()
    model, data, callbacks = harness.assemble(technique)
    validate(callbacks)  # structural callbacks edit here; what follows compares the same structure
    bare = harness.make_data()
    weights = copy.deepcopy(model.state_dict())
    with_it = validate(callbacks)
    assert with_it == validate(callbacks)
    data = bare
    assert with_it == validate([])
    assert not harness.differences(weights, model.state_dict())


@every_kind
def test_attaches_to_a_plain_module_with_a_torchvision_network(name):
    network = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=harness.CLASSES)
    network.conv1 = nn.Conv2d(1, 64, 3, padding=1, bias=False)
    module = harness.Foreign(network)
    run, _ = harness.fit(CASES[name](), module=module, max_steps=3)
    assert run.global_step == 3
    assert all(value.isfinite().all() for value in module.state_dict().values())


def test_all_techniques_at_once_resume_to_the_same_bits(tmp_path):
    def callbacks():
        leave_out = {"EditNetwork", "InitializeWeights", "PenalizeWeights", "ConstrainWeights", "ScheduleLearningRate"}
        leave_out |= {"AugmentBatches", "ResumeRandomState", "StopOnDivergence", "WritePredictions"}
        leave_out |= {"PreciseBN"}  # refused with EMA
        return [harness.as_callback(make()) for n, make in CASES.items() if isinstance(make(), Callback) and n not in leave_out]

    def run(ckpt_path=None, seed=1, extra=()):
        seed_everything(seed, verbose=False)
        model = harness.make_model(
            edits=[CASES[n]() for n in ("SqueezeExcite", "SwapActivation", "SwapNormalization", "StochasticDepth")],
            initializer=CASES["LSUV"](),
            penalties=[CASES["L1"](), CASES["L2"]()],
            schedule=CASES["Warmup"](),
        )
        augmentation = [make() for make in CASES.values() if isinstance(make(), Transform)]
        data = harness.make_data(augmentation=augmentation, mixing=CASES["MixUp"]())
        trainer = harness.trainer(
            [*callbacks(), harness.as_callback(CASES["MaxNorm"]()), *extra], max_steps=8, val_check_interval=3
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
        return trainer

    whole = run()
    path = str(tmp_path / "half.ckpt")
    with pytest.raises(KeyboardInterruptedRun):
        run(extra=[harness.Keep(4, path), Kill(4)])
    resumed = run(ckpt_path=path, seed=99)
    assert not harness.differences(harness.state_of(whole), harness.state_of(resumed))


def test_schedules_are_pure_functions_of_progress():
    length = TrainingLength(steps=100, steps_per_epoch=10)
    for name, make in CASES.items():
        schedule = make()
        if isinstance(schedule, Schedule):
            bound = schedule.bind(length)
            points = [i / 100 for i in range(101)]
            forward = [bound.factor(p) for p in points]
            assert [bound.factor(p) for p in reversed(points)][::-1] == forward, name
