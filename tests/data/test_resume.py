"""Runs over a ResidentLoader that are cut and resumed end with the same bits, wherever the loader comes from."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader
from torch import nn

from lightning_cnnopt.core.randomness import ResumeRandomState
from lightning_cnnopt.data import ResidentLoader, TensorData
from lightning_cnnopt.module import ImageClassifier
from tests.lightning_tools import (
    Foreign,
    Killed,
    SaveAtBatch,
    assert_same_weights,
    plain_loader,
    quiet_trainer,
    samples,
    weights_of,
)


class Linear(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(16, num_classes))


class Other(LightningDataModule):
    """Of others, over our loader."""

    def train_dataloader(self):
        return loader()

    def val_dataloader(self):
        return plain_loader(4)


class Pair(Foreign):
    """Trains on two loaders at a time, the shorter of which starts anew within an epoch."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch["long"], batch_idx) + super().training_step(batch["short"], batch_idx)


def loader(count=12):
    return ResidentLoader(*samples(count), batch_size=2, shuffle=True)


def pair():
    return CombinedLoader({"long": loader(), "short": loader(7)}, "max_size_cycle")


def classifier():
    return ImageClassifier(Linear, num_classes=3, in_channels=1, image_size=(4, 4), optimizer=partial(torch.optim.SGD, lr=0.1))


def ours():
    images, targets = samples(15)
    return TensorData(train_images=images, train_targets=targets, val_size=3, batch_size=2)


CASES = {
    "foreign module, loader": (Foreign, lambda: (loader(), plain_loader(4)), True),
    "foreign module, foreign data module": (Foreign, Other, True),
    "foreign module, our data module": (Foreign, ours, False),
    "ImageClassifier, loader": (classifier, lambda: (loader(), plain_loader(4)), False),
    "ImageClassifier, foreign data module": (classifier, Other, False),
    "two loaders": (Pair, lambda: (pair(), plain_loader(4)), True),
}
"""Makes the module, makes the data, and whether ResumeRandomState has to be attached by hand."""


def run(case, *callbacks, ckpt_path=None, seed=4, **arguments):
    make, data, attach = CASES[case]
    torch.manual_seed(seed)
    module, source = make(), data()
    trainer = quiet_trainer(
        *callbacks, *([ResumeRandomState()] if attach else []), **{"max_epochs": 3, "num_sanity_val_steps": 0, **arguments}
    )
    if isinstance(source, LightningDataModule):
        trainer.fit(module, datamodule=source, ckpt_path=ckpt_path)
    else:
        trainer.fit(module, *source, ckpt_path=ckpt_path)
    return weights_of(module)


@pytest.mark.parametrize("limit", [1.0, 4])
@pytest.mark.parametrize("length", [{"max_epochs": 3}, {"max_epochs": None, "max_steps": 10}], ids=["epochs", "steps"])
@pytest.mark.parametrize("case", CASES)
def test_cut_anywhere_it_ends_with_the_same_bits(case, length, limit, tmp_path):
    arguments = {**length, "limit_train_batches": limit}
    whole, path = run(case, **arguments), tmp_path / "cut.ckpt"
    for batches in (4, 6):  # by the limit, one is within an epoch and the other at its end
        with pytest.raises(Killed):
            run(case, SaveAtBatch(batches, path), **arguments)
        assert_same_weights(run(case, ckpt_path=str(path), seed=99, **arguments), whole)


@pytest.mark.parametrize("limit", [1.0, 4])
@pytest.mark.parametrize("on_train_epoch_end", [True, False], ids=["after the epoch", "after its validation"])
@pytest.mark.parametrize("case", CASES)
def test_from_the_checkpoint_of_any_epoch_it_ends_with_the_same_bits(case, on_train_epoch_end, limit, tmp_path):
    save = ModelCheckpoint(
        tmp_path, save_top_k=-1, filename="{epoch}", save_on_train_epoch_end=on_train_epoch_end, every_n_epochs=1
    )
    whole = run(case, save, limit_train_batches=limit)
    for epoch in (0, 1):
        path = str(tmp_path / f"epoch={epoch}.ckpt")
        assert_same_weights(run(case, ckpt_path=path, seed=99, limit_train_batches=limit), whole)


def test_a_second_cut_after_a_resume_loses_nothing(tmp_path):
    case, path = "foreign module, loader", tmp_path / "cut.ckpt"
    whole = run(case)
    for batches in (5, 4, 3):  # of each run
        with pytest.raises(Killed):
            run(case, SaveAtBatch(batches, path), ckpt_path=str(path) if path.exists() else None)
    assert_same_weights(run(case, ckpt_path=str(path), seed=99), whole)


def test_a_loader_of_others_is_left_alone():
    class Stateful(list):
        loaded = 0

        def state_dict(self):
            return {"here": 1}

        def load_state_dict(self, state):
            self.loaded += 1

    batches = Stateful(plain_loader())
    trainer = quiet_trainer(ResumeRandomState())
    trainer.fit(Foreign(), batches)
    trainer.save_checkpoint("end.ckpt")
    quiet_trainer(ResumeRandomState(), max_epochs=2).fit(Foreign(), batches, ckpt_path="end.ckpt")
    assert batches.loaded == 0


def test_a_run_that_was_stopped_within_an_epoch_goes_on_with_a_whole_one(tmp_path):
    class Stop(SaveAtBatch):
        def on_train_batch_end(self, trainer, *args):
            self.seen += 1
            trainer.should_stop = self.seen == self.batches

    class Counting(Foreign):
        seen = 0

        def training_step(self, batch, batch_idx):
            self.seen += 1
            return super().training_step(batch, batch_idx)

    torch.manual_seed(4)
    trainer = quiet_trainer(Stop(4, tmp_path), ResumeRandomState(), max_epochs=3)
    trainer.fit(Foreign(), loader())
    trainer.save_checkpoint(tmp_path / "stopped.ckpt")
    module = Counting()
    quiet_trainer(ResumeRandomState(), max_epochs=2).fit(module, loader(), ckpt_path=str(tmp_path / "stopped.ckpt"))
    assert module.seen == 6


def test_our_data_module_attaches_what_brings_the_order_back_once():
    for callbacks in ([], [ResumeRandomState()]):
        trainer = quiet_trainer(*callbacks)
        for _ in range(2):
            trainer.fit(Foreign(), ours())
        assert sum(isinstance(callback, ResumeRandomState) for callback in trainer.callbacks) == 1


def test_a_resume_that_fails_leaves_nothing_to_a_later_fit(tmp_path):
    class Failing(Foreign):
        def on_fit_start(self):
            raise RuntimeError("on purpose")

    path, resume = tmp_path / "cut.ckpt", ResumeRandomState()
    with pytest.raises(Killed):
        run("foreign module, loader", SaveAtBatch(4, path))
    with pytest.raises(RuntimeError, match="on purpose"):
        quiet_trainer(resume).fit(Failing(), loader(), ckpt_path=str(path))
    torch.manual_seed(4)
    module = Foreign()
    quiet_trainer(resume, max_epochs=3, num_sanity_val_steps=0).fit(module, loader(), plain_loader(4))
    assert_same_weights(weights_of(module), run("foreign module, loader"))


def test_a_loader_that_is_made_anew_within_a_run_goes_on_with_the_order():
    class Noting(Foreign):
        def training_step(self, batch, batch_idx):
            self.seen = [*getattr(self, "seen", []), *batch[0].flatten(1).sum(1).tolist()]
            return super().training_step(batch, batch_idx)

    class Look(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            next(iter(trainer.datamodule.train_dataloader()))  # to see a batch changes nothing

    def seen(*callbacks, fits=(3,), **arguments):
        torch.manual_seed(4)
        module, data, trainer = Noting(), ours(), quiet_trainer(*callbacks, max_epochs=3, **arguments)
        for trainer.fit_loop.max_epochs in fits:
            trainer.fit(module, data)
        return module.seen

    assert seen(reload_dataloaders_every_n_epochs=1) == seen()
    assert seen(Look(), reload_dataloaders_every_n_epochs=1) == seen()
    assert seen(Look(), fits=(1, 3)) == seen()
    assert seen(reload_dataloaders_every_n_epochs=1, limit_train_batches=3) == seen(limit_train_batches=3)
