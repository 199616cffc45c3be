from __future__ import annotations

import pytest
from lightning.pytorch import Callback

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.schedule import Schedule
from lightning_cnnopt.core.values import Driven, ScheduleValue
from lightning_cnnopt.learning_rate import Cosine, Plateau, Polynomial, Step, Warmup
from tests.lightning_tools import Foreign, Killed, SaveAtBatch, plain_loader, quiet_trainer, resident_loader


class ScheduleSize(ScheduleValue):
    """A quantity of the test's own: two sizes of images, on the module."""

    single = True
    quantity = "size"
    highest = 1000.0

    def places(self, trainer, pl_module):
        pl_module.sizes = {"small": 100.0, "large": 200.0}
        return [
            Driven(base, lambda value, name=name: pl_module.sizes.update({name: value}))
            for name, base in pl_module.sizes.items()
        ]


class Record(Callback):
    """What a batch's forward would see, with the optimizer step that the batch belongs to."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append((trainer.global_step, dict(pl_module.sizes)))

    @property
    def small(self):
        return [sizes["small"] for _, sizes in self.seen]


def run(callback, *more, ckpt_path=None, module=None, loader=None, val=None, **arguments):
    record = Record()
    trainer = quiet_trainer(callback, record, *more, **{"max_epochs": 3, "num_sanity_val_steps": 0, **arguments})
    trainer.fit(module or Foreign(), loader or resident_loader(), val, ckpt_path=ckpt_path)
    return record


@pytest.mark.parametrize(
    ("arguments", "total", "every"),
    [({}, 18, 1), ({"accumulate_grad_batches": 2}, 9, 2), ({"max_epochs": None, "max_steps": 7}, 7, 1)],
)
def test_every_place_has_its_own_value_times_the_factor_of_the_step_that_its_batch_belongs_to(arguments, total, every):
    record = run(ScheduleSize(Cosine(0.5)), **arguments)
    assert len(record.seen) == total * every
    for batch, (_, sizes) in enumerate(record.seen):
        factor = Cosine(0.5).factor((batch // every) / total)
        assert sizes == {"small": 100 * factor, "large": 200 * factor}


def test_start_and_end_are_the_values_at_the_factors_one_and_zero():
    record = run(ScheduleSize(Polynomial(), start=64.0, end=128.0))
    assert record.small == pytest.approx([64 + 64 * step / 18 for step in range(18)])
    assert [sizes["large"] for _, sizes in record.seen] == record.small


def test_a_value_may_grow():
    assert run(ScheduleSize(Step("6st", 2.0))).small == [100] * 6 + [200] * 6 + [400] * 6


@pytest.mark.parametrize("batches", [1, 6, 8, 13])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumed_in_mid_epoch_the_values_go_on_as_if_uninterrupted(batches, accumulate, tmp_path):
    def go(*more, ckpt_path=None):
        callback = ScheduleSize(Warmup(Cosine(), "2st"), start=32.0, end=224.0)
        return run(callback, *more, ckpt_path=ckpt_path, accumulate_grad_batches=accumulate)

    whole, path = go(), tmp_path / "cut.ckpt"
    batches -= batches % accumulate
    if batches:
        with pytest.raises(Killed):
            go(SaveAtBatch(batches, path))
        assert go(ckpt_path=str(path)).seen == whole.seen[batches:]


def test_it_writes_once_per_optimizer_step_and_only_what_changes():
    writes = []

    class Counted(ScheduleSize):
        def places(self, trainer, pl_module):
            pl_module.sizes = {"small": 100.0}
            return [Driven(100.0, writes.append)]

    run(Counted(Step("6st", 0.5)), accumulate_grad_batches=2)
    assert writes == [100, 50]


class Worsening(Foreign):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", 1.0 + self.current_epoch)


def test_a_plateau_drives_it_and_goes_on_when_resumed(tmp_path):
    def go(*more, ckpt_path=None):
        callback = ScheduleSize(Plateau("val_loss", gamma=0.5, patience=0))
        return run(callback, *more, module=Worsening(), val=plain_loader(4), ckpt_path=ckpt_path, max_epochs=4)

    whole, path = go(), tmp_path / "cut.ckpt"
    assert whole.small == [100] * 12 + [50] * 6 + [25] * 6
    with pytest.raises(Killed):
        go(SaveAtBatch(20, path))
    assert go(ckpt_path=str(path)).seen == whole.seen[20:]


def test_validations_during_a_warmup_do_not_count_for_the_plateau_behind_it():
    callback = ScheduleSize(Warmup(Plateau("val_loss", gamma=0.5, patience=0), "13st", start=1.0))
    assert run(callback, module=Worsening(), val=plain_loader(4), max_epochs=4).small == [100] * 24


class Outside(Schedule):
    def factor(self, progress):
        return 4.0 if progress < 0.5 else 20.0


def test_a_value_out_of_range_is_named_with_its_step():
    with pytest.raises(ConfigurationError, match=r"Outside\(\) takes the size to 4000 at optimizer step 9; .* less than 1000"):
        run(ScheduleSize(Outside()))


def test_nothing_to_drive_is_said():
    class Nowhere(ScheduleSize):
        def places(self, trainer, pl_module):
            pl_module.sizes = {}
            return []

    class Zeros(ScheduleSize):
        def places(self, trainer, pl_module):
            pl_module.sizes = {"small": 0.0}
            return [Driven(0.0, lambda value: None)]

    with pytest.warns(UserWarning, match="Nowhere changes nothing: there is no size in this training"):
        quiet_trainer(Nowhere(Cosine())).fit(Foreign(), plain_loader())
    with pytest.warns(UserWarning, match="Zeros changes nothing: there is no size that is not 0"):
        quiet_trainer(Zeros(Cosine())).fit(Foreign(), plain_loader())


def test_a_training_without_an_end_is_refused():
    with pytest.raises(ConfigurationError, match="max_steps or max_time"):
        run(ScheduleSize(Cosine()), max_epochs=-1)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"start": 1.0}, "start and end belong together; got start=1.0 and end=None"),
        ({"end": 0.0}, "start=None and end=0.0"),
        ({"start": -1.0, "end": 2.0}, "start=-1.0"),
        ({"start": 1.0, "end": 1000.0}, "end=1000.0"),
        ({"start": "small", "end": 2.0}, "start='small' is not a number"),
    ],
)
def test_arguments_that_cant_be_right_are_refused_by_name(arguments, name):
    with pytest.raises(ConfigurationError, match=f"ScheduleSize: .*{name}"):
        ScheduleSize(Cosine(), **arguments)
