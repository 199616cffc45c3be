from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.nn import functional as F

from lightning_cnnopt.augmentation import CutMix, Mixing, MixUp, MixUpOrCutMix
from lightning_cnnopt.core.errors import ConfigurationError, DataError
from lightning_cnnopt.core.spec import build, to_spec

per_what = pytest.mark.parametrize("per", ["sample", "batch"])
every_mixing = pytest.mark.parametrize("kind", [MixUp, CutMix, MixUpOrCutMix])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def telling_images(targets: torch.Tensor, classes: int, dtype: torch.dtype = torch.float32, size: int = 8) -> torch.Tensor:
    """Images that say what class they are: one channel per class, full where the class is."""
    planes = F.one_hot(targets, classes)[:, :, None, None].expand(-1, -1, size, size)
    return (planes * 255).to(torch.uint8) if dtype == torch.uint8 else planes.to(dtype)


def told(images: torch.Tensor) -> torch.Tensor:
    """What telling images say of their classes."""
    return (images.double() / (255 if images.dtype == torch.uint8 else 1)).mean((2, 3)).float()


@settings(max_examples=150, deadline=None)
@given(
    targets=st.lists(st.integers(0, 4), max_size=9),
    kind=st.sampled_from([MixUp, CutMix, MixUpOrCutMix]),
    per=st.sampled_from(["sample", "batch"]),
    p=st.sampled_from([0.0, 0.5, 1.0]),
    dtype=st.sampled_from([torch.uint8, torch.float32, torch.float64]),
    size=st.integers(1, 11),
    seed=st.integers(0, 10**6),
)
def test_the_targets_are_those_of_the_images_as_they_were_really_mixed(targets, kind, per, p, dtype, size, seed):
    labels = torch.tensor(targets, dtype=torch.long)
    images, soft = kind(per=per, p=p)(telling_images(labels, 5, dtype, size), labels, 5, seeded(seed))
    assert images.dtype == dtype
    assert soft.shape == (len(labels), 5)
    assert torch.allclose(told(images), soft, atol=1e-6 if dtype.is_floating_point or kind is CutMix else 0.5 / 255 + 1e-6)
    assert torch.allclose(soft.sum(1), torch.ones(len(labels)))


@every_mixing
@per_what
def test_soft_targets_are_mixed_as_they_are(kind, per):
    soft = torch.rand(8, 5, generator=seeded(1)).softmax(1)
    images = soft[:, :, None, None].expand(-1, -1, 8, 8)
    mixed, targets = kind(per=per)(images, soft, 5, seeded())
    assert torch.allclose(mixed.mean((2, 3)), targets, atol=1e-6)
    assert not torch.allclose(targets, soft)


@every_mixing
@per_what
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_labels_that_are_not_exclusive_are_mixed_one_by_one(kind, per, dtype):
    labels = (torch.rand(8, 4, generator=seeded(1)) < 0.5).to(dtype)
    images = labels.float()[:, :, None, None].expand(-1, -1, 8, 8)
    mixed, targets = kind(per=per)(images, labels, 4, seeded())
    assert targets.shape == (8, 4)
    assert torch.allclose(mixed.mean((2, 3)), targets, atol=1e-6)


@every_mixing
@per_what
@pytest.mark.parametrize("column", [False, True])
def test_binary_targets_are_mixed_and_keep_their_shape(kind, per, column):
    labels = torch.tensor([0, 1, 1, 0, 1])
    images = labels.float()[:, None, None, None].expand(-1, 1, 8, 8)
    given_targets = labels[:, None] if column else labels
    mixed, targets = kind(per=per)(images, given_targets, 1, seeded())
    assert targets.shape == given_targets.shape
    assert torch.allclose(mixed.mean((1, 2, 3)), targets.flatten(), atol=1e-6)


def shares(mixing: Mixing, count: int, seed: int = 0, size: int = 1) -> torch.Tensor:
    """Read the share of itself of each sample off targets that are all different."""
    _, soft = mixing(torch.zeros(count, 1, size, size), torch.arange(count), count, seeded(seed))
    return soft.diag()[soft.count_nonzero(1) > 1]


@every_mixing
def test_per_sample_every_sample_has_its_own_draw_and_per_batch_all_have_one(kind):
    assert len(set(shares(kind(per="sample"), 60, size=32).tolist())) > 30
    of_batch = shares(kind(per="batch"), 50, seed=3, size=32)
    assert len(of_batch) > 40
    assert torch.allclose(of_batch, of_batch[:1].expand_as(of_batch))


@pytest.mark.parametrize("per", ["sample", "batch"])
def test_lambda_of_mixup_follows_its_law_per_sample_and_per_batch(per):
    mixing, generator = MixUp(0.7, per), seeded()
    drawn = []
    for _ in range(60 if per == "sample" else 3000):
        labels = torch.tensor([0, 1]) if per == "batch" else torch.arange(50)
        _, soft = mixing(torch.zeros(len(labels), 1, 1, 1), labels, len(labels), generator)
        own = soft.diag()[soft.count_nonzero(1) > 1]
        drawn += own[:1].tolist() if per == "batch" else own.tolist()
    assert len(drawn) > 1000
    assert stats.kstest(drawn, stats.beta(0.7, 0.7).cdf).pvalue > 1e-3


def test_a_half_of_what_is_mixed_is_cut_and_one_image_in_four_is_left_as_it_is():
    count = 4000
    labels, images = torch.arange(count) % 2, torch.rand(count, 1, 16, 16, generator=seeded(1))
    mixed, _ = MixUpOrCutMix(4.0, 1.0, cutmix=0.4, p=0.75)(images, labels, 2, seeded())
    same = (mixed == images).flatten(1)
    untouched, pasted = same.all(1), same.any(1) & ~same.all(1)
    # a rectangle of no pixels leaves an image as it is, too: sides are below two pixels of 16 for 1 - λ < 1/64
    assert float(untouched.float().mean()) == pytest.approx(0.25 + 0.75 * 0.4 / 64, abs=0.02)
    whole = 0.75 * 0.4 * (1 - 1 / 64)  # of which a few cover the whole image
    assert float(pasted.float().mean()) == pytest.approx(whole, abs=0.03)


@every_mixing
def test_p_is_the_probability_of_mixing_a_batch(kind):
    mixing, generator, images = kind(per="batch", p=0.3), seeded(), torch.rand(16, 1, 16, 16)
    left = [torch.equal(mixing(images, torch.zeros(16, dtype=torch.long), 2, generator)[0], images) for _ in range(800)]
    # a rectangle may be of no pixels: below 1/64 of the area
    assert sum(left) / len(left) == pytest.approx(0.7, abs=0.05)


@every_mixing
@pytest.mark.parametrize(
    ("images", "targets", "said"),
    [
        (torch.rand(6, 16, 16), torch.arange(6) % 3, r"batch of shape \(N, C, H, W\).*\(6, 16, 16\)"),
        (torch.zeros(6, 1, 8, 8, dtype=torch.int64), torch.arange(6) % 3, "torch.int64"),
        (torch.rand(6, 1, 8, 8), torch.arange(3), "6 images and 3 targets"),
    ],
)
def test_what_can_not_be_mixed_is_refused(kind, images, targets, said):
    with pytest.raises(DataError, match=said):
        kind()(images, targets, 3)


@every_mixing
def test_partners_are_a_permutation_of_the_batch(kind):
    labels = torch.arange(30)
    _, soft = kind(per="batch")(torch.zeros(30, 1, 8, 8), labels, 30, seeded(3))
    assert torch.allclose(soft.sum(0), torch.ones(30))
    assert soft.count_nonzero() > 40


@every_mixing
@per_what
@pytest.mark.parametrize("count", [0, 1])
def test_a_batch_of_one_or_none_stays_what_it_is(kind, per, count):
    images = torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8)
    mixed, soft = kind(per=per)(images, torch.full((count,), 2), 5, seeded())
    assert torch.equal(mixed, images)
    assert torch.equal(soft, torch.eye(5)[2].repeat(count, 1))


@every_mixing
@per_what
def test_nothing_given_is_written_to_and_a_seed_fixes_everything(kind, per):
    images, labels = torch.rand(6, 1, 8, 8), torch.arange(6)
    kept = images.clone(), labels.clone()
    state = torch.get_rng_state()
    first, again = (kind(per=per)(images, labels, 6, seeded(4)) for _ in range(2))
    assert torch.equal(images, kept[0])
    assert torch.equal(labels, kept[1])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(kind(per=per)(images, labels, 6, seeded(5))[1], first[1])


@every_mixing
@per_what
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_channels_last_is_kept_and_strides_change_nothing(kind, per, dtype):
    plain = (torch.rand(5, 3, 6, 8, generator=seeded(1)) * 255).to(dtype)
    expected, _ = kind(per=per)(plain, torch.arange(5), 5, seeded())
    assert expected.is_contiguous()
    last = plain.contiguous(memory_format=torch.channels_last)
    mixed, _ = kind(per=per)(last, torch.arange(5), 5, seeded())
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(mixed, expected)
    strided = torch.zeros(5, 3, 6, 16, dtype=dtype)[..., ::2].copy_(plain)
    assert torch.equal(kind(per=per)(strided, torch.arange(5), 5, seeded())[0], expected)


@every_mixing
@per_what
def test_what_a_batch_draws_as_one_comes_from_the_shared_generator_and_partners_do_not(kind, per):
    images, labels = torch.zeros(40, 1, 16, 16), torch.arange(40)
    one, other = (kind(per=per)(images, labels, 40, seeded(seed), seeded(9))[1] for seed in (1, 2))
    assert not torch.equal(one, other)
    own = [soft.diag()[soft.count_nonzero(1) > 1] for soft in (one, other)]
    alike = torch.allclose(own[0].mean(), own[1].mean(), atol=1e-6)
    assert alike is (per == "batch")


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.zeros(4, 3), r"\(4, 3\) can't be mixed: with num_classes=5 .* \(N, 5\)"),
        (torch.zeros(4, 5, 2, 2), r"\(4, 5, 2, 2\) can't be mixed"),
        (torch.tensor([0, 1, 5, 2]), r"run from 0 to 5; .* 0 to 4"),
        (torch.tensor([0, 1, -100, 2]), r"run from -100 to 2; .* ignore can't be mixed"),
    ],
)
@every_mixing
def test_targets_that_can_not_be_mixed_are_refused(kind, targets, message):
    with pytest.raises(DataError, match=message):
        kind()(torch.zeros(4, 1, 4, 4), targets, 5, seeded())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MixUp(0), "MixUp: alpha=0 is out of range"),
        (lambda: MixUp(per="bach"), "MixUp: per='bach'.*Did you mean 'batch'"),
        (lambda: CutMix(-1), "CutMix: alpha=-1 is out of range"),
        (lambda: CutMix(p=1.5), "CutMix: p=1.5 is out of range; expected 0 <= p <= 1"),
        (lambda: MixUpOrCutMix(mixup_alpha=0), "MixUpOrCutMix: mixup_alpha=0"),
        (lambda: MixUpOrCutMix(cutmix_alpha=0), "MixUpOrCutMix: cutmix_alpha=0"),
        (lambda: MixUpOrCutMix(cutmix=2), "MixUpOrCutMix: cutmix=2"),
        (lambda: MixUpOrCutMix(per=3), "MixUpOrCutMix: per=3"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(make, message):
    with pytest.raises(ConfigurationError, match=message):
        make()


@every_mixing
@per_what
def test_a_mixing_is_rebuilt_from_its_spec(kind, per):
    assert build(to_spec(kind(per=per, p=0.7)), Mixing) == kind(per=per, p=0.7)
