"""Geometric transforms as one matrix per sample, and the resampling that applies it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_cnnopt.augmentation.functional.layout import chosen, from_levels, like, to_levels, where_changed

Interpolation = Literal["bilinear", "nearest"]
Outside = Literal["zeros", "border", "reflection"]


def warp(
    images: Tensor,
    matrices: Tensor,
    size: tuple[int, int] | None = None,
    interpolation: Interpolation = "bilinear",
    outside: Outside = "zeros",
) -> Tensor:
    """Resample each image by its own matrix: the result at p shows the image at matrix · p.

    Positions are homogeneous (x, y, 1), in pixels, x to the right and y down, counted from the centre of the image. Samples
    whose matrix is the identity are exact copies.

    Args:
        images: (N, C, H, W), uint8 or float.
        matrices: (N, 3, 3).
        size: Height and width of the result; by default those of the images. Where it is another one, as many points are
            averaged for a pixel of the result as it takes in whole pixels of the image: from twice as many pixels on, less
            aliases; below that as much as in plain bilinear sampling.
        interpolation: Between pixels.
        outside: What is outside of an image: 0, its border, or its reflection.

    Returns:
        (N, C, *size), of the type of the images; uint8 is rounded.

    Example:
        >>> left = torch.tensor([[[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
        >>> warp(torch.tensor([[[[1.0, 2.0, 3.0]]]]), left).flatten().tolist()
        [2.0, 3.0, 0.0]
    """
    height, width = images.shape[-2:]
    size = (height, width) if size is None else size
    finer = torch.ones(len(images), dtype=torch.long)
    if size != (height, width):
        steps = matrices[:, :2, :2].norm(dim=1).amin(1)  # pixels of the image from one pixel of the result to the next
        finer = (steps + 1e-4).long().clamp_min(1)

    def resampled(part: Tensor, places: Tensor) -> Tensor:
        levels = to_levels(part)
        points = int(finer[places[0]])
        grid = sampling_grid(matrices[places], (height, width), size, points).to(levels.device, levels.dtype)
        levels = F.grid_sample(levels, grid, mode=interpolation, padding_mode=outside, align_corners=False)
        return from_levels(F.avg_pool2d(levels, points) if points > 1 else levels, part)

    if size == (height, width):
        moved = (matrices != torch.eye(3, dtype=matrices.dtype)).flatten(1).any(1)
        return where_changed(images, moved, resampled)
    if images.numel() == 0 or (finer == finer[0]).all():
        return where_changed(images, torch.ones(len(images), dtype=torch.bool), resampled, size)
    result = images.new_empty(*images.shape[:2], *size)
    for points in finer.unique().tolist():
        places = (finer == points).nonzero().flatten()
        part = warp(chosen(images, places), matrices[places], size, interpolation, outside)
        result.flatten(1).index_copy_(0, places.to(images.device), part.flatten(1))
    return like(result, images)


def sampling_grid(matrices: Tensor, source: tuple[int, int], size: tuple[int, int], finer: int = 1) -> Tensor:
    """Return (N, height, width, 2), where in each image a result is sampled, in units of half the image's sides.

    Args:
        matrices: (N, 3, 3), as :func:`warp` takes them.
        source: Height and width of the images.
        size: Those of the result.
        finer: Points on each side of a pixel of the result.
    """
    # torch's affine_grid does the same for affine matrices by a product of matrices, which takes longer; all x and all y each
    # in a block of memory are what grid_sample reads fastest
    xs, ys = ((torch.arange(n * finer) - (n * finer - 1) / 2) / finer for n in (size[1], size[0]))
    scale = torch.tensor([2 / source[1], 2 / source[0], 1.0]).view(3, 1)
    across, down = matrices[:, :, :1] * xs * scale, (matrices[:, :, 1:2] * ys + matrices[:, :, 2:]) * scale
    grid = down[:, :2, :, None] + across[:, :2, None]  # (N, 2, height, width)
    if not (matrices[:, 2] == torch.tensor([0.0, 0.0, 1.0])).all():
        grid.div_(down[:, 2:, :, None] + across[:, 2:, None])
    return grid.permute(0, 2, 3, 1)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Turn each image counter-clockwise about its centre, bilinear, with 0 outside.

    Equals torchvision's ``rotate`` with bilinear interpolation, sample by sample.

    Args:
        images: (N, C, H, W).
        degrees: (N,) angles.

    Example:
        >>> rotate(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]), torch.tensor([90.0])).round().flatten().tolist()
        [2.0, 4.0, 1.0, 3.0]
    """
    return warp(images, rotation_matrices(degrees))


def affine_matrices(
    degrees: Tensor,
    translation: Tensor | None = None,
    scale: Tensor | None = None,
    shear: Tensor | None = None,
    centre: tuple[float, float] | Tensor = (0.0, 0.0),
) -> Tensor:
    """Return the matrices of torchvision's ``affine``: a turn, a shift, a zoom and a shear about a point, one of each a sample.

    Args:
        degrees: (N,) angles, clockwise as there.
        translation: (N, 2) pixels to the right and down.
        scale: (N,) factors; above 1 things become larger.
        shear: (N, 2) angles in degrees, along x and along y.
        centre: What stays where it is, (x, y) from the centre of the image; (N, 2) for another point in each.

    Returns:
        (N, 3, 3), from positions of the result to those of the image.

    Example:
        >>> affine_matrices(torch.tensor([0.0]), translation=torch.tensor([[2.0, 0.0]]))[0, 0].tolist()
        [1.0, 0.0, -2.0]
    """
    count = len(degrees)
    turn = torch.deg2rad(degrees.float())
    across, along = torch.deg2rad((torch.zeros(count, 2) if shear is None else shear).float()).unbind(1)
    # forwards: a turn of a shear along x and y, as torchvision states it
    slope, shrunk = across.tan(), along.cos()
    a, c = (turn - along).cos() / shrunk, (turn - along).sin() / shrunk
    b, d = -a * slope - turn.sin(), -c * slope + turn.cos()
    zoom = torch.ones(count) if scale is None else scale.float()
    # backwards: the determinant of the forward matrix without zoom is 1
    matrices = torch.zeros(count, 3, 3)
    matrices[:, 0, 0], matrices[:, 0, 1], matrices[:, 1, 0], matrices[:, 1, 1] = d / zoom, -b / zoom, -c / zoom, a / zoom
    matrices[:, 2, 2] = 1
    moved = torch.zeros(count, 2) if translation is None else translation.float()
    point = torch.as_tensor(centre)
    matrices[:, :2, 2] = point - torch.einsum("nij,nj->ni", matrices[:, :2, :2], moved + point)
    return matrices


def rotation_matrices(degrees: Tensor) -> Tensor:
    """Return (N, 3, 3) of turns counter-clockwise about the centre."""
    return affine_matrices(-degrees)


def window_matrices(
    top: Tensor, left: Tensor, height: Tensor, width: Tensor, source: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Return the matrices that fill a result with a window of each image.

    Args:
        top: (N,) first row of the window.
        left: (N,) its first column.
        height: (N,) its rows.
        width: (N,) its columns.
        source: Height and width of the images.
        size: Those of the result.

    Example:
        >>> one = torch.tensor([1.0])
        >>> window_matrices(0 * one, 0 * one, 2 * one, 2 * one, (4, 4), (4, 4))[0, 0].tolist()
        [0.5, 0.0, -1.0]
    """
    matrices = torch.zeros(len(top), 3, 3)
    matrices[:, 0, 0], matrices[:, 1, 1], matrices[:, 2, 2] = width / size[1], height / size[0], 1.0
    matrices[:, 0, 2], matrices[:, 1, 2] = left + width / 2 - source[1] / 2, top + height / 2 - source[0] / 2
    return matrices


def perspective_matrices(start: Tensor, end: Tensor) -> Tensor:
    """Return the matrices that bring four points of each image to four places.

    Args:
        start: (N, 4, 2) points (x, y) of the image, from its centre.
        end: (N, 4, 2) where they come to lie. No three of them are on one line.

    Returns:
        (N, 3, 3), from positions of the result to those of the image.

    Example:
        >>> corners = torch.tensor([[[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]])
        >>> bool(torch.allclose(perspective_matrices(corners, corners)[0], torch.eye(3), atol=1e-6))
        True
    """
    x, y = end.double().unbind(2)
    u, v = start.double().unbind(2)
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    for_u = torch.stack([x, y, one, zero, zero, zero, -u * x, -u * y], 2)
    for_v = torch.stack([zero, zero, zero, x, y, one, -v * x, -v * y], 2)
    solved = torch.linalg.solve(torch.cat([for_u, for_v], 1), torch.cat([u, v], 1))
    return torch.cat([solved, torch.ones(len(x), 1, dtype=solved.dtype)], 1).view(-1, 3, 3).float()
