"""The plain stack of convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn

from lightning_cnnopt.architecture.functional import round_channels
from lightning_cnnopt.architecture.networks.blocks import (
    BLOCKS,
    ORDERS,
    Block,
    Order,
    Unit,
    conv_block,
    image_pooling,
    window_pooling,
)
from lightning_cnnopt.core.errors import ConfigurationError, check_choice, check_range
from lightning_cnnopt.core.layers import NormalizationFactory


class ConvNet(nn.Module):
    """A plain stack: stages of convolutions with pooling between them, then a dense head.

    A stage is ``depth`` blocks of [convolution, activation, normalization in the given ``order``], then pooling that halves
    the image. The head flattens (or pools over the whole image), applies the ``dense`` layers in the same order with dropout
    behind each, and ends in one logit per class.

    The defaults are the reference network of this project: 2×[conv 3×3, 32 → ReLU → BatchNorm] → max-pool 2 → dense 128 →
    ReLU → BatchNorm → dropout 0.5 → dense, on 28×28×1.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of an image.
        image_size: Height and width; the dense head depends on it.
        widths: Filters of each stage.
        depth: Blocks in a stage; one number for all, or one per stage.
        width_factor: Multiplies the ``widths``, which are then rounded to multiples of 8.
        depth_factor: Multiplies the ``depth``, rounded up.
        kernel_size: Odd side of the square kernels.
        padding: ``"same"`` keeps the image's size, ``"valid"`` pads nothing.
        block: ``"plain"``, or a cheaper kind: ``"depthwise"`` or ``"bottleneck"``; see
            :func:`~lightning_cnnopt.architecture.networks.blocks.conv_block`. The first block is plain in any case, as in
            MobileNet: an image has too few channels for the others.
        pooling: ``"max"``, ``"average"`` or ``"gem"`` (generalized mean) over 2×2, or ``"strided"``: the stage's last
            block strides by 2.
        dense: Widths of the dense layers between the convolutions and the logits; may be empty.
        global_pooling: Pool each channel over the image in place of flattening it: ``"average"`` (or true), ``"max"`` or
            ``"gem"``.
        order: Order within a block. The reference has the activation before the normalization; the text of the article
            behind it puts the normalization in front.
        activation: Makes an activation layer.
        normalization: Makes a 2d normalization from a number of channels; ``None`` for none.
        dense_normalization: The same for dense layers.
        dropout: Probability of dropping behind each dense layer; before the logits where there is none.

    Shapes:
        (N, in_channels, H, W) → (N, num_classes)

    Raises:
        ConfigurationError: If an argument is out of range or the stages leave nothing of the image.

    Example:
        >>> import torch
        >>> ConvNet()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
        >>> sum(p.numel() for p in ConvNet(10, 3, (32, 32), widths=(16, 32), global_pooling=True, dense=()).parameters())
        17178
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: tuple[int, int] = (28, 28),
        widths: Sequence[int] = (32,),
        depth: int | Sequence[int] = 2,
        width_factor: float = 1.0,
        depth_factor: float = 1.0,
        kernel_size: int = 3,
        padding: Literal["same", "valid"] = "same",
        block: Block = "plain",
        pooling: Literal["max", "average", "strided", "gem"] = "max",
        dense: Sequence[int] = (128,),
        global_pooling: bool | Literal["average", "max", "gem"] = False,
        order: Order = "conv-act-norm",
        activation: Callable[[], nn.Module] = nn.ReLU,
        normalization: NormalizationFactory | None = nn.BatchNorm2d,
        dense_normalization: NormalizationFactory | None = nn.BatchNorm1d,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_choice("ConvNet", "padding", padding, ("same", "valid"))
        check_choice("ConvNet", "block", block, BLOCKS)
        check_choice("ConvNet", "pooling", pooling, ("max", "average", "strided", "gem"))
        check_choice("ConvNet", "order", order, ORDERS)
        if not isinstance(global_pooling, bool):
            check_choice("ConvNet", "global_pooling", global_pooling, ("average", "max", "gem"))
        check_range("ConvNet", "dropout", dropout, 0, 1, high_open=True)
        depths = [depth] * len(widths) if isinstance(depth, int) else list(depth)
        for name, values in (
            *(("num_classes", [num_classes]), ("in_channels", [in_channels]), ("image_size", image_size)),
            *(("widths", widths), ("depth", depths), ("dense", dense), ("kernel_size", [kernel_size])),
        ):
            for value in values:
                check_range("ConvNet", name, value, 1)
        for name, factor in (("width_factor", width_factor), ("depth_factor", depth_factor)):
            check_range("ConvNet", name, factor, 0, low_open=True)
        if not widths or kernel_size % 2 == 0:
            raise ConfigurationError(
                f"ConvNet: needs at least one width and an odd kernel_size; got {widths=}, {kernel_size=}."
            )
        if len(depths) != len(widths):
            raise ConfigurationError(f"ConvNet: depth={depths} has {len(depths)} numbers for {len(widths)} widths.")
        if width_factor != 1:
            widths = [round_channels(width * width_factor) for width in widths]
        depths = [math.ceil(blocks * depth_factor) for blocks in depths]
        unit = Unit(order, activation, normalization)
        dense_unit = Unit(order, activation, dense_normalization)
        pad = kernel_size // 2 if padding == "same" else 0

        self.stages = nn.Sequential()
        channels, (height, width) = in_channels, image_size
        for filters, blocks in zip(widths, depths, strict=True):
            stage = nn.Sequential()
            for index in range(blocks):
                stride = 2 if pooling == "strided" and index == blocks - 1 else 1
                is_first = not self.stages and index == 0
                kind = "plain" if is_first else block
                stage.append(conv_block(kind, unit, channels, filters, kernel_size, stride, pad))
                height, width = ((side + 2 * pad - kernel_size) // stride + 1 for side in (height, width))
                channels = filters
            if pooling != "strided":
                stage.append(window_pooling(pooling))
                height, width = height // 2, width // 2
            if min(height, width) < 1:
                raise ConfigurationError(
                    f"ConvNet: images of {image_size[0]}x{image_size[1]} are too small for widths={list(widths)}, "
                    f"depth={depth}, kernel_size={kernel_size}, padding={padding!r}: nothing is left after stage "
                    f"{len(self.stages) + 1}. Use fewer stages, or padding='same'."
                )
            self.stages.append(stage)
        over_image = "average" if global_pooling is True else global_pooling
        self.pool = image_pooling(over_image) if over_image else nn.Identity()
        features = channels if over_image else channels * height * width
        self.head = nn.Sequential()
        for units in dense:
            layer = dense_unit(nn.Linear(features, units), features, units, "dense")
            layer.add_module("dropout", nn.Dropout(dropout))
            self.head.append(layer)
            features = units
        if not dense and dropout > 0:
            self.head.append(nn.Dropout(dropout))
        self.classifier = nn.Linear(features, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of float images (N, C, H, W)."""
        return self.classifier(self.head(self.pool(self.stages(images)).flatten(1)))
