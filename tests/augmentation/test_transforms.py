from __future__ import annotations

import pytest
import torch

from lightning_cnnopt.augmentation import (
    Affine,
    AugMix,
    AutoContrast,
    Brightness,
    ColourJitter,
    ColOut,
    Contrast,
    Equalize,
    Erasing,
    ExactCopy,
    GaussianBlur,
    GaussianNoise,
    Greyscale,
    HorizontalFlip,
    Hue,
    Inversion,
    PaddedCrop,
    Perspective,
    Posterize,
    RandAugment,
    RandomWindow,
    ResizedCrop,
    Rotation,
    Saturation,
    Sharpness,
    Shear,
    Solarize,
    Transform,
    Translation,
    TrivialAugmentWide,
    VerticalFlip,
    Zoom,
)
from lightning_cnnopt.core.errors import ConfigurationError, DataError
from lightning_cnnopt.core.spec import build, to_spec
from tests.augmentation.samples import images_of, seeded

OF_ANY_CHANNELS = [
    HorizontalFlip(),
    VerticalFlip(),
    PaddedCrop(2),
    PaddedCrop(2, "reflect"),
    Translation(0.3),
    RandomWindow((6, 7)),
    Rotation(30),
    Rotation(30, p=0.5, interpolation="nearest", outside="reflection"),
    Zoom((0.5, 1.5)),
    Shear(20, 10),
    Affine(20, 0.2, (0.8, 1.2), 10),
    Perspective(0.5, p=0.8),
    ResizedCrop((7, 8)),
    ResizedCrop(scale=(0.3, 0.8), p=0.5),
    Brightness(),
    Contrast(p=0.7),
    Inversion(),
    Posterize((1, 6)),
    Solarize((0.2, 0.8)),
    AutoContrast(),
    Equalize(),
    Sharpness(0.9),
    GaussianBlur(5, p=0.8),
    GaussianNoise((0.05, 0.2)),
    Erasing(p=0.8),
    ColOut(0.3, 0.3),
]
OF_COLOURS = [
    Saturation(),
    Greyscale(0.5),
    Hue(0.4),
    ColourJitter(0.4, 0.4, 0.4, 0.1),
    RandAugment(),
    TrivialAugmentWide(),
    AugMix(),
]
TRANSFORMS = OF_ANY_CHANNELS + OF_COLOURS
each_transform = pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
kinds = pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])


def spread(count=64, dtype=torch.uint8):
    """Equal images that reach neither black nor white and are not flat, so that every transform shows on them."""
    levels = torch.rand(3, 18, 24, dtype=torch.float64, generator=seeded(7)) * 0.6 + 0.2
    return (levels * 255).round().to(dtype).repeat(count, 1, 1, 1)


@each_transform
def test_each_sample_has_its_own_draw(transform):
    results = transform(spread(), seeded())
    kinds_seen = len({tuple(image.flatten().tolist()) for image in results})
    coin = isinstance(transform, (HorizontalFlip, VerticalFlip, Inversion, AutoContrast, Equalize, Greyscale))
    assert kinds_seen == 2 if coin else kinds_seen >= 5


@each_transform
def test_a_seed_fixes_every_draw_and_another_seed_draws_anew(transform):
    images = spread()
    assert torch.equal(transform(images, seeded(1)), transform(images, seeded(1)))
    assert not torch.equal(transform(images, seeded(1)), transform(images, seeded(2)))


@each_transform
def test_with_a_generator_the_global_one_is_left_alone_and_without_one_it_is_drawn_from(transform):
    images, before = spread(), torch.get_rng_state()
    transform(images, seeded())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    first = transform(images)
    torch.manual_seed(5)
    assert torch.equal(transform(images), first)


def check_kind(transform, images):
    kept = images.clone()
    result = transform(images, seeded())
    assert (result.dtype, len(result), result.shape[1]) == (images.dtype, len(images), images.shape[1])
    smaller = isinstance(transform, (RandomWindow, ColOut)) or getattr(transform, "size", None) is not None
    assert (result.shape == images.shape) != smaller
    if len(images):
        assert result.min() >= 0
        assert result.max() <= (255 if images.dtype == torch.uint8 else 1 + 1e-6)
    result.fill_(1)
    assert torch.equal(images, kept)


@each_transform
@kinds
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_shape_kind_and_range_stay_and_the_input_is_never_written_to(transform, dtype, channels, count):
    check_kind(transform, images_of(count, channels, dtype=dtype))


@pytest.mark.parametrize("transform", OF_ANY_CHANNELS, ids=repr)
@pytest.mark.parametrize("channels", [2, 5])
def test_images_may_have_any_number_of_channels(transform, channels):
    check_kind(transform, images_of(4, channels))


@pytest.mark.parametrize("transform", [Saturation(), Hue(), Greyscale(1.0)], ids=repr)
def test_what_is_done_to_colours_says_so_where_there_are_none(transform):
    with pytest.raises(DataError, match=r"3 channels .* got 5"):
        transform(images_of(channels=5), seeded())


@each_transform
def test_half_precision_is_computed_in_single_precision(transform):
    images = images_of(dtype=torch.bfloat16)
    expected = transform(images.float(), seeded())
    result = transform(images, seeded())
    assert result.dtype == torch.bfloat16
    assert torch.allclose(result.float(), expected, atol=0.01)


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


@each_transform
@kinds
def test_channels_last_is_kept(transform, dtype):
    images = images_of(dtype=dtype).contiguous(memory_format=torch.channels_last)
    assert transform(images, seeded()).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "transform",
    [
        HorizontalFlip(0.0),
        VerticalFlip(0.0),
        PaddedCrop(0),
        Translation(0.0),
        RandomWindow((9, 12)),
        Rotation(0.0),
        Rotation(30, p=0.0),
        Zoom((1.0, 1.0)),
        Shear(0.0),
        Affine(),
        Perspective(0.4, p=0.0),
        Brightness(0.0),
        Contrast(0.0),
        Saturation(0.0),
        Greyscale(0.0),
        Inversion(0.0),
        Hue(0.0),
        ColourJitter(0.4, 0.4, 0.4, 0.4, p=0.0),
        Posterize((8, 8), p=1.0),
        Solarize(p=0.0),
        AutoContrast(0.0),
        Equalize(0.0),
        Sharpness(0.0),
        GaussianBlur(p=0.0),
        GaussianNoise((0.0, 0.0), p=1.0),
        Erasing(p=0.0),
        ColOut(0.0, 0.0),
    ],
    ids=repr,
)
@kinds
@pytest.mark.filterwarnings("ignore:.*moves nothing")
def test_a_transform_of_nothing_is_an_exact_copy(transform, dtype):
    images = images_of(dtype=dtype)
    result = transform(images, seeded())
    assert torch.equal(result, images)
    assert result.data_ptr() != images.data_ptr()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: HorizontalFlip(1.5), "p=1.5"),
        (lambda: VerticalFlip(-0.1), "p=-0.1"),
        (lambda: Rotation(181), "degrees=181"),
        (lambda: Rotation(interpolation="bicubic"), "interpolation='bicubic'"),
        (lambda: Rotation(outside="wrap"), "outside='wrap'"),
        (lambda: Zoom((1.2, 0.8)), r"factor=\(1.2, 0.8\).*lower one first"),
        (lambda: Zoom((0.0, 1.0)), "factor=0.0"),
        (lambda: Shear(90), "degrees=90"),
        (lambda: Affine(translate=2), "translate=2"),
        (lambda: Perspective(1.0), "distortion=1.0"),
        (lambda: ResizedCrop(0), "size=0"),
        (lambda: ResizedCrop(scale=(0.5, 1.5)), "scale=1.5"),
        (lambda: PaddedCrop(-1), "padding=-1"),
        (lambda: PaddedCrop(2, "zeros"), "mode='zeros'"),
        (lambda: RandomWindow((3, 0)), "size=0"),
        (lambda: Translation(1.1), r"fraction=1.1"),
        (lambda: Brightness(-1), "strength=-1"),
        (lambda: Hue(0.6), "strength=0.6"),
        (lambda: ColourJitter(), "at least one of"),
        (lambda: ColourJitter(hue=0.7), "ColourJitter: hue=0.7"),
        (lambda: Posterize((3, 9)), "bits=9"),
        (lambda: Solarize((0.5, 2.0)), "threshold=2.0"),
        (lambda: Sharpness(-0.5), "strength=-0.5"),
        (lambda: GaussianBlur(4), "kernel_size=4 is even"),
        (lambda: GaussianBlur(sigma=(2.0,)), r"sigma=\(2.0,\)"),
        (lambda: GaussianNoise((0.0, 2.0)), "std=2.0"),
        (lambda: Erasing(value=300), "value=300"),
        (lambda: ColOut(rows=1.0), "rows=1.0"),
        (lambda: RandAugment(magnitude=31), "magnitude=31"),
        (lambda: TrivialAugmentWide(1), "num_magnitude_bins=1"),
        (lambda: AugMix(severity=11), "severity=11"),
        (lambda: AugMix(alpha=0.0), "alpha=0"),
        (lambda: ColourJitter(None, 0.4), "ColourJitter: brightness=None is not a number"),
        (lambda: ColourJitter(p=3), "ColourJitter: p=3"),
        (lambda: Zoom(0.5), "Zoom: factor=0.5; expected two numbers"),
        (lambda: Zoom((0.9, "a")), "factor='a' is not a number"),
        (lambda: RandomWindow((6, 7, 8)), r"RandomWindow: size=\(6, 7, 8\); expected height and width"),
        (lambda: RandomWindow(6.0), "size=6.0 is not a whole number"),
        (lambda: ResizedCrop([6]), r"ResizedCrop: size=\[6\]; expected height and width"),
        (lambda: ResizedCrop((6.5, 6)), "size=6.5 is not a whole number"),
        (lambda: PaddedCrop(1.5), "padding=1.5 is not a whole number"),
        (lambda: GaussianBlur(3.5), "kernel_size=3.5 is not a whole number"),
        (lambda: Posterize((4.5, 7)), "bits=4.5 is not a whole number"),
        (lambda: RandAugment(2.0), "num_ops=2.0 is not a whole number"),
        (lambda: RandAugment(num_magnitude_bins=30.5), "num_magnitude_bins=30.5 is not a whole number"),
        (lambda: TrivialAugmentWide(30.5), "num_magnitude_bins=30.5 is not a whole number"),
        (lambda: AugMix(severity=2.5), "severity=2.5 is not a whole number"),
        (lambda: AugMix(mixture_width=2.0), "mixture_width=2.0 is not a whole number"),
        (lambda: AugMix(chain_depth=2.5), "chain_depth=2.5 is not a whole number"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(make, name):
    with pytest.raises(ConfigurationError, match=name):
        make()


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (PaddedCrop(9, "reflect"), r"padding=9 .*\(9, 12\)"),
        (RandomWindow(10), r"size=10 is larger than an image of \(9, 12\)"),
        (GaussianBlur(19), r"kernel_size=19 .*\(9, 12\)"),
        (ColOut(0.96), r"leaves nothing .*\(9, 12\)"),
    ],
)
def test_what_an_image_is_too_small_for_is_refused_with_both_sizes(transform, message):
    with pytest.raises(ConfigurationError, match=message):
        transform(images_of(), seeded())


@each_transform
def test_one_image_alone_is_refused(transform):
    with pytest.raises(DataError):
        transform(images_of(1)[0], seeded())


@pytest.mark.parametrize("transform", [t for t in TRANSFORMS if not isinstance(t, (ExactCopy, ColOut))], ids=repr)
def test_integers_whose_white_nobody_knows_are_refused(transform):
    with pytest.raises(DataError, match=r"uint8 or floats in \[0, 1\]; got torch.int64"):
        transform(spread(8).long(), seeded())


@each_transform
@pytest.mark.parametrize("count", [1, 2])
def test_a_result_shares_no_memory_with_the_images(transform, count):
    for seed in range(60):
        images = spread(count)
        assert transform(images, seeded(seed)).untyped_storage().data_ptr() != images.untyped_storage().data_ptr()


def test_a_part_that_no_allowed_shape_has_room_for_is_a_pixel_high_or_wide_at_least():
    for ratio, sides in (((100.0, 100.0), (1.0, 8.0)), ((0.01, 0.01), (8.0, 1.0))):
        _, _, height, width = ResizedCrop(scale=(1.0, 1.0), ratio=ratio).windows(3, (8, 8), seeded())
        assert (height.tolist(), width.tolist()) == ([sides[0]] * 3, [sides[1]] * 3)


@each_transform
def test_a_transform_is_rebuilt_from_its_spec(transform):
    assert build(to_spec(transform), Transform) == transform
