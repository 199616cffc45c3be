"""Standardizing the weights of convolutions, in any network."""

from __future__ import annotations

from torch import nn

from lightning_cnnopt.core.graph import NetworkGraph
from lightning_cnnopt.normalization.layers import StandardizedConv2d


def standardize_weights(network: nn.Module, eps: float = 1e-6) -> int:
    """Let the convolutions of a network standardize their weights, in place; see :func:`standardize_weight`.

    The scale of a filter is lost, so only convolutions that a normalization follows are changed: one behind an activation,
    pooling or the addition to a shortcut counts, one behind another layer with weights does not. Convolutions with one weight
    per filter (1×1 depthwise), which would be zero, are left alone, and so are subclasses with a computation of their own.
    The trained parameters and their names stay.

    Args:
        network: Changed in place.
        eps: Added to the variance of a filter.

    Returns:
        How many convolutions were changed.

    Example:
        >>> import torchvision
        >>> standardize_weights(torchvision.models.resnet18())
        20
    """
    graph = NetworkGraph(network)
    count = 0
    for name, module in network.named_modules():
        if type(module) is nn.Conv2d and module.weight[0].numel() > 1 and graph.is_normalized(name):
            # the class alone changes: parameters, hooks and what was inserted stay with the object
            module.__class__ = StandardizedConv2d
            module.eps = eps  # type: ignore[assignment]
            count += 1
    return count
