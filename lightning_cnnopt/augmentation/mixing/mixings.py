"""MixUp, CutMix, and both together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from lightning_cnnopt.augmentation.functional.layout import check_images, from_levels, to_levels
from lightning_cnnopt.augmentation.functional.mixing import mix
from lightning_cnnopt.augmentation.mixing.functional import area_left, beta, cut_boxes, paste, soft_targets
from lightning_cnnopt.core.errors import DataError, check_choice, check_range
from lightning_cnnopt.core.spec import Configurable

Per = Literal["sample", "batch"]


class Mixing(Configurable, ABC):
    """Base of mixing: calling one returns images and targets as they were really mixed.

    Targets become probabilities, which ``CrossEntropyLoss``, ``BCEWithLogitsLoss`` and most criteria take; the criterion
    itself is never touched.
    """

    @abstractmethod
    def __call__(
        self,
        images: Tensor,
        targets: Tensor,
        num_classes: int,
        generator: torch.Generator | None = None,
        shared: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return mixed images and their targets.

        Args:
            images: (N, C, H, W), uint8 or float; not written to.
            targets: (N,) classes, or (N, num_classes) probabilities or labels.
            num_classes: How many classes there are; 1 for a binary target.
            generator: A generator on the CPU; by default torch's own.
            shared: Another one for what all parts of a batch have to draw alike, in the same state for each part: those of
                one optimizer step where gradients are accumulated, and those of all processes. By default ``generator``.

        Returns:
            Images, of the type they were: of uint8, levels are rounded to the nearest; and float targets.

        Raises:
            DataError: For images of another shape or type, or another number of targets.
        """


class PairMixing(Mixing):
    """Base of mixing each sample with one other of its batch, by a permutation.

    Args:
        p: Probability of mixing at all.
        per: Whether each sample has its own draws, or a batch has one.
    """

    def __init__(self, p: float, per: Per) -> None:
        check_range(type(self).__name__, "p", p, 0, 1)
        check_choice(type(self).__name__, "per", per, ("sample", "batch"))
        self.p = p
        self.per: Per = per

    @abstractmethod
    def mix_images(
        self, images: Tensor, partner: Tensor, kept: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Return mixed images, and what share of each is its own.

        Args:
            images: (N, C, H, W).
            partner: (N,) whom each sample is mixed with.
            kept: (N,), or (1,) for a batch with one draw: where images stay what they are. As many draws are made.
            generator: What to draw from.
        """

    def __call__(
        self,
        images: Tensor,
        targets: Tensor,
        num_classes: int,
        generator: torch.Generator | None = None,
        shared: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return mixed images and targets."""
        check_images(images)
        if len(targets) != len(images):
            raise DataError(f"{self!r}: {len(images)} images and {len(targets)} targets can't be mixed.")
        partner = torch.randperm(len(images), generator=generator)
        drawing = generator if self.per == "sample" or shared is None else shared
        kept = torch.rand(len(images) if self.per == "sample" else 1, generator=drawing) >= self.p
        mixed, share = self.mix_images(images, partner, kept, drawing)
        return mixed, mix(soft_targets(targets, num_classes), partner, share)


class MixUp(PairMixing):
    """Replaces each sample by λ · itself + (1 - λ) · another, images and targets alike, with λ ~ Beta(alpha, alpha).

    Args:
        alpha: Both parameters of the Beta law. 0.2, within the paper's 0.1 to 0.4 for ImageNet.
        per: One λ per ``"sample"`` or per ``"batch"``: all that one optimizer step sees, on all processes.
        p: Probability of mixing at all, of each sample or batch.

    Raises:
        ConfigurationError: If an argument is out of range.

    Reference:
        Zhang et al., "mixup: Beyond Empirical Risk Minimization", 2018.

    Example:
        >>> images, targets = MixUp()(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 2, 1]), num_classes=3)
        >>> targets.shape, bool((targets.sum(1) - 1).abs().max() < 1e-6)
        (torch.Size([4, 3]), True)
    """

    def __init__(self, alpha: float = 0.2, per: Per = "sample", p: float = 1.0) -> None:
        check_range("MixUp", "alpha", alpha, 0, low_open=True)
        super().__init__(p, per)
        self.alpha = alpha

    def mix_images(
        self, images: Tensor, partner: Tensor, kept: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Return blended images and λ."""
        share = beta(self.alpha, len(kept), generator).masked_fill(kept, 1)
        return _blend(images, partner, share), share


class CutMix(PairMixing):
    """Pastes a rectangle of another image of the batch over each; its target counts as much as the area really pasted.

    The rectangle has sides of √(1 - λ) times those of the image, with λ ~ Beta(alpha, alpha), about a centre that is uniform
    over the image. It is clipped at the borders, so that targets are mixed by its true area and not by λ. Pixels are copied:
    uint8 stays uint8.

    Args:
        alpha: Both parameters of the Beta law. 1, the paper's: λ is uniform.
        per: One rectangle per ``"sample"`` or per ``"batch"``: all that one optimizer step sees, on all processes.
        p: Probability of mixing at all, of each sample or batch. 1, the paper's for ImageNet; it has 0.5 for CIFAR.

    Raises:
        ConfigurationError: If an argument is out of range.

    Reference:
        Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", 2019.

    Example:
        >>> images, targets = CutMix()(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 2, 1]), num_classes=3)
        >>> images.dtype, targets.shape
        (torch.uint8, torch.Size([4, 3]))
    """

    def __init__(self, alpha: float = 1.0, per: Per = "sample", p: float = 1.0) -> None:
        check_range("CutMix", "alpha", alpha, 0, low_open=True)
        super().__init__(p, per)
        self.alpha = alpha

    def mix_images(
        self, images: Tensor, partner: Tensor, kept: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Return images with what was pasted, and the share of each that is left."""
        share = beta(self.alpha, len(kept), generator).masked_fill(kept, 1)
        boxes = cut_boxes(share, _centres(len(kept), generator), *images.shape[-2:])
        return paste(images, images[partner.to(images.device)], boxes), area_left(boxes, *images.shape[-2:])


class MixUpOrCutMix(PairMixing):
    """Mixes each sample, or each batch, by MixUp or by CutMix, as a coin says.

    Args:
        mixup_alpha: As of :class:`MixUp`.
        cutmix_alpha: As of :class:`CutMix`.
        cutmix: Probability of CutMix where something is mixed.
        per: One choice and one λ per ``"sample"`` or per ``"batch"``: all that one optimizer step sees, on all processes.
        p: Probability of mixing at all, of each sample or batch.

    Raises:
        ConfigurationError: If an argument is out of range.

    Reference:
        Both as in Touvron et al., "Training data-efficient image transformers", 2021, with its batches as ``per="batch"``.

    Example:
        >>> mixing = MixUpOrCutMix(mixup_alpha=0.8)
        >>> images, targets = mixing(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 2, 1]), num_classes=3)
        >>> images.dtype, targets.shape
        (torch.uint8, torch.Size([4, 3]))
    """

    def __init__(
        self,
        mixup_alpha: float = 0.2,
        cutmix_alpha: float = 1.0,
        cutmix: float = 0.5,
        per: Per = "sample",
        p: float = 1.0,
    ) -> None:
        check_range("MixUpOrCutMix", "mixup_alpha", mixup_alpha, 0, low_open=True)
        check_range("MixUpOrCutMix", "cutmix_alpha", cutmix_alpha, 0, low_open=True)
        check_range("MixUpOrCutMix", "cutmix", cutmix, 0, 1)
        super().__init__(p, per)
        self.mixup_alpha = mixup_alpha
        self.cutmix_alpha = cutmix_alpha
        self.cutmix = cutmix

    def mix_images(
        self, images: Tensor, partner: Tensor, kept: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Return images that are blended or pasted, and what share of each is its own."""
        cuts = torch.rand(len(kept), generator=generator) < self.cutmix
        blended = beta(self.mixup_alpha, len(kept), generator).masked_fill(kept | cuts, 1)
        left = beta(self.cutmix_alpha, len(kept), generator).masked_fill(kept | ~cuts, 1)
        boxes = cut_boxes(left, _centres(len(kept), generator), *images.shape[-2:])
        mixed = paste(_blend(images, partner, blended), images[partner.to(images.device)], boxes)
        return mixed, torch.where(cuts, area_left(boxes, *images.shape[-2:]), blended)


def _blend(images: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    """Return each image mixed with its partner."""
    if images.is_floating_point():
        return mix(images, partner, share)
    return from_levels(mix(to_levels(images), partner, share), images)


def _centres(count: int, generator: torch.Generator | None) -> Tensor:
    return torch.rand(count, 2, dtype=torch.float64, generator=generator)
