"""Transforms and mixing with the random stream that they draw from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_cnnopt.augmentation.chain import Augment
from lightning_cnnopt.augmentation.mixing import Mixing, StepDraws
from lightning_cnnopt.augmentation.transforms import Transform
from lightning_cnnopt.core.batch import read_batch, write_batch
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.randomness import Stream


class Augmentation:
    """A chain of transforms, then mixing, drawing from one stream that differs between ranks and is checkpointed.

    Args:
        transforms: Applied in their order.
        mixing: Applied last.
        num_classes: Needed by mixing.

    Example:
        >>> import torch
        >>> from lightning_cnnopt.augmentation import HorizontalFlip, MixUp
        >>> augmentation = Augmentation([HorizontalFlip()], MixUp(), num_classes=10)
        >>> images, targets = augmentation([torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([3, 7])])
        >>> images.dtype, targets.shape
        (torch.uint8, torch.Size([2, 10]))
    """

    def __init__(
        self, transforms: Sequence[Transform] = (), mixing: Mixing | None = None, num_classes: int | None = None
    ) -> None:
        self.augment = Augment(transforms)
        self.mixing = mixing
        self.num_classes = num_classes
        self.draws = StepDraws()
        if mixing is not None and num_classes is None:
            raise ConfigurationError(f"{mixing!r} makes targets of probabilities and needs num_classes.")

    def begin(self, seed: int) -> None:
        """Begin a run. What is to be the same on every rank goes by ``seed``."""
        self.augment.seed = seed
        self.draws.begin(seed)

    def __call__(self, batch: Any, step: int | None = None, epoch: int | None = None) -> Any:
        """Return a batch like ``batch`` with augmented images, and targets that follow them.

        Args:
            batch: Images and targets.
            step: Number of the optimizer step, for mixing with one draw per batch: all parts of a step have the same. Without
                it every call is a step of its own.
            epoch: Number of the epoch, for ``AlternatingFlip``.
        """
        if not self.transforms and self.mixing is None:
            return batch
        images, targets = read_batch(batch)
        images = self.transform(images, epoch)
        if self.mixing is not None:
            assert self.num_classes is not None
            shared = self.draws.generator(step)
            images, targets = self.mixing(images, targets, self.num_classes, self.stream.generator, shared)
        return write_batch(batch, images, targets)

    @property
    def transforms(self) -> list[Transform]:
        """The transforms, in their order."""
        return self.augment.transforms

    @property
    def stream(self) -> Stream:
        """What transforms and mixing draw from."""
        return self.augment.stream

    def transform(self, images: Tensor, epoch: int | None = None) -> Tensor:
        """Return transformed images, unmixed."""
        return self.augment(images, epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the streams, of every rank."""
        return {**self.augment.state_dict(), "mixing": self.draws.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the streams."""
        self.augment.load_state_dict(state)
        self.draws.load_state_dict(state["mixing"])
