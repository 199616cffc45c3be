from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.loggers.logger import DummyLogger
from torch.utils.data import IterableDataset

from lightning_cnnopt.core.callback import is_logged
from tests.lightning_tools import Foreign, Killed, SaveAtBatch, plain_loader, quiet_trainer, resident_loader


class Noting(DummyLogger):
    """The batches at which Lightning hands over what the step logs, beside those that we say."""

    def __init__(self) -> None:
        super().__init__()
        self.batch, self.theirs, self.ours = -1, [], []

    def log_metrics(self, metrics, step=None):
        if "x" in metrics:
            self.theirs.append(self.batch)


class Asking(Callback):
    def on_train_batch_start(self, trainer, *args):
        trainer.logger.batch = trainer.fit_loop.total_batch_idx

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if is_logged(trainer, batch_idx):
            trainer.logger.ours.append(trainer.logger.batch)


class Logging(Foreign):
    def training_step(self, batch, batch_idx):
        self.log("x", 1.0, on_step=True, on_epoch=False)
        return super().training_step(batch, batch_idx)


class TwoOptimizers(Logging):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD([parameter], lr=0.1) for parameter in self.body.parameters()]


class WithoutLength(IterableDataset):
    def __iter__(self):
        return iter(plain_loader().dataset)


def asked(module, *callbacks, loader=None, ckpt_path=None, **arguments):
    logger = Noting()
    arguments = {"max_epochs": 4, "num_sanity_val_steps": 0, **arguments}
    trainer = quiet_trainer(Asking(), *callbacks, logger=logger, **arguments)
    trainer.fit(module, plain_loader() if loader is None else loader, plain_loader(4), ckpt_path=ckpt_path)
    return logger


@pytest.mark.parametrize("interval", [0, 1, 4, 5, 9, 50])
@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_we_log_where_lightning_logs(interval, accumulate):
    logger = asked(Logging(), log_every_n_steps=interval, accumulate_grad_batches=accumulate)
    assert logger.ours == logger.theirs
    assert bool(logger.ours) is (0 < interval <= 4 * -(-6 // accumulate))


def test_the_steps_of_the_whole_run_are_counted_and_not_those_of_an_epoch():
    assert asked(Logging(), log_every_n_steps=9).ours == [8, 17]


def test_the_same_under_manual_optimization_with_several_optimizers():
    logger = asked(TwoOptimizers(), log_every_n_steps=4)
    assert logger.ours == logger.theirs == [3, 7, 11, 15, 19, 23]


def test_the_same_with_data_of_unknown_length_and_with_an_accumulation_that_changes():
    loader = torch.utils.data.DataLoader(WithoutLength(), batch_size=2)
    logger = asked(Logging(), loader=loader, log_every_n_steps=5, accumulate_grad_batches=4)
    assert logger.ours == logger.theirs != []
    logger = asked(Logging(), GradientAccumulationScheduler({0: 1, 1: 4, 2: 2}), log_every_n_steps=5)
    assert logger.ours == logger.theirs != []


def test_the_same_once_the_run_is_to_stop():
    class Stop(Callback):
        def on_train_batch_start(self, trainer, *args):
            trainer.should_stop = trainer.fit_loop.total_batch_idx >= 2

    logger = asked(Logging(), Stop(), log_every_n_steps=50, min_epochs=2)
    assert logger.ours == logger.theirs
    assert set(range(2, 11)) <= set(logger.ours)


@pytest.mark.parametrize("batches", [2, 3, 5, 6, 8])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_same_after_a_resume(batches, accumulate, tmp_path):
    options = {"log_every_n_steps": 4, "accumulate_grad_batches": accumulate}
    path = tmp_path / "cut.ckpt"
    with pytest.raises(Killed):
        asked(Logging(), SaveAtBatch(batches, path), loader=resident_loader(), **options)
    logger = asked(Logging(), loader=resident_loader(), ckpt_path=str(path), **options)
    assert logger.ours == logger.theirs != []
    whole = asked(Logging(), loader=resident_loader(), **options)
    assert logger.ours == [batch for batch in whole.ours if batch >= batches]
