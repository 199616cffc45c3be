from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms.v2 import functional as oracle

from lightning_cnnopt.augmentation import (
    Brightness,
    ColourJitter,
    Contrast,
    Greyscale,
    Hue,
    Inversion,
    Recolouring,
    Saturation,
    hue,
)
from lightning_cnnopt.core.errors import ConfigurationError
from tests.augmentation.samples import images_of, levels_apart, seeded

FACTORS = torch.tensor([0.0, 0.3, 1.0, 1.4, 2.0])
kinds = pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
STEPS = {"brightness": oracle.adjust_brightness, "contrast": oracle.adjust_contrast, "saturation": oracle.adjust_saturation}


@kinds
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("step", STEPS)
def test_one_change_is_torchvisions_sample_by_sample_within_a_level(step, channels, dtype):
    images = images_of(5, channels, dtype=dtype)
    expected = [STEPS[step](image, float(factor)) for image, factor in zip(images, FACTORS, strict=True)]
    changed = getattr(Recolouring(images), step)(FACTORS).apply()
    assert levels_apart(changed, torch.stack(expected)) <= (1 if dtype == torch.uint8 else 0.001)


@pytest.mark.parametrize("grey", [0, 1, 100, 254, 255])
@pytest.mark.parametrize("factor", [0.0, 0.5, 2.0])
def test_the_contrast_of_a_flat_colour_is_torchvisions_within_a_level(grey, factor):
    image = torch.tensor([grey, 255 - grey, 60], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    changed = Recolouring(image).contrast(torch.tensor([factor])).apply()
    assert levels_apart(changed[0], oracle.adjust_contrast(image[0], factor)) <= 1


@kinds
def test_inverting_is_torchvisions(dtype):
    images, where = images_of(dtype=dtype), torch.tensor([1, 0, 1, 1, 0]).bool()
    expected = torch.stack([oracle.invert(i) if flag else i for i, flag in zip(images, where, strict=True)])
    assert torch.allclose(Recolouring(images).inverted(where).apply(), expected)


@settings(max_examples=80, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["brightness", "contrast", "saturation", "inverted"]),
            st.lists(st.floats(0.6, 1.3), min_size=2, max_size=2),
        ),
        min_size=1,
        max_size=5,
    ),
    channels=st.sampled_from([1, 3]),
)
def test_a_chain_is_what_its_steps_are_one_by_one_while_nothing_is_cut_off(steps, channels):
    images = images_of(2, channels, dtype=torch.float64) * 0.1 + 0.45  # so far from black and white that nothing is cut off
    one_by_one, chain, is_cut = images, Recolouring(images), False
    for step, values in steps:
        factors = torch.tensor(values)
        drawn = factors > 1 if step == "inverted" else factors
        one_by_one = getattr(Recolouring(one_by_one), step)(drawn).apply()
        chain = getattr(chain, step)(drawn)
        is_cut = is_cut or one_by_one.min() < 0.001 or one_by_one.max() > 0.999
    if not is_cut:
        assert torch.allclose(chain.apply(), one_by_one, atol=1e-5)


def test_a_chain_cuts_off_once_at_the_end():
    images = torch.full((1, 3, 2, 2), 0.8)
    double, half = torch.tensor([2.0]), torch.tensor([0.5])
    assert torch.allclose(Recolouring(images).brightness(double).brightness(half).apply(), images)


@kinds
@pytest.mark.parametrize("channels", [1, 3])
def test_a_hue_is_torchvisions_sample_by_sample_within_a_level(channels, dtype):
    shifts = torch.tensor([-0.5, -0.2, 0.0, 0.05, 0.5])
    images = images_of(5, channels, dtype=dtype)
    images[3, :, :2] = images[3, :1, :2]  # greys, which have none
    expected = torch.stack([oracle.adjust_hue(i, float(s)) for i, s in zip(images, shifts, strict=True)])
    assert levels_apart(hue(images, shifts), expected) <= 1


@kinds
@pytest.mark.parametrize("shifts", [[-0.5, -0.2, 0.1, 0.05, 0.5], [0.0, 0.3, 0.0, 0.1, 0.0]], ids=["all", "some"])
def test_a_hue_behind_other_colours_in_one_pass_is_to_the_bit_one_behind_them(shifts, dtype):
    images, shifts = images_of(5, 3, dtype=dtype), torch.tensor(shifts)
    factors = FACTORS[[0, 1, 4, 3, 1]]
    linear = Recolouring(images).brightness(factors).saturation(factors)
    assert torch.equal(
        linear.hue(shifts).apply(), hue(Recolouring(images).brightness(factors).saturation(factors).apply(), shifts)
    )


@pytest.mark.parametrize("step", ["brightness", "contrast", "saturation", "hue", "inverted"])
def test_no_step_comes_behind_the_hue(step):
    chain = Recolouring(images_of(2)).hue(torch.tensor([0.1, 0.2]))
    with pytest.raises(ConfigurationError, match="no step comes behind the hue"):
        getattr(chain, step)(torch.tensor([0.5, 0.5]))


def test_bytes_that_are_only_inverted_are_inverted_to_the_bit():
    images = images_of(5)
    changed = Recolouring(images).inverted(torch.tensor([1, 0, 1, 1, 0]).bool()).apply()
    assert torch.equal(changed[[0, 2, 3]], 255 - images[[0, 2, 3]])
    assert torch.equal(changed[[1, 4]], images[[1, 4]])


def test_a_full_circle_of_hues_leads_back():
    images = images_of(4, dtype=torch.float64)
    turned = images
    for _ in range(5):
        turned = hue(turned, torch.full((4,), 0.2))
    assert torch.allclose(turned, images, atol=1e-6)


GREY = torch.full((3000, 3, 2, 2), 0.25, dtype=torch.float64)
HALVES = torch.cat([GREY[:, :, :1], GREY[:, :, :1] + 0.2], 2)
RED = torch.tensor([0.45, 0.25, 0.25], dtype=torch.float64).view(1, 3, 1, 1).repeat(3000, 1, 2, 2)


@pytest.mark.parametrize(
    ("transform", "images", "read"),
    [
        (Brightness(0.4), GREY, lambda images: images[:, 0, 0, 0] / 0.25),
        (Contrast(0.4), HALVES, lambda images: (images[:, 0, 1, 0] - images[:, 0, 0, 0]) / 0.2),
        (Saturation(0.4), RED, lambda images: (images[:, 0, 0, 0] - images[:, 1, 0, 0]) / 0.2),
        (ColourJitter(contrast=0.4), HALVES, lambda images: (images[:, 0, 1, 0] - images[:, 0, 0, 0]) / 0.2),
    ],
    ids=["brightness", "contrast", "saturation", "jitter"],
)
def test_factors_are_uniform_about_one(transform, images, read):
    assert stats.kstest(read(transform(images, seeded())).numpy(), stats.uniform(0.6, 0.8).cdf).pvalue > 1e-3


def test_a_strength_above_one_stops_at_the_factor_zero():
    factors = Brightness(1.5)(GREY, seeded())[:, 0, 0, 0] / 0.25
    assert factors.min() >= 0
    assert stats.kstest(factors.numpy(), stats.uniform(0, 2.5).cdf).pvalue > 1e-3


def test_hues_are_turned_uniformly_and_both_ways():
    turned = Hue(0.1)(RED, seeded())[:, :, 0, 0]
    up = (turned[:, 1] - 0.25) / 0.2 / 6  # towards yellow
    down = (turned[:, 2] - 0.25) / 0.2 / 6  # towards magenta
    assert stats.kstest((up - down).numpy(), stats.uniform(-0.1, 0.2).cdf).pvalue > 1e-3


@pytest.mark.parametrize("kind", [Greyscale, Inversion, Brightness, Contrast, Saturation, Hue])
def test_p_is_the_share_of_images_that_are_changed(kind):
    images = images_of(2000, 3, 4, 4)
    changed = (kind(p=0.3)(images, seeded()) != images).flatten(1).any(1).float().mean()
    assert float(changed) == pytest.approx(0.3, abs=0.05)


def test_what_greyscale_makes_grey_is_torchvisions_and_the_rest_is_untouched():
    images = images_of(50)
    result = Greyscale(0.5)(images, seeded())
    grey = (result == result[:, :1]).flatten(1).all(1)
    assert 10 <= grey.sum() <= 40
    assert levels_apart(result[grey], oracle.rgb_to_grayscale(images[grey], 3)) <= 1
    assert torch.equal(result[~grey], images[~grey])


def test_factors_in_double_precision_are_taken_by_a_whole_chain():
    images, factor = images_of(5), FACTORS.double()
    single, double = (
        Recolouring(images).contrast(f).brightness(f).saturation(f).contrast(f).apply() for f in (FACTORS, factor)
    )
    assert torch.equal(single, double)


@pytest.fixture
def double_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double_by_default")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_chains_do_not_go_by_the_default_type(dtype):
    for transform in (ColourJitter(0.4, 0.4, 0.4, 0.1), Greyscale(), Contrast()):
        assert transform(images_of(6, dtype=dtype), seeded()).dtype == dtype


def test_contrast_turns_about_the_same_mean_in_every_layout():
    images = images_of(64, 3, 33, 35, torch.float32)
    factor = torch.full((64,), 1.3)
    last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(Recolouring(last).contrast(factor).apply(), Recolouring(images).contrast(factor).apply())
