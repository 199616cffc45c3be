"""Kinds of dropout that change a network's structure."""

from __future__ import annotations

from torch import nn

from lightning_cnnopt.core.errors import check_range
from lightning_cnnopt.core.surgery import Edit
from lightning_cnnopt.dropout.functional import add_stochastic_depth


class StochasticDepth(Edit):
    """Drops residual branches, each with a rate that grows linearly with depth; see :func:`add_stochastic_depth`.

    Args:
        p: Probability of dropping the last branch; branch l of L is dropped with p · l / L. 0.1; the paper's 0.5 is for
            networks of a hundred layers.

    Example:
        >>> import torchvision
        >>> StochasticDepth(0.2)(torchvision.models.resnet18())
        8
    """

    looks_for = "residual branches"

    def __init__(self, p: float = 0.1) -> None:
        check_range("StochasticDepth", "p", p, 0, 1, high_open=True)
        self.p = p

    def apply(self, network: nn.Module) -> int:
        """Add the layers and return how many branches there are."""
        return add_stochastic_depth(network, self.p)
