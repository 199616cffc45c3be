from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as oracle

from lightning_cnnopt.augmentation import (
    HorizontalFlip,
    PaddedCrop,
    Placement,
    RandomWindow,
    Transform,
    Translation,
    VerticalFlip,
    crop,
    horizontal_flip,
    shift,
    vertical_flip,
    warp,
)
from tests.augmentation.samples import distinct, images_of, seeded

kinds = pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.int64])
layouts = pytest.mark.parametrize("channels", [1, 3, 5])


@kinds
@layouts
@pytest.mark.parametrize(
    ("ours", "theirs"), [(horizontal_flip, oracle.hflip), (vertical_flip, oracle.vflip)], ids=["left-right", "up-down"]
)
def test_flips_are_torchvisions_where_wanted_and_copies_elsewhere(ours, theirs, dtype, channels):
    images, flipped = images_of(channels=channels).to(dtype), torch.tensor([1, 0, 0, 1, 1]).bool()
    expected = torch.stack([theirs(image) if flag else image for image, flag in zip(images, flipped, strict=True)])
    assert torch.equal(ours(images, flipped), expected)


@settings(max_examples=60, deadline=None)
@given(
    moves=st.lists(st.tuples(st.integers(-6, 6), st.integers(-6, 6)), min_size=1, max_size=4),
    mode=st.sampled_from(["constant", "reflect"]),
    channels=st.sampled_from([1, 3, 5]),
    is_float=st.booleans(),
)
def test_a_shift_is_torchvisions_pad_and_crop_sample_by_sample(moves, mode, channels, is_float):
    images = images_of(len(moves), channels, 7, 10, torch.float32 if is_float else torch.uint8)
    expected = [
        oracle.crop(oracle.pad(image, [6], padding_mode=mode), 6 - down, 6 - right, 7, 10)
        for image, (down, right) in zip(images, moves, strict=True)
    ]
    down, right = torch.tensor(moves).T
    assert torch.equal(shift(images, down, right, mode), torch.stack(expected))


@settings(max_examples=30, deadline=None)
@given(moves=st.lists(st.tuples(st.integers(-20, 20), st.integers(-20, 20)), min_size=1, max_size=4))
def test_a_shift_is_torchvisions_translation_however_far(moves):
    images = images_of(len(moves), 3, 7, 10)
    expected = [
        oracle.affine(image, 0.0, [right, down], 1.0, [0.0, 0.0], InterpolationMode.NEAREST)
        for image, (down, right) in zip(images, moves, strict=True)
    ]
    down, right = torch.tensor(moves).T
    assert torch.equal(shift(images, down, right), torch.stack(expected))


@settings(max_examples=60, deadline=None)
@given(
    places=st.lists(st.tuples(st.integers(-9, 12), st.integers(-9, 12)), min_size=1, max_size=4),
    size=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    is_float=st.booleans(),
)
def test_a_crop_is_a_window_of_the_padded_image_whatever_its_size_and_wherever_it_lies(places, size, is_float):
    images = images_of(len(places), 3, 7, 10, torch.float32 if is_float else torch.uint8)
    expected = [
        oracle.pad(image, [30])[:, 30 + t : 30 + t + size[0], 30 + c : 30 + c + size[1]]
        for image, (t, c) in zip(images, places, strict=True)
    ]
    top, left = torch.tensor(places).T
    assert torch.equal(crop(images, top, left, size), torch.stack(expected))


steps = st.lists(
    st.one_of(
        st.tuples(st.just("rows"), st.lists(st.booleans(), min_size=3, max_size=3)),
        st.tuples(st.just("columns"), st.lists(st.booleans(), min_size=3, max_size=3)),
        st.tuples(st.just("shift"), st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=3)),
        st.tuples(st.just("crop"), st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=3, max_size=3)),
    ),
    min_size=1,
    max_size=5,
)


def taken(placement, kind, values):
    values = torch.tensor(values)
    if kind in ("rows", "columns"):
        return placement.flipped(**{kind: values})
    if kind == "shift":
        return placement.shifted(*values.T)
    return placement.cropped(*values.T, (5, 6))


@settings(max_examples=150, deadline=None)
@given(steps=steps, is_float=st.booleans(), reflect=st.booleans())
def test_a_chain_is_to_the_bit_what_its_steps_are_one_by_one(steps, is_float, reflect):
    images = images_of(3, 3, 7, 8, torch.float32 if is_float else torch.uint8)
    one_by_one, chain = images, Placement.whole(images)
    if reflect:
        down, right = torch.tensor([[1, -2], [3, 0], [-4, 4]]).T
        chain, one_by_one = chain.shifted(down, right, reflect=True), shift(images, down, right, "reflect")
    for step in steps:
        one_by_one = taken(Placement.whole(one_by_one), *step).copy(one_by_one)
        chain = taken(chain, *step)
    assert torch.equal(chain.copy(images), one_by_one)


@settings(max_examples=60, deadline=None)
@given(steps=steps)
def test_the_matrix_of_a_chain_moves_what_is_in_sight_to_the_same_place(steps):
    images = images_of(3, 1, 7, 8) // 2 + 100  # nothing is black
    chain = Placement.whole(images)
    for step in steps:
        chain = taken(chain, *step)
    copied = chain.copy(images)
    resampled = warp(images, chain.matrices(), chain.size)
    assert torch.equal(resampled[copied > 0], copied[copied > 0])


def test_one_image_alone_and_none_at_all():
    assert shift(distinct(1), torch.tensor([1]), torch.tensor([1])).flatten()[10] == 1
    assert crop(distinct(0), torch.tensor([]).long(), torch.tensor([]).long(), (2, 3)).shape == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("transform", "source"),
    [
        (PaddedCrop(3), lambda image: oracle.pad(image, [3])),
        (PaddedCrop(3, "reflect"), lambda image: oracle.pad(image, [3], padding_mode="reflect")),
        (Translation(0.4), lambda image: oracle.pad(image, [4])),
        (RandomWindow((5, 6)), lambda image: image),
    ],
    ids=["constant", "reflect", "translation", "window"],
)
def test_what_a_crop_or_translation_returns_is_a_window_of_the_padded_image(transform, source):
    images = distinct(40)
    for image, moved in zip(images, transform(images, seeded()), strict=True):
        height, width = moved.shape[-2:]
        windows = source(image).unfold(1, height, 1).unfold(2, width, 1).reshape(-1, height, width)
        assert (windows == moved).flatten(1).all(1).any()


def shifts_drawn(transform: Transform, count: int, height: int, width: int) -> torch.Tensor:
    """Read (down, right) of each sample off where the central pixel went."""
    images = torch.zeros(count, 1, height, width)
    images[:, :, height // 2, width // 2] = 1
    result = transform(images, seeded(3))
    where, width_now = result.flatten(1).argmax(1), result.shape[-1]
    return torch.stack([where // width_now - height // 2, where % width_now - width // 2], 1)


@pytest.mark.parametrize(
    ("transform", "most"),
    [
        (PaddedCrop(2), ((-2, 2), (-2, 2))),
        (Translation(0.2), ((-3, 3), (-2, 2))),
        (Translation(0.1), ((-2, 2), (-1, 1))),
        (RandomWindow((12, 9)), ((-3, 0), (-2, 0))),
    ],
    ids=repr,
)
def test_shifts_are_uniform_over_all_places_and_independent_in_both_directions(transform, most):
    shifts = shifts_drawn(transform, 6000, 15, 11)
    (up, down), (left, right) = most
    assert [shifts.amin(0).tolist(), shifts.amax(0).tolist()] == [[up, left], [down, right]]
    counts = torch.zeros(down - up + 1, right - left + 1)
    for d, r in shifts.tolist():
        counts[d - up, r - left] += 1
    assert stats.chisquare(counts.flatten().numpy()).pvalue > 1e-3


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("kind", [HorizontalFlip, VerticalFlip])
def test_flips_happen_with_probability_p(kind, p):
    images = distinct(4000, 3, 3)
    flipped = (kind(p)(images, seeded()) != images).flatten(1).any(1).float().mean()
    assert float(flipped) == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 4000) + 1e-12)


def test_a_translation_that_moves_nothing_says_so():
    with pytest.warns(UserWarning, match=r"Translation\(fraction=0.01\) moves nothing"):
        Translation(0.01)(images_of())
