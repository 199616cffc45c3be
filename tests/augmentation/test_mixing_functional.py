from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.nn import functional as F
from torchvision.transforms import v2

from lightning_cnnopt.augmentation import CutMix, mix
from lightning_cnnopt.augmentation.mixing.functional import area_left, beta, cut_boxes, paste


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.4, 1.0, 8.0])
def test_lambda_follows_the_symmetric_beta_law(alpha):
    draws = beta(alpha, 20_000, seeded())
    law = stats.beta(alpha, alpha)
    assert float(draws.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(draws.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), abs=0.01)
    inner = draws[(draws > 1e-4) & (draws < 1 - 1e-4)].double().numpy()
    low, high = law.cdf([1e-4, 1 - 1e-4])
    assert stats.kstest(inner, lambda x: (law.cdf(x) - low) / (high - low)).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [1e-3, 1e-2, 1e3])
def test_extreme_alphas_give_shares_and_no_nan(alpha):
    draws = beta(alpha, 5000, seeded())
    assert ((draws >= 0) & (draws <= 1)).all()
    assert float(draws.mean()) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("size", [(8, 8), (7, 13), (1, 9), (32, 20)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_what_is_pasted_is_what_torchvision_pastes_for_the_same_lambda_centre_and_partner(size, dtype):
    height, width = size
    generator = seeded(1)
    images = torch.randint(0, 256, (6, 3, height, width), generator=generator).to(dtype)
    targets = torch.arange(6)
    oracle = v2.CutMix(num_classes=6)
    for seed in range(20):
        torch.manual_seed(seed)
        drawn = oracle.make_params([images])
        torch.manual_seed(seed)
        share = oracle._dist.sample(())
        column, row = torch.randint(width, (1,)), torch.randint(height, (1,))
        torch.manual_seed(seed)
        expected, soft = oracle(images, targets)
        centre = torch.stack([(row + 0.5) / height, (column + 0.5) / width], 1)
        boxes = cut_boxes(share.view(1), centre, height, width)
        left = area_left(boxes, height, width)
        top, bottom, first, last = boxes[0].tolist()
        assert (first, top, last, bottom) == tuple(drawn["box"])
        assert float(left) == pytest.approx(drawn["lam_adjusted"], abs=1e-6)
        partner = torch.arange(6).roll(1)
        assert torch.equal(paste(images, images[partner], boxes), expected)
        assert torch.allclose(mix(F.one_hot(targets, 6).float(), partner, left), soft, atol=1e-6)


def test_what_is_blended_is_what_torchvision_blends_for_the_same_lambda_and_partner():
    images, targets, oracle = torch.rand(6, 3, 8, 8, generator=seeded(1)), torch.arange(6), v2.MixUp(num_classes=6, alpha=0.4)
    for seed in range(10):
        torch.manual_seed(seed)
        share = torch.tensor([oracle.make_params([images])["lam"]])
        torch.manual_seed(seed)
        expected, soft = oracle(images, targets)
        partner = torch.arange(6).roll(1)
        assert torch.allclose(mix(images, partner, share), expected, atol=1e-6)
        assert torch.allclose(mix(F.one_hot(targets, 6).float(), partner, share), soft, atol=1e-6)


def test_the_area_pasted_follows_the_law_of_clipped_rectangles():
    """On large images, where whole pixels matter little: the mean is ∫ E[side]² dF(1 - λ) with the sides clipped."""

    def expected_side(r):
        # of a side r in [0, 1] about a uniform centre: whole in the middle, cut by what is outside near a border
        return r - r**2 / 4

    for alpha in (0.3, 1.0, 4.0):
        law = stats.beta(alpha, alpha)
        mean = integrate.quad(lambda u, law=law: expected_side(np.sqrt(u)) ** 2 * law.pdf(u), 0, 1)[0]
        count = 20_000
        boxes = cut_boxes(
            beta(alpha, count, seeded()), torch.rand(count, 2, dtype=torch.float64, generator=seeded(1)), 512, 512
        )
        assert float(1 - area_left(boxes, 512, 512).mean()) == pytest.approx(mean, abs=0.01)


def test_centres_are_uniform_over_the_image_and_no_rectangle_leaves_it():
    count, size = 30_000, 10
    centre = torch.rand(count, 2, dtype=torch.float64, generator=seeded())
    boxes = cut_boxes(torch.full((count,), 0.96), centre, size, size)  # a fifth of the sides: one pixel each way
    inner = boxes[(boxes[:, 0] > 0) & (boxes[:, 1] < size)]
    assert boxes.min() == 0
    assert boxes.max() == size
    counts = torch.bincount((inner[:, 0] + 1), minlength=size)[2:9]
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    whole = cut_boxes(torch.zeros(1), torch.tensor([[0.5, 0.5]], dtype=torch.float64), size, size)
    assert whole.tolist() == [[0, size, 0, size]]
    assert area_left(whole, size, size).tolist() == [0.0]


def test_the_mean_area_of_cutmix_is_that_of_its_targets():
    images = torch.cat([torch.zeros(500, 1, 12, 9), torch.ones(500, 1, 12, 9)])
    mixed, soft = CutMix()(images, torch.arange(1000) // 500, 2, seeded())
    assert torch.allclose(mixed.mean((1, 2, 3)), soft[:, 1], atol=1e-6)
    assert len(soft[:, 1].unique()) > 30
