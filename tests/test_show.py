"""``cnnopt show`` and ``--tta`` as a user runs them."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import pytest
import torch
import yaml
from torch.nn import functional as F

from lightning_cnnopt import Digits, ImageClassifier
from lightning_cnnopt.__main__ import main
from lightning_cnnopt.augmentation import TestTimeAugmentation

QUICKSTART = str(Path(__file__).parent.parent / "configs" / "quickstart.yaml")
SHOW = ["show", "-c", QUICKSTART, "--data.mixing", "CutMix", "--images", "4", "--draws", "2"]


@pytest.fixture(autouse=True)
def _no_noise(monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)  # Lightning's handler writes to an earlier test's stream


def test_it_writes_one_picture_says_where_and_a_seed_fixes_it(capfd):
    pictures = []
    for number, seed in enumerate(("0", "0", "1")):
        assert main([*SHOW, "--seed_everything", seed]) == 0
        directory = Path(f"runs/quickstart/version_{number}")
        assert f"what training sees:             {directory}/training_images.png" in capfd.readouterr().out
        assert [path.name for path in directory.iterdir()] == ["training_images.png"]
        pictures.append((directory / "training_images.png").read_bytes())
    assert pictures[0].startswith(b"\x89PNG")
    assert pictures[0] == pictures[1] != pictures[2]


def test_the_config_that_a_fit_left_can_be_shown_also_one_of_several_processes(capfd):
    quick = ["--trainer.limit_train_batches", "1", "--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false"]
    assert main(["fit", "-c", QUICKSTART, *quick, "--test_after_fit", "false"]) == 0
    config = yaml.safe_load(Path("runs/quickstart/version_0/config.yaml").read_text())
    config["trainer"].update(devices=2, strategy="ddp", num_nodes=1)
    config["trainer"]["callbacks"] += [{"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}]
    Path("runs/quickstart/version_0/config.yaml").write_text(yaml.safe_dump(config))
    assert main(["show", "-c", "runs/quickstart/version_0/config.yaml"]) == 0, capfd.readouterr().err
    assert Path("runs/quickstart/version_1/training_images.png").exists()


FOREIGN = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Data(LightningDataModule):
    num_classes, in_channels, image_size, class_names = 3, 3, (8, 8), ["cat", "dog", "bird"]

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.randn(30, 3, 8, 8), torch.arange(30) % 3), batch_size=10)


class Model(LightningModule):
    def __init__(self, num_classes: int = 3, in_channels: int = 3, image_size: tuple = (8, 8), task="", class_names=None):
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
"""


def test_data_and_a_model_of_the_users_own_are_shown(monkeypatch):
    Path("mine_to_show.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(".")
    callback = ["--trainer.callbacks+=AugmentBatches", "--trainer.callbacks.mixing=MixUp"]
    assert main(["show", "--data", "mine_to_show.Data", "--model", "mine_to_show.Model", *callback]) == 0
    assert Path("runs/run/version_0/training_images.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "0"], "show: images=0 is out of range; expected 1 <= images."),
        (["--draws", "none"], "draws: expected int. Got 'none'."),
        (["--ckpt_path", "x.ckpt"], "ckpt_path"),
        (["--trainer.limit_train_batches", "0"], "limit_train_batches=0 leaves nothing"),
    ],
)
def test_what_can_not_be_shown_is_one_paragraph(arguments, message, capfd):
    assert main([*SHOW, *arguments]) == 2
    said = capfd.readouterr().err
    assert message in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_tta_averages_what_is_tested_validated_and_predicted(capfd):
    quick = ["--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false", "--test_after_fit", "false"]
    assert main(["fit", "-c", QUICKSTART, *quick]) == 0
    checkpoint = "runs/quickstart/version_0/checkpoints/last.ckpt"
    model = ImageClassifier.load_from_checkpoint(checkpoint).eval()
    averaged = TestTimeAugmentation(model, "shift").eval()
    data = Digits()
    found = {}
    for command in ("validate", "test", "predict"):
        for views in ([], ["--tta", "shift"]):
            given = [command, "-c", "runs/quickstart/version_0/config.yaml", "--ckpt_path", checkpoint, *views]
            assert main([*given, "--trainer.enable_progress_bar", "false"]) == 0, capfd.readouterr().err
            directory = max(Path("runs/quickstart").iterdir(), key=lambda path: int(path.name.rpartition("_")[2]))
            written = directory / ("predictions.csv" if command == "predict" else "metrics.csv")
            found[command, bool(views)] = list(csv.DictReader(written.open()))
    with torch.no_grad():
        for averages, network in ((False, model), (True, averaged)):
            images, targets = data.test_set.images, data.test_set.targets
            logits = network(images)
            tested = float(found["test", averages][-1]["test_loss"])
            assert tested == pytest.approx(float(F.cross_entropy(logits, targets)), rel=1e-4)
            held_out = data.val_set
            validated = float(found["validate", averages][-1]["val_loss"])
            assert validated == pytest.approx(float(F.cross_entropy(network(held_out.images), held_out.targets)), rel=1e-4)
            row = found["predict", averages][7]
            assert float(row["probability"]) == pytest.approx(float(logits[7].softmax(0).max()), abs=1e-4)
    assert found["test", True] != found["test", False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["test", "--tta", "flop"], "tta: expected one of 'flip', 'shift', 'flip_and_shift'. Got 'flop'. Did you mean 'flip'?"),
        (["fit", "--tta", "flip", "--test_after_fit", "false"], "tta=flip is for what is measured after training"),
        (["test", "--tta", "flip", "--trainer.callbacks+=AverageViews"], "would both average test"),
    ],
)
def test_a_tta_that_can_not_be_right_is_one_paragraph(arguments, message, capfd):
    assert main([arguments[0], "-c", QUICKSTART, *arguments[1:]]) == 2
    assert message in capfd.readouterr().err
