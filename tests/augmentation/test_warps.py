from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as oracle
from torchvision.transforms.v2 import functional as oracle_v2

from lightning_cnnopt.augmentation import (
    Affine,
    Perspective,
    ResizedCrop,
    Rotation,
    Shear,
    Zoom,
    affine_matrices,
    perspective_matrices,
    rotate,
    warp,
)
from tests.augmentation.samples import images_of, levels_apart, seeded

BILINEAR = InterpolationMode.BILINEAR


@settings(max_examples=40, deadline=None)
@given(
    degrees=st.lists(st.floats(-180, 180, width=32), min_size=1, max_size=4),
    channels=st.sampled_from([1, 3, 5]),
    size=st.tuples(st.integers(2, 15), st.integers(2, 15)),
)
def test_a_rotation_is_torchvisions_bilinear_one_within_a_grey_level(degrees, channels, size):
    images = images_of(len(degrees), channels, *size)
    expected = torch.stack([oracle.rotate(i, d, BILINEAR) for i, d in zip(images, degrees, strict=True)])
    turned = rotate(images, torch.tensor(degrees))
    assert turned.dtype == torch.uint8
    assert levels_apart(turned, expected) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rotation_of_floats_is_torchvisions(dtype):
    images, degrees = images_of(4, 3, 9, 12, dtype), [-170.0, -10.0, 33.3, 90.0]
    expected = torch.stack([oracle.rotate(i, d, BILINEAR) for i, d in zip(images, degrees, strict=True)])
    assert torch.allclose(rotate(images, torch.tensor(degrees)), expected, atol=1e-4)


def test_a_quarter_turn_of_a_square_is_an_exact_rearrangement():
    images = images_of(2, 3, 8, 8)
    turned = rotate(images, torch.tensor([90.0, -90.0]))
    assert torch.equal(turned, torch.stack([images[0].rot90(1, (-2, -1)), images[1].rot90(-1, (-2, -1))]))


parameters = st.tuples(
    st.floats(-180, 180, width=32),
    st.tuples(st.integers(-4, 4), st.integers(-4, 4)),
    st.floats(0.5, 2.0, width=32),
    st.tuples(st.floats(-30, 30, width=32), st.floats(-30, 30, width=32)),
)


@settings(max_examples=60, deadline=None)
@given(drawn=st.lists(parameters, min_size=1, max_size=3), corner=st.booleans())
def test_affine_matrices_are_torchvisions_within_a_grey_level(drawn, corner):
    images = images_of(len(drawn), 3, 11, 8)
    centre = [0.0, 0.0] if corner else None
    expected = [
        oracle.affine(image, angle, list(moved), zoom, list(shear), BILINEAR, center=centre)
        for image, (angle, moved, zoom, shear) in zip(images, drawn, strict=True)
    ]
    angles, moved, zooms, shears = (torch.tensor(values, dtype=torch.float32) for values in zip(*drawn, strict=True))
    matrices = affine_matrices(angles, moved, zooms, shears, (-4.0, -5.5) if corner else (0.0, 0.0))
    assert levels_apart(warp(images, matrices), torch.stack(expected)) <= 1


def test_nearest_takes_levels_that_are_there():
    images = images_of(6, 3, 9, 9) | 1
    turned = warp(images, affine_matrices(torch.tensor([15.0, 33.0, 48.0, 62.0, 75.0, 20.0])), interpolation="nearest")
    expected = torch.stack(
        [oracle.rotate(i, -d, InterpolationMode.NEAREST) for i, d in zip(images, [15, 33, 48, 62, 75, 20], strict=True)]
    )
    assert torch.equal(turned, expected)


@settings(max_examples=40, deadline=None)
@given(inwards=st.lists(st.integers(0, 3), min_size=8, max_size=8))
def test_a_perspective_is_torchvisions_within_a_grey_level(inwards):
    images, (height, width) = images_of(2, 3, 11, 8), (11, 8)
    signs = [[1, 1], [-1, 1], [-1, -1], [1, -1]]
    start = [[0, 0], [width, 0], [width, height], [0, height]]
    end = [[x + a * i, y + b * j] for (x, y), (a, b), i, j in zip(start, signs, inwards[::2], inwards[1::2], strict=True)]
    expected = torch.stack([oracle_v2.perspective(image, start, end, BILINEAR) for image in images])
    centre = torch.tensor([width / 2, height / 2])
    points = [(torch.tensor(p, dtype=torch.float32) - centre).expand(2, 4, 2) for p in (start, end)]
    assert levels_apart(warp(images, perspective_matrices(*points)), expected) <= 1


@pytest.mark.parametrize("size", [(8, 8), (12, 9), None])
def test_the_inside_of_a_resized_crop_is_torchvisions_within_a_grey_level(size):
    images = images_of(40, 3, 12, 14)
    transform = ResizedCrop(size, scale=(0.1, 0.3))
    top, left, height, width = transform.windows(40, (12, 14), seeded())
    result = transform(images, seeded())
    wanted = size or (12, 14)
    enlarged = (height <= wanted[0]) & (width <= wanted[1])
    assert enlarged.sum() >= 20
    for place in enlarged.nonzero().flatten().tolist():
        window = [int(t[place]) for t in (top, left, height, width)]
        expected = oracle_v2.resized_crop(images[place], *window, list(wanted), BILINEAR)
        # the outermost half a pixel of the window is repeated there, and here what is really beside it is seen
        edge_y, edge_x = (math.ceil(w / (2 * s)) for w, s in zip(wanted, window[2:], strict=True))
        inside = (slice(None), slice(edge_y, wanted[0] - edge_y), slice(edge_x, wanted[1] - edge_x))
        assert levels_apart(result[place][inside], expected[inside]) <= 1


def test_a_resized_crop_of_everything_averages_what_goes_into_a_pixel():
    images = images_of(3, 3, 16, 24, torch.float32)
    whole = ResizedCrop((4, 6), scale=(1.0, 1.0), ratio=(1.5, 1.5))(images, seeded())
    expected = torch.nn.functional.avg_pool2d(images, 4)
    assert torch.allclose(whole, expected, atol=1e-6)


def test_areas_and_ratios_of_resized_crops_are_those_that_were_asked_for():
    _, _, height, width = ResizedCrop(scale=(0.2, 0.5), ratio=(0.5, 2.0)).windows(4000, (400, 400), seeded())
    area, ratio = height * width / 160_000, (width / height).log()
    assert stats.kstest(area.numpy(), stats.uniform(0.2, 0.3).cdf).pvalue > 1e-3
    assert stats.kstest(ratio.numpy(), stats.uniform(math.log(0.5), 2 * math.log(2)).cdf).pvalue > 1e-3


def test_windows_lie_inside_the_image_at_every_place_alike_and_the_middle_is_taken_where_none_fits():
    top, left, height, width = ResizedCrop(scale=(0.25, 0.25), ratio=(1.0, 1.0)).windows(4000, (8, 8), seeded())
    assert height.unique().tolist() == width.unique().tolist() == [4.0]
    for place in (top, left):
        assert stats.chisquare(torch.bincount(place.long(), minlength=5).numpy()).pvalue > 1e-3
    drawn = ResizedCrop(scale=(1.0, 1.0), ratio=(3.0, 4.0)).windows(2, (10, 20), seeded())
    assert [t[0].item() for t in drawn] == [1.0, 0.0, 7.0, 20.0]


def angles_of(turned):
    """Read the angle of each sample off where a spot to the right of the centre went."""
    offset = torch.arange(65) - 32.0
    mass = turned.sum((1, 2))
    right, down = (turned.sum(1) * offset).sum(1) / mass, (turned.sum(2) * offset).sum(1) / mass
    return torch.rad2deg(torch.atan2(-down, right)), (right.square() + down.square()).sqrt()


def spots():
    images = torch.zeros(3000, 1, 65, 65)
    images[:, :, 32, 46:49] = 1.0
    return images


@pytest.mark.parametrize("transform", [Rotation(40), Affine(degrees=40)], ids=repr)
def test_angles_are_uniform_up_to_the_greatest(transform):
    angles, _ = angles_of(transform(spots(), seeded()).squeeze(1))
    assert angles.abs().max() <= 41
    assert stats.kstest(angles.numpy(), stats.uniform(-40, 80).cdf).pvalue > 1e-3


@pytest.mark.parametrize("transform", [Zoom((0.7, 1.9)), Affine(scale=(0.7, 1.9))], ids=repr)
def test_factors_of_a_zoom_are_uniform_and_above_one_enlarge(transform):
    angles, distance = angles_of(transform(spots(), seeded()).squeeze(1))
    assert angles.abs().max() < 1
    assert stats.kstest((distance / 15).numpy(), stats.uniform(0.7, 1.2).cdf).pvalue > 1e-3


@pytest.mark.parametrize(("transform", "axis"), [(Shear(20), 0), (Shear(0, 20), 1), (Affine(shear=20), 0)], ids=repr)
def test_shears_go_along_their_axis_by_uniform_angles(transform, axis):
    matrices = transform.draw(3000, (10, 10), seeded())
    other = matrices.clone()
    other[:, axis, 1 - axis] = 0
    assert torch.allclose(other, torch.eye(3).expand(3000, 3, 3), atol=1e-6)
    angles = torch.rad2deg(matrices[:, axis, 1 - axis].atan())
    assert stats.kstest(angles.numpy(), stats.uniform(-20, 40).cdf).pvalue > 1e-3


def test_corners_of_a_perspective_move_inwards_up_to_the_distortion():
    matrices = Perspective(0.5, p=1.0).draw(2000, (40, 60), seeded())
    corner = torch.linalg.solve(matrices.double(), torch.tensor([-30.0, -20.0, 1.0]).double().expand(2000, 3))
    inwards = 1 - (corner / corner[:, 2:])[:, :2] / torch.tensor([-30.0, -20.0])
    for share in inwards.T:
        assert stats.kstest(share.numpy(), stats.uniform(0, 0.5).cdf).pvalue > 1e-3


@pytest.mark.parametrize("kind", [Rotation, Zoom, Shear, Affine, Perspective, ResizedCrop])
def test_p_is_the_share_of_images_that_are_changed(kind):
    arguments = {Affine: {"degrees": 20}, ResizedCrop: {"scale": (0.2, 0.5)}}.get(kind, {})
    images = images_of(2000, 1, 8, 8)
    changed = (kind(p=0.3, **arguments)(images, seeded()) != images).flatten(1).any(1).float().mean()
    assert float(changed) == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize(
    ("outside", "expected"), [("zeros", [0, 0, 10]), ("border", [10, 10, 10]), ("reflection", [20, 10, 10])]
)
def test_what_comes_in_from_outside_is_what_was_asked_for(outside, expected):
    images = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 1, 1, 3)
    moved = warp(images, affine_matrices(torch.zeros(1), torch.tensor([[2.0, 0.0]])), outside=outside)
    assert moved.flatten().tolist() == expected
