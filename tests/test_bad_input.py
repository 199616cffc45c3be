"""What users get wrong: one clear paragraph, exit status 2, no traceback, nothing half written."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from lightning_cnnopt.__main__ import main
from lightning_cnnopt.commands import RequireTest
from lightning_cnnopt.core.errors import ConfigurationError
from tests.data.folder.files import make_folder
from tests.lightning_tools import Foreign, quiet_trainer

QUICKSTART = str(Path(__file__).parent.parent / "configs" / "quickstart.yaml")
SHORT = ["--test_after_fit", "false", "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]


def fit(*arguments):
    return main(["fit", "-c", QUICKSTART, *SHORT, "--trainer.max_epochs", "1", *arguments])


@pytest.fixture
def complaint(capfd, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", False)  # Lightning's handler writes to an earlier test's stream

    def read(status, expected=2):
        out, err = capfd.readouterr()
        lines = [line for line in err.splitlines() if line.startswith("cnnopt: ")]
        assert status == expected, err
        assert len(lines) == 1, err
        assert "Traceback" not in out + err
        assert "\n\n" not in lines[0]
        return lines[0]

    return read


def write_npz(path, **changes):
    arrays = {
        "train_images": np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8),
        "train_targets": np.arange(40) % 4,
        "test_images": np.zeros((4, 8, 8), dtype=np.uint8),
        "test_targets": np.arange(4),
    }
    np.savez(path, **{**arrays, **changes})
    return str(path)


def from_npz(path, *arguments):
    config = Path("data.yaml")
    config.write_text(yaml.safe_dump({"data": {"class_path": "TensorData", "init_args": {"path": path, "val_size": 4}}}))
    return fit("-c", str(config), *arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model.network", "ConvNte"], ["model.network", "'ConvNte'", "'ConvNet'"]),
        (["--model.schedule", "Cosin"], ["model.schedule", "'Cosin'", "'Cosine'"]),
        (["--trainer.callbacks+=EMMA"], ["trainer.callbacks", "'EMMA'", "'EMA'"]),
        (["--data", "Digit"], ["data", "'Digit'", "'Digits'"]),
        (["--model.network.widhts", "[8]"], ["model.network", "'widhts'", "'widths'"]),
        (["--data.batchsize", "8"], ["data", "'batchsize'", "'batch_size'"]),
        (["--trainer.max_epochs", "three"], ["trainer.max_epochs", "int", "'three'"]),
        (["--nonsense", "1"], ["--nonsense"]),
        (["-c", "missing.yaml"], ["missing.yaml"]),
        (["--model.num_classes", "3"], ["model.num_classes", "comes from the data"]),
        (["--model.network.dropout", "1.5"], ["dropout=1.5", "0 <= dropout < 1"]),
        (["--data.augmentation", "[{class_path: HorizontalFlip, init_args: {p: 1.5}}]"], ["p=1.5", "0 <= p <= 1"]),
        (["--data.augmentation", "[{class_path: ColorJitter}]"], ["torchvision", "no class of the kind", "'ColourJitter'"]),
        (["--model.edits", "[{class_path: StochasticDepth, init_args: {p: -0.1}}]"], ["p=-0.1", "0 <= p < 1"]),
        (["--model.penalties", "[{class_path: L1, init_args: {weight: -1}}]"], ["L1", "weight=-1"]),
        (["--model.optimizer.lr", "-0.1"], ["AdamW", "-0.1"]),
        (["--data.val_size", "1.5"], ["val_size=1.5"]),
        (["--data.val_size", "3"], ["val_size=3", "can't be split off"]),
        (["--model.schedule.duration", "5"], ["'5ep'", "'5st'"]),
        (["--model.schedule.duration", "1000ep"], ["duration='1000ep'", "takes all of the training"]),
        (["--trainer.max_epochs", "0"], ["max_epochs", "must not be 0"]),
        (["--trainer.max_epochs", "-1"], ["no known end", "max_steps"]),
        (["--model.network.widths", "[8, 8, 8, 8]"], ["8x8", "too small", "stage 4"]),
        (["--model.schedule", "Plateau", "--model.schedule.monitor", "val_lost"], ["'val_lost'", "val_loss"]),
        (["--model.schedule", "Plateau", "--trainer.limit_val_batches", "0"], ["Plateau", "limit_val_batches=0"]),
        (["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val_lost"], ["val_lost", "val_loss"]),
        (["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=val_lost"], ["val_lost"]),
        (["--trainer.callbacks+=EMA"], ["EMA more than once", "keep one"]),
        (["--model.criterion", "CrossEntropyLoss", "--model.criterion.label_smoothing", "2"], ["label_smoothing=2"]),
        (["--model.criterion", "torch.nn.MSELoss"], ["MSELoss", "class numbers"]),
        (
            ["--model.criterion", "torch.nn.CrossEntropyLoss", "--model.criterion.reduction", "none"],
            ["shape (2,)", "one number"],
        ),
        (["--trainer.accumulate_grad_batches", "0"], ["accumulate_grad_batches=0", "1 <="]),
        (["--trainer.limit_train_batches", "0"], ["limit_train_batches=0", "nothing to train on"]),
        (["--trainer.gradient_clip_val", "-1"], ["gradient_clip_val=-1"]),
        (["--trainer.log_every_n_steps", "-1"], ["log_every_n_steps=-1"]),
        (["--trainer.devices", "99"], ["devices=99", "processes"]),
        (["--trainer.precision", "bf17"], ["precision", "'bf17'", "bf16"]),
        (["--trainer.strategy", "dpp"], ["'dpp'"]),
        (["--trainer.accelerator", "gpuu"], ["'gpuu'"]),
        (["--model.optimizer.lr", "abc"], ["lr", "'abc'", "float"]),
        (["--model.network.widths", "[8, -8]"], ["widths=-8"]),
        (["--model.network.widths", "8"], ["widths", "list"]),
        (["--seed_everything", "-5"], ["seed_everything=-5"]),
        (["--data.batch_size", "0"], ["batch_size=0"]),
        (["--data.batch_size", "many"], ["batch_size", "'many'", "int"]),
        (["--model", "ImageClasifier"], ["'ImageClasifier'", "'ImageClassifier'"]),
        (["--model.network", "nosuchmodule.Net"], ["nosuchmodule"]),
        (["--model.initializer", "[Kaiming, XavierUnifrom]"], ["XavierUnifrom"]),
        (["--ckpt_path", "gone.ckpt"], ["gone.ckpt", "does not exist"]),
        (["--ckpt_path", "."], ["is a folder", "expected a checkpoint"]),
        (["--model.edits", "SqueezeExite"], ["'SqueezeExite'", "'SqueezeExcite'"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("-") else "",
)
def test_a_wrong_argument_is_named_with_what_was_expected(arguments, said, complaint):
    text = complaint(fit(*arguments))
    for part in said:
        assert part in text


def test_an_unknown_command(complaint):
    assert "'fit'" in complaint(main(["fitt"]))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("trainer:\n\tmax_epochs: 1\n", ["wrong.yaml is no YAML: line 2", "no tabs"]),
        ("trainer: {max_epochs: 1\n", ["wrong.yaml is no YAML"]),
        ("", ["wrong.yaml holds nothing"]),
        ("- trainer\n- model\n", ["wrong.yaml holds a list", "arguments by name"]),
        ("trainer: 3\n", ["trainer in wrong.yaml holds a int"]),
        ("traner: {max_epochs: 1}\n", ["'traner", "'trainer"]),
        ("trainer: {max_epoch: 1}\n", ["max_epoch", "max_epochs"]),
        ("model: {class_path: ImageClassifier, init_arg: {schedule: Cosine}}\n", ["init_arg"]),
        ("trainer: {callbacks: [{class_path: EMA, init_args: {decya: 0.9}}]}\n", ["'decya'", "'decay'"]),
        ("trainer: {callbacks: {class_path: EMA}, max_epochs: -3}\n", ["max_epochs"]),
    ],
)
def test_a_config_that_is_written_wrong(content, said, complaint):
    Path("wrong.yaml").write_text(content)
    text = complaint(fit("-c", "wrong.yaml"))
    for part in said:
        assert part in text


def test_one_technique_alone_needs_no_list():
    Path("alone.yaml").write_text(
        "model: {init_args: {edits: SqueezeExcite, penalties: {class_path: L1}, initializer: Kaiming}}"
    )
    assert fit("-c", "alone.yaml") == 0


def test_a_text_file_is_no_checkpoint(complaint):
    Path("text.ckpt").write_text("weights: none\n")
    for command in ("fit", "test"):
        text = complaint(main([command, "-c", QUICKSTART, "--ckpt_path", "text.ckpt"]))
        assert "text.ckpt is no checkpoint" in text


def test_a_number_of_classes_written_in_yaml(complaint):
    Path("twice.yaml").write_text("model:\n  class_path: ImageClassifier\n  init_args:\n    num_classes: 3\n")
    assert "num_classes" in complaint(fit("-c", "twice.yaml"))


def test_a_network_that_does_not_fit_the_data(complaint):
    Path("net.yaml").write_text(
        "model:\n  init_args:\n    network:\n      class_path: torchvision.models.AlexNet\n      init_args: {dropout: 0.1}\n"
    )
    text = complaint(fit("-c", "net.yaml"))
    assert "AlexNet" in text
    assert "(2, 1, 8, 8)" in text


def test_a_missing_data_file_is_named(complaint):
    text = complaint(fit("--data", "FashionMNIST", "--data.root", "nowhere"))
    assert "nowhere/FashionMNIST/raw/train-images-idx3-ubyte is missing" in text


def test_a_truncated_data_file_is_named(complaint):
    raw = Path("here/FashionMNIST/raw")
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 5, 0, 0, 0, 28, 0, 0, 0, 28, 1, 2, 3]))
    text = complaint(fit("--data", "FashionMNIST", "--data.root", "here"))
    assert "train-images-idx3-ubyte" in text
    assert "truncated" in text


def test_a_truncated_npz_is_named(complaint, tmp_path):
    path = Path(write_npz(tmp_path / "data.npz"))
    path.write_bytes(path.read_bytes()[:500])
    assert str(path) in complaint(from_npz(str(path)))


UNTESTED = """
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

from lightning_cnnopt import ImageDataModule
from lightning_cnnopt.data import ImageSet


class Ours(ImageDataModule):
    num_classes, in_channels, image_size = 2, 1, (8, 8)

    def load(self, split):
        return None if split == "test" else ImageSet(torch.zeros(20, 1, 8, 8).random_(255).byte(), torch.arange(20) % 2)


class Foreign(LightningDataModule):
    num_classes, in_channels, image_size = 2, 1, (8, 8)

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.rand(8, 1, 8, 8), torch.arange(8) % 2), 4)
"""


@pytest.mark.parametrize("name", ["Ours", "Foreign", "ImageFolder"])
def test_a_test_after_fit_without_a_test_split_is_refused_before_training(name, complaint, tmp_path, monkeypatch):
    Path("untested.py").write_text(UNTESTED)
    monkeypatch.syspath_prepend(tmp_path)
    data = ["--data", f"untested.{name}"]
    if name == "ImageFolder":
        root = make_folder("images", {"train": {"cat": 10, "dog": 10}}, size=(8, 8))
        data = ["--data", name, "--data.root", str(root)]
    said = complaint(fit(*data, "--test_after_fit", "true"))
    assert f"test_after_fit=true would find nothing to test when training is done: {name} has no test split." in said
    assert "test_after_fit: false" in said
    assert not list(Path("runs").rglob("*.ckpt"))
    assert fit(*data) == 0


def test_a_test_after_fit_of_a_module_without_a_test_step_is_refused():
    with pytest.raises(ConfigurationError, match="when training is done: Foreign has no test_step"):
        RequireTest().setup(quiet_trainer(), Foreign(), "fit")


def test_labels_out_of_range(complaint, tmp_path):
    path = write_npz(tmp_path / "data.npz", train_targets=np.arange(40) % 4 - 1)
    text = complaint(from_npz(path))
    assert "-1 to 2" in text


def test_an_empty_split(complaint, tmp_path):
    empty = {"train_images": np.zeros((0, 8, 8), np.uint8), "train_targets": np.zeros(0, np.int64)}
    assert "training split is empty" in complaint(from_npz(write_npz(tmp_path / "data.npz", **empty)))


@pytest.fixture
def checkpoint(capfd):
    assert fit() == 0
    capfd.readouterr()
    return str(next(Path("runs").glob("*/version_0/checkpoints/last.ckpt")))


def test_a_checkpoint_of_another_network(checkpoint, complaint):
    text = complaint(fit("--model.network.widths", "[16]", "--ckpt_path", checkpoint))
    assert "does not fit" in text
    assert "stages" in text


def test_a_checkpoint_of_a_newer_version(checkpoint, complaint):
    content = torch.load(checkpoint)
    content["lightning_cnnopt"] = {"format": 99, "version": "9.0", "class_path": "lightning_cnnopt.ImageClassifier"}
    torch.save(content, "newer.ckpt")
    assert "9.0" in complaint(fit("--ckpt_path", "newer.ckpt"))


def test_a_checkpoint_of_another_class(checkpoint, complaint):
    torch.save({"state_dict": {"layer.weight": torch.zeros(2)}, "pytorch-lightning_version": "2.6.6"}, "foreign.ckpt")
    text = complaint(fit("--ckpt_path", "foreign.ckpt"))
    assert "layer.weight" in text or "does not fit" in text


def test_a_damaged_checkpoint(checkpoint, complaint):
    Path("damaged.ckpt").write_bytes(Path(checkpoint).read_bytes()[:2000])
    text = complaint(main(["test", "-c", QUICKSTART, "--ckpt_path", "damaged.ckpt"]))
    assert "damaged.ckpt" in text


def test_a_missing_checkpoint(complaint):
    assert "gone.ckpt" in complaint(main(["test", "-c", QUICKSTART, "--ckpt_path", "gone.ckpt"]))


def test_a_callback_order_that_cannot_work(complaint):
    averaging = "lightning.pytorch.callbacks.EMAWeightAveraging"
    Path("order.yaml").write_text(
        yaml.safe_dump(
            {"trainer": {"callbacks": [averaging, {"class_path": "EditNetwork", "init_args": {"edits": ["SqueezeExcite"]}}]}}
        )
    )
    text = complaint(fit("-c", "order.yaml"))
    assert "EditNetwork" in text
    assert "before" in text


def test_a_loss_that_turns_nan_stops_and_keeps_the_good_checkpoint(complaint):
    status = main(["fit", "-c", QUICKSTART, *SHORT, "--model.optimizer.lr", "1e30", "--model.schedule.duration", "0.9"])
    text = complaint(status)
    assert "optimizer step" in text
    assert "learning rate" in text
    for path in Path("runs").rglob("*.ckpt"):
        weights = torch.load(path)["state_dict"].values()
        assert all(value.isfinite().all() for value in weights if value.is_floating_point())


def test_no_part_of_a_file_is_left_behind(complaint):
    complaint(fit("--model.schedule.duration", "1000ep"))
    assert not [path for path in Path().rglob("*") if path.name.endswith((".part", ".tmp")) or path.name.startswith(".")]


def test_debug_shows_the_traceback():
    with pytest.raises(Exception, match="dropout"):
        main(["--debug", "fit", "-c", QUICKSTART, "--model.network.dropout", "1.5"])
