from __future__ import annotations

import pickle
from collections import namedtuple

import pytest
import torch

from lightning_cnnopt.augmentation import Augmentation, HorizontalFlip, MixUp, PaddedCrop, Transform
from lightning_cnnopt.core import randomness
from lightning_cnnopt.core.errors import ConfigurationError, DataError

Pair = namedtuple("Pair", ["image", "label"])
IMAGES = torch.arange(8 * 9, dtype=torch.uint8).view(8, 1, 3, 3)
TARGETS = torch.arange(8) % 3


class AddOne(Transform):
    def __init__(self) -> None:
        pass

    def __call__(self, images, generator=None):
        return images + 1


class Double(Transform):
    def __init__(self) -> None:
        pass

    def __call__(self, images, generator=None):
        return images * 2


def test_transforms_are_applied_in_their_order_and_mixing_last():
    images, _ = Augmentation([AddOne(), Double()])([IMAGES, TARGETS])
    assert torch.equal(images, (IMAGES + 1) * 2)
    mixed, targets = Augmentation([Double()], MixUp(1.0), 3)([torch.full_like(IMAGES, 100), TARGETS])
    assert torch.equal(mixed, torch.full_like(IMAGES, 200))
    assert targets.shape == (8, 3)


@pytest.mark.parametrize(
    "batch",
    [
        (IMAGES, TARGETS, "extra"),
        [IMAGES, TARGETS, "extra"],
        {"image": IMAGES, "label": TARGETS, "path": "extra"},
        {"pixel_values": IMAGES, "labels": TARGETS},
        Pair(IMAGES, TARGETS),
    ],
    ids=["tuple", "list", "dict", "huggingface", "namedtuple"],
)
def test_a_batch_comes_back_as_the_container_it_was_with_all_that_it_held(batch):
    result = Augmentation([AddOne()])(batch)
    assert type(result) is type(batch)
    assert len(result) == len(batch)
    if isinstance(batch, dict):
        assert list(result) == list(batch)
        values, old = list(result.values()), list(batch.values())
    else:
        values, old = list(result), list(batch)
    assert torch.equal(values[0], IMAGES + 1)
    assert values[1:] == old[1:]
    assert old[0] is IMAGES


def test_with_nothing_to_do_the_batch_is_handed_on_untouched():
    batch = {"anything": 1}
    assert Augmentation()(batch) is batch


@pytest.mark.parametrize("batch", [IMAGES, [IMAGES], {"picture": IMAGES, "label": TARGETS}, [torch.zeros(4, 4), TARGETS]])
def test_what_is_no_image_batch_is_refused(batch):
    with pytest.raises(DataError):
        Augmentation([AddOne()])(batch)


def test_mixing_without_a_number_of_classes_is_refused():
    with pytest.raises(ConfigurationError, match="num_classes"):
        Augmentation(mixing=MixUp())


def draws(augmentation: Augmentation, batches: int = 3) -> list[torch.Tensor]:
    return [augmentation([IMAGES, TARGETS])[0] for _ in range(batches)]


def same(first, second) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_runs_seed_fixes_the_stream_which_neither_reads_nor_moves_the_global_one():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = draws(Augmentation([PaddedCrop(1)]))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(100)
    assert same(draws(Augmentation([PaddedCrop(1)])), first)
    torch.manual_seed(4)
    assert not same(draws(Augmentation([PaddedCrop(1)])), first)


def test_ranks_draw_differently(monkeypatch):
    torch.manual_seed(3)
    first = draws(Augmentation([PaddedCrop(1)]))
    monkeypatch.setattr(randomness, "rank", lambda: 1)
    assert not same(draws(Augmentation([PaddedCrop(1)])), first)


@pytest.mark.parametrize("copy", ["state", "pickle"])
def test_the_stream_continues_from_its_state(copy):
    augmentation = Augmentation([HorizontalFlip(), PaddedCrop(1)], MixUp(), 3)
    draws(augmentation)
    if copy == "pickle":
        other = pickle.loads(pickle.dumps(augmentation))
    else:
        other = Augmentation([HorizontalFlip(), PaddedCrop(1)], MixUp(), 3)
        other.load_state_dict(augmentation.state_dict())
    assert same(draws(other), draws(augmentation))
