"""A head whose logits are scaled cosines."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from lightning_cnnopt.core.errors import check_range
from lightning_cnnopt.core.surgery import Edit, replace_modules


class CosineLinear(nn.Linear):
    """A linear layer whose outputs are the cosines between its input and its rows, times ``scale``.

    Args:
        in_features: Size of the input.
        out_features: Number of rows.
        scale: What the cosines are multiplied by.

    Shapes:
        (N, in_features) → (N, out_features)

    Example:
        >>> import torch
        >>> bool(CosineLinear(8, 3, scale=30)(torch.rand(2, 8)).abs().max() <= 30 + 1e-4)
        True
    """

    def __init__(self, in_features: int, out_features: int, scale: float = 30.0) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.scale = scale

    @override
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(self.scale * F.normalize(input, dim=1), F.normalize(self.weight, dim=1))

    @override
    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, scale={self.scale}"


class CosineHead(Edit):
    """Replaces the last linear layer of a network by one whose logits are scaled cosines, as the paper of LDAM has it.

    The weights stay, the bias goes. The last one is the last in the order of ``modules()``; where that is a
    :class:`CosineLinear` already, nothing changes. The layer scales, and not the criterion, so that loss, probabilities and
    calibration all go by the same logits.

    Args:
        scale: What the cosines are multiplied by. 30, the paper's: the softmax of bare cosines is nearly even.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> CosineHead()(network)
        1
        >>> network[2]
        CosineLinear(in_features=8, out_features=3, scale=30.0)
    """

    looks_for: ClassVar[str] = "last linear layer"

    def __init__(self, scale: float = 30.0) -> None:
        check_range("CosineHead", "scale", scale, 0, low_open=True)
        self.scale = scale

    @override
    def apply(self, network: nn.Module) -> int:
        linear = [module for module in network.modules() if type(module) in (nn.Linear, CosineLinear)]
        if not linear or isinstance(linear[-1], CosineLinear):
            return 0
        return replace_modules(network, lambda module: module is linear[-1], self._cosine)

    def _cosine(self, layer: nn.Module) -> nn.Module:
        assert isinstance(layer, nn.Linear)
        head = CosineLinear(layer.in_features, layer.out_features, self.scale)
        head.weight = layer.weight
        return head
