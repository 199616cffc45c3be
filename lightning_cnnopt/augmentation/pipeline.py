"""Transforms and mixing with the random stream that they draw from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lightning_cnnopt.augmentation.chain import Augment
from lightning_cnnopt.augmentation.mixing import Mixing
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
        (torch.float32, torch.Size([2, 10]))
    """

    def __init__(
        self, transforms: Sequence[Transform] = (), mixing: Mixing | None = None, num_classes: int | None = None
    ) -> None:
        self.augment = Augment(transforms)
        self.mixing = mixing
        self.num_classes = num_classes
        if mixing is not None and num_classes is None:
            raise ConfigurationError(f"{mixing!r} makes targets of probabilities and needs num_classes.")

    def __call__(self, batch: Any) -> Any:
        """Return a batch like ``batch`` with augmented images, and targets that follow them."""
        if not self.transforms and self.mixing is None:
            return batch
        images, targets = read_batch(batch)
        images = self.transform(images)
        if self.mixing is not None:
            assert self.num_classes is not None
            images, targets = self.mixing(images, targets, self.num_classes, self.stream.generator)
        return write_batch(batch, images, targets)

    @property
    def transforms(self) -> list[Transform]:
        """The transforms, in their order."""
        return self.augment.transforms

    @property
    def stream(self) -> Stream:
        """What transforms and mixing draw from."""
        return self.augment.stream

    def transform(self, images: Tensor) -> Tensor:
        """Return transformed images, unmixed."""
        return self.augment(images)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the stream, of every rank."""
        return self.stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the stream."""
        self.stream.load_state_dict(state)
