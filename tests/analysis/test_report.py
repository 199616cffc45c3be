from __future__ import annotations

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn

from lightning_cnnopt.analysis import RunReport, locations, plot_images, report
from lightning_cnnopt.augmentation import AugmentBatches, HorizontalFlip, MixUp, PaddedCrop
from lightning_cnnopt.data import TensorData
from lightning_cnnopt.learning_rate import Cosine
from lightning_cnnopt.module import ImageClassifier
from lightning_cnnopt.parallel import ScaleRateWithBatchSize
from tests.analysis.test_plots import is_a_picture
from tests.lightning_tools import Foreign, Killed, SaveAtBatch, plain_loader, quiet_trainer, resident_loader


class Linear(nn.Sequential):
    def __init__(self, num_classes, in_channels):
        super().__init__(nn.Flatten(), nn.Linear(in_channels * 36, num_classes))


def data_of(channels=1, **arguments) -> TensorData:
    images = torch.randint(0, 256, (60, channels, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    targets = torch.arange(60) % 3
    return TensorData(
        train_images=images, train_targets=targets, test_images=images[:12], test_targets=targets[:12],
        **{"batch_size": 8, "val_size": 12, "class_names": ["cat", "dog", "owl"], **arguments},
    )  # fmt: skip


def fitted(tmp_path, *callbacks, data=None, **arguments):
    data = data or data_of(augmentation=[HorizontalFlip(), PaddedCrop(1)])
    model = ImageClassifier(Linear, schedule=Cosine(), **data.model_args())
    trainer = quiet_trainer(RunReport(str(tmp_path)), *callbacks, **{"max_epochs": 2, "log_every_n_steps": 2, **arguments})
    trainer.fit(model, data)
    return trainer, model, data


def test_a_run_leaves_its_pictures(tmp_path):
    trainer, model, data = fitted(tmp_path)
    trainer.test(model, data, verbose=False)
    names = {"curves.png", "augmentation.png", "confusion_val.png", "confusion_test.png", "classes_val.png", "classes_test.png"}
    texts = {"resolved.yaml", "classes_val.csv", "classes_test.csv"}
    assert {path.name for path in tmp_path.iterdir()} == names | texts
    assert all(is_a_picture(tmp_path / name) for name in names)
    told = dict(locations(trainer, tmp_path))
    assert {path.name for path in told.values()} == names | texts


def test_the_derived_values_are_those_of_data_network_and_trainer(tmp_path):
    trainer, _model, data = fitted(tmp_path, ScaleRateWithBatchSize(4), accumulate_grad_batches=2)
    values = yaml.safe_load((tmp_path / "resolved.yaml").read_text())
    assert values["data"]["class_names"] == ["cat", "dog", "owl"]
    assert values["data"]["class_counts"] == [16, 16, 16]
    assert values["data"]["mean"] == data.mean
    assert values["data"]["image_size"] == [6, 6]
    assert values["data"]["num_train_samples"] == 48
    assert values["network"]["parameters"] == 36 * 3 + 3
    training = values["training"]
    assert training["steps"] == trainer.global_step == 6
    assert (training["batches_per_epoch"], training["batch_size"], training["global_batch_size"]) == (6, 8, 16)
    assert training["rate_factors"] == ["ScaleRateWithBatchSize", "ScheduleLearningRate"]
    groups = training["optimizer"][0]["groups"]
    assert [(group["name"], group["tensors"]) for group in groups] == [("weights", 1), ("biases_and_norms", 1)]
    assert all(group["initial_lr"] == pytest.approx(1e-3) for group in groups)


def confusion_drawn(monkeypatch) -> list[torch.Tensor]:
    drawn, plot = [], report.plot_confusion

    def noting(counts, *args):
        drawn.append(counts.clone())
        return plot(counts, *args)

    monkeypatch.setattr(report, "plot_confusion", noting)
    return drawn


def counted(model, part) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        predicted = model(part.images).argmax(1)
    counts = torch.zeros(3, 3, dtype=torch.long)
    for true, guess in zip(part.targets.tolist(), predicted.tolist(), strict=True):
        counts[true, guess] += 1
    return counts


def test_the_confusion_counts_are_those_of_the_final_model_by_hand(monkeypatch, tmp_path):
    drawn = confusion_drawn(monkeypatch)
    trainer, model, data = fitted(tmp_path, data=data_of(eval_batch_size=5))
    trainer.test(model, data, verbose=False)
    trainer.validate(model, data, verbose=False)
    expected = [counted(model, data.val_set), counted(model, data.test_set), counted(model, data.val_set)]
    assert len(drawn) == 3
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(drawn, expected, strict=True))


@pytest.mark.parametrize("end", ["early stopping", "max_steps"])
def test_however_a_training_ends_its_last_validation_is_drawn_once(end, monkeypatch, tmp_path):
    drawn = confusion_drawn(monkeypatch)
    stop = EarlyStopping("val_loss", patience=0, min_delta=100.0)
    arguments = {"max_epochs": 9} if end == "early stopping" else {"max_epochs": 9, "max_steps": 9}
    fitted(tmp_path, *([stop] if end == "early stopping" else []), **arguments)
    assert len(drawn) == 1
    assert int(drawn[0].sum()) == 12


def test_a_sanity_check_alone_is_not_drawn(tmp_path):
    fitted(tmp_path, check_val_every_n_epoch=5)
    assert not (tmp_path / "confusion_val.png").exists()


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("as_callback", [True, False])
def test_augmented_images_are_drawn_and_looking_changes_no_draw(channels, as_callback, tmp_path):
    def run(*callbacks):
        torch.manual_seed(0)
        inside = {} if as_callback else {"augmentation": [PaddedCrop(1)], "mixing": MixUp()}
        data = data_of(channels, **inside)
        model = ImageClassifier(Linear, **data.model_args())
        outside = [AugmentBatches([PaddedCrop(1)], MixUp())] if as_callback else []
        quiet_trainer(*outside, *callbacks, max_epochs=1).fit(model, data)
        return model.network[1].weight.detach()

    assert torch.equal(run(RunReport(str(tmp_path))), run())
    assert is_a_picture(tmp_path / "augmentation.png")


def test_augmented_images_are_of_all_classes_also_where_these_come_one_after_the_other(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(report, "plot_images", lambda rows, captions: drawn.append(captions) or plot_images(rows, captions))
    images = data_of(val_size=0).train_set.images
    data = TensorData(train_images=images, train_targets=torch.arange(60) // 20, augmentation=HorizontalFlip(), val_size=0)
    fitted(tmp_path, data=data)
    assert set(drawn[0]["original"]) == {"0", "1", "2"}


def test_without_augmentation_or_with_no_images_wanted_none_are_drawn(tmp_path):
    fitted(tmp_path, data=data_of())
    assert not (tmp_path / "augmentation.png").exists()


def test_a_foreign_module_gets_a_report_too(tmp_path):
    quiet_trainer(RunReport(str(tmp_path)), max_epochs=2, log_every_n_steps=1).fit(Foreign(), plain_loader(), plain_loader())
    assert is_a_picture(tmp_path / "curves.png")
    assert "data" not in yaml.safe_load((tmp_path / "resolved.yaml").read_text())


def test_foreign_data_is_reported_by_what_is_known_of_it(tmp_path):
    class Data(LightningDataModule):
        num_classes, mean, std = 3, torch.tensor([0.5]), torch.tensor([0.5])
        train_set = plain_loader().dataset  # of a type that ours does not have

        def train_dataloader(self):
            return plain_loader()

    quiet_trainer(RunReport(str(tmp_path)), AugmentBatches(PaddedCrop(1))).fit(Foreign(), datamodule=Data())
    assert yaml.safe_load((tmp_path / "resolved.yaml").read_text())["data"] == {"class": "Data", "num_classes": 3}
    assert not (tmp_path / "augmentation.png").exists()


def test_rates_are_noted_at_the_steps_at_which_lightning_logs(tmp_path):
    noted = RunReport(str(tmp_path))
    quiet_trainer(noted, max_epochs=4, log_every_n_steps=9).fit(Foreign(), plain_loader())
    assert [step for step, _ in noted.history["lr"]] == [9, 18]


def test_curves_go_on_after_a_resume(tmp_path):
    def run(*callbacks, ckpt_path=None):
        noted = RunReport(str(tmp_path))
        trainer = quiet_trainer(noted, *callbacks, max_epochs=3, log_every_n_steps=2)
        trainer.fit(Foreign(), resident_loader(), plain_loader(), ckpt_path=ckpt_path)
        return noted.history

    whole, path = run(), tmp_path / "cut.ckpt"
    with pytest.raises(Killed):
        run(SaveAtBatch(8, path))
    resumed = run(ckpt_path=str(path))
    assert resumed["lr"] == whole["lr"]
    assert [step for step, _ in resumed["val_loss"]] == [step for step, _ in whole["val_loss"]]


def test_the_checkpoints_are_told(tmp_path):
    trainer, *_ = fitted(tmp_path, ModelCheckpoint(tmp_path / "kept", save_last=True))
    told = dict(locations(trainer, tmp_path))
    assert told["last checkpoint"].is_file()
    assert told["best checkpoint"].is_file()
