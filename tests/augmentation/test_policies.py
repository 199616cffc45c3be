from __future__ import annotations

import pytest
import torch
from scipy import stats
from torchvision.transforms import InterpolationMode, v2

from lightning_cnnopt.augmentation import OPERATIONS, AugMix, RandAugment, TrivialAugmentWide, operate
from lightning_cnnopt.augmentation.functional.mixing import dirichlet
from lightning_cnnopt.augmentation.policies import _AUG_MIX, _RAND_AUGMENT, _WIDE, _magnitudes
from lightning_cnnopt.core.errors import DataError
from tests.augmentation.samples import images_of, levels_apart, seeded

THEIR_NAMES = {
    **{name: name.title().replace("_", "") for name in OPERATIONS},
    "saturation": "Color",
    "autocontrast": "AutoContrast",
}
SIZE = (24, 30)


def theirs(image, operation, magnitude):
    apply = v2.TrivialAugmentWide()._apply_image_or_video_transform
    return apply(
        image, THEIR_NAMES[operation], float(magnitude), InterpolationMode.BILINEAR, {torch.Tensor: None, "others": None}
    )


@pytest.mark.parametrize(
    ("scales", "space", "bins"),
    [
        (_WIDE, v2.TrivialAugmentWide._AUGMENTATION_SPACE, 31),
        (_RAND_AUGMENT, v2.RandAugment._AUGMENTATION_SPACE, 31),
        (_AUG_MIX, v2.AugMix._AUGMENTATION_SPACE, 10),
    ],
    ids=["trivial", "rand", "augmix"],
)
def test_operations_their_ranges_and_signs_are_torchvisions(scales, space, bins):
    names = tuple(name for name in OPERATIONS if name in scales)
    assert {THEIR_NAMES[name] for name in names} == set(space) - {"Identity"}
    for place, name in enumerate(names):
        make, signed = space[THEIR_NAMES[name]]
        expected = make(bins, *SIZE)
        strength = torch.arange(bins) / (bins - 1)
        magnitude = _magnitudes(scales, names, torch.full((bins,), place), strength, SIZE, seeded())
        if expected is not None:
            assert torch.allclose(magnitude.abs(), expected.float(), atol=1e-5), name
            assert bool((magnitude < 0).any()) == signed, name


def test_a_sign_is_a_fair_coin():
    magnitude = _magnitudes(_WIDE, OPERATIONS, torch.full((2000,), 5), torch.ones(2000), SIZE, seeded())
    assert stats.binomtest(int((magnitude < 0).sum()), 2000).pvalue > 1e-3


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_every_operation_at_every_magnitude_is_torchvisions_sample_by_sample_within_a_level(channels, dtype):
    chosen = torch.arange(len(OPERATIONS)).repeat_interleave(12)
    images = images_of(len(chosen), channels, *SIZE, dtype)
    strength = torch.linspace(0, 1, 12).repeat(len(OPERATIONS))
    magnitude = _magnitudes(_WIDE, OPERATIONS, chosen, strength, SIZE, seeded())
    result = operate(images, chosen, magnitude)
    for place, (index, drawn) in enumerate(zip(chosen.tolist(), magnitude.tolist(), strict=True)):
        expected = theirs(images[place], OPERATIONS[index], drawn)
        assert levels_apart(result[place], expected) <= 1, (OPERATIONS[index], drawn)


def test_trivial_augment_draws_every_operation_and_magnitude_alike(monkeypatch):
    seen = []
    monkeypatch.setattr("lightning_cnnopt.augmentation.policies.operate", lambda *a: seen.append(a[1:3]) or a[0])
    TrivialAugmentWide(5)(images_of(4200, 1, 8, 8), seeded())
    chosen, magnitude = seen[0]
    assert stats.chisquare(torch.bincount(chosen, minlength=14).numpy()).pvalue > 1e-3
    turns = magnitude[chosen == OPERATIONS.index("rotate")].abs()
    values, counts = turns.unique(return_counts=True)
    assert values.tolist() == [0.0, 33.75, 67.5, 101.25, 135.0]
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_rand_augment_goes_through_its_operations_one_after_the_other_at_one_magnitude(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "lightning_cnnopt.augmentation.policies.operate", lambda *a: seen.append((*a[1:3], a[0].clone())) or a[0] + 1
    )
    result = RandAugment(3, magnitude=15)(images_of(1400, 1, 8, 8) // 2, seeded())
    assert len(seen) == 3
    assert torch.equal(result, seen[0][2] + 3)
    assert not torch.equal(seen[0][0], seen[1][0])
    for chosen, magnitude, _ in seen:
        assert stats.chisquare(torch.bincount(chosen, minlength=14).numpy()).pvalue > 1e-3
        assert magnitude[chosen == OPERATIONS.index("rotate")].abs().unique().tolist() == [15.0]


def test_samples_of_a_batch_go_through_different_operations():
    image = images_of(1, 3, 32, 32)
    results = TrivialAugmentWide()(image.repeat(64, 1, 1, 1), seeded())
    assert len({tuple(r.flatten().tolist()) for r in results}) > 40


def test_augmix_is_the_mean_that_its_weights_make_of_the_image_and_its_chains(monkeypatch):
    # every chain adds its number, so what comes out tells the weights
    calls = iter(range(100))
    monkeypatch.setattr(AugMix, "_chain", lambda self, images, generator: torch.full_like(images, 0.1 * (next(calls) + 1)))
    images = torch.full((3000, 1, 1, 1), 0.0)
    mixed = AugMix(mixture_width=2)(images, seeded()).flatten()
    generator = seeded()
    own, weights = dirichlet(1.0, 3000, 2, generator)[:, 0], dirichlet(1.0, 3000, 2, generator)
    assert torch.allclose(mixed, (1 - own) * (weights[:, 0] * 0.1 + weights[:, 1] * 0.2), atol=1e-6)
    assert stats.kstest(own.numpy(), "uniform").pvalue > 1e-3  # Beta(1, 1)


@pytest.mark.parametrize("policy", [TrivialAugmentWide(), RandAugment(), AugMix()])
def test_images_without_a_saturation_are_refused_at_once_by_policies_that_change_it(policy):
    for seed in range(5):
        with pytest.raises(DataError, match=rf"{type(policy).__name__}.* changes saturation.* got 5"):
            policy(images_of(2, 5), seeded(seed))


def test_augmix_without_colours_takes_any_channels():
    for seed in range(5):
        assert AugMix(all_ops=False)(images_of(8, 5), seeded(seed)).shape[1] == 5


def test_weights_of_a_mixture_aredirichlet():
    drawn = dirichlet(0.5, 4000, 3, seeded())
    assert torch.allclose(drawn.sum(1), torch.ones(4000))
    for column in drawn.T:
        assert stats.kstest(column.numpy(), stats.beta(0.5, 1.0).cdf).pvalue > 1e-3
    assert torch.isfinite(dirichlet(1e-3, 4000, 3, seeded())).all()


def test_chains_of_augmix_are_one_to_three_operations_long_and_spare_what_measures_robustness_on_request(monkeypatch):
    seen = []
    monkeypatch.setattr("lightning_cnnopt.augmentation.policies.operate", lambda *a: seen.append(a[1:4]) or a[0])
    AugMix(mixture_width=1, all_ops=False)(images_of(3000, 1, 8, 8), seeded())
    names = seen[0][2]
    assert set(names) == set(_AUG_MIX) - {"brightness", "saturation", "contrast", "sharpness"} | {"identity"}
    done = torch.stack([chosen != len(names) - 1 for chosen, _, _ in seen]).sum(0)
    assert stats.chisquare(torch.bincount(done)[1:].numpy()).pvalue > 1e-3
    assert done.min() == 1
    seen.clear()
    AugMix(mixture_width=2, chain_depth=4)(images_of(10, 1, 8, 8), seeded())
    assert len(seen) == 8


def test_magnitudes_of_augmix_stay_below_its_severity(monkeypatch):
    seen = []
    monkeypatch.setattr("lightning_cnnopt.augmentation.policies.operate", lambda *a: seen.append(a[1:4]) or a[0])
    AugMix(severity=4, mixture_width=1, chain_depth=1)(images_of(3000, 1, 8, 8), seeded())
    chosen, magnitude, names = seen[0]
    turns = magnitude[chosen == names.index("rotate")].abs().unique()
    assert torch.allclose(turns, torch.tensor([0.0, 10 / 3, 20 / 3, 10.0]), atol=1e-5)
