"""Every image flipped on every other epoch."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_cnnopt.augmentation.functional.layout import check_images, per_sample
from lightning_cnnopt.augmentation.transforms.base import Transform
from lightning_cnnopt.core.batch import read_batch
from lightning_cnnopt.core.errors import ConfigurationError


class AlternatingFlip(Transform):
    """Mirrors every image left and right on every other epoch, and on the first one as a coin says that it keeps.

    In place of a flip at random, which shows a quarter of the images twice as they are within two epochs, and another quarter
    twice mirrored: over epochs 2k and 2k + 1 every image is seen once each way.

    The coin is a hash of the image's own pixels and of the run's seed. So it needs no number of the sample: it is the same
    whatever the order of an epoch, the process, the batch, or the place that a run was resumed at, with any loader that
    brings the same pixels of a sample in every epoch. For that reason it has to stand first, in front of all that is random;
    images that are equal to the pixel share their coin.

    A chain of a data module of ours or of ``AugmentBatches`` hands it the epoch; called by itself it is told.

    Reference:
        Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024.

    Example:
        >>> images = torch.rand(6, 3, 8, 8)
        >>> first, second, third = (AlternatingFlip()(images, epoch=epoch) for epoch in range(3))
        >>> bool((first == second.flip(-1)).all()), bool((first == third).all())
        (True, True)
    """

    def __init__(self) -> None:
        pass

    def __call__(
        self, images: Tensor, generator: torch.Generator | None = None, epoch: int = 0, seed: int | None = None
    ) -> Tensor:
        """Return the images, some of them mirrored.

        Args:
            images: (N, C, H, W), as they are stored.
            generator: Not drawn from.
            epoch: Number of the epoch.
            seed: Seed of the coins; by default that of torch.
        """
        check_images(images, any_type=True)
        seed = torch.initial_seed() if seed is None else seed
        # on the device: coins are tossed there, and a copy to the CPU would wait for it
        flipped = per_sample(coins(images, seed) ^ bool(epoch % 2), images)
        return torch.where(flipped, images.flip(-1), images)


def coins(images: Tensor, seed: int) -> Tensor:
    """Toss a fair coin for each image, which depends on its pixels and the seed alone.

    Args:
        images: (N, C, H, W), uint8 or float. Of large images, every so many rows and columns are looked at.
        seed: Other coins for another seed.

    Returns:
        (N,) booleans, on the device of the images.

    Example:
        >>> images = torch.rand(1000, 1, 4, 4)
        >>> bool(450 < coins(images, 0).sum() < 550), bool((coins(images, 0)[:10] == coins(images[:10], 0)).all())
        (True, True)
    """
    rows, columns = (max(1, side // 32) for side in images.shape[-2:])
    pixels = images[:, :, ::rows, ::columns].flatten(1)
    if pixels.is_floating_point():
        pixels = pixels.float().contiguous().view(torch.int32)
    generator = torch.Generator().manual_seed(seed)
    # a linear hash in the integers modulo 2^64, then bits are spread as in MurmurHash3, so that low and high ones count alike
    factors = torch.randint(-(2**62), 2**62, (pixels.shape[1],), generator=generator).mul_(2).add_(1)
    mixed = (pixels.long() * factors.to(images.device)).sum(1)
    for factor in (-49064778989728563, -4265267296055464877):
        mixed = (mixed ^ ((mixed >> 33) & 0x7FFFFFFF)) * factor
    return ((mixed >> 40) & 1).bool()


def check_alternates(transforms: list[Transform], changed_before: str | None = None) -> None:
    """Raise if a chain has an :class:`AlternatingFlip` that could not tell the images.

    Args:
        transforms: The chain.
        changed_before: What changes images at random in front of the chain.

    Raises:
        ConfigurationError: If something random stands in front of it, or it is there twice.
    """
    places = [index for index, transform in enumerate(transforms) if isinstance(transform, AlternatingFlip)]
    if not places:
        return
    before = changed_before or (repr(transforms[0]) if places[-1] > 0 else None)
    if before is not None:
        raise ConfigurationError(
            f"AlternatingFlip tells images by their pixels, and {before} stands in front of it. Put it first, and once."
        )
    others = [repr(other) for other in transforms if type(other).__name__ == "HorizontalFlip"]
    if others:
        rank_zero_warn(f"{others[0]} behind AlternatingFlip makes what it alternates random again; keep one of the two.")


def check_repeats(loaders: Any) -> None:
    """Raise if a data set brings other pixels each time, as one with random transforms of its own does.

    Eight samples of each data set are read twice. Random states are left as they were.

    Args:
        loaders: What a Trainer trains on.

    Raises:
        ConfigurationError: Naming the data set.
    """
    for loader in CombinedLoader(loaders).flattened:
        if isinstance(getattr(loader, "images", None), Tensor):
            continue  # held in memory as one tensor, as ResidentLoader does
        dataset = getattr(loader, "dataset", None)
        if not isinstance(loader, DataLoader) or isinstance(dataset, IterableDataset) or loader.collate_fn is None:
            rank_zero_warn(
                f"AlternatingFlip tells images by their pixels, and whether {type(loader).__name__} brings the same ones in "
                "every epoch can't be seen from here. If it augments at random, flips are random, too."
            )
            continue
        size = len(dataset)  # type: ignore[arg-type]
        chosen = sorted({index * size // 8 for index in range(8)}) if size else []
        with isolate_rng():
            first, again = ([loader.dataset[index] for index in chosen] for _ in range(2))
        if chosen and not torch.equal(read_batch(loader.collate_fn(first))[0], read_batch(loader.collate_fn(again))[0]):
            raise ConfigurationError(
                f"AlternatingFlip tells images by their pixels, and {type(dataset).__name__} brings other ones each time a "
                "sample is read: its own transforms are random. Let it decode and resize only, and give the random transforms "
                "to AugmentBatches, behind AlternatingFlip."
            )
