from collections import namedtuple

import pytest
import torch

from lightning_cnnopt.core.batch import IMAGE_KEYS, TARGET_KEYS, one_hot, read_batch, to_float, write_batch
from lightning_cnnopt.core.errors import DataError

IMAGES, TARGETS = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
Pair = namedtuple("Pair", ["image", "target", "path"])

CONTAINERS = [
    (IMAGES, TARGETS),
    [IMAGES, TARGETS],
    (IMAGES, TARGETS, "path"),
    Pair(IMAGES, TARGETS, "path"),
    *({image: IMAGES, target: TARGETS} for image, target in zip(IMAGE_KEYS, TARGET_KEYS, strict=False)),
    {"path": "x", "labels": TARGETS, "pixel_values": IMAGES},
]


@pytest.mark.parametrize("batch", CONTAINERS, ids=lambda batch: type(batch).__name__)
def test_images_and_targets_are_found_in_any_container(batch):
    images, targets = read_batch(batch)
    assert images is IMAGES
    assert targets is TARGETS


@pytest.mark.parametrize("batch", CONTAINERS, ids=lambda batch: type(batch).__name__)
def test_what_is_written_is_read_and_the_rest_stays(batch):
    images, targets = torch.zeros(1), torch.ones(1)
    written = write_batch(batch, images, targets)
    assert type(written) is type(batch)
    assert [part for part in parts_of(written) if isinstance(part, str)] == [
        part for part in parts_of(batch) if isinstance(part, str)
    ]
    found = read_batch(batch)
    assert [images if part is found[0] else targets if part is found[1] else part for part in parts_of(batch)] == parts_of(
        written
    )
    assert read_batch(batch)[0] is IMAGES


def parts_of(batch):
    return list(batch.values()) if isinstance(batch, dict) else list(batch)


@pytest.mark.parametrize(
    "batch",
    [IMAGES, (IMAGES,), {"image": IMAGES}, {"label": TARGETS}, (TARGETS, TARGETS), ([IMAGES], TARGETS), None, 3],
    ids=lambda batch: type(batch).__name__,
)
def test_a_batch_without_images_or_targets_is_refused(batch):
    with pytest.raises(DataError):
        read_batch(batch)


def test_uint8_becomes_the_unit_interval_and_floats_stay():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_float(levels), torch.arange(256) / 255)
    assert to_float(IMAGES) is IMAGES


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.int8, torch.bool, torch.uint16])
def test_images_of_other_integers_are_refused_with_what_to_do(dtype):
    images = torch.zeros(1, 1, 2, 2).to(dtype)
    with pytest.raises(DataError, match=rf"uint8, or floats in \[0, 1\]; got {dtype}.*images.to\(torch.uint8\)"):
        to_float(images)


def test_uint8_images_are_not_written_to():
    levels = torch.arange(256, dtype=torch.uint8)
    to_float(levels)
    assert torch.equal(levels, torch.arange(256, dtype=torch.uint8))


def test_one_hot_is_a_distribution_on_the_class():
    rows = one_hot(torch.tensor([2, 0]), 3)
    assert torch.equal(rows, torch.eye(3)[[2, 0]])
    assert one_hot(rows, 3) is rows
