"""Transforms that look at a pixel's surroundings, and noise."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from lightning_cnnopt.augmentation import functional
from lightning_cnnopt.augmentation.transforms.base import Transform, check_interval, happens, uniform
from lightning_cnnopt.core.errors import ConfigurationError, check_range


class Sharpness(Transform):
    """Sharpens or smooths each image by a factor from U(max(0, 1 - strength), 1 + strength); the outermost pixels stay.

    Args:
        strength: How far the factor goes from 1: 0 is smooth, 2 is sharp.
        p: Probability for each image.
    """

    reads_levels = True

    def __init__(self, strength: float = 0.5, p: float = 1.0) -> None:
        check_range("Sharpness", "strength", strength, 0)
        check_range("Sharpness", "p", p, 0, 1)
        self.strength = strength
        self.p = p

    @override
    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the sharper or smoother images."""
        factor = uniform(len(images), max(0.0, 1 - self.strength), 1 + self.strength, generator)
        return functional.sharpness(images, torch.where(happens(len(images), self.p, generator), factor, 1.0))


class GaussianBlur(Transform):
    """Blurs each image by a Gaussian whose standard deviation is drawn from U(sigma), reflected at the border.

    Args:
        kernel_size: Pixels that go into one, an odd number.
        sigma: Interval of the standard deviation, in pixels.
        p: Probability for each image.

    Raises:
        ConfigurationError: If the kernel is even, or reflects more than an image has.
    """

    def __init__(self, kernel_size: int = 3, sigma: tuple[float, float] = (0.1, 2.0), p: float = 0.5) -> None:
        check_range("GaussianBlur", "kernel_size", kernel_size, 1, whole=True)
        if kernel_size % 2 == 0:
            raise ConfigurationError(f"GaussianBlur: kernel_size={kernel_size} is even; expected an odd number of pixels.")
        check_interval("GaussianBlur", "sigma", sigma, 0.01)
        check_range("GaussianBlur", "p", p, 0, 1)
        self.kernel_size = kernel_size
        self.sigma = sigma
        self.p = p

    @override
    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the blurred images."""
        if self.kernel_size // 2 >= min(images.shape[-2:]):
            raise ConfigurationError(
                f"GaussianBlur: kernel_size={self.kernel_size} reflects more than an image of {tuple(images.shape[-2:])} has."
            )
        sigma = uniform(len(images), *self.sigma, generator)
        sigma = torch.where(happens(len(images), self.p, generator), sigma, 0.0)
        return functional.gaussian_blur(images, sigma, self.kernel_size)


class GaussianNoise(Transform):
    """Adds normal noise to every level, its standard deviation drawn from U(std) for each image.

    Args:
        std: Interval of the standard deviation, white being 1.
        p: Probability for each image.
    """

    reads_levels = True

    def __init__(self, std: tuple[float, float] = (0.0, 0.1), p: float = 0.5) -> None:
        check_interval("GaussianNoise", "std", std, 0, 1)
        check_range("GaussianNoise", "p", p, 0, 1)
        self.std = std
        self.p = p

    @override
    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the noisy images."""
        std = uniform(len(images), *self.std, generator)
        return functional.gaussian_noise(images, torch.where(happens(len(images), self.p, generator), std, 0.0), generator)
