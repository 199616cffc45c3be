"""What looks at a pixel's surroundings: sharpness, blur; and noise."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_cnnopt.augmentation.functional.layout import from_levels, highest_level, per_sample, to_levels, where_changed


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend each image with a smoothed one: 0 is the smoothed one, 1 changes nothing, 2 sharpens. The border stays.

    Equals torchvision's ``adjust_sharpness``, sample by sample.

    Args:
        images: (N, C, H, W).
        factor: (N,).
    """
    if min(images.shape[-2:]) <= 2:
        return images.clone()

    def sharpened(part: Tensor, places: Tensor) -> Tensor:
        levels = to_levels(part)
        inner = levels[..., 1:-1, 1:-1]
        rows = levels[..., 1:-1] + levels[..., :-2] + levels[..., 2:]
        smooth = (rows[..., 1:-1, :] + rows[..., :-2, :]).add_(rows[..., 2:, :]).add_(inner, alpha=4).div_(13)
        if part.dtype == torch.uint8:
            smooth.round_()
        inner.lerp_(smooth, per_sample(1 - factor[places].to(levels.dtype), levels))
        return from_levels(levels.clamp_(0, highest_level(part)), part)

    return where_changed(images, factor != 1, sharpened)


def gaussian_blur(images: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """Blur each image by a Gaussian of its own width, reflected at the border; 0 changes nothing.

    Equals torchvision's ``gaussian_blur``, sample by sample.

    Args:
        images: (N, C, H, W).
        sigma: (N,) standard deviations, in pixels.
        kernel_size: Pixels that go into one, an odd number.
    """
    reach = kernel_size // 2

    def blurred(part: Tensor, places: Tensor) -> Tensor:
        levels = to_levels(part)
        distance = torch.arange(-reach, reach + 1)
        weights = torch.softmax(-0.5 * (distance / sigma[places, None].float()).square(), 1).to(levels)
        for dim, pad in ((-1, (reach, reach, 0, 0)), (-2, (0, 0, reach, reach))):
            padded = F.pad(levels, pad, mode="reflect")
            length = levels.shape[dim]
            levels = padded.narrow(dim, reach, length) * per_sample(weights[:, reach], levels)
            for step in range(1, reach + 1):
                both = padded.narrow(dim, reach - step, length) + padded.narrow(dim, reach + step, length)
                levels.addcmul_(both, per_sample(weights[:, reach + step], levels))
        return from_levels(levels, part)

    return where_changed(images, sigma > 0, blurred)


def gaussian_noise(images: Tensor, std: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Add normal noise of standard deviation ``std`` (N,), white being 1, to every level, cut off at black and white.

    Args:
        images: (N, C, H, W).
        std: (N,).
        generator: A generator on the CPU; a device draws from one of its own that is seeded from it.
    """

    def noisy(part: Tensor, places: Tensor) -> Tensor:
        levels, top = to_levels(part), highest_level(part)
        source = generator
        if levels.device.type != "cpu":
            source = torch.Generator(levels.device)
            source.manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
        drawn = torch.randn(levels.shape, generator=source, device=levels.device, dtype=levels.dtype)
        levels.addcmul_(drawn, per_sample(std[places].to(levels.dtype) * top, levels))
        return from_levels(levels.clamp_(0, top), part)

    return where_changed(images, std > 0, noisy)
