"""What every batched function keeps of its input: type, layout in memory, and the range of its levels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_cnnopt.core.errors import DataError

_CACHED = 2**20
"""Levels that are computed with at once on a CPU: four megabytes of floats, a part of a last-level cache."""


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


def crossed(rows: Tensor, columns: Tensor) -> Tensor:
    """Return (N, 1, height, width), true where the row and the column of a pixel are: (N, height) and (N, width) booleans.

    Example:
        >>> crossed(torch.tensor([[True, False]]), torch.tensor([[False, True, True]])).int().tolist()
        [[[[0, 1, 1], [0, 0, 0]]]]
    """
    count, height = rows.shape
    width = columns.shape[1]
    # each row is one of the columns' or empty: copying it whole takes less time than a product of every pixel
    lines = torch.cat([columns.view(torch.uint8), columns.new_zeros(1, width, dtype=torch.uint8)])
    index = torch.where(rows, torch.arange(count, device=rows.device)[:, None], count)
    return lines.index_select(0, index.flatten()).view(torch.bool).view(count, 1, height, width)


def at_once(images: Tensor) -> int:
    """Return how many of the images are best computed with at once: on a CPU as many as stay in the cache.

    Example:
        >>> at_once(torch.zeros(1000, 3, 32, 32))
        341
    """
    return max(1, len(images) if images.device.type != "cpu" else _CACHED // images[0].numel())


def replaced(images: Tensor, places: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """Return a copy of ``images`` in which the samples at ``places`` (n,) are those of ``parts``, which are n together.

    Example:
        >>> one = torch.ones(1, 1, 1, 1)
        >>> replaced(torch.zeros(3, 1, 1, 1), torch.tensor([2, 0]), [one, 5 * one]).flatten()
        tensor([5., 0., 1.])
    """
    index = torch.arange(len(images))
    index[places] = torch.arange(len(places)) + len(images)
    # torch puts rows together and takes them from there faster than it writes them to their places
    rows = torch.cat([part.flatten(1) for part in (images, *parts)])
    return rows.index_select(0, index.to(images.device)).view(images.shape)


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
    if not everything:
        parts = [change(chosen(whole, some), some) for some in places.split(at_once(whole))]
        return like(replaced(whole, places, parts), images)
    result = whole.new_empty(len(images), images.shape[1], *(size or images.shape[-2:]))
    for some in places.split(at_once(whole)):
        begin, end = int(some[0]), int(some[-1]) + 1
        result[begin:end] = change(whole[begin:end], some)
    return like(result, images)
