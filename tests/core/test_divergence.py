from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_cnnopt.core import divergence
from lightning_cnnopt.core.divergence import StopOnDivergence
from lightning_cnnopt.core.errors import DivergenceError
from lightning_cnnopt.learning_rate import Cosine, ScheduleLearningRate
from tests.lightning_tools import Foreign, plain_loader, quiet_trainer


class BadLoss(Foreign):
    """Its loss leaves the finite numbers at one batch; its weights stay what they were."""

    def __init__(self, at: int, value: float = float("nan"), as_dict: bool = False) -> None:
        super().__init__()
        self.at, self.value, self.as_dict, self.batches = at, value, as_dict, 0

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if self.batches == self.at:
            loss = (loss * 0).detach().requires_grad_() + self.value
        self.batches += 1
        return {"loss": loss} if self.as_dict else loss


class BadWeights(Foreign):
    """An update takes its weights out of the finite numbers, at a step whose own loss was finite."""

    def __init__(self, at: int, value: float) -> None:
        super().__init__()
        self.at, self.value, self.batches = at, value, 0

    def on_train_batch_end(self, *args):
        if self.batches == self.at:
            with torch.no_grad():
                self.body[1].weight[0, 0] = self.value
        self.batches += 1


@pytest.mark.parametrize("at", [0, 4, 5, 6, 11])
@pytest.mark.parametrize("interval", [0, 1, 2, 50])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_error_names_the_first_bad_step_its_epoch_and_its_rate(at, interval, value):
    module = BadLoss(at, value)
    trainer = quiet_trainer(StopOnDivergence(), ScheduleLearningRate(Cosine()), max_epochs=3, log_every_n_steps=interval)
    rate = 0.1 * Cosine().factor(at / 18)
    expected = rf"became NaN or infinite at optimizer step {at} \(epoch {at // 6}\), learning rate {rate:g}\."
    with pytest.raises(DivergenceError, match=expected):
        trainer.fit(module, plain_loader())
    assert module.batches <= 6 * (at // 6 + 1)


@pytest.mark.parametrize("interval", [0, 1000])
def test_however_long_an_epoch_is_it_looks_in_time_and_keeps_little(interval, monkeypatch):
    class Size(StopOnDivergence):
        most = 0

        def _look(self, trainer):
            self.most = max(self.most, len(self._recent))
            super()._look(trainer)

    monkeypatch.setattr(divergence, "_MOST_BATCHES", 8)
    module, stop = BadLoss(17), Size()
    with pytest.raises(DivergenceError, match=r"optimizer step 17 \(epoch 0\)"):
        quiet_trainer(stop, log_every_n_steps=interval).fit(module, plain_loader(100))
    assert module.batches == 24
    assert stop.most == 8


def test_a_run_that_goes_bad_at_its_very_last_step_is_not_called_a_success():
    with pytest.raises(DivergenceError, match="optimizer step 6"):
        quiet_trainer(StopOnDivergence(), max_steps=7).fit(BadLoss(6), plain_loader())


def test_under_accumulation_the_step_is_the_optimizers():
    trainer = quiet_trainer(StopOnDivergence(), accumulate_grad_batches=2, log_every_n_steps=1)
    with pytest.raises(DivergenceError, match="optimizer step 2 "):
        trainer.fit(BadLoss(5), plain_loader())


def test_a_loss_in_a_dictionary_is_read_too_and_the_error_says_what_to_do():
    trainer = quiet_trainer(StopOnDivergence(), log_every_n_steps=1)
    with pytest.raises(DivergenceError, match=r"optimizer step 3 .*Lower the learning rate.*clip"):
        trainer.fit(BadLoss(3, as_dict=True), plain_loader())


def test_a_healthy_run_is_left_alone():
    module = Foreign()
    trainer = quiet_trainer(StopOnDivergence(), max_epochs=2, log_every_n_steps=1)
    trainer.fit(module, plain_loader(), plain_loader())
    assert trainer.global_step == 12


def fingerprint(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Keep(ModelCheckpoint):
    """Notes what every written file held, so that a later one can be compared."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.last_good = None

    def _save_checkpoint(self, trainer, filepath):
        super()._save_checkpoint(trainer, filepath)
        self.last_good = (Path(filepath), fingerprint(Path(filepath)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: BadLoss(8),
        lambda: BadLoss(11),
        lambda: BadWeights(8, float("inf")),
        lambda: BadWeights(11, float("nan")),
        lambda: BadWeights(11, float("-inf")),
    ],
    ids=[
        "loss in mid-epoch",
        "loss at the end",
        "weights in mid-epoch",
        "weights at the end",
        "weights at minus infinity",
    ],
)
@pytest.mark.parametrize("validates", [True, False])
def test_what_was_saved_before_is_never_overwritten_by_a_bad_state(make, validates, tmp_path):
    module = make()
    keep = Keep(tmp_path, save_last=True, every_n_epochs=1, save_top_k=1)
    trainer = quiet_trainer(StopOnDivergence(), keep, max_epochs=4, log_every_n_steps=50)
    with pytest.raises(DivergenceError):
        trainer.fit(module, plain_loader(), plain_loader() if validates else None)
    last = tmp_path / "last.ckpt"
    assert fingerprint(last) == keep.last_good[1]
    for path in tmp_path.glob("*.ckpt"):
        saved = torch.load(path, weights_only=True)
        assert saved["global_step"] == 6
        assert all(value.isfinite().all() for value in saved["state_dict"].values())


def test_the_error_names_the_tensor_that_went_bad_and_the_last_good_checkpoint(tmp_path):
    trainer = quiet_trainer(StopOnDivergence(), ModelCheckpoint(tmp_path), max_epochs=3)
    with pytest.raises(DivergenceError, match=r"optimizer step 12 .*'body.1.weight'.*was not saved.*epoch=0-step=6.ckpt"):
        trainer.fit(BadWeights(11, float("inf")), plain_loader())


def test_after_a_training_the_weights_may_be_saved_whatever_they_are(tmp_path):
    module = Foreign()
    trainer = quiet_trainer(StopOnDivergence())
    trainer.fit(module, plain_loader())
    trainer.save_checkpoint(tmp_path / "done.ckpt")
    assert (tmp_path / "done.ckpt").exists()


def test_it_can_be_used_again_after_a_bad_run():
    stop = StopOnDivergence()
    with pytest.raises(DivergenceError):
        quiet_trainer(stop).fit(BadLoss(1), plain_loader())
    trainer = quiet_trainer(stop)
    trainer.fit(Foreign(), plain_loader())
    assert trainer.global_step == 6
