from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import nn

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.imbalance import ClassWeights
from lightning_cnnopt.learning_rate import Cosine, ScheduleLearningRate
from lightning_cnnopt.optimizers import EMA, ema_decay, ema_update_
from tests.lightning_tools import (
    Foreign,
    Killed,
    SaveAtBatch,
    assert_same_weights,
    plain_loader,
    quiet_trainer,
    resident_loader,
    weights_of,
)


class Normed(Foreign):
    """With buffers, floating and counting."""

    def __init__(self) -> None:
        super().__init__()
        self.body.append(nn.BatchNorm1d(3))


class Trace(Callback):
    """The raw weights: at the start, and after every optimizer step."""

    def __init__(self) -> None:
        self.raw: list[dict[str, torch.Tensor]] = []
        self.step = 0

    def on_train_start(self, trainer, pl_module):
        self.raw.append(weights_of(pl_module))

    def on_train_batch_end(self, trainer, pl_module, *args):
        if trainer.global_step > self.step:
            self.step = trainer.global_step
            self.raw.append(weights_of(pl_module))


class SeenInValidation(Callback):
    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, *args):
        if batch_idx == 0:
            self.weights.append(weights_of(pl_module))


def averaged(raw: list[dict[str, torch.Tensor]], decays: list[float]) -> dict[str, torch.Tensor]:
    """a ← d · a + (1 - d) · w, in double precision; counters are those of the last step."""
    average = {name: value.double() for name, value in raw[0].items()}
    for weights, decay in zip(raw[1:], decays, strict=True):
        for name, value in weights.items():
            average[name] = decay * average[name] + (1 - decay) * value.double() if value.is_floating_point() else value
    return average


def assert_close(first, second):
    assert first.keys() == second.keys()
    for name, value in second.items():
        assert torch.allclose(first[name].double(), value.double(), rtol=1e-5, atol=1e-6), name


@given(
    values=st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=12),
    decay=st.floats(0, 0.999),
    start=st.floats(-5, 5, width=32),
)
def test_after_n_updates_the_average_is_the_closed_form(values, decay, start):
    average, count = torch.tensor([start], dtype=torch.float64), len(values)
    for value in values:
        ema_update_([average], [torch.tensor([value], dtype=torch.float64)], decay)
    expected = decay**count * start + (1 - decay) * sum(decay ** (count - 1 - i) * v for i, v in enumerate(values))
    assert float(average) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_counters_are_copied():
    average = [torch.tensor(3), torch.tensor([0.0])]
    ema_update_(average, [torch.tensor(7), torch.tensor([1.0])], 0.9)
    assert int(average[0]) == 7
    assert float(average[1]) == pytest.approx(0.1)


def test_with_warmup_the_average_after_n_equal_values_forgets_its_start_as_one_over_a_polynomial():
    decays = [ema_decay(n, 0.9999) for n in range(2000)]
    assert decays == sorted(decays)
    assert all(d == pytest.approx((1 + n) / (10 + n)) for n, d in enumerate(decays))
    assert ema_decay(10**9, 0.99) == 0.99
    assert ema_decay(0, 0.99, warmup=False) == 0.99


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_module_ends_as_the_average_of_its_steps_buffers_included(warmup, accumulation):
    trace, module, ema = Trace(), Normed(), EMA(0.7, warmup=warmup)
    trainer = quiet_trainer(ema, trace, max_epochs=2, accumulate_grad_batches=accumulation)
    trainer.fit(module, plain_loader())
    assert len(trace.raw) - 1 == trainer.global_step == (12 if accumulation == 1 else 4)
    decays = [ema_decay(n, 0.7, warmup) for n in range(len(trace.raw) - 1)]
    assert_close(weights_of(module), averaged(trace.raw, decays))
    assert not torch.allclose(module.body[1].weight, trace.raw[-1]["body.1.weight"])


@pytest.mark.parametrize("order", [1, -1])
def test_validation_sees_the_average_and_training_goes_on_from_the_raw_weights(order):
    trace, seen = Trace(), SeenInValidation()
    callbacks = [EMA(0.7, warmup=False), trace]
    trainer = quiet_trainer(*callbacks[::order], seen, max_epochs=3, num_sanity_val_steps=0)
    trainer.fit(Normed(), plain_loader(), plain_loader())
    for epoch, weights in enumerate(seen.weights):
        steps = 6 * (epoch + 1)
        assert_close(weights, averaged(trace.raw[: steps + 1], [0.7] * steps))
    plain = Trace()
    quiet_trainer(plain, max_epochs=3).fit(Normed(), plain_loader())
    for ours, theirs in zip(trace.raw, plain.raw, strict=True):
        assert_same_weights(ours, theirs)


def test_before_its_first_update_the_average_is_the_network():
    module, seen = Normed(), SeenInValidation()
    before = weights_of(module)
    quiet_trainer(EMA(), seen, num_sanity_val_steps=2).fit(module, plain_loader(), plain_loader())
    assert_same_weights(seen.weights[0], before)


def test_a_validation_on_its_own_sees_the_network():
    module = Normed()
    before, seen = weights_of(module), SeenInValidation()
    quiet_trainer(EMA(), seen).validate(module, plain_loader(), verbose=False)
    assert_same_weights(seen.weights[0], before)
    assert_same_weights(weights_of(module), before)


@pytest.mark.parametrize("start", ["5st", 5 / 12, "1ep"])
def test_until_its_start_the_average_is_the_network(start):
    first = 6 if start == "1ep" else 5
    trace, seen, ema = Trace(), SeenInValidation(), EMA(0.7, warmup=False, start=start)
    module = Normed()
    trainer = quiet_trainer(ema, trace, seen, max_epochs=2, val_check_interval=1, num_sanity_val_steps=0)
    trainer.fit(module, plain_loader(), plain_loader(4))
    for step, weights in enumerate(seen.weights, start=1):
        expected = trace.raw[step] if step < first else averaged(trace.raw[first - 1 : step + 1], [0.7] * (step - first + 1))
        assert_close(weights, expected)
    assert ema.updates == 12 - first + 1


@pytest.mark.parametrize(("half_life", "steps"), [("3st", 3), ("1ep", 6), (0.25, 3), ("24st", 24), ("4ep", 24)])
def test_after_a_half_life_a_weights_share_has_halved_however_long_it_is(half_life, steps):
    trace, module = Trace(), Normed()
    quiet_trainer(EMA(half_life=half_life, warmup=False), trace, max_epochs=2).fit(module, plain_loader())
    assert_close(weights_of(module), averaged(trace.raw, [0.5 ** (1 / steps)] * 12))


def test_a_checkpoint_holds_the_average_and_the_raw_weights_beside_it(tmp_path):
    trace, ema = Trace(), EMA(0.7, warmup=False)
    checkpoint = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{step}", every_n_train_steps=1)
    quiet_trainer(ema, trace, checkpoint, max_epochs=2).fit(Normed(), plain_loader(), plain_loader(4))
    for step in (1, 5, 6, 7, 12):
        saved = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)
        assert_close(saved["state_dict"], averaged(trace.raw[: step + 1], [0.7] * step))
        assert_same_weights(saved["callbacks"][ema.state_key]["raw"], trace.raw[step])


def test_a_checkpoint_of_a_validation_has_both_the_right_way_round(tmp_path):
    trace, ema = Trace(), EMA(0.7, warmup=False)
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_loss", save_top_k=-1, filename="{step}")
    quiet_trainer(ema, trace, checkpoint, max_epochs=2).fit(Normed(), plain_loader(), plain_loader(4))
    saved = torch.load(tmp_path / "step=6.ckpt", weights_only=True)
    assert_close(saved["state_dict"], averaged(trace.raw[:7], [0.7] * 6))
    assert_same_weights(saved["callbacks"][ema.state_key]["raw"], trace.raw[6])


def test_after_the_fit_a_validation_leaves_the_average_in_place():
    module, seen = Normed(), SeenInValidation()
    trainer = quiet_trainer(EMA(0.7), seen, max_epochs=2, num_sanity_val_steps=0)
    trainer.fit(module, plain_loader(), plain_loader())
    held = weights_of(module)
    for _ in range(2):
        trainer.validate(module, plain_loader(), verbose=False)
        assert_same_weights(weights_of(module), held)
        assert_same_weights(seen.weights[-1], held)


def test_after_an_exception_in_validation_the_module_holds_its_raw_weights():
    class Fails(Normed):
        def validation_step(self, batch, batch_idx):
            raise RuntimeError("on purpose")

    module, trace = Fails(), Trace()
    with pytest.raises(RuntimeError, match="on purpose"):
        quiet_trainer(EMA(0.7), trace, num_sanity_val_steps=0).fit(module, plain_loader(), plain_loader())
    assert_same_weights(weights_of(module), trace.raw[-1])


def run_to_the_end(*callbacks, ckpt_path=None, make=lambda: EMA(0.8)):
    module = Normed()
    trainer = quiet_trainer(make(), ScheduleLearningRate(Cosine()), *callbacks, max_epochs=3)
    trainer.fit(module, resident_loader(), plain_loader(4), ckpt_path=ckpt_path)
    return weights_of(module)


@pytest.mark.parametrize("batches", [1, 6, 8, 12])
@pytest.mark.parametrize("make", [lambda: EMA(0.8), lambda: EMA(half_life="1ep", start="9st")], ids=["decay", "half-life"])
def test_resumed_it_ends_with_the_same_bits(batches, make, tmp_path):
    whole, path = run_to_the_end(make=make), tmp_path / "cut.ckpt"
    with pytest.raises(Killed):
        run_to_the_end(SaveAtBatch(batches, path), make=make)
    assert_same_weights(run_to_the_end(ckpt_path=str(path), make=make), whole)


def test_resumed_with_other_arguments_it_still_goes_on_from_the_raw_weights(tmp_path):
    class First(Callback):
        def on_train_batch_start(self, trainer, pl_module, *args):
            self.weights = getattr(self, "weights", None) or weights_of(pl_module)

    path, trace, first = tmp_path / "cut.ckpt", Trace(), First()
    with pytest.raises(Killed):
        run_to_the_end(trace, SaveAtBatch(8, path))
    ema = EMA(half_life="2ep")
    run_to_the_end(first, ckpt_path=str(path), make=lambda: ema)
    assert_same_weights(first.weights, trace.raw[-1])
    assert ema.updates == 18


def test_weights_that_change_after_the_fit_are_saved_as_they_are(tmp_path):
    module, trainer = Normed(), quiet_trainer(EMA(0.7))
    trainer.fit(module, plain_loader())
    trainer.save_checkpoint(tmp_path / "average.ckpt")
    saved = torch.load(tmp_path / "average.ckpt", weights_only=True)
    assert_same_weights(saved["state_dict"], weights_of(module))
    assert "raw" in saved["callbacks"]["EMA"]
    with torch.no_grad():
        module.body[1].weight.fill_(3.0)
    trainer.save_checkpoint(tmp_path / "changed.ckpt")
    saved = torch.load(tmp_path / "changed.ckpt", weights_only=True)
    assert_same_weights(saved["state_dict"], weights_of(module))
    assert "raw" not in saved["callbacks"]["EMA"]


@pytest.mark.parametrize("ema_first", [True, False])
def test_it_lives_with_callbacks_that_add_buffers_for_training(ema_first, tmp_path):
    def run(*more, ckpt_path=None):
        module = Normed()
        callbacks = [EMA(0.8), ClassWeights(counts=[6, 3, 3])]
        trainer = quiet_trainer(*callbacks[:: 1 if ema_first else -1], *more, max_epochs=3)
        trainer.fit(module, resident_loader(), plain_loader(4), ckpt_path=ckpt_path)
        return weights_of(module)

    whole, path = run(), tmp_path / "cut.ckpt"
    with pytest.raises(Killed):
        run(SaveAtBatch(8, path))
    assert_same_weights(run(ckpt_path=str(path)), whole)


def test_a_second_fit_starts_a_new_average_from_the_module_as_it_is():
    module, ema = Normed(), EMA(0.7, warmup=False)
    quiet_trainer(ema).fit(module, plain_loader())
    trace = Trace()
    quiet_trainer(ema, trace).fit(module, plain_loader())
    assert ema.updates == 6
    assert_close(weights_of(module), averaged(trace.raw, [0.7] * 6))


def test_a_second_average_is_refused():
    with pytest.raises(ConfigurationError, match="keep one"):
        quiet_trainer(EMA(), EMAWeightAveraging()).fit(Foreign(), plain_loader())
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `EMA`"):
        quiet_trainer(EMA(), EMA(0.5))


def test_checkpoints_of_weights_alone_are_refused_because_they_would_be_raw(tmp_path):
    with pytest.raises(ConfigurationError, match="save_weights_only"):
        quiet_trainer(EMA(), ModelCheckpoint(tmp_path, save_weights_only=True)).fit(Foreign(), plain_loader())


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"decay": 1.0}, "decay=1.0"),
        ({"decay": -0.1}, "decay=-0.1"),
        ({"decay": 0.9, "half_life": "1ep"}, "give one"),
        ({"half_life": "0st"}, "longer than nothing"),
        ({"half_life": "1 epoch"}, "half_life"),
        ({"start": 3}, "start=3"),
    ],
)
def test_arguments_that_cant_be_right_are_refused_by_name(arguments, name):
    with pytest.raises(ConfigurationError, match=name):
        EMA(**arguments)
