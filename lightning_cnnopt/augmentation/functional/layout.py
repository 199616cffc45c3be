"""What every batched function keeps of its input: type, layout in memory, and the range of its levels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_cnnopt.core.errors import DataError

_CACHED = 2**18
"""Levels that are computed with at once on a CPU: as floats, a megabyte."""


def check_images(images: Tensor, any_type: bool = False) -> None:
    """Raise unless ``images`` are a batch of uint8 or floats; of ``any_type``, where they are only copied.

    Raises:
        DataError: Saying what was given.

    Example:
        >>> check_images(torch.zeros(3, 8, 8))
        Traceback (most recent call last):
        ...
        lightning_cnnopt.core.errors.DataError: Images ... got torch.float32 of shape (3, 8, 8).
    """
    if images.ndim != 4 or not (any_type or images.dtype == torch.uint8 or images.is_floating_point()):
        raise DataError(
            "Images to be augmented have to be a batch of shape (N, C, H, W), uint8 or floats in [0, 1]; got "
            f"{images.dtype} of shape {tuple(images.shape)}."
        )


def highest_level(images: Tensor) -> float:
    """Return what white is: 255 for uint8, 1 for floats."""
    return 255.0 if images.dtype == torch.uint8 else 1.0


def to_levels(images: Tensor) -> Tensor:
    """Return images as floats to compute with, levels unchanged: at least single precision, a new tensor.

    Example:
        >>> to_levels(torch.tensor([0, 255], dtype=torch.uint8))
        tensor([  0., 255.])
    """
    computed = images.dtype if images.dtype in (torch.float32, torch.float64) else torch.float32
    return images.to(computed, copy=True)


def from_levels(levels: Tensor, images: Tensor, down: bool = False) -> Tensor:
    """Return ``levels``, which may be written to, in the type and layout of ``images``.

    Args:
        levels: As :func:`to_levels` returns them, from black to white.
        images: What they came from.
        down: Whether uint8 is rounded down, as torchvision does with colours, and not to the nearest level.

    Example:
        >>> from_levels(torch.tensor([0.2, 1.7]), torch.tensor([0, 1], dtype=torch.uint8))
        tensor([0, 2], dtype=torch.uint8)
    """
    if images.dtype == torch.uint8:
        # by way of int16, as torch turns floats into bytes more slowly than both steps take
        return like((levels if down else levels.round_()).to(torch.int16).to(torch.uint8), images)
    return like(levels.to(images.dtype), images)


def like(result: Tensor, images: Tensor) -> Tensor:
    """Return ``result`` channels-last in memory if ``images`` are."""
    if images.ndim == 4 and not images.is_contiguous() and images.is_contiguous(memory_format=torch.channels_last):
        return result.contiguous(memory_format=torch.channels_last)
    return result


def per_sample(values: Tensor, images: Tensor) -> Tensor:
    """Return one value for each sample so that it multiplies images, on their device."""
    return values.to(images.device).view(-1, *[1] * (images.ndim - 1))


def chosen(images: Tensor, places: Tensor) -> Tensor:
    """Return the images at ``places`` (n,), ascending; all of them as they are, without a copy.

    Example:
        >>> chosen(torch.arange(3).view(3, 1, 1, 1), torch.tensor([0, 2])).flatten().tolist()
        [0, 2]
    """
    if len(places) == len(images):
        return images
    # torch takes rows of two dimensions much faster than parts of four
    return images.reshape(len(images), -1).index_select(0, places.to(images.device)).view(-1, *images.shape[1:])


def where_changed(
    images: Tensor,
    changed: Tensor,
    change: Callable[[Tensor, Tensor], Tensor],
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Return a copy of ``images`` in which the samples that ``changed`` (N,) names were passed through ``change``.

    Others are exact copies, and cost a copy. On a CPU the samples are changed a few at a time, so that what is computed on the
    way stays in the cache.

    Args:
        images: (N, C, H, W).
        changed: (N,) booleans.
        change: Is given samples and their places, on the CPU, and returns them changed.
        size: Height and width of the result, where it is another one; all samples are changed then.

    Raises:
        DataError: For images of another shape or type.

    Example:
        >>> images = torch.zeros(3, 1, 1, 1)
        >>> changed = where_changed(images, torch.tensor([True, False, True]), lambda part, places: part + 1)
        >>> changed.flatten().tolist()
        [1.0, 0.0, 1.0]
    """
    check_images(images)
    if images.numel() == 0:
        return images.new_zeros(*images.shape[:2], *(size or images.shape[-2:]))
    everything = size is not None or bool(changed.all())
    places = torch.arange(len(images)) if everything else changed.nonzero().flatten()
    if len(places) == 0:
        return images.clone()
    whole = images.contiguous()
    at_once = len(places) if images.device.type != "cpu" else max(1, _CACHED // images[0].numel())
    result = whole.new_empty(len(images), images.shape[1], *(size or images.shape[-2:])) if everything else whole.clone()
    for some in places.split(at_once):
        if everything:
            begin, end = int(some[0]), int(some[-1]) + 1
            result[begin:end] = change(whole[begin:end], some)
        else:
            part = change(chosen(whole, some), some)
            result.flatten(1).index_copy_(0, some.to(images.device), part.flatten(1))
    return like(result, images)
