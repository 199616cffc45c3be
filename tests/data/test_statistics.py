"""Mean and standard deviation are measured once, kept with the weights, or those of published weights."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torchvision

from lightning_cnnopt.architecture import TorchvisionNetwork
from lightning_cnnopt.core.errors import DataError
from lightning_cnnopt.data import ImageSet, TensorData, image_set
from lightning_cnnopt.data.image_set import channel_statistics
from lightning_cnnopt.module import ImageClassifier
from tests.data.test_datamodule import Linear, Seeing, colours
from tests.lightning_tools import quiet_trainer


@pytest.mark.parametrize("block", [7, 60, 4000])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_they_are_those_of_the_samples_that_are_meant_in_blocks_of_any_size(block, dtype, monkeypatch):
    monkeypatch.setattr(image_set, "_BLOCK", block)
    images = torch.randint(0, 256, (41, 3, 2, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = images if dtype == torch.uint8 else images.float() / 255
    part = ImageSet(images, torch.zeros(41))[5:33]
    pixels = part.images.double() / (255 if dtype == torch.uint8 else 1)
    mean, std = channel_statistics(part, "Data")
    assert mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-6)
    assert std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=1e-6)


def test_a_constant_channel_of_floats_is_named_too():
    images = torch.rand(8, 2, 3, 3)
    images[:, 1] = 0.7
    with pytest.raises(DataError, match="channel 1 is constant"):
        channel_statistics(ImageSet(images, torch.zeros(8)), "Data")


def test_they_are_measured_once(monkeypatch):
    data = colours()
    first = data.pixel_statistics()
    monkeypatch.setattr("lightning_cnnopt.data.datamodule.channel_statistics", None)
    assert data.pixel_statistics() == first


def test_a_checkpoint_keeps_them_for_a_module_that_does_not_normalize_by_itself(tmp_path):
    trained, module = colours(), Seeing()
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(module, trained)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    other = colours(val_size=0, long_tail=4.0)
    measured = other.pixel_statistics()
    assert measured != trained.pixel_statistics()

    tester = quiet_trainer()
    tester.test(module, other, ckpt_path=str(tmp_path / "model.ckpt"), verbose=False, weights_only=True)
    assert other.pixel_statistics() == trained.pixel_statistics()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in trained.pixel_statistics())
    assert torch.allclose(module.seen["test"][0][0], (other.test_set.images / 255 - mean) / std, atol=1e-5)

    quiet_trainer(max_epochs=1).fit(Seeing(), other)  # without the checkpoint
    assert other.pixel_statistics() == measured


def test_a_resumed_run_saves_those_it_was_given(tmp_path):
    trained = colours()
    for epochs, data in ((1, trained), (2, colours(val_size=0)), (3, colours(val_size=0.5))):
        trainer = quiet_trainer(max_epochs=epochs)
        trainer.fit(Seeing(), data, ckpt_path=None if epochs == 1 else str(tmp_path / "model.ckpt"))
        trainer.save_checkpoint(tmp_path / "model.ckpt")
        assert data.pixel_statistics() == trained.pixel_statistics()


def test_for_an_image_classifier_they_are_in_its_weights_and_not_measured_again(tmp_path, monkeypatch):
    data = colours()
    trainer = quiet_trainer(max_epochs=1)
    trainer.fit(ImageClassifier(Linear, **data.model_args()), data)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "model.ckpt")
    monkeypatch.setattr(TensorData, "measure", None)
    quiet_trainer().test(loaded, colours(long_tail=4.0), verbose=False)
    assert loaded.preprocessing.mean.flatten().tolist() == pytest.approx(data.mean)


def test_published_weights_bring_their_own_and_nothing_is_measured(monkeypatch, tmp_path):
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "weights.pth")
    images = torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8)
    data = TensorData(train_images=images, train_targets=torch.arange(24) % 3, val_size=0, batch_size=12)
    network = partial(TorchvisionNetwork, name="resnet18", weights="DEFAULT", file=str(tmp_path / "weights.pth"))
    model = ImageClassifier(network, **data.model_args())
    monkeypatch.setattr(TensorData, "measure", None)
    trainer = quiet_trainer(max_steps=1)
    trainer.fit(model, data)
    assert model.preprocessing.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert model.preprocessing.std.flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    assert torch.load(tmp_path / "model.ckpt")["TensorData"]["statistics"] is None
