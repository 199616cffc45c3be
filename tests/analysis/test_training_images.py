from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, seed_everything
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torchvision.transforms import v2

from lightning_cnnopt import ImageClassifier, TensorData
from lightning_cnnopt.analysis import training_images
from lightning_cnnopt.analysis.training_images import captions_of
from lightning_cnnopt.augmentation import (
    AlternatingFlip,
    AugmentBatches,
    HorizontalFlip,
    MixUp,
    PaddedCrop,
    Transform,
)
from lightning_cnnopt.core.batch import read_batch
from lightning_cnnopt.core.errors import ConfigurationError, DataError
from tests.lightning_tools import Foreign, quiet_trainer


def own_data(**arguments):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (60, 1, 4, 4), dtype=torch.uint8, generator=generator)
    settings = {"val_size": 0, "batch_size": 12, **arguments}
    return TensorData(train_images=images, train_targets=torch.arange(60) % 3, **settings)


class Flat(nn.Sequential):
    def __init__(self, num_classes, in_channels=1):
        super().__init__(nn.Flatten(), nn.Linear(16, num_classes))


class FirstBatch(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.batch = batch
        trainer.should_stop = True


@pytest.mark.parametrize("as_callback", [False, True], ids=["data module", "callback"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_first_draw_is_the_first_batch_of_the_fit_with_the_same_seed(as_callback, accumulate):
    def parts():
        seed_everything(4, verbose=False)
        transforms, mixing = [AlternatingFlip(), PaddedCrop(1)], MixUp(1.0, "batch")
        data = own_data() if as_callback else own_data(augmentation=transforms, mixing=mixing)
        model = ImageClassifier(Flat, **data.model_args())
        return model, data, [AugmentBatches(transforms, mixing)] if as_callback else []

    model, data, callbacks = parts()
    seen = training_images(quiet_trainer(*callbacks), model, datamodule=data, images=5, draws=2)
    model, data, callbacks = parts()
    first = FirstBatch()
    quiet_trainer(*callbacks, first, max_steps=1, max_epochs=None, accumulate_grad_batches=accumulate).fit(model, data)
    images, targets = read_batch(first.batch)
    assert torch.equal(seen.rows["epoch 1"], images[:5])
    assert seen.captions["epoch 1"] == captions_of(targets[:5], data.class_names)
    assert not torch.equal(seen.rows["epoch 2"], seen.rows["epoch 1"])
    assert list(seen.rows) == ["original", "epoch 1", "epoch 2"]
    assert all(len(images) == 5 for images in seen.rows.values())


def test_every_draw_is_one_of_its_own_and_epochs_alternate():
    data = own_data(mixing=MixUp(1.0, "batch"))
    seen = training_images(quiet_trainer(), ImageClassifier(Flat, **data.model_args()), datamodule=data, draws=4)
    assert len({tuple(images.flatten().tolist()) for images in seen.rows.values()}) == 5
    mixed = [[text for text in seen.captions[f"epoch {epoch + 1}"] if "\n" in text] for epoch in range(4)]
    assert len({max(float(text.splitlines()[0].split()[1]) for text in found) for found in mixed}) > 1  # each has its λ
    data = own_data(augmentation=[AlternatingFlip()])
    seen = training_images(quiet_trainer(), ImageClassifier(Flat, **data.model_args()), datamodule=data, draws=3)
    assert torch.equal(seen.rows["epoch 1"], seen.rows["epoch 2"].flip(-1))
    assert torch.equal(seen.rows["epoch 1"], seen.rows["epoch 3"])
    assert "epoch 1" not in seen.captions  # the targets are what they were
    assert seen.title == "TensorData: what training sees, AlternatingFlip"


def test_originals_are_what_the_loader_gives_whatever_writes_into_a_batch():
    class InPlace(Transform):
        def __init__(self) -> None:
            pass

        def __call__(self, images, generator=None):
            return images.zero_()

    loader = DataLoader(TensorDataset(torch.rand(6, 1, 4, 4), torch.arange(6) % 3), batch_size=6)
    seen = training_images(quiet_trainer(AugmentBatches(InPlace())), Foreign(), loader, images=6)
    assert torch.equal(seen.rows["original"], loader.dataset.tensors[0])
    assert not seen.rows["epoch 1"].any()


class Normalized(Dataset):
    """As people write them: normalized in the worker, in a transform that is an attribute."""

    classes = ["cat", "dog", "bird"]

    def __init__(self, transform) -> None:
        self.transform = transform
        self.images = torch.randint(0, 256, (20, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return self.transform(self.images[index]), index % 3


class Colour(Foreign):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))


TO_FLOAT = v2.ToDtype(torch.float32, scale=True)
NORMALIZE = v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    "transform", [v2.Compose([TO_FLOAT, NORMALIZE]), nn.Sequential(TO_FLOAT, NORMALIZE)], ids=["compose", "sequential"]
)
@pytest.mark.parametrize("subset", [False, True])
def test_normalized_images_of_foreign_data_are_shown_as_they_were_with_their_class_names(transform, subset):
    dataset = Normalized(transform)
    used = Subset(dataset, range(20)) if subset else dataset
    seen = training_images(quiet_trainer(AugmentBatches(HorizontalFlip(1.0))), Colour(), DataLoader(used, batch_size=8))
    assert torch.allclose(seen.rows["original"] * 255, dataset.images[:8].float(), atol=0.01)
    assert torch.allclose(seen.rows["epoch 1"], seen.rows["original"].flip(-1), atol=1e-6)
    assert seen.captions["original"][:4] == ["cat", "dog", "bird", "cat"]


def test_images_that_our_data_module_normalizes_are_shown_as_they_were():
    data = own_data(augmentation=[HorizontalFlip(1.0)])  # the module is not one that normalizes by itself
    seen = training_images(quiet_trainer(), Foreign(), datamodule=data)
    assert seen.rows["original"].dtype == torch.uint8
    assert torch.allclose(seen.rows["epoch 1"] * 255, seen.rows["original"].flip(-1).float(), atol=0.01)
    assert "stretched" not in seen.title


def test_what_nobody_knows_how_to_undo_is_stretched_and_said():
    def hidden(image):
        return NORMALIZE(TO_FLOAT(image))

    seen = training_images(quiet_trainer(), Colour(), DataLoader(Normalized(hidden), batch_size=8))
    rows = seen.rows["original"]
    assert rows.amin((0, 2, 3)).tolist() == pytest.approx([0, 0, 0])
    assert rows.amax((0, 2, 3)).tolist() == pytest.approx([1, 1, 1])
    assert torch.equal(seen.rows["epoch 1"], rows)
    assert seen.title == "Normalized: what training sees, normalized, channels stretched to be seen"


def test_hooks_of_a_foreign_data_module_are_gone_through_in_their_order():
    class Data(LightningDataModule):
        class_names = ["no", "yes", "perhaps"]

        def train_dataloader(self):
            return DataLoader(TensorDataset(torch.full((6, 1, 4, 4), 0.1), torch.arange(6) % 3), batch_size=6)

        def on_before_batch_transfer(self, batch, dataloader_idx):
            return batch[0] + 0.2, batch[1]

        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch[0] * 2, batch[1]

    seen = training_images(quiet_trainer(), Foreign(), datamodule=Data())
    assert torch.allclose(seen.rows["original"], torch.tensor(0.1))
    assert torch.allclose(seen.rows["epoch 1"], torch.tensor(0.6))
    assert seen.captions["original"][:3] == ["no", "yes", "perhaps"]


def test_nothing_trains_and_other_callbacks_are_left_out():
    class Failing(Callback):
        def on_train_start(self, trainer, module):
            raise AssertionError

    module = Foreign()
    before = [parameter.clone() for parameter in module.parameters()]
    trainer = quiet_trainer(Failing(), max_epochs=3)
    training_images(trainer, module, DataLoader(TensorDataset(torch.rand(4, 1, 4, 4), torch.arange(4) % 3)))
    assert trainer.global_step == 0
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))


@pytest.mark.parametrize(
    ("targets", "names", "task", "expected"),
    [
        (torch.tensor([1, 0]), None, None, ["1", "0"]),
        (torch.tensor([0, 1]), ["x" * 30, "b"], None, [f"{'x' * 17}…", "b"]),
        (torch.tensor([[0.0, 1.0], [0.3, 0.7]]), ["a", "b"], None, ["b", "b 0.70\na 0.30"]),
        (torch.tensor([[1, 0, 1], [0, 0, 0]]), ["a", "b", "c"], "multilabel", ["a\nc", "none"]),
        (torch.tensor([[0.4, 0.0, 1.0]]), ["a", "b", "c"], "multilabel", ["c 1.00\na 0.40"]),
        (torch.ones(1, 5), list("abcde"), "multilabel", ["a\nb\nc\n…"]),
        (torch.tensor([0, 1]), ["off", "on"], "binary", ["off", "on"]),
        (torch.tensor([0.25, 1.0]), ["off", "on"], "binary", ["off 0.75\non 0.25", "on"]),
        (torch.tensor([[0.25], [1.0]]), ["off", "on"], None, ["off 0.75\non 0.25", "on"]),
        (torch.tensor([7]), ["a", "b"], None, ["7"]),
    ],
)
def test_captions_say_what_targets_are(targets, names, task, expected):
    assert captions_of(targets, names, task) == expected


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_the_picture_has_its_rows_captions_and_title(channels):
    dataset = TensorDataset(torch.rand(5, channels, 4, 4), torch.arange(5) % 3)
    module = Foreign()
    module.body = nn.Sequential(nn.Flatten(), nn.Linear(16 * channels, 3))
    mixing = AugmentBatches(mixing=MixUp(1.0), num_classes=3)
    figure = training_images(quiet_trainer(mixing), module, DataLoader(dataset, batch_size=5), draws=2).figure()
    assert [axes.get_ylabel() for axes in figure.axes] == ["original", "epoch 1", "epoch 2"]
    assert figure.get_suptitle() == "TensorDataset: what training sees, MixUp"
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["0", "1", "2", "0", "1"]
    assert all("0." in label.get_text() or len(label.get_text()) == 1 for label in figure.axes[1].get_xticklabels())
    edges = {(round(axes.get_position().x0, 6), round(axes.get_position().x1, 6)) for axes in figure.axes}
    assert len(edges) == 1  # an image and its draws stand under each other
    pixels = torch.as_tensor(figure.axes[0].images[0].get_array())
    grey = torch.equal(pixels[..., 0], pixels[..., 1]) and torch.equal(pixels[..., 1], pixels[..., 2])
    assert grey is (channels != 3)


def test_what_can_not_be_shown_is_refused():
    loader = DataLoader(TensorDataset(torch.rand(4, 1, 4, 4), torch.arange(4) % 3))
    with pytest.raises(ConfigurationError, match="show: images=0 is out of range"):
        training_images(quiet_trainer(), Foreign(), loader, images=0)
    with pytest.raises(ConfigurationError, match="one process: set devices=1"):
        training_images(quiet_trainer(devices=2), Foreign(), loader)
    with pytest.raises(ConfigurationError, match="one training loader; there are 2"):
        training_images(quiet_trainer(), Foreign(), [loader, loader])
    with pytest.raises(DataError, match="have to be one tensor of shape"):
        training_images(quiet_trainer(), Foreign(), DataLoader(TensorDataset(torch.rand(4, 16), torch.arange(4))))
