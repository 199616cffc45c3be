"""Activation layers that torch lacks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_cnnopt.core.errors import check_range


class ReLUSquared(nn.Module):
    """max(0, x)², the squared ReLU.

    Its gain is √(2/3): the mean of max(0, z)⁴ is 3/2 for z standard normal.

    Shapes:
        any → the same

    Reference:
        So et al., "Primer: Searching for Efficient Transformers for Language Modeling", 2021.

    Example:
        >>> ReLUSquared()(torch.tensor([-1.0, 3.0]))
        tensor([0., 9.])
    """

    gain = math.sqrt(2 / 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the squares of the positive part."""
        return F.relu(x).square()


class ReLUStar(nn.Module):
    """s · max(0, x)² + b with learned scalars s and b, the StarReLU.

    With the defaults, a standard normal input gives an output of mean 0 and variance 1. The name is the other way around
    since timm has a class of the paper's name.

    Args:
        scale: s at the start, above 0: 2/√5 = 0.8944, as in the paper.
        bias: b at the start: −1/√5 = −0.4472, as in the paper.
        learnable: Whether s and b are trained.

    Shapes:
        any → the same

    Reference:
        Yu et al., "MetaFormer Baselines for Vision", 2022.

    Example:
        >>> ReLUStar(scale=1.0, bias=-0.5)(torch.tensor([-1.0, 3.0])).tolist()
        [-0.5, 8.5]
    """

    scale: Tensor
    bias: Tensor

    def __init__(self, scale: float = 2 / math.sqrt(5), bias: float = -1 / math.sqrt(5), learnable: bool = True) -> None:
        check_range("ReLUStar", "scale", scale, 0, low_open=True)
        check_range("ReLUStar", "bias", bias)
        super().__init__()
        self.learnable = learnable
        for name, value in (("scale", scale), ("bias", bias)):
            if learnable:
                self.register_parameter(name, nn.Parameter(torch.tensor(float(value))))
            else:
                self.register_buffer(name, torch.tensor(float(value)), persistent=False)

    @property
    def gain(self) -> float:
        """What weights before it are multiplied by: 1/√E[f(z)²] = 1/√(3/2 s² + s b + b²), now."""
        scale, bias = float(self.scale.detach()), float(self.bias.detach())
        return (1.5 * scale**2 + scale * bias + bias**2) ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled and shifted squares of the positive part."""
        return self.scale * F.relu(x).square() + self.bias

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return "" if self.learnable else f"scale={float(self.scale):g}, bias={float(self.bias):g}, learnable=False"
