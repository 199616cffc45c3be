"""What our networks are built of: units of a layer with its normalization and activation, and blocks of units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from torch import nn

from lightning_cnnopt.architecture.layers import GeneralizedMeanPool2d
from lightning_cnnopt.core.layers import NormalizationFactory, make_normalization
from lightning_cnnopt.core.spec import factory_of

Order: TypeAlias = Literal["conv-act-norm", "conv-norm-act", "norm-act-conv", "norm-conv-act", "act-conv-norm", "act-norm-conv"]
ORDERS = ("conv-act-norm", "conv-norm-act", "norm-act-conv", "norm-conv-act", "act-conv-norm", "act-norm-conv")
"""The order of layer, normalization and activation within a unit."""

Block: TypeAlias = Literal["plain", "depthwise", "bottleneck"]
BLOCKS = ("plain", "depthwise", "bottleneck")
"""Kinds of blocks; see :func:`conv_block`."""


@dataclass(frozen=True)
class Unit:
    """Makes units of a layer with its normalization and activation, in a given order.

    Args:
        order: One of :data:`ORDERS`.
        activation: Makes the activation; ``None`` for none.
        normalization: Makes the normalization from a number of channels; ``None`` for none.
    """

    order: str
    activation: Callable[[], nn.Module] | None
    normalization: NormalizationFactory | None

    def __call__(self, layer: nn.Module, channels_in: int, channels: int, name: str = "conv") -> nn.Sequential:
        """Return the unit of ``layer``, which stands in it under ``name``."""
        unit = nn.Sequential()
        seen = channels_in
        for part in self.order.split("-"):
            if part == "conv":
                unit.add_module(name, layer)
                seen = channels
            elif part == "act" and self.activation is not None:
                unit.add_module("act", factory_of(self.activation, nn.Module)())
            elif part == "norm" and self.normalization is not None:
                unit.add_module("norm", make_normalization(self.normalization, seen))
        return unit


def conv_block(
    kind: str, unit: Unit, channels_in: int, channels: int, kernel_size: int, stride: int = 1, padding: int | None = None
) -> nn.Sequential:
    """Return a block of convolutions.

    - ``plain``: one k×k convolution; k² · C_in · C weights.
    - ``depthwise``: a k×k convolution of each channel by itself, then a 1×1 one across channels; (k² + C) · C_in weights
      (MobileNet).
    - ``bottleneck``: 1×1 to a quarter of the channels, k×k there, 1×1 back; (C_in + k² · C/4 + C) · C/4 weights (ResNet-50).

    Each convolution is a unit of its own, with normalization and activation.

    Args:
        kind: One of :data:`BLOCKS`.
        unit: Makes the units.
        channels_in: Channels that come in.
        channels: Channels that go out.
        kernel_size: k, odd.
        stride: Of the k×k convolution.
        padding: Of the k×k convolution; by default what keeps the size.

    Reference:
        Howard et al., "MobileNets", 2017; He et al., "Deep Residual Learning for Image Recognition", 2016.

    Example:
        >>> unit = Unit("conv-norm-act", nn.ReLU, nn.BatchNorm2d)
        >>> block = conv_block("depthwise", unit, 8, 16, 3)
        >>> [tuple(layer.weight.shape) for layer in block.modules() if isinstance(layer, nn.Conv2d)]
        [(8, 1, 3, 3), (16, 8, 1, 1)]
    """
    spatial: dict[str, Any] = {
        "kernel_size": kernel_size,
        "stride": stride,
        "padding": kernel_size // 2 if padding is None else padding,
    }
    if kind == "plain":
        return unit(nn.Conv2d(channels_in, channels, **spatial), channels_in, channels)
    block = nn.Sequential()
    if kind == "depthwise":
        depthwise = nn.Conv2d(channels_in, channels_in, groups=channels_in, **spatial)
        block.add_module("depthwise", unit(depthwise, channels_in, channels_in))
        block.add_module("pointwise", unit(nn.Conv2d(channels_in, channels, 1), channels_in, channels))
        return block
    narrow = max(1, channels // 4)
    block.add_module("reduce", unit(nn.Conv2d(channels_in, narrow, 1), channels_in, narrow))
    block.add_module("spatial", unit(nn.Conv2d(narrow, narrow, **spatial), narrow, narrow))
    block.add_module("expand", unit(nn.Conv2d(narrow, channels, 1), narrow, channels))
    return block


def window_pooling(kind: str) -> nn.Module:
    """Return pooling over 2×2: ``"max"``, ``"average"`` or ``"gem"``."""
    return {"max": nn.MaxPool2d, "average": nn.AvgPool2d, "gem": GeneralizedMeanPool2d}[kind](2)


def image_pooling(kind: str) -> nn.Module:
    """Return pooling over the whole image: ``"max"``, ``"average"`` or ``"gem"``."""
    if kind == "gem":
        return GeneralizedMeanPool2d()
    return nn.AdaptiveMaxPool2d(1) if kind == "max" else nn.AdaptiveAvgPool2d(1)
