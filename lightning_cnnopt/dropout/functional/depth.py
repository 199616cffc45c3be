"""Dropping whole branches, in any network."""

from __future__ import annotations

import torchvision
from torch import nn

from lightning_cnnopt.core.graph import NetworkGraph
from lightning_cnnopt.core.surgery import insert_after


def drop_rates(p: float, branches: int) -> list[float]:
    """Return the rate of each branch: p · l / L for l = 1 … L, linear in depth, the last one p.

    Example:
        >>> drop_rates(0.2, 4)
        [0.05, 0.1, 0.15000000000000002, 0.2]
    """
    return [p * (index + 1) / branches for index in range(branches)]


def add_stochastic_depth(network: nn.Module, p: float) -> int:
    """Drop each residual branch of a network with a rate that grows linearly with depth, per sample.

    A branch that is kept is divided by its probability of being kept, so that the expected output in training is the output
    in evaluation. Branches that have stochastic depth already (torchvision's, timm's) get the new rate in place of a second
    layer.

    Args:
        network: Changed in place.
        p: Rate of the last branch.

    Returns:
        How many branches there are.

    Reference:
        Huang et al., "Deep Networks with Stochastic Depth", 2016.

    Example:
        >>> add_stochastic_depth(torchvision.models.resnet18(), 0.2)
        8
    """
    branches = NetworkGraph(network).residual_branches()
    modules = dict(network.named_modules())
    for branch, rate in zip(branches, drop_rates(p, len(branches)), strict=True):
        end = modules[branch.end]
        end = end._modules.get("stochastic_depth") or end
        if isinstance(end, torchvision.ops.StochasticDepth):
            end.p, end.mode = rate, "row"
        elif type(end).__name__ == "DropPath" and hasattr(end, "drop_prob"):
            end.drop_prob = rate
        else:
            insert_after(network, branch.end, "stochastic_depth", torchvision.ops.StochasticDepth(rate, "row"))
    return len(branches)
