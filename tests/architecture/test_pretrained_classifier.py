"""An ``ImageClassifier`` with weights that came from somewhere else: what belongs to them stays with them."""

from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import torchvision
import yaml

from lightning_cnnopt import ImageClassifier, TensorData
from lightning_cnnopt.__main__ import main
from lightning_cnnopt.analysis import resolved_values
from lightning_cnnopt.architecture import SmallImageStem, TimmNetwork, TorchvisionNetwork
from lightning_cnnopt.core.errors import CheckpointError
from tests.lightning_tools import assert_same_weights, quiet_trainer, weights_of

QUICKSTART = str(Path(__file__).parent.parent.parent / "configs" / "quickstart.yaml")
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def data_of(channels=3):
    images = torch.randint(0, 256, (24, channels, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(24) % 3
    return TensorData(
        train_images=images, train_targets=targets, test_images=images, test_targets=targets, val_size=0, batch_size=8
    )


@pytest.fixture
def files(tmp_path):
    """Weights as they were published, in files that a test may delete."""
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "torchvision.pth")
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "timm.pth")
    return {
        "torchvision": (
            TorchvisionNetwork,
            {"name": "resnet18", "weights": "DEFAULT", "file": str(tmp_path / "torchvision.pth")},
        ),
        "timm": (TimmNetwork, {"name": "resnet18", "pretrained": True, "file": str(tmp_path / "timm.pth")}),
    }


def fitted(make, arguments, data, **options):
    model = ImageClassifier(
        partial(make, **arguments), **data.model_args(), optimizer=partial(torch.optim.SGD, lr=0.01), **options
    )
    trainer = quiet_trainer(max_steps=1)
    trainer.fit(model, data)
    return trainer, model


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_a_checkpoint_rebuilds_the_network_without_the_file(package, files, tmp_path):
    make, arguments = files[package]
    trainer, model = fitted(make, arguments, data_of(), edits=[SmallImageStem()])
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    Path(arguments["file"]).unlink()
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert_same_weights(weights_of(loaded), weights_of(model))
    assert loaded.network.weights_record == model.network.weights_record
    images = data_of().test_set.images
    assert torch.equal(loaded.eval()(images), model.eval()(images))


def test_a_checkpoint_of_a_checkpoint_rebuilds_it_too(files, tmp_path):
    trainer, _ = fitted(*files["timm"], data_of())
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    Path(files["timm"][1]["file"]).unlink()
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "first.ckpt")
    trainer = quiet_trainer(max_steps=1)
    trainer.fit(loaded, data_of())
    trainer.save_checkpoint(tmp_path / "second.ckpt")
    again = ImageClassifier.load_from_checkpoint(tmp_path / "second.ckpt")
    assert_same_weights(weights_of(again), weights_of(loaded))


@pytest.mark.parametrize("package", ["torchvision", "timm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_normalized_by_what_the_weights_were_trained_with(package, channels, files, tmp_path):
    make, arguments = files[package]
    data = data_of(channels)
    trainer, model = fitted(make, arguments, data)
    expected = IMAGENET if channels == 3 else ([sum(IMAGENET[0]) / 3], [sum(IMAGENET[1]) / 3])
    for tensor, values in zip((model.preprocessing.mean, model.preprocessing.std), expected, strict=True):
        assert tensor.flatten().tolist() == pytest.approx(values)
        assert tensor.flatten().tolist() != pytest.approx(data.mean)
    assert resolved_values(trainer, model)["network"]["weights"]["size"] == [224, 224]
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "model.ckpt")
    assert torch.equal(loaded.preprocessing.mean, model.preprocessing.mean)


def test_a_checkpoint_knows_size_and_crop_of_its_evaluation(files, tmp_path):
    make, arguments = files["torchvision"]
    trainer, model = fitted(make, {**arguments, "input_size": 32, "crop": "weights"}, data_of())
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    Path(arguments["file"]).unlink()
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True)
    assert (loaded.network.resize.size, loaded.network.resize.crop) == ((32, 32), 0.875)
    images = data_of().test_set.images
    assert torch.equal(loaded.eval()(images), model.eval()(images))


def test_mean_and_deviation_given_by_hand_win(files):
    _, model = fitted(*files["timm"], data_of(), mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    assert model.preprocessing.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_without_published_weights_the_data_is_measured(package, files):
    make, arguments = files[package]
    own = {name: arguments[name] for name in ("name", "file")}
    for chosen in ({"name": arguments["name"]}, own):
        data = data_of()
        _, model = fitted(make, chosen, data)
        assert model.preprocessing.mean.flatten().tolist() == pytest.approx(data.mean)


def test_class_names_are_those_of_the_weights_where_the_head_is(files):
    make, arguments = files["torchvision"]
    kept = ImageClassifier(partial(make, **arguments), num_classes=1000, in_channels=3, image_size=(16, 16))
    assert kept.class_names[:2] == ["tench", "goldfish"]
    assert ImageClassifier(partial(make, **arguments), 3, 3, (16, 16)).class_names is None
    own = [f"class {index}" for index in range(1000)]
    given = ImageClassifier(partial(make, **arguments), 1000, 3, (16, 16), class_names=own)
    assert given.class_names == own


def test_another_networks_file_stops_the_run_before_it_starts(files):
    make, arguments = files["torchvision"]
    with pytest.raises(CheckpointError, match="do not belong together"):
        fitted(make, {**arguments, "name": "shufflenet_v2_x1_0", "weights": None}, data_of())


def test_it_is_named_in_yaml_and_tested_from_its_checkpoint_alone(files, tmp_path, capfd):
    make, arguments = files["timm"]
    overlay = tmp_path / "overlay.yaml"
    network = {"class_path": make.__name__, "init_args": arguments}
    overlay.write_text(yaml.safe_dump({"model": {"init_args": {"network": network, "initializer": None}}}))
    flags = {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1, "enable_progress_bar": "false"}
    words = [word for name, value in flags.items() for word in (f"--trainer.{name}", str(value))]
    assert main(["fit", "-c", QUICKSTART, "-c", str(overlay), "--test_after_fit", "false", *words]) == 0, capfd.readouterr().err
    Path(arguments["file"]).unlink()
    checkpoint = next(Path("runs").rglob("last.ckpt"))
    evaluation = ["--trainer.limit_test_batches", "1", "--trainer.enable_progress_bar", "false"]
    assert main(["test", "-c", QUICKSTART, "--ckpt_path", str(checkpoint), *evaluation]) == 0, capfd.readouterr().err
    stored = torch.load(checkpoint)["hyper_parameters"]["network"]["init_args"]
    assert stored["load"] is False
