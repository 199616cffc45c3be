from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms.v2 import functional as oracle

from lightning_cnnopt.augmentation import (
    AutoContrast,
    ColOut,
    Equalize,
    Erasing,
    GaussianBlur,
    GaussianNoise,
    Posterize,
    Sharpness,
    Solarize,
    erase,
    gaussian_blur,
    gaussian_noise,
    posterize,
    select,
    sharpness,
    solarize,
)
from lightning_cnnopt.augmentation.functional import autocontrast, equalize
from tests.augmentation.samples import distinct, images_of, levels_apart, seeded

kinds = pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])


def by_sample(function, images, values):
    return torch.stack([function(image, value) for image, value in zip(images, values, strict=True)])


@kinds
def test_posterize_is_torchvisions_sample_by_sample(dtype):
    images, bits = images_of(9, dtype=dtype), list(range(9))
    result = posterize(images, torch.tensor(bits))
    expected = by_sample(oracle.posterize, images, bits)
    expected[8] = images[8]  # all bits
    assert torch.allclose(result, expected, atol=1e-6)


@kinds
def test_solarize_is_torchvisions_sample_by_sample(dtype):
    images, thresholds = images_of(5, dtype=dtype), [0.0, 0.3, 0.5, 0.7531, 1.0]
    top = 255 if dtype == torch.uint8 else 1
    expected = by_sample(lambda image, t: oracle.solarize(image, t * top), images, thresholds)
    assert torch.allclose(solarize(images, torch.tensor(thresholds, dtype=torch.float64)), expected, atol=1e-6)


@kinds
@pytest.mark.parametrize(("ours", "theirs"), [(autocontrast, oracle.autocontrast), (equalize, oracle.equalize)])
def test_histograms_are_changed_as_torchvision_does_where_wanted(ours, theirs, dtype):
    images, where = (
        images_of(5, 3, 24, 30, dtype) // 2 if dtype == torch.uint8 else images_of(5, 3, 24, 30, dtype) / 2,
        torch.tensor([1, 0, 1, 1, 0]).bool(),
    )
    expected = torch.stack([theirs(i) if flag else i for i, flag in zip(images, where, strict=True)])
    assert torch.allclose(ours(images, where), expected)


@kinds
@pytest.mark.parametrize("channels", [1, 3])
def test_sharpness_is_torchvisions_sample_by_sample_within_a_level(channels, dtype):
    images, factors = images_of(5, channels, dtype=dtype), [0.0, 0.4, 1.0, 1.7, 3.0]
    expected = by_sample(oracle.adjust_sharpness, images, factors)
    assert levels_apart(sharpness(images, torch.tensor(factors)), expected) <= (1 if dtype == torch.uint8 else 0.001)


def test_images_without_an_inside_are_not_sharpened():
    images = images_of(height=2)
    assert torch.equal(sharpness(images, torch.full((5,), 2.0)), images)


@kinds
@settings(max_examples=25, deadline=None)
@given(
    sigma=st.lists(st.floats(0.1, 4.0), min_size=2, max_size=2),
    kernel_size=st.sampled_from([1, 3, 5, 7]),
    channels=st.sampled_from([1, 3, 4]),
)
def test_a_blur_is_torchvisions_sample_by_sample_within_a_level(dtype, sigma, kernel_size, channels):
    images = images_of(2, channels, dtype=dtype)
    expected = by_sample(lambda image, s: oracle.gaussian_blur(image, [kernel_size] * 2, [s, s]), images, sigma)
    result = gaussian_blur(images, torch.tensor(sigma), kernel_size)
    assert levels_apart(result, expected) <= (1 if dtype == torch.uint8 else 0.01)


def test_noise_is_normal_of_the_width_that_was_asked_for_and_cut_off():
    images = torch.full((3, 3, 60, 60), 0.5)
    noise = gaussian_noise(images, torch.tensor([0.0, 0.05, 0.1]), seeded()) - images
    assert noise[0].eq(0).all()
    for place, std in ((1, 0.05), (2, 0.1)):
        assert stats.kstest(noise[place].flatten().numpy(), stats.norm(0, std).cdf).pvalue > 1e-3
    bytes_of = gaussian_noise((images * 255).byte(), torch.tensor([0.0, 0.05, 5.0]), seeded())
    assert float((bytes_of[1].float() / 255).std()) == pytest.approx(0.05, abs=0.002)
    assert (bytes_of[2].min(), bytes_of[2].max()) == (0, 255)


def test_the_same_noise_is_not_added_to_two_pixels_or_samples():
    noise = GaussianNoise((0.1, 0.1), p=1.0)(torch.full((4, 2, 20, 20), 0.5), seeded())
    assert len(noise.unique()) > 3000


def test_erasing_is_torchvisions_sample_by_sample_and_nothing_else_changes():
    images = images_of(6)
    places = torch.tensor([[0, 0, 3, 4], [2, 5, 1, 1], [6, 8, 3, 4], [0, 0, 0, 0], [4, 0, 5, 12], [1, 1, 0, 3]])
    for value in (0.0, 0.5, 1.0):
        expected = [oracle.erase(i, *p.tolist(), torch.tensor(round(value * 255))) for i, p in zip(images, places, strict=True)]
        assert torch.equal(erase(images, *places.T, value), torch.stack(expected))


@kinds
def test_a_rectangle_of_any_kind_of_images_is_filled(dtype):
    images = images_of(2, 5, dtype=dtype)
    result = erase(images, *torch.tensor([[1, 2, 3, 4], [0, 0, 0, 0]]).T, 1.0)
    assert (result[0, :, 1:4, 2:6] == (255 if dtype == torch.uint8 else 1)).all()
    result[0, :, 1:4, 2:6] = images[0, :, 1:4, 2:6]
    assert torch.equal(result, images)


def test_areas_ratios_and_places_of_erased_rectangles_are_those_that_were_asked_for():
    erasing = Erasing(1.0, (0.1, 0.4), (0.5, 2.0))
    top, left, height, width = erasing.windows(4000, (400, 400), seeded())
    area, ratio = height * width / 160_000, (width / height).log()
    assert stats.kstest(area.numpy(), stats.uniform(0.1, 0.3).cdf).pvalue > 1e-3
    assert stats.kstest(ratio.numpy(), stats.uniform(math.log(0.5), 2 * math.log(2)).cdf).pvalue > 1e-3
    for place, length in ((top, height), (left, width)):
        assert stats.kstest((place / (400 - length + 1)).numpy(), "uniform").pvalue > 1e-3


def test_an_image_that_no_rectangle_fits_stays_as_it_is():
    images = images_of(20, 3, 4, 40)
    assert torch.equal(Erasing(1.0, (0.9, 0.9), (0.3, 0.3))(images, seeded()), images)


def test_rows_and_columns_that_are_left_out_are_drawn_for_each_image_and_the_rest_keeps_its_order():
    images = distinct(500, 10, 10)
    result = ColOut(0.3, 0.2)(images, seeded())
    assert result.shape == (500, 1, 7, 8)
    rows, columns = (result[:, 0, :, 0] - 1) // 10, (result[:, 0, 0, :] - 1) % 10
    assert torch.equal(result[:, 0], rows[:, :, None] * 10 + columns[:, None, :] + 1)
    for kept, share in ((rows, 0.7), (columns, 0.8)):
        assert (kept.diff(dim=1) > 0).all()
        counts = torch.bincount(kept.flatten().long(), minlength=10)
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3
        assert counts.sum() == 500 * round(10 * share)


def test_selected_rows_and_columns_may_come_in_any_order():
    images = distinct(1, 3, 3)
    assert select(images, torch.tensor([[2, 0]]), torch.tensor([[1]])).flatten().tolist() == [8, 2]


@pytest.mark.parametrize(
    ("transform", "values"),
    [
        (Posterize((1, 4), p=1.0), {1, 2, 3, 4}),
        (Posterize((4, 4), p=0.5), {4, 8}),
    ],
    ids=repr,
)
def test_bits_are_drawn_from_all_of_the_interval(transform, values):
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2000, 1, 1, 1)
    bits = torch.tensor([math.log2(len(image.unique())) for image in transform(images, seeded())])
    assert set(bits.tolist()) == values
    assert stats.chisquare(bits.unique(return_counts=True)[1].numpy()).pvalue > 1e-3


def test_thresholds_are_uniform():
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2000, 1, 1, 1)
    thresholds = (Solarize((0.2, 0.8), p=1.0)(images, seeded()) == images).flatten(1).sum(1) / 255
    assert stats.kstest(thresholds.numpy(), stats.uniform(0.2, 0.6).cdf).pvalue > 1e-3


@pytest.mark.parametrize("kind", [Posterize, Solarize, AutoContrast, Equalize, Sharpness, GaussianBlur, GaussianNoise, Erasing])
def test_p_is_the_share_of_images_that_are_changed(kind):
    images = images_of(2000, 1, 18, 18) // 2
    strong = {Posterize: {"bits": (1, 1)}, Solarize: {"threshold": (0.1, 0.1)}, Erasing: {"scale": (0.2, 0.2)}}.get(kind, {})
    changed = (kind(p=0.3, **strong)(images, seeded()) != images).flatten(1).any(1).float().mean()
    assert float(changed) == pytest.approx(0.3, abs=0.05)
