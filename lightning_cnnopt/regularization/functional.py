"""Penalties and projections, as functions on tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_cnnopt.core.parameters import split_off


def l1(weights: Iterable[Tensor]) -> Tensor:
    """Return Σ|w|; its gradient is sign(w), with 0 at 0.

    Example:
        >>> l1([torch.tensor([1.0, -2.0])])
        tensor(3.)
    """
    return _total(weight.abs().sum() for weight in weights)


def l2(weights: Iterable[Tensor]) -> Tensor:
    """Return ½ Σw²; its gradient is w.

    Example:
        >>> l2([torch.tensor([1.0, -2.0])])
        tensor(2.5000)
    """
    return _total(weight.square().sum() / 2 for weight in weights)


def group_lasso(weights: Iterable[Tensor]) -> Tensor:
    """Return Σ √p ‖w‖₂ over output units, each with its p weights; the gradient is √p w/‖w‖₂, with 0 at 0.

    Args:
        weights: Tensors (out, in, …).

    Example:
        >>> group_lasso([torch.tensor([[3.0, 4.0], [0.0, 0.0]])])
        tensor(7.0711)
    """
    return _total(_norms(weight).sum() * math.sqrt(weight[0].numel()) for weight in weights)


def orthogonality(weights: Iterable[Tensor]) -> Tensor:
    """Return Σ ‖WWᵀ - I‖²_F, which is 0 where the rows of every W are orthonormal.

    Where there are more rows than columns, rows can't be; then it is ‖WᵀW - I‖²_F, which asks the same of the columns. The
    two differ by a constant, so their gradient is the same, 4 (WWᵀ - I) W.

    Args:
        weights: Tensors (groups, rows, columns, …): the filters of a group are the rows of one W.

    Example:
        >>> orthogonality([torch.eye(2, 3).unsqueeze(0), 2 * torch.eye(3, 2).unsqueeze(0)])
        tensor(18.)
    """
    listed = [weight.flatten(2) for weight in weights]
    with torch.autocast(listed[0].device.type if listed else "cpu", enabled=False):
        return _total(_gram_minus_identity(matrix)[0].square().sum() for matrix in listed)


def sparsity(weights: Iterable[Tensor]) -> Tensor:
    """Return the share of weights that are exactly zero.

    Example:
        >>> sparsity([torch.tensor([0.0, 1.0]), torch.tensor([0.0, 2.0])])
        tensor(0.5000)
    """
    listed = list(weights)
    zeros = torch.stack([(weight == 0).sum() for weight in listed]).sum()
    return zeros / sum(weight.numel() for weight in listed)


@torch.no_grad()
def max_norm_(weight: Tensor, limit: float) -> None:
    """Scale every output unit's weights back to a Euclidean norm of ``limit`` where they exceed it.

    Args:
        weight: (out, in, …), changed in place. The norm is over everything but the first dimension.
        limit: Greatest norm allowed.

    Reference:
        Srivastava et al., "Dropout", 2014, section 5.1.

    Example:
        >>> weight = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
        >>> max_norm_(weight, 1.0)
        >>> weight
        tensor([[0.6000, 0.8000], [0.3000, 0.4000]])
    """
    weight.renorm_(p=2, dim=0, maxnorm=limit)


@torch.no_grad()
def unit_norm_(weight: Tensor) -> None:
    """Scale every output unit's weights to a Euclidean norm of 1; a unit of zeros stays as it is.

    Args:
        weight: (out, in, …), changed in place. The norm is over everything but the first dimension.

    Example:
        >>> weight = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
        >>> unit_norm_(weight)
        >>> weight
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    norms = _norms(weight)
    weight.div_(norms.masked_fill_(norms == 0, 1))


@torch.no_grad()
def soft_threshold_(weights: Sequence[Tensor], threshold: float) -> None:
    """Move weights towards zero by ``threshold``, and those that are nearer than that to zero itself.

    sign(w) · max(|w| - threshold, 0): the proximal step of ``threshold`` · Σ|w|.

    Args:
        weights: Changed in place, in a few kernels for all of them.
        threshold: 0 or more.

    Example:
        >>> weight = torch.tensor([-2.0, 0.3, 0.7])
        >>> soft_threshold_([weight], 0.5)
        >>> weight
        tensor([-1.5000,  0.0000,  0.2000])
    """
    for block, *_ in _blocks(weights):
        within = torch._foreach_clamp_max(block, threshold)
        torch._foreach_clamp_min_(within, -threshold)
        torch._foreach_sub_(block, within)


def add_sign_(gradients: Sequence[Tensor], weights: Sequence[Tensor], strength: float) -> None:
    """Add ``strength`` · sign(w) to each gradient, in a few kernels for all of them.

    Example:
        >>> gradient = torch.zeros(3)
        >>> add_sign_([gradient], [torch.tensor([-2.0, 0.0, 0.5])], 0.1)
        >>> gradient
        tensor([-0.1000,  0.0000,  0.1000])
    """
    for targets, sources in _blocks(gradients, weights):
        torch._foreach_add_(targets, torch._foreach_sign(sources), alpha=strength)


def add_scaled_(gradients: Sequence[Tensor], weights: Sequence[Tensor], strength: float) -> None:
    """Add ``strength`` · w to each gradient, in a few kernels for all of them."""
    torch._foreach_add_(list(gradients), list(weights), alpha=strength)


def add_unit_directions_(gradients: Sequence[Tensor], weights: Sequence[Tensor], strength: float) -> None:
    """Add ``strength`` · √p w/‖w‖₂ to the gradient of every output unit, and nothing to a unit of zeros.

    Args:
        gradients: Tensors (out, in, …), changed in place.
        weights: The weights, of the same shapes; p is the number of weights of a unit.
        strength: What the directions are multiplied by.
    """
    for gradient, weight in zip(gradients, weights, strict=True):
        norms = _norms(weight)
        gradient.addcdiv_(weight, norms.masked_fill_(norms == 0, 1), value=strength * math.sqrt(weight[0].numel()))


def add_orthogonality_gradient_(gradients: Sequence[Tensor], weights: Sequence[Tensor], strength: float) -> None:
    """Add ``strength`` · 4 (WWᵀ - I) W to each gradient.

    Args:
        gradients: Tensors (groups, rows, columns, …), changed in place.
        weights: The weights, of the same shapes.
        strength: What the gradient of :func:`orthogonality` is multiplied by.
    """
    for gradient, weight in zip(gradients, weights, strict=True):
        matrix = weight.flatten(2)
        gram, of_rows = _gram_minus_identity(matrix)
        product = gram @ matrix if of_rows else matrix @ gram
        gradient.add_(product.view(weight.shape), alpha=4 * strength)


def add_gradient(charge: Callable[[], Tensor | None], parameters: Sequence[Tensor]) -> Tensor | None:
    """Add the gradient of a charge to that of the loss, which is in ``.grad`` already.

    Called right before an optimizer step, a charge counts once per step, whatever the accumulation, the number of ranks or
    the number of backward passes, and gradients are neither scaled nor in low precision.

    Args:
        charge: Returns what is charged, a scalar; ``None`` or a scalar without gradient for nothing.
        parameters: The parameters of the step.

    Returns:
        The charge, detached.
    """
    with torch.enable_grad():
        value = charge()
        if value is None or not value.requires_grad:
            return None if value is None else value.detach()
        used = [parameter for parameter in parameters if parameter.requires_grad]
        gradients = torch.autograd.grad(value, used, allow_unused=True)
    for parameter, gradient in zip(used, gradients, strict=True):
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
    return value.detach()


def spare_from_decay(optimizer: Optimizer, decayed: Collection[int], weight_decay: float | None = None) -> int:
    """Split every group of ``optimizer`` that holds parameters which are not to be decayed beside some that are.

    Args:
        optimizer: Changed in place, before its first step.
        decayed: The ``id`` of each parameter that is to be decayed.
        weight_decay: Decay of those; by default that of their group.

    Returns:
        How many groups were split.

    Example:
        >>> weight, bias = torch.nn.Linear(2, 2).parameters()
        >>> optimizer = torch.optim.AdamW([weight, bias])
        >>> spare_from_decay(optimizer, {id(weight)}, 0.05)
        1
        >>> [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
        [(1, 0.05), (1, 0.0)]
    """
    splits = 0
    for group in list(optimizer.param_groups):
        kept = [id(parameter) in decayed for parameter in group["params"]]
        if any(kept) and not all(kept):
            rest = split_off(optimizer, group, [not keep for keep in kept], "_not_decayed")
            rest["weight_decay"] = 0.0
            splits += 1
        if not any(kept):
            group["weight_decay"] = 0.0
        elif weight_decay is not None:
            group["weight_decay"] = weight_decay
    return splits


# what is computed beside the weights is freed and used again, block by block, and not as large as the network
_BLOCK = 2**22


def _blocks(*lists: Sequence[Tensor]) -> Iterator[tuple[list[Tensor], ...]]:
    begin, size = 0, 0
    for end, tensor in enumerate(lists[0]):
        if end > begin and size + tensor.numel() > _BLOCK:
            yield tuple(list(tensors[begin:end]) for tensors in lists)
            begin, size = end, 0
        size += tensor.numel()
    if begin < len(lists[0]):
        yield tuple(list(tensors[begin:]) for tensors in lists)


def _norms(weight: Tensor) -> Tensor:
    return torch.linalg.vector_norm(weight, dim=tuple(range(1, weight.ndim)), keepdim=True)


def _gram_minus_identity(matrix: Tensor) -> tuple[Tensor, bool]:
    # the smaller of the two products, and whether it is that of the rows
    of_rows = matrix.shape[1] <= matrix.shape[2]
    gram = matrix @ matrix.mT if of_rows else matrix.mT @ matrix
    gram.diagonal(dim1=1, dim2=2).sub_(1)
    return gram, of_rows


def _total(terms: Iterable[Tensor]) -> Tensor:
    listed = list(terms)
    return torch.stack(listed).sum() if listed else torch.zeros(())
