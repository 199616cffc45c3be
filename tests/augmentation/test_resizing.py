"""Progressive resizing."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.v2.functional import resize

from lightning_cnnopt import ConvNet, Digits, ImageClassifier
from lightning_cnnopt.augmentation import ScheduleImageSize, scaled_size
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.learning_rate import Constant, Polynomial, Step
from lightning_cnnopt.normalization import PreciseBN
from tests.lightning_tools import quiet_trainer


class Seeing(nn.Module):
    """A network that keeps the images it was given."""

    def __init__(self):
        super().__init__()
        self.seen = {True: [], False: []}
        self.conv = nn.Conv2d(1, 3, 3, padding=1)

    def forward(self, images):
        self.seen[self.training].append(images.detach().clone())
        return self.conv(images.float()).mean((2, 3))


class Foreign(LightningModule):
    def __init__(self, keyword=False):
        super().__init__()
        self.network = Seeing()
        self.keyword = keyword

    def step(self, batch):
        logits = self.network(images=batch[0]) if self.keyword else self.network(batch[0])
        return nn.functional.cross_entropy(logits, batch[1])

    def training_step(self, batch, batch_idx):
        return self.step(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.step(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def images(count=20, size=(16, 12)):
    return torch.rand(count, 1, *size, generator=torch.Generator().manual_seed(0))


def loader(count=20, dtype=torch.float32):
    pixels = images(count) if dtype.is_floating_point else (images(count) * 255).to(dtype)
    return DataLoader(TensorDataset(pixels, torch.arange(count) % 3), batch_size=2)


def sizes(module, training=True):
    return [tuple(seen.shape[2:]) for seen in module.network.seen[training]]


def test_sizes_follow_the_schedule_and_the_last_part_is_whole():
    module = Foreign()
    quiet_trainer(ScheduleImageSize(Polynomial(), start=0.5, full=0.2)).fit(module, loader(), loader(4))
    expected = [tuple(scaled_size((16, 12), 1 - 0.5 * (1 - step / 8))) for step in range(8)] + [(16, 12)] * 2
    assert sizes(module) == expected
    assert expected[0] == (8, 8)
    assert len(set(expected)) > 2
    assert set(sizes(module, training=False)) == {(16, 12)}


def test_a_stage_lasts_as_long_as_the_schedule_says_and_accumulation_changes_no_size_within_a_step():
    module = Foreign()
    callback = ScheduleImageSize(Step(0.5, 0.5), start=0.25, full="1st", multiple=2)
    quiet_trainer(callback, accumulate_grad_batches=2).fit(module, loader())
    assert sizes(module) == [(4, 4)] * 4 + [(10, 8)] * 4 + [(16, 12)] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize("keyword", [False, True])
def test_images_are_those_of_torchvisions_resize_and_the_data_stays(dtype, keyword):
    module, data = Foreign(keyword), loader(dtype=dtype)
    before = data.dataset.tensors[0].clone()
    quiet_trainer(ScheduleImageSize(Polynomial(), full=0.0), max_steps=2).fit(module, data)
    assert torch.equal(module.network.seen[True][0], resize(before[:2], [8, 8], antialias=True))
    assert module.network.seen[True][0].dtype == dtype
    assert torch.equal(data.dataset.tensors[0], before)


def test_nothing_is_left_behind():
    module = Foreign()
    callback = ScheduleImageSize(Polynomial(), full=0.0)
    quiet_trainer(callback, max_steps=2).fit(module, loader())
    assert not module.network._forward_pre_hooks
    assert callback.scale == 1.0
    module.network.seen[True].clear()
    quiet_trainer(max_steps=1).fit(module, loader())
    assert sizes(module) == [(16, 12)]


def test_statistics_are_measured_anew_on_whole_images():
    module = Foreign()
    module.network.conv = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))
    quiet_trainer(ScheduleImageSize(Constant(), full=0.0), PreciseBN(8)).fit(module, loader(), loader(4))
    assert set(sizes(module)) == {(8, 8)}
    measured = sizes(module, training=False)
    assert set(measured) == {(16, 12)}
    assert len(measured) > 4, "the validation alone has two batches, as the sanity check"


def test_a_network_of_fixed_size_is_refused_before_training_and_one_that_pools_trains():
    data = Digits()
    fixed = ImageClassifier(ConvNet, **data.model_args())
    with pytest.raises(ConfigurationError, match=r"ConvNet takes images of 8x8 and none of 4x4: .* global_pooling"):
        quiet_trainer(ScheduleImageSize(Polynomial()), max_steps=1).fit(fixed, data)
    assert fixed.network.training
    pooled = ImageClassifier(lambda **size: ConvNet(**size, global_pooling=True, dense=()), **data.model_args())
    quiet_trainer(ScheduleImageSize(Polynomial()), max_steps=2).fit(pooled, data)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"start": 0}, "start=0"),
        ({"start": 1.5}, "start=1.5"),
        ({"multiple": 0}, "multiple=0"),
        ({"multiple": 2.5}, "multiple=2.5 is not a whole number"),
        ({"full": "soon"}, "full='soon'"),
        ({"full": -0.1}, "full=-0.1"),
    ],
    ids=["none", "larger", "multiple", "half", "words", "negative"],
)
def test_arguments_are_checked(arguments, said):
    with pytest.raises(ConfigurationError, match=said):
        ScheduleImageSize(Polynomial(), **arguments)


def test_a_last_part_that_is_all_of_the_training_is_refused():
    with pytest.raises(ConfigurationError, match=r"full='1ep' takes all of the training"):
        quiet_trainer(ScheduleImageSize(Polynomial(), full="1ep")).fit(Foreign(), loader())
