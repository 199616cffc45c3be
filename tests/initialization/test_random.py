from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.initialization import DeltaOrthogonal, Normal, RandomOrthogonal, TruncatedNormal, Uniform

WIDE = 400  # so wide that sample moments are within a percent or two of the law's


def drawn(initializer, layer=None):
    net = nn.Sequential(layer if layer is not None else nn.Linear(WIDE, WIDE))
    initializer(net, generator=torch.Generator().manual_seed(0))
    assert net[0].bias is None or not net[0].bias.any()
    return net[0].weight.detach().double()


@pytest.mark.parametrize(
    ("initializer", "mean", "variance", "least", "most"),
    [
        (Uniform(-0.1, 0.3), 0.1, 0.4**2 / 12, -0.1, 0.3),
        (Uniform(), 0.0, 0.1**2 / 12, -0.05, 0.05),
        (Normal(0.2), 0.0, 0.04, -math.inf, math.inf),
        (TruncatedNormal(0.5), 0.0, 0.25 * 0.7737, -1.0, 1.0),
        # of a cut at c: 1 - 2 c φ(c) / (2 Φ(c) - 1)
        (TruncatedNormal(0.1, cut=1.0), 0.0, 0.01 * 0.29112, -0.1, 0.1),
    ],
    ids=repr,
)
def test_moments_and_bounds_are_those_of_the_law(initializer, mean, variance, least, most):
    weight = drawn(initializer)
    assert float(weight.mean()) == pytest.approx(mean, abs=4 * math.sqrt(variance) / WIDE)
    assert float(weight.var()) == pytest.approx(variance, rel=0.02)
    assert least <= float(weight.min()) <= float(weight.max()) <= most
    if math.isfinite(most):
        assert float(weight.max()) > most - 0.02 * (most - least)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7)])
@pytest.mark.parametrize("gain", [1.0, 1.7])
def test_an_orthogonal_matrix_keeps_lengths_times_its_gain(shape, gain):
    weight = drawn(RandomOrthogonal(gain), nn.Linear(shape[1], shape[0]))
    small = weight @ weight.T if shape[0] <= shape[1] else weight.T @ weight
    torch.testing.assert_close(small, gain**2 * torch.eye(min(shape)).double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [RandomOrthogonal, DeltaOrthogonal])
def test_the_gain_is_by_default_that_of_the_activation_behind(kind):
    net = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
    kind()(net)
    for index, gain in ((0, math.sqrt(2)), (2, 5 / 3), (4, 1.0)):
        torch.testing.assert_close(net[index].weight @ net[index].weight.T, gain**2 * torch.eye(5), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kernel", [1, 3, 5, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_delta_orthogonal_is_one_matrix_at_the_centre_of_each_group(kernel, groups):
    layer = nn.Conv2d(4, 8, kernel, groups=groups)
    weight = drawn(DeltaOrthogonal(1.0), layer)
    centre = (kernel - 1) // 2
    matrices = weight[:, :, centre, centre].chunk(groups)
    for matrix in matrices:
        torch.testing.assert_close(matrix.T @ matrix, torch.eye(4 // groups).double(), rtol=0, atol=1e-5)
    assert float(weight.square().sum()) == pytest.approx(float(sum(m.square().sum() for m in matrices)))


def test_a_hundred_delta_orthogonal_layers_keep_the_length_of_every_pixel():
    net = nn.Sequential(*[nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(100)])
    DeltaOrthogonal(1.0)(net)
    images = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(net(images).norm(dim=1), images.norm(dim=1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "initializer", [Uniform(), Normal(), TruncatedNormal(), RandomOrthogonal(1.0), DeltaOrthogonal(1.0)], ids=repr
)
def test_a_generator_fixes_every_weight_and_leaves_torchs_own_alone(initializer):
    state = torch.get_rng_state()
    first, second = drawn(initializer), drawn(initializer)
    assert torch.equal(first, second)
    net = nn.Sequential(nn.Linear(3, 3))
    state = torch.get_rng_state()
    initializer(net, generator=torch.Generator().manual_seed(1))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Uniform(0.1, 0.1), r"Uniform: low=0.1 must be less than high=0.1"),
        (lambda: Normal(0), r"Normal: std=0 is out of range"),
        (lambda: TruncatedNormal(cut=0), r"TruncatedNormal: cut=0 is out of range"),
        (lambda: RandomOrthogonal(-1), r"RandomOrthogonal: gain=-1 is out of range"),
    ],
)
def test_arguments_that_cant_be_right_are_refused_by_name(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()
