"""A head whose logits are cosines."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from lightning_cnnopt.core.surgery import Edit, replace_modules


class CosineLinear(nn.Linear):
    """A linear layer whose outputs are the cosines between its input and its rows, from -1 to 1.

    Shapes:
        (N, in_features) → (N, out_features)

    Example:
        >>> import torch
        >>> bool(CosineLinear(8, 3)(torch.rand(2, 8)).abs().max() <= 1 + 1e-6)
        True
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    @override
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(F.normalize(input, dim=1), F.normalize(self.weight, dim=1))


class CosineHead(Edit):
    """Replaces the last linear layer of a network by one whose logits are cosines, as :class:`LDAM` wants them.

    The weights stay, the bias goes. The last one is the last in the order of ``modules()``.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> CosineHead()(network)
        1
        >>> network[2]
        CosineLinear(in_features=8, out_features=3, bias=False)
    """

    looks_for: ClassVar[str] = "linear layers"

    @override
    def apply(self, network: nn.Module) -> int:
        linear = [module for module in network.modules() if type(module) is nn.Linear]
        return replace_modules(network, lambda module: module is linear[-1], _cosine) if linear else 0


def _cosine(layer: nn.Module) -> nn.Module:
    assert isinstance(layer, nn.Linear)
    head = CosineLinear(layer.in_features, layer.out_features)
    head.weight = layer.weight
    return head
