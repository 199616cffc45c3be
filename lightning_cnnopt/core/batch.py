"""How an image batch with its targets is read and written, whatever container it comes in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_cnnopt.core.errors import DataError

IMAGE_KEYS = ("image", "images", "pixel_values", "x", "input", "inputs")
TARGET_KEYS = ("label", "labels", "target", "targets", "y")


def read_batch(batch: Any) -> tuple[Tensor, Tensor]:
    """Return images (N, C, H, W) and targets of a batch.

    Args:
        batch: A tuple or list that starts with images and targets, or a mapping with one of the usual keys.

    Raises:
        DataError: If it has no such parts.

    Example:
        >>> images, targets = read_batch({"image": torch.zeros(2, 1, 4, 4), "label": torch.tensor([0, 1])})
        >>> images.shape, targets.tolist()
        (torch.Size([2, 1, 4, 4]), [0, 1])
    """
    if isinstance(batch, Mapping):
        image_key, target_key = _key(batch, IMAGE_KEYS), _key(batch, TARGET_KEYS)
        images, targets = batch[image_key], batch[target_key]
    elif isinstance(batch, (tuple, list)) and len(batch) >= 2:
        images, targets = batch[0], batch[1]
    else:
        raise DataError(f"A batch has to hold images and targets; got a {type(batch).__name__}.")
    if not isinstance(images, Tensor) or images.ndim != 4:
        shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise DataError(f"The images of a batch have to be one tensor of shape (N, C, H, W); got {shape}.")
    return images, targets


def write_batch(batch: Any, images: Tensor, targets: Tensor) -> Any:
    """Return a batch like ``batch`` with other images and targets; the given one is not written to.

    Example:
        >>> write_batch([1, 2, "path"], torch.zeros(1), torch.ones(1))
        [tensor([0.]), tensor([1.]), 'path']
    """
    if isinstance(batch, Mapping):
        return {**batch, _key(batch, IMAGE_KEYS): images, _key(batch, TARGET_KEYS): targets}
    if hasattr(batch, "_replace"):  # a named tuple
        return type(batch)(images, targets, *batch[2:])
    changed = [images, targets, *batch[2:]]
    return tuple(changed) if isinstance(batch, tuple) else changed


def to_float(images: Tensor) -> Tensor:
    """Return images as floats in [0, 1]; uint8 is divided by 255, floats are returned as they are.

    Raises:
        DataError: For any other type: what its highest level is can't be known.

    Example:
        >>> to_float(torch.tensor([0, 255], dtype=torch.uint8))
        tensor([0., 1.])
    """
    if images.dtype == torch.uint8:
        return images.to(torch.get_default_dtype()).div_(255)
    if not images.is_floating_point():
        raise DataError(
            f"Images have to be uint8, or floats in [0, 1]; got {images.dtype}. Convert them in the data set: levels of 0 to "
            "255 with images.to(torch.uint8), others by dividing them by their highest level."
        )
    return images


def look_normalized(low: float, high: float) -> bool:
    """Return whether levels from ``low`` to ``high`` look like something else than pixels in [0, 1].

    Pixels that were resampled, sharpened or made noisy may lie somewhat outside.

    Example:
        >>> look_normalized(-0.1, 1.1), look_normalized(-2.1, 2.6), look_normalized(0.0, 255.0)
        (False, True, True)
    """
    return low < -0.25 or high > 1.25


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return (x - mean) / std of pixels x in [0, 1]; uint8 is divided by 255 on the way, in the same pass.

    Args:
        images: (N, C, H, W), uint8, or floats in [0, 1].
        mean: (1, C, 1, 1), of the type of the result.
        std: The same.

    Example:
        >>> one = torch.ones(1, 1, 1, 1)
        >>> normalize(torch.tensor([[[[0, 255]]]], dtype=torch.uint8), 0.5 * one, 0.25 * one).flatten().tolist()
        [-2.0, 2.0]
    """
    if images.dtype == torch.uint8:
        return images.to(mean.dtype).sub_(255 * mean).div_(255 * std)
    return (to_float(images).to(mean.dtype) - mean) / std


def one_hot(targets: Tensor, num_classes: int) -> Tensor:
    """Return targets as floats (N, num_classes): classes as one-hot rows, probabilities and labels as they are."""
    if targets.ndim == 2:
        return targets if targets.is_floating_point() else targets.to(torch.get_default_dtype())
    return torch.nn.functional.one_hot(targets.long(), num_classes).to(torch.get_default_dtype())


def _key(batch: Mapping, keys: tuple[str, ...]) -> str:
    for key in keys:
        if key in batch:
            return key
    raise DataError(f"A batch with keys {sorted(map(str, batch))} has none of {list(keys)}.")
