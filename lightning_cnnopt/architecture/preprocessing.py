"""What images go through before the network, kept with its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_cnnopt.core.batch import look_normalized, normalize, to_float
from lightning_cnnopt.core.errors import ConfigurationError, check_range


class Preprocessing(nn.Module):
    """Turns uint8 images, or floats in [0, 1], into what the network is fed: (x - mean) / std for each channel.

    It is part of the LightningModule, so mean and standard deviation are in every checkpoint and every export.

    Args:
        channels: Channels of an image.
        mean: Mean of each channel for pixels in [0, 1]; 0 by default.
        std: Standard deviation of each channel; 1 by default.
    """

    mean: Tensor
    std: Tensor
    is_set: bool
    """Whether mean and standard deviation were given, or loaded."""

    def __init__(self, channels: int, mean: Sequence[float] | None = None, std: Sequence[float] | None = None) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
        self.register_buffer("std", torch.ones(1, channels, 1, 1))
        self.is_set = False
        self.register_load_state_dict_pre_hook(_note_what_is_loaded)
        if mean is not None and std is not None:
            self.set(mean, std)

    def set(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set both, one number per channel."""
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != self.mean.numel():
                raise ConfigurationError(f"{name}={list(values)} has {len(values)} numbers for {self.mean.numel()} channels.")
        for value in std:
            check_range("Preprocessing", "std", value, 0, low_open=True)
        self.mean.copy_(torch.tensor(list(mean)).view_as(self.mean))
        self.std.copy_(torch.tensor(list(std)).view_as(self.std))
        self.is_set = True

    def inspect(self, images: Tensor, is_known: bool = True) -> None:
        """Say so if training images are not what this preprocessing is for. It waits for the device, so look at one batch.

        Args:
            images: (N, C, H, W), as they come.
            is_known: Whether mean and standard deviation were given by the user or the data, or loaded.
        """
        low, high = (float(value) for value in to_float(images).aminmax())
        looks_normalized = look_normalized(low, high)
        if is_known and looks_normalized and not (self.mean == 0).logical_and(self.std == 1).all():
            rank_zero_warn(
                f"Images are floats from {low:g} to {high:g}, so they look normalized already, and are normalized again with "
                f"mean={self.mean.flatten().tolist()} and std={self.std.flatten().tolist()}. Hand out uint8 or floats in "
                "[0, 1], or pass neither mean= nor std=."
            )
        elif not is_known and images.dtype == torch.uint8:
            rank_zero_warn(
                "Images are uint8 and no mean and std are known: they are divided by 255 only. Pass mean= and std= of the "
                "data; mean 0 and std 1 if that is what you want."
            )
        elif not is_known and not looks_normalized:
            rank_zero_info("Images are floats in [0, 1] and no mean and std are known: they are fed as they are.")

    def forward(self, images: Tensor) -> Tensor:
        """Return normalized floats."""
        return normalize(images, self.mean, self.std)


def _note_what_is_loaded(module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
    del rest
    assert isinstance(module, Preprocessing)
    module.is_set |= f"{prefix}mean" in state_dict and f"{prefix}std" in state_dict
