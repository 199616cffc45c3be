from __future__ import annotations

import csv

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from lightning_cnnopt import ConvNet, Digits, ImageClassifier
from lightning_cnnopt.__main__ import main
from lightning_cnnopt.analysis import ProfileNetwork, profile_network
from lightning_cnnopt.core.errors import ConfigurationError
from tests.analysis.test_plots import is_a_picture

QUICK = {
    "max_epochs": 1,
    "limit_train_batches": 1,
    "limit_val_batches": 0,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Slow(nn.Module):
    """Computes the product of its matrix a number of times."""

    def __init__(self, times):
        super().__init__()
        self.times = times
        self.matrix = nn.Parameter(torch.eye(200))

    def forward(self, images):
        product = self.matrix
        for _ in range(self.times):
            product = product @ self.matrix
        return images * product.sum()


def test_the_slower_layer_takes_longer_and_a_layer_is_not_charged_for_those_within_it():
    network = nn.Sequential(nn.Sequential(Slow(1), Slow(100)), nn.Identity())
    profile = profile_network(network, torch.zeros(2, 1, 4, 4), repeats=5)
    # a hundred products against one: so far apart that a busy machine changes nothing
    assert profile.latency["0.1"] > 5 * profile.latency["0.0"]
    assert profile.latency["0.1"] > 5 * profile.latency["0"]
    assert min(profile.forward_ms, profile.step_ms) > 5 * profile.latency["0.0"]


def test_the_table_and_the_csv_hold_every_layer_and_the_sums(tmp_path):
    profile = profile_network(ConvNet(), torch.zeros(4, 1, 28, 28), repeats=1)
    text = profile.table()
    assert all(row.layer in text for row in profile.layers)
    assert "814,186" in text
    assert "8.255" in text
    with profile.write_csv(tmp_path / "profile.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["layer"] for row in rows] == [row.layer for row in profile.layers]
    assert sum(int(row["parameters"]) for row in rows) == sum(p.numel() for p in ConvNet().parameters())
    assert sum(int(row["macs"]) for row in rows) == profile.macs
    assert all(float(row["latency_ms"]) > 0 for row in rows)


def test_frozen_networks_and_networks_of_several_outputs_can_be_profiled():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3)

        def forward(self, images):
            return {"features": self.conv(images), "sizes": [1]}

    assert profile_network(Two(), torch.zeros(2, 1, 4, 4), repeats=1).macs == 2 * 9 * 4
    assert profile_network(Two().requires_grad_(False), torch.zeros(2, 1, 4, 4), repeats=1).activation_bytes == 0


def test_repeats_are_checked():
    with pytest.raises(ConfigurationError, match="repeats=0"):
        profile_network(ConvNet(), torch.zeros(2, 1, 28, 28), repeats=0)


def test_the_callback_changes_nothing_of_the_training(tmp_path, capsys):
    weights = []
    for callbacks in ([], [ProfileNetwork(batch_size=2, repeats=1, directory=str(tmp_path / "left"))]):
        torch.manual_seed(0)
        data = Digits()
        model = ImageClassifier(ConvNet, **data.model_args())
        Trainer(callbacks=callbacks, default_root_dir=tmp_path, **QUICK).fit(model, data)
        weights.append(model.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert "MMACs/image" in capsys.readouterr().out
    assert is_a_picture(tmp_path / "left" / "profile.png")
    assert (tmp_path / "left" / "profile.csv").read_text().startswith("layer,kind,output,")


class Foreign(LightningModule):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 10))

    def training_step(self, batch, batch_idx):
        return self.body(batch[0].float()).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_foreign_module_says_the_shape_by_its_example_or_is_asked_for_it(tmp_path):
    quick = {**QUICK, "default_root_dir": tmp_path}
    with pytest.raises(ConfigurationError, match="Foreign does not state the shape of an image; pass input_shape="):
        Trainer(callbacks=[ProfileNetwork()], **quick).fit(Foreign(), Digits())
    module = Foreign()
    module.example_input_array = torch.zeros(1, 1, 8, 8)
    for callback in (ProfileNetwork((1, 8, 8), repeats=1), ProfileNetwork(repeats=1, submodule="body")):
        Trainer(callbacks=[callback], **quick).fit(module, Digits())
        assert [row.kind for row in callback.profile.layers] == ["Conv2d", "Flatten", "Linear"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({"input_shape": (3, 8)}, "is not"), ({"input_shape": (3, 0, 8)}, "input_shape=0"), ({"batch_size": 0}, "batch_size=0")],
    ids=["two numbers", "no height", "no image"],
)
def test_what_the_callback_is_given_is_checked(arguments, said):
    with pytest.raises(ConfigurationError, match=said):
        ProfileNetwork(**arguments)


def test_the_command_measures_the_edited_network_and_trains_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text("data: Digits\nmodel: {init_args: {edits: SqueezeExcite}}\n")
    assert main(["profile", "-c", "c.yaml", "--batch_size", "4", "--repeats", "1"]) == 0
    output = capsys.readouterr().out
    assert "4 images of 1x8x8" in output
    assert "squeeze_excite" in output
    left = tmp_path / "runs" / "c" / "version_0"
    assert {path.name for path in left.iterdir()} == {"config.yaml", "profile.csv", "profile.png"}
    assert str(left.relative_to(tmp_path) / "profile.png") in output
    assert main(["profile", "-c", "c.yaml", "--repeats", "0"]) == 2
    assert "repeats=0" in capsys.readouterr().err
