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
    Rotation,
    Transform,
    Translation,
    VerticalFlip,
    horizontal_flip,
    rotate,
    shift,
    vertical_flip,
)
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.spec import build, to_spec

TRANSFORMS = [
    HorizontalFlip(),
    VerticalFlip(),
    Rotation(30),
    PaddedCrop(2),
    PaddedCrop(2, "reflect"),
    Translation(0.3),
]
each_transform = pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images_of(count=5, channels=3, height=9, width=12, dtype=torch.uint8, seed=0):
    images = torch.randint(0, 256, (count, channels, height, width), generator=seeded(seed), dtype=torch.uint8)
    return images if dtype == torch.uint8 else images.to(dtype) / 255


def distinct(count, height=9, width=9):
    """Images whose every pixel has another value, so that a copy tells where it came from."""
    return torch.arange(height * width, dtype=torch.float64).view(1, 1, height, width).repeat(count, 1, 1, 1) + 1


kinds = pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
layouts = pytest.mark.parametrize("channels", [1, 3, 5])


@kinds
@layouts
@pytest.mark.parametrize(
    ("ours", "theirs"), [(horizontal_flip, oracle.hflip), (vertical_flip, oracle.vflip)], ids=["left-right", "up-down"]
)
def test_flips_are_torchvisions_where_wanted_and_copies_elsewhere(ours, theirs, dtype, channels):
    images, flipped = images_of(channels=channels, dtype=dtype), torch.tensor([1, 0, 0, 1, 1]).bool()
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


@settings(max_examples=40, deadline=None)
@given(
    degrees=st.lists(st.floats(-180, 180, width=32), min_size=1, max_size=4),
    channels=st.sampled_from([1, 3, 5]),
    size=st.tuples(st.integers(2, 15), st.integers(2, 15)),
)
def test_a_rotation_is_torchvisions_bilinear_one_within_a_grey_level(degrees, channels, size):
    images = images_of(len(degrees), channels, *size)
    expected = torch.stack([oracle.rotate(i, d, InterpolationMode.BILINEAR) for i, d in zip(images, degrees, strict=True)])
    turned = rotate(images, torch.tensor(degrees))
    assert turned.dtype == torch.uint8
    assert (turned.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rotation_of_floats_is_torchvisions(dtype):
    images, degrees = images_of(4, 3, 9, 12, dtype), [-170.0, -10.0, 33.3, 90.0]
    expected = torch.stack([oracle.rotate(i, d, InterpolationMode.BILINEAR) for i, d in zip(images, degrees, strict=True)])
    assert torch.allclose(rotate(images, torch.tensor(degrees)), expected, atol=1e-4)


def test_a_quarter_turn_of_a_square_is_an_exact_rearrangement():
    images = images_of(2, 3, 8, 8)
    turned = rotate(images, torch.tensor([90.0, -90.0]))
    assert torch.equal(turned, torch.stack([images[0].rot90(1, (-2, -1)), images[1].rot90(-1, (-2, -1))]))


@pytest.mark.parametrize(
    ("transform", "source"),
    [
        (PaddedCrop(3), lambda image: oracle.pad(image, [3])),
        (PaddedCrop(3, "reflect"), lambda image: oracle.pad(image, [3], padding_mode="reflect")),
        (Translation(0.4), lambda image: oracle.pad(image, [4])),
    ],
    ids=["constant", "reflect", "translation"],
)
def test_what_a_crop_or_translation_returns_is_a_window_of_the_padded_image(transform, source):
    images = distinct(40)
    for image, moved in zip(images, transform(images, seeded()), strict=True):
        windows = source(image).unfold(1, 9, 1).unfold(2, 9, 1).reshape(-1, 9, 9)
        assert (windows == moved).flatten(1).all(1).any()


def shifts_drawn(transform: Transform, count: int, height: int, width: int) -> torch.Tensor:
    """Read (down, right) of each sample off where the central pixel went."""
    images = torch.zeros(count, 1, height, width)
    images[:, :, height // 2, width // 2] = 1
    where = transform(images, seeded(3)).flatten(1).argmax(1)
    return torch.stack([where // width - height // 2, where % width - width // 2], 1)


@pytest.mark.parametrize(
    ("transform", "most"), [(PaddedCrop(2), (2, 2)), (Translation(0.2), (3, 2)), (Translation(0.1), (2, 1))], ids=repr
)
def test_shifts_are_uniform_over_all_places_and_independent_in_both_directions(transform, most):
    shifts = shifts_drawn(transform, 6000, 15, 11)
    down, right = most
    assert shifts.abs().amax(0).tolist() == [down, right]
    counts = torch.zeros(2 * down + 1, 2 * right + 1)
    for d, r in shifts.tolist():
        counts[d + down, r + right] += 1
    assert stats.chisquare(counts.flatten().numpy()).pvalue > 1e-3


@pytest.mark.parametrize("p", [0.0, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("kind", [HorizontalFlip, VerticalFlip])
def test_flips_happen_with_probability_p(kind, p):
    images = distinct(4000, 3, 3)
    flipped = (kind(p)(images, seeded()) != images).flatten(1).any(1).float().mean()
    assert float(flipped) == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 4000) + 1e-12)


def test_rotation_angles_are_uniform_up_to_the_greatest():
    images = torch.zeros(3000, 1, 65, 65)
    images[:, :, 32, 60] = images[:, :, 32, 59] = images[:, :, 32, 61] = 1.0
    turned = Rotation(40)(images, seeded()).squeeze(1)
    offset = torch.arange(65) - 32.0
    mass = turned.sum((1, 2))
    right, down = (turned.sum(1) * offset).sum(1) / mass, (turned.sum(2) * offset).sum(1) / mass
    angles = torch.rad2deg(torch.atan2(-down, right))
    assert angles.abs().max() <= 40.5
    assert stats.kstest(angles.numpy(), stats.uniform(-40, 80).cdf).pvalue > 1e-3


@each_transform
def test_each_sample_has_its_own_draw(transform):
    results = transform(distinct(64), seeded())
    assert len({tuple(image.flatten().tolist()) for image in results}) >= 2
    assert len({tuple(image.flatten().tolist()) for image in results}) >= (2 if "Flip" in repr(transform) else 8)


@each_transform
def test_a_seed_fixes_every_draw_and_another_seed_draws_anew(transform):
    images = distinct(64)
    assert torch.equal(transform(images, seeded(1)), transform(images, seeded(1)))
    assert not torch.equal(transform(images, seeded(1)), transform(images, seeded(2)))


@each_transform
def test_with_a_generator_the_global_one_is_left_alone_and_without_one_it_is_drawn_from(transform):
    images, before = distinct(64), torch.get_rng_state()
    transform(images, seeded())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    first = transform(images)
    torch.manual_seed(5)
    assert torch.equal(transform(images), first)


@each_transform
@kinds
@layouts
@pytest.mark.parametrize("count", [0, 1, 5])
def test_shape_kind_and_range_stay_and_the_input_is_never_written_to(transform, dtype, channels, count):
    images = images_of(count, channels, dtype=dtype)
    kept = images.clone()
    result = transform(images, seeded())
    assert (result.shape, result.dtype) == (images.shape, dtype)
    if count:
        assert result.min() >= 0
        assert result.max() <= kept.max() + 1e-6
    result.fill_(1)
    assert torch.equal(images, kept)


@each_transform
@kinds
def test_layout_in_memory_makes_no_difference(transform, dtype):
    images = images_of(dtype=dtype)
    expected = transform(images, seeded())
    every_other = torch.stack([images, images], 1).flatten(0, 1)[::2]
    transposed = images.transpose(2, 3).contiguous().transpose(2, 3)
    expanded_grey = images[:, :1].expand(-1, 3, -1, -1)
    assert torch.allclose(transform(images.contiguous(memory_format=torch.channels_last), seeded()), expected)
    assert torch.allclose(transform(every_other, seeded()), expected)
    assert torch.allclose(transform(transposed, seeded()), expected)
    assert torch.allclose(transform(expanded_grey, seeded()), transform(expanded_grey.contiguous(), seeded()))


@pytest.mark.parametrize(
    "transform", [HorizontalFlip(0.0), VerticalFlip(0.0), Rotation(0.0), PaddedCrop(0), Translation(0.0)], ids=repr
)
def test_a_transform_of_nothing_is_the_identity(transform):
    images = images_of()
    assert torch.equal(transform(images, seeded()), images)


def test_a_crop_that_reflects_more_than_there_is_names_padding_and_size():
    with pytest.raises(ConfigurationError, match=r"padding=9 .*\(9, 12\)"):
        PaddedCrop(9, "reflect")(images_of())


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: HorizontalFlip(1.5), "p=1.5"),
        (lambda: VerticalFlip(-0.1), "p=-0.1"),
        (lambda: Rotation(181), "degrees=181"),
        (lambda: PaddedCrop(-1), "padding=-1"),
        (lambda: PaddedCrop(2, "zeros"), "mode='zeros'"),
        (lambda: Translation(1.1), r"fraction=1.1"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(make, name):
    with pytest.raises(ConfigurationError, match=name):
        make()


@each_transform
def test_a_transform_is_rebuilt_from_its_spec(transform):
    assert build(to_spec(transform), Transform) == transform
