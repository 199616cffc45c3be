"""Penalties and projections, as functions on tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor


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


def _total(terms: Iterable[Tensor]) -> Tensor:
    listed = list(terms)
    return torch.stack(listed).sum() if listed else torch.zeros(())
