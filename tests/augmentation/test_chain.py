from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import v2

from lightning_cnnopt.augmentation import (
    Affine,
    Augment,
    AugmentBatches,
    Brightness,
    ColourJitter,
    ColOut,
    Compound,
    Contrast,
    Equalize,
    Erasing,
    GaussianBlur,
    GaussianNoise,
    Greyscale,
    HorizontalFlip,
    Hue,
    Inversion,
    PaddedCrop,
    RandomWindow,
    ResizedCrop,
    Rotation,
    Saturation,
    Shear,
    Solarize,
    Transform,
    Translation,
    TrivialAugmentWide,
    VerticalFlip,
    Zoom,
)
from lightning_cnnopt.core.errors import ConfigurationError, DataError
from tests.augmentation.samples import images_of, levels_apart, seeded

COPIES = [HorizontalFlip(), VerticalFlip(), PaddedCrop(2), PaddedCrop(2, "reflect"), Translation(0.2), RandomWindow((9, 10))]
WARPS = [Rotation(20), Zoom((0.8, 1.2)), Shear(10), Affine(10, 0.1), ResizedCrop((8, 8)), Rotation(9, interpolation="nearest")]
COLOURS = [Brightness(0.2), Contrast(0.2), Saturation(0.2), Inversion(), Greyscale(), ColourJitter(0.1, 0.1, 0.1, 0.05)]
OTHERS = [Erasing(), GaussianBlur(), Solarize(), Hue(), ColOut(0.1, 0.1), TrivialAugmentWide()]


def kinds_of(transforms):
    return [type(step).__name__ for step in Augment(transforms).passes]


def one_by_one(transforms, images, seed):
    generator = seeded(seed)
    for transform in transforms:
        images = transform(images, generator)
    return images


def at_once(transforms, images, seed):
    augment = Augment(transforms)
    augment.stream.generator.set_state(seeded(seed).get_state())
    return augment(images)


@pytest.mark.parametrize(
    ("transforms", "kinds"),
    [
        ([], []),
        ([HorizontalFlip(), PaddedCrop(2), Translation(), VerticalFlip()], ["Copying"]),
        ([PaddedCrop(2, "reflect"), HorizontalFlip()], ["Copying"]),
        ([HorizontalFlip(), PaddedCrop(2, "reflect")], ["Copying", "Copying"]),
        ([HorizontalFlip(), Rotation(), Zoom(), PaddedCrop(2)], ["Resampling"]),
        ([PaddedCrop(2, "reflect"), Rotation()], ["Copying", "Resampling"]),
        ([Rotation(), PaddedCrop(2, "reflect")], ["Resampling", "Copying"]),
        ([Rotation(), Zoom(interpolation="nearest")], ["Resampling", "Resampling"]),
        ([Rotation(outside="border"), Zoom(outside="border")], ["Resampling"]),
        ([HorizontalFlip(), Rotation(outside="border"), VerticalFlip()], ["Resampling"]),
        ([ResizedCrop((8, 8)), HorizontalFlip()], ["Resampling"]),
        ([PaddedCrop(1), HorizontalFlip(), Rotation(outside="border"), Translation()], ["Copying", "Resampling", "Copying"]),
        ([Brightness(), Contrast(), Saturation(), Greyscale(), Inversion()], ["Colouring"]),
        ([ColourJitter(0.1, 0.1, 0.1), Brightness()], ["Colouring"]),
        ([ColourJitter(0.1, 0.1, 0.1, 0.1), Brightness()], ["Colouring", "Colouring"]),
        ([Hue(), Hue(), Brightness(), Hue()], ["Colouring", "Colouring", "Colouring"]),
        ([Erasing(), Erasing(), HorizontalFlip()], ["Alone", "Alone", "Copying"]),
        ([Rotation(), Brightness(), Rotation()], ["Resampling", "Colouring", "Resampling"]),
    ],
)
def test_neighbours_of_one_kind_are_one_pass_and_nothing_is_reordered(transforms, kinds):
    assert kinds_of(transforms) == kinds


@settings(max_examples=60, deadline=None)
@given(transforms=st.lists(st.sampled_from(COPIES), min_size=1, max_size=4), seed=st.integers(0, 9), is_float=st.booleans())
def test_copies_at_once_are_to_the_bit_what_they_are_one_by_one(transforms, seed, is_float):
    if sum(isinstance(t, RandomWindow) for t in transforms) > 1:
        transforms = [t for t in transforms if not isinstance(t, RandomWindow)] or [HorizontalFlip()]
    images = images_of(6, 3, 12, 12, torch.float32 if is_float else torch.uint8)
    assert torch.equal(at_once(transforms, images, seed), one_by_one(transforms, images, seed))


@settings(max_examples=40, deadline=None)
@given(
    transforms=st.lists(st.sampled_from([*COLOURS[:-1], ColourJitter(0.1, 0.1, 0.1)]), min_size=1, max_size=4),
    seed=st.integers(0, 9),
)
def test_colours_at_once_are_what_they_are_one_by_one_while_nothing_is_cut_off(transforms, seed):
    images = images_of(6, 3, 8, 8, torch.float64) * 0.1 + 0.45
    assert torch.allclose(at_once(transforms, images, seed), one_by_one(transforms, images, seed), atol=1e-5)


def smooth(count=6, size=96):
    """Images without detail, which come through any number of resamplings, that fade out well inside the border."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    blob = torch.exp(-12 * (x.square() + y.square())) * (1 + 0.5 * torch.sin(3 * x))
    return (blob / blob.max()).view(1, 1, size, size).repeat(count, 3, 1, 1)


@settings(max_examples=40, deadline=None)
@given(
    transforms=st.lists(
        st.sampled_from(
            [HorizontalFlip(), VerticalFlip(), PaddedCrop(2), Rotation(20), Zoom((0.9, 1.1)), Shear(8), Affine(5, 0.05)]
        ),
        min_size=1,
        max_size=4,
    ),
    seed=st.integers(0, 9),
)
def test_one_resampling_shows_what_a_chain_of_them_shows_and_sharper(transforms, seed):
    images = smooth()
    assert levels_apart(at_once(transforms, images, seed), one_by_one(transforms, images, seed)) < 4


@pytest.mark.parametrize("outside", ["border", "reflection"])
@pytest.mark.parametrize("seed", range(3))
def test_a_flip_next_to_a_resampling_is_exact_whatever_is_outside(outside, seed):
    images = images_of(6, 3, 12, 14, torch.float64)
    transforms = [VerticalFlip(), Affine(30, 0.3, (0.5, 0.8), outside=outside), HorizontalFlip()]
    assert torch.allclose(at_once(transforms, images, seed), one_by_one(transforms, images, seed), atol=1e-5)


def test_a_chain_of_turns_that_end_where_they_began_gives_the_image_back():
    class Turn(Rotation):
        def draw(self, count, size, generator=None):
            return super().draw(count, size, seeded(0))

    class TurnBack(Turn):
        def draw(self, count, size, generator=None):
            return torch.linalg.inv(super().draw(count, size))

    images = images_of(4, 3, 16, 16)
    assert levels_apart(Augment([Turn(30), TurnBack(30)])(images), images) <= 1


LAYOUTS = {
    "contiguous": lambda images: images,
    "channels last": lambda images: images.contiguous(memory_format=torch.channels_last),
    "every second column": lambda images: images.repeat_interleave(2, -1)[..., ::2],
    "turned": lambda images: images.mT.contiguous().mT,
    "backwards": lambda images: images.flip(0).contiguous()[torch.arange(len(images) - 1, -1, -1)],
    "one for all": lambda images: images[:1].expand(images.shape) if len(images) else images,
}


@settings(max_examples=150, deadline=None)
@given(
    transforms=st.lists(st.sampled_from([*COPIES[:-1], *WARPS, *COLOURS, *OTHERS]), max_size=5),
    count=st.sampled_from([0, 1, 3, 8]),
    channels=st.sampled_from([1, 3, 5]),
    size=st.tuples(st.integers(1, 17), st.integers(1, 17)),
    dtype=st.sampled_from([torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    layout=st.sampled_from(sorted(LAYOUTS)),
    seed=st.integers(0, 3),
)
def test_any_chain_takes_any_images(transforms, count, channels, size, dtype, layout, seed):
    images = LAYOUTS[layout](images_of(count, channels, *size, dtype))
    kept = images.clone()
    try:
        result = at_once(transforms, images, seed)
    except (ConfigurationError, DataError):
        if min(size) >= 8 and channels != 5:
            raise
        return  # more than an image has, or colours of five channels
    assert (result.dtype, result.shape[:2]) == (dtype, images.shape[:2])
    assert torch.equal(result, at_once(transforms, images.contiguous(), seed))
    assert torch.equal(images, kept)
    if result.numel():
        assert result.min() >= 0
        assert result.max() <= (255 if dtype == torch.uint8 else 1 + 1e-5 + torch.finfo(dtype).eps)


@pytest.mark.parametrize("levels", [(-2.0, 2.0), (0.0, 255.0)])
@pytest.mark.parametrize("transform", [Brightness(), GaussianNoise(p=1.0), TrivialAugmentWide(), ColourJitter(0.4), Equalize()])
def test_floats_that_are_no_levels_are_refused_where_levels_are_read(transform, levels):
    low, high = levels
    images = images_of(4, dtype=torch.float32) * (high - low) + low
    with pytest.raises(DataError, match=r"takes 0 for black and 1 for white.*normalize afterwards"):
        Augment([HorizontalFlip(), transform])(images)


def test_what_moves_pixels_takes_any_floats_and_levels_may_lie_a_little_outside():
    images = 4 * images_of(4, dtype=torch.float32) - 2
    assert Augment([HorizontalFlip(), PaddedCrop(2), Affine(10), Erasing(), ColOut()])(images).min() < -1
    Augment(Brightness())(1.2 * images_of(4, dtype=torch.float32) - 0.1)


def test_the_stream_fixes_everything_and_goes_on_where_its_state_was_taken():
    images = images_of(8)
    transforms = [PaddedCrop(2), ColourJitter(0.3), Erasing(), TrivialAugmentWide()]
    first, second = Augment(transforms, seed=3), Augment(transforms, seed=3)
    assert torch.equal(first(images), second(images))
    state, following = first.state_dict(), first(images)
    other = Augment(transforms, seed=4)
    other.load_state_dict(state)
    assert torch.equal(other(images), following)
    assert not torch.equal(first(images), following)


def test_a_transform_of_ones_own_is_a_pass_or_joins_those_of_its_base():
    class Dim(Transform):
        def __call__(self, images: Tensor, generator=None) -> Tensor:
            return images // 2

    class Strong(Compound):
        def parts(self):
            return [Brightness(0.5), Rotation(5)]

    assert kinds_of([Dim(), Brightness()]) == ["Alone", "Colouring"]
    assert kinds_of([Contrast(), Strong(), Zoom()]) == ["Colouring", "Resampling"]
    images = images_of(3)
    assert torch.equal(Augment(Dim())(images), images // 2)
    assert torch.equal(Strong()(images, seeded(2)), one_by_one([Brightness(0.5), Rotation(5)], images, 2))


@pytest.mark.parametrize("other", [HorizontalFlip, v2.RandomHorizontalFlip(), "HorizontalFlip", None])
def test_what_is_no_transform_is_refused_by_name(other):
    for transforms in (other, [Rotation(5), other]):
        with pytest.raises(ConfigurationError, match=f"{re.escape(repr(other))} is no transform of whole batches"):
            Augment(transforms)
        with pytest.raises(ConfigurationError, match="is no transform of whole batches"):
            AugmentBatches(transforms)


def test_the_plan_says_what_is_done_in_how_many_passes():
    assert Augment().explain() == "0 transforms in 0 passes over the images."
    assert Augment([Translation(0.1), Rotation(5), Erasing()]).explain().splitlines() == [
        "3 transforms in 2 passes over the images:",
        "1. one resampling: Translation(fraction=0.1), Rotation(degrees=5, p=1.0, interpolation='bilinear', outside='zeros')",
        "2. by itself: Erasing(p=0.5, scale=[0.02, 0.33], ratio=[0.3, 3.3], value=0.0)",
    ]
    assert Augment(HorizontalFlip()).explain().startswith("1 transform in 1 pass over the images:")
