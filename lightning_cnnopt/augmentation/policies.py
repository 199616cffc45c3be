"""Policies: each sample of a batch goes through operations of its own choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, get_args

import torch
from torch import Tensor
from typing_extensions import override

from lightning_cnnopt.augmentation.functional.layout import check_images, from_levels, per_sample, to_levels
from lightning_cnnopt.augmentation.functional.mixing import dirichlet
from lightning_cnnopt.augmentation.functional.operations import OPERATIONS, operate
from lightning_cnnopt.augmentation.functional.warps import Interpolation
from lightning_cnnopt.augmentation.transforms.base import Transform
from lightning_cnnopt.core.errors import DataError, check_choice, check_range


class Scale(NamedTuple):
    """How large the magnitude of an operation is, from its least to its greatest."""

    low: float
    high: float
    signed: bool = True
    per_side: int | None = None
    """Of which side of the image it is a fraction: -1 for its width, -2 for its height."""
    whole: bool = False


class TrivialAugmentWide(Transform):
    """One operation for each image, both the operation and its magnitude drawn uniformly: no parameter to search.

    The fourteen operations and their ranges are the wide ones of the paper, as torchvision has them; torchvision draws one
    operation for a whole batch.

    Args:
        num_magnitude_bins: How many magnitudes there are.
        interpolation: Of shears, shifts and turns: ``"bilinear"`` or ``"nearest"``.

    Raises:
        DataError: For images of neither one channel nor three.

    Reference:
        Müller and Hutter, "TrivialAugment: Tuning-free Yet State-of-the-Art Data Augmentation", 2021.

    Example:
        >>> TrivialAugmentWide()(torch.zeros(4, 3, 8, 8, dtype=torch.uint8)).shape
        torch.Size([4, 3, 8, 8])
    """

    reads_levels = True

    def __init__(self, num_magnitude_bins: int = 31, interpolation: Interpolation = "bilinear") -> None:
        check_range("TrivialAugmentWide", "num_magnitude_bins", num_magnitude_bins, 2, whole=True)
        check_choice("TrivialAugmentWide", "interpolation", interpolation, get_args(Interpolation))
        self.num_magnitude_bins = num_magnitude_bins
        self.interpolation: Interpolation = interpolation

    @override
    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the images, each after its operation."""
        _check_channels(self, images)
        count, size = len(images), (images.shape[-2], images.shape[-1])
        chosen = torch.randint(len(OPERATIONS), (count,), generator=generator)
        bins = torch.randint(self.num_magnitude_bins, (count,), generator=generator)
        strength = bins / (self.num_magnitude_bins - 1)
        magnitude = _magnitudes(_WIDE, OPERATIONS, chosen, strength, size, generator)
        return operate(images, chosen, magnitude, OPERATIONS, self.interpolation)


class RandAugment(Transform):
    """Several operations for each image, drawn uniformly, all of one magnitude.

    The operations and their ranges are torchvision's; torchvision draws them once for a whole batch.

    Args:
        num_ops: How many operations each image goes through. 2.
        magnitude: From 0 to ``num_magnitude_bins - 1``. 9, as for ImageNet in the paper, there of 30.
        num_magnitude_bins: How many magnitudes there are.
        interpolation: Of shears, shifts and turns: ``"bilinear"`` or ``"nearest"``.

    Raises:
        DataError: For images of neither one channel nor three.

    Reference:
        Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space", 2020.

    Example:
        >>> RandAugment()(torch.zeros(4, 3, 8, 8, dtype=torch.uint8)).shape
        torch.Size([4, 3, 8, 8])
    """

    reads_levels = True

    def __init__(
        self,
        num_ops: int = 2,
        magnitude: int = 9,
        num_magnitude_bins: int = 31,
        interpolation: Interpolation = "bilinear",
    ) -> None:
        check_range("RandAugment", "num_ops", num_ops, 1, whole=True)
        check_range("RandAugment", "num_magnitude_bins", num_magnitude_bins, 2, whole=True)
        check_range("RandAugment", "magnitude", magnitude, 0, num_magnitude_bins - 1)
        check_choice("RandAugment", "interpolation", interpolation, get_args(Interpolation))
        self.num_ops = num_ops
        self.magnitude = magnitude
        self.num_magnitude_bins = num_magnitude_bins
        self.interpolation: Interpolation = interpolation

    @override
    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the images, each after its operations."""
        _check_channels(self, images)
        count, size = len(images), (images.shape[-2], images.shape[-1])
        strength = torch.full((count,), self.magnitude / (self.num_magnitude_bins - 1))
        for _ in range(self.num_ops):
            chosen = torch.randint(len(OPERATIONS), (count,), generator=generator)
            magnitude = _magnitudes(_RAND_AUGMENT, OPERATIONS, chosen, strength, size, generator)
            images = operate(images, chosen, magnitude, OPERATIONS, self.interpolation)
        return images


class AugMix(Transform):
    """Mixes each image with several chains of operations of itself: m · x + (1 - m) · Σ wᵢ · chainᵢ(x).

    m ~ Beta(alpha, alpha) and w ~ Dirichlet(alpha, …), both for each image, as are the operations, their magnitudes and the
    length of each chain. The loss of the paper that keeps predictions alike is not part of it.

    Args:
        severity: From 1 to 10: magnitudes are drawn below it. 3.
        mixture_width: How many chains.
        chain_depth: How many operations a chain has; by default 1 to 3, drawn.
        alpha: Of both laws.
        all_ops: Whether brightness, saturation, contrast and sharpness are among the operations; they are part of common
            measures of corruption robustness, which are no test of them then.
        interpolation: Of shears, shifts and turns: ``"bilinear"`` or ``"nearest"``.

    Raises:
        DataError: For images of neither one channel nor three, if ``all_ops``.

    Reference:
        Hendrycks et al., "AugMix: A Simple Data Processing Method to Improve Robustness and Uncertainty", 2020.

    Example:
        >>> AugMix()(torch.zeros(4, 3, 8, 8, dtype=torch.uint8)).shape
        torch.Size([4, 3, 8, 8])
    """

    reads_levels = True

    def __init__(
        self,
        severity: int = 3,
        mixture_width: int = 3,
        chain_depth: int | None = None,
        alpha: float = 1.0,
        all_ops: bool = True,
        interpolation: Interpolation = "bilinear",
    ) -> None:
        check_range("AugMix", "severity", severity, 1, 10, whole=True)
        check_range("AugMix", "mixture_width", mixture_width, 1, whole=True)
        if chain_depth is not None:
            check_range("AugMix", "chain_depth", chain_depth, 1, whole=True)
        check_range("AugMix", "alpha", alpha, 0, low_open=True)
        check_choice("AugMix", "interpolation", interpolation, get_args(Interpolation))
        self.severity = severity
        self.mixture_width = mixture_width
        self.chain_depth = chain_depth
        self.alpha = alpha
        self.all_ops = all_ops
        self.interpolation: Interpolation = interpolation

    @override
    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the mixed images."""
        if self.all_ops:
            _check_channels(self, images)
        count = len(images)
        own, weights = (
            dirichlet(self.alpha, count, 2, generator)[:, :1],
            dirichlet(self.alpha, count, self.mixture_width, generator),
        )
        mixed = to_levels(images).mul_(per_sample(own, images))
        for place in range(self.mixture_width):
            chain = self._chain(images, generator)
            mixed.addcmul_(chain.to(mixed.dtype), per_sample(weights[:, place, None] * (1 - own), mixed).to(mixed.dtype))
        return from_levels(mixed, images)

    def _chain(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        count, size = len(images), (images.shape[-2], images.shape[-1])
        operations = tuple(_AUG_MIX) if self.all_ops else tuple(_AUG_MIX)[:-4]
        if self.chain_depth is None:
            depth = torch.randint(1, 4, (count,), generator=generator)
        else:
            depth = torch.full((count,), self.chain_depth)
        for step in range(3 if self.chain_depth is None else self.chain_depth):
            chosen = torch.randint(len(operations), (count,), generator=generator)
            strength = torch.randint(self.severity, (count,), generator=generator) / 9
            magnitude = _magnitudes(_AUG_MIX, operations, chosen, strength, size, generator)
            chosen = torch.where(depth > step, chosen, len(operations))  # behind the last one: nothing more
            images = operate(images, chosen, magnitude, (*operations, "identity"), self.interpolation)
        return images


def _check_channels(policy: Transform, images: Tensor) -> None:
    check_images(images)
    if images.shape[1] not in (1, 3):  # at once, and not with the batch that first draws a saturation
        raise DataError(f"{policy!r} changes saturation, for which images have one channel or three; got {images.shape[1]}.")


def _magnitudes(
    scales: Mapping[str, Scale],
    operations: tuple[str, ...],
    chosen: Tensor,
    strength: Tensor,
    size: tuple[int, int],
    generator: torch.Generator | None,
) -> Tensor:
    """Return each sample's magnitude at a ``strength`` (N,) from 0 to 1, with a drawn sign where the operation has one."""
    listed = [scales.get(name, Scale(0.0, 0.0)) for name in operations]

    def column(value: Callable[[Scale], float]) -> Tensor:
        return torch.tensor([float(value(scale)) for scale in listed])[chosen]

    side = column(lambda scale: 1.0 if scale.per_side is None else float(size[scale.per_side]))
    low, high = column(lambda scale: scale.low) * side, column(lambda scale: scale.high) * side
    magnitude = low + (high - low) * strength
    magnitude = torch.where(column(lambda scale: scale.whole) > 0, magnitude.round(), magnitude)
    negative = (torch.rand(len(chosen), generator=generator) < 0.5) & (column(lambda scale: scale.signed) > 0)
    return torch.where(negative, -magnitude, magnitude)


def _scales(shear: float, shift: tuple[float, bool], turn: float, factor: float, bits: tuple[int, int]) -> dict[str, Scale]:
    far, relative = shift
    return {
        "shear_x": Scale(0, shear),
        "shear_y": Scale(0, shear),
        "translate_x": Scale(0, far, per_side=-1 if relative else None),
        "translate_y": Scale(0, far, per_side=-2 if relative else None),
        "rotate": Scale(0, turn),
        "posterize": Scale(*bits, signed=False, whole=True),
        "solarize": Scale(1, 0, signed=False),
        "autocontrast": Scale(0, 0),
        "equalize": Scale(0, 0),
        **{name: Scale(0, factor) for name in ("brightness", "saturation", "contrast", "sharpness")},
    }


_WIDE = _scales(0.99, (32.0, False), 135.0, 0.99, (8, 2))
_RAND_AUGMENT = _scales(0.3, (150 / 331, True), 30.0, 0.9, (8, 4))
_AUG_MIX = _scales(0.3, (1 / 3, True), 30.0, 0.9, (4, 0))
