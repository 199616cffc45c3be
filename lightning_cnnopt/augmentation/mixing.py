"""Mixing images together with their targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from lightning_cnnopt.augmentation import functional
from lightning_cnnopt.core.batch import one_hot, to_float
from lightning_cnnopt.core.errors import check_choice, check_range
from lightning_cnnopt.core.spec import Configurable


class Mixing(Configurable, ABC):
    """Base of mixing: calling one returns images and targets as they were really mixed.

    Targets become probabilities, which ``CrossEntropyLoss``, ``BCEWithLogitsLoss`` and most criteria take; the criterion
    itself is never touched.
    """

    @abstractmethod
    def __call__(
        self, images: Tensor, targets: Tensor, num_classes: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return mixed images, as floats, and their targets.

        Args:
            images: (N, C, H, W), uint8 or float.
            targets: (N,) classes, or (N, num_classes) probabilities or labels.
            num_classes: How many classes there are; 1 for a binary target.
            generator: A generator on the CPU; by default torch's own.
        """


class MixUp(Mixing):
    """Replaces each sample by λ · itself + (1 - λ) · another, images and targets alike, with λ ~ Beta(alpha, alpha).

    Args:
        alpha: Both parameters of the Beta law. 0.2, within the paper's 0.1 to 0.4 for ImageNet.
        per: One λ per ``"sample"`` or per ``"batch"``.

    Reference:
        Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018.

    Example:
        >>> images, targets = MixUp()(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 2, 1]), num_classes=3)
        >>> targets.shape, bool((targets.sum(1) - 1).abs().max() < 1e-6)
        (torch.Size([4, 3]), True)
    """

    def __init__(self, alpha: float = 0.2, per: Literal["sample", "batch"] = "sample") -> None:
        check_range("MixUp", "alpha", alpha, 0, low_open=True)
        check_choice("MixUp", "per", per, ("sample", "batch"))
        self.alpha = alpha
        self.per = per

    def __call__(
        self, images: Tensor, targets: Tensor, num_classes: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return mixed images and targets."""
        count = len(images)
        partner = torch.randperm(count, generator=generator)
        share = beta(self.alpha, count if self.per == "sample" else 1, generator)
        soft = targets.float() if num_classes == 1 else one_hot(targets, num_classes)
        return functional.mix(to_float(images), partner, share), functional.mix(soft, partner, share)


def beta(alpha: float, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw from Beta(alpha, alpha), with a generator of one's own, which ``torch.distributions`` does not take.

    Example:
        >>> draws = beta(0.2, 1000, torch.Generator().manual_seed(0))
        >>> bool(0.45 < draws.mean() < 0.55)
        True
    """
    # in double precision: for small alpha both gamma draws of a pair can be below the least float
    first, second = torch._standard_gamma(torch.full((2, count), alpha, dtype=torch.float64), generator=generator)
    smallest = torch.finfo(torch.float64).tiny
    return ((first + smallest) / (first + second + 2 * smallest)).float()
