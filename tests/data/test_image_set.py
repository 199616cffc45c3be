from __future__ import annotations

import pytest
import torch

from lightning_cnnopt.data import ImageSet


def whole(count=12):
    return ImageSet(torch.arange(count * 8).view(count, 1, 2, 4).to(torch.uint8), torch.arange(count))


@pytest.mark.parametrize(
    "index",
    [slice(3, 9), slice(None, None, 2), torch.tensor([7, 2, 2]), torch.arange(12) % 3 == 0, [4, 1]],
    ids=["slice", "steps", "places", "mask", "list"],
)
def test_a_part_has_the_samples_of_its_index_and_copies_no_image(index):
    data = whole()
    part = data[index]
    assert torch.equal(part.images, data.images[index])
    assert torch.equal(part.targets, data.targets[index])
    assert len(part) == len(data.targets[index])
    assert part.whole_images is data.images
    again = part[1:]
    assert torch.equal(again.images, data.images[index][1:])
    assert again.whole_images is data.images


def test_a_set_on_the_device_already_is_not_copied_and_another_takes_what_is_meant():
    part = whole()[2:5]
    assert part.to("cpu").whole_images is part.whole_images
    moved = part.to("meta")
    assert moved.whole_images.device.type == moved.whole_targets.device.type == "meta"
    assert (len(moved), moved.places) == (3, None)


@pytest.mark.gpu
def test_on_a_gpu_images_are_moved_once():
    part = whole()[2:5]
    moved = part.to("cuda")
    assert moved.to("cuda").whole_images is moved.whole_images
    assert torch.equal(moved.images.cpu(), part.images)
