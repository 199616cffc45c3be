from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lightning_cnnopt.augmentation import Mixing, MixUp
from lightning_cnnopt.augmentation.mixing import beta
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.spec import build, to_spec

per_what = pytest.mark.parametrize("per", ["sample", "batch"])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def telling_images(targets: torch.Tensor, classes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Images that say what class they are: one channel per class, full where the class is."""
    planes = torch.nn.functional.one_hot(targets, classes)[:, :, None, None].expand(-1, -1, 3, 3)
    return (planes * 255).to(torch.uint8) if dtype == torch.uint8 else planes.to(dtype)


@settings(max_examples=60, deadline=None)
@given(
    targets=st.lists(st.integers(0, 4), min_size=1, max_size=9),
    per=st.sampled_from(["sample", "batch"]),
    alpha=st.sampled_from([0.1, 0.2, 1.0, 4.0]),
    dtype=st.sampled_from([torch.uint8, torch.float32, torch.float64]),
    seed=st.integers(0, 10**6),
)
def test_the_targets_are_those_of_the_images_as_they_were_really_mixed(targets, per, alpha, dtype, seed):
    labels = torch.tensor(targets)
    images, soft = MixUp(alpha, per)(telling_images(labels, 5, dtype), labels, 5, seeded(seed))
    assert images.dtype == (dtype if dtype.is_floating_point else torch.float32)
    assert soft.shape == (len(labels), 5)
    assert torch.allclose(images.mean((2, 3)).float(), soft, atol=1e-6)
    assert torch.allclose(soft.sum(1), torch.ones(len(labels)))


@per_what
def test_soft_targets_are_mixed_as_they_are(per):
    soft = torch.rand(8, 5, generator=seeded(1)).softmax(1)
    images = soft[:, :, None, None].expand(-1, -1, 2, 2)
    mixed, targets = MixUp(1.0, per)(images, soft, 5, seeded())
    assert torch.allclose(mixed.mean((2, 3)), targets, atol=1e-6)
    assert not torch.allclose(targets, soft)


@per_what
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_labels_that_are_not_exclusive_are_mixed_one_by_one(per, dtype):
    labels = (torch.rand(8, 4, generator=seeded(1)) < 0.5).to(dtype)
    images = labels.float()[:, :, None, None].expand(-1, -1, 2, 2)
    mixed, targets = MixUp(1.0, per)(images, labels, 4, seeded())
    assert targets.shape == (8, 4)
    assert torch.allclose(mixed.mean((2, 3)), targets, atol=1e-6)


@per_what
def test_binary_targets_are_mixed_and_keep_their_shape(per):
    labels = torch.tensor([0, 1, 1, 0, 1])
    images = labels.float()[:, None, None, None].expand(-1, 1, 2, 2)
    mixed, targets = MixUp(1.0, per)(images, labels, 1, seeded())
    assert torch.allclose(mixed.mean((1, 2, 3)), targets, atol=1e-6)


def share_of_itself(per: str, count: int, alpha: float, seed: int = 0) -> torch.Tensor:
    """Read λ of each sample off targets that are all different."""
    labels = torch.arange(count)
    _, soft = MixUp(alpha, per)(torch.zeros(count, 1, 1, 1), labels, count, seeded(seed))
    shares, mixed = soft.diag(), soft.count_nonzero(1) > 1
    return shares[mixed]


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


def test_per_sample_every_sample_has_its_own_lambda_and_per_batch_all_have_one():
    assert len(set(share_of_itself("sample", 50, 1.0).tolist())) > 40
    shares = share_of_itself("batch", 50, 1.0)
    assert len(shares) > 40
    assert torch.allclose(shares, shares[:1].expand_as(shares))


def test_partners_are_a_permutation_of_the_batch():
    labels = torch.arange(30)
    _, soft = MixUp(1.0, "batch")(torch.zeros(30, 1, 1, 1), labels, 30, seeded())
    assert torch.allclose(soft.sum(0), torch.ones(30))


@per_what
@pytest.mark.parametrize("count", [0, 1])
def test_a_batch_of_one_or_none_stays_what_it_is(per, count):
    images = torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8)
    mixed, soft = MixUp(1.0, per)(images, torch.full((count,), 2), 5, seeded())
    assert torch.allclose(mixed, images.float() / 255)
    assert torch.equal(soft, torch.eye(5)[2].repeat(count, 1))


@per_what
def test_nothing_given_is_written_to_and_a_seed_fixes_everything(per):
    images, labels = torch.rand(6, 1, 4, 4), torch.arange(6)
    kept = images.clone(), labels.clone()
    state = torch.get_rng_state()
    first, again = (MixUp(1.0, per)(images, labels, 6, seeded(4)) for _ in range(2))
    assert torch.equal(images, kept[0])
    assert torch.equal(labels, kept[1])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(MixUp(1.0, per)(images, labels, 6, seeded(5))[1], first[1])


def test_arguments_out_of_range_are_refused_by_name():
    with pytest.raises(ConfigurationError, match="alpha=0"):
        MixUp(0)
    with pytest.raises(ConfigurationError, match="Did you mean 'batch'"):
        MixUp(per="bach")


@per_what
def test_mixup_is_rebuilt_from_its_spec(per):
    assert build(to_spec(MixUp(0.7, per)), Mixing) == MixUp(0.7, per)
