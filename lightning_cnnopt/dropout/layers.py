"""Layers that drop something, and that torch and torchvision lack."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import drop_block2d

from lightning_cnnopt.core.errors import ConfigurationError, check_range


class FittingDropBlock2d(torchvision.ops.DropBlock2d):
    """torchvision's DropBlock for maps of any size and any precision.

    A map smaller than the block gets the largest odd block that fits; torchvision's refuses an even one, in the middle of
    training. And the share that is kept is measured in single precision: in half precision its sum overflows.

    Args:
        p: Probability of dropping an element, of which it is the upper bound: blocks overlap.
        block_size: Odd side of a block, in elements of the map.

    Shapes:
        (N, C, H, W) → (N, C, H, W)

    Example:
        >>> layer = FittingDropBlock2d(0.5, block_size=7)
        >>> layer(torch.ones(1, 1, 4, 4)).shape
        torch.Size([1, 1, 4, 4])
    """

    def __init__(self, p: float, block_size: int = 7) -> None:
        check_range("FittingDropBlock2d", "p", p, 0, 1, high_open=True)
        check_block_size("FittingDropBlock2d", block_size)
        super().__init__(p, block_size)

    def forward(self, input: Tensor) -> Tensor:
        """Drop blocks in training; return the input in evaluation."""
        if not self.training or self.p == 0:
            return input
        side = min(self.block_size, *input.shape[-2:])
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        return drop_block2d(values, self.p, side - (side + 1) % 2, eps=self.eps).to(input.dtype)


class DropConnectLinear(nn.Linear):
    """A dense layer that drops weights in training, a new choice in every pass; see :func:`add_drop_connect`.

    :class:`DropConnect` makes such layers of those of a network. State and names are those of ``nn.Linear``.

    Args:
        in_features: Features of the input.
        out_features: Features of the output.
        bias: Whether there is one. It is not dropped.
        p: Probability of dropping a weight.

    Example:
        >>> layer = DropConnectLinear(4, 2, p=0.5).eval()
        >>> layer(torch.zeros(3, 4)).shape
        torch.Size([3, 2])
    """

    p: float

    def __init__(self, in_features: int, out_features: int, bias: bool = True, p: float = 0.5) -> None:
        check_range("DropConnectLinear", "p", p, 0, 1, high_open=True)
        super().__init__(in_features, out_features, bias)
        self.p = p

    def forward(self, input: Tensor) -> Tensor:
        """Multiply by the weights that are left, divided by 1 − p; by all of them in evaluation."""
        return F.linear(input, F.dropout(self.weight, self.p, self.training), self.bias)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{super().extra_repr()}, p={self.p}"


class DropConnectConv2d(nn.Conv2d):
    """A convolution that drops weights in training, a new choice in every pass; see :func:`add_drop_connect`.

    Args:
        in_channels: Channels of the input.
        out_channels: Filters.
        kernel_size: Side of the kernels, or both sides.
        stride: Step of the kernel.
        padding: Rows and columns around the image, or ``"same"`` or ``"valid"``.
        dilation: Distance between the kernel's pixels.
        groups: Groups of channels that are convolved apart.
        bias: Whether there is one. It is not dropped.
        p: Probability of dropping a weight.

    Example:
        >>> DropConnectConv2d(1, 2, 3, p=0.2)(torch.zeros(1, 1, 4, 4)).shape
        torch.Size([1, 2, 2, 2])
    """

    p: float

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        p: float = 0.5,
    ) -> None:
        check_range("DropConnectConv2d", "p", p, 0, 1, high_open=True)
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.p = p

    def forward(self, input: Tensor) -> Tensor:
        """Convolve by the weights that are left, divided by 1 − p; by all of them in evaluation."""
        return self._conv_forward(input, F.dropout(self.weight, self.p, self.training), self.bias)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"{super().extra_repr()}, p={self.p}"


def check_block_size(owner: str, block_size: int) -> None:
    """Raise unless ``block_size`` is odd and positive.

    Raises:
        ConfigurationError: Naming it.
    """
    check_range(owner, "block_size", block_size, 1)
    if block_size % 2 == 0:
        raise ConfigurationError(f"{owner}: block_size={block_size} is even; a block has a middle, so give an odd number.")
