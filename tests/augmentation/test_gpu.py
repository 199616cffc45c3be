from __future__ import annotations

import pytest
import torch

from lightning_cnnopt.augmentation import Augment, GaussianNoise
from tests.augmentation.samples import images_of, levels_apart, seeded
from tests.augmentation.test_transforms import TRANSFORMS

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("transform", [t for t in TRANSFORMS if not isinstance(t, GaussianNoise)], ids=repr)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_gpu_gives_what_the_cpu_gives_for_the_same_draws(transform, dtype):
    images = images_of(8, dtype=dtype)
    result = transform(images.cuda(), seeded())
    assert (result.device.type, result.dtype) == ("cuda", dtype)
    assert levels_apart(result.cpu(), transform(images, seeded())) <= (1 if dtype == torch.uint8 else 0.1)


def test_noise_on_a_gpu_follows_from_the_generator():
    images = torch.full((3, 3, 40, 40), 0.5, device="cuda")
    first, second = (GaussianNoise((0.1, 0.1), p=1.0)(images, seeded(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert float((first - 0.5).std()) == pytest.approx(0.1, abs=0.01)


def test_a_chain_on_a_gpu_goes_on_from_a_state_that_was_taken_on_a_cpu():
    augment = Augment([t for t in TRANSFORMS if not isinstance(t, GaussianNoise)][:6], seed=2)
    images = images_of(4, 3, 24, 24)
    augment(images)
    state, expected = augment.state_dict(), augment(images)
    augment.load_state_dict(state)
    assert torch.equal(augment(images.cuda()).cpu(), expected)
