"""Networks of our own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, TypeAlias

from torch import Tensor, nn

from lightning_cnnopt.core.errors import ConfigurationError, check_choice, check_range
from lightning_cnnopt.core.layers import NormalizationFactory, make_normalization
from lightning_cnnopt.core.spec import factory_of


class _Network(Protocol):
    """Makes a network from what the data says: a class, a ``functools.partial`` of one, or a function.

    Of the three arguments it is given those that it takes, by name.
    """

    def __call__(self, *, num_classes: int, in_channels: int, image_size: tuple[int, int]) -> nn.Module:
        """Return the network."""


NetworkFactory: TypeAlias = _Network | Callable[..., nn.Module]
"""The first form tells the command line which arguments are filled in, by name; the second, type checkers what is accepted."""


class ConvNet(nn.Module):
    """A plain stack: stages of convolutions with pooling between them, then a dense head.

    A stage is ``depth`` times [convolution, activation, normalization in the given ``order``], then pooling that halves the
    image. The head flattens (or averages), applies the ``dense`` layers in the same order with dropout behind each, and ends
    in one logit per class.

    The defaults are the reference network of this project: 2×[conv 3×3, 32 → ReLU → BatchNorm] → max-pool 2 → dense 128 →
    ReLU → BatchNorm → dropout 0.5 → dense, on 28×28×1.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of an image.
        image_size: Height and width; the dense head depends on it.
        widths: Filters of each stage.
        depth: Convolutions in a stage.
        kernel_size: Odd side of the square kernels.
        padding: ``"same"`` keeps the image's size, ``"valid"`` pads nothing.
        pooling: ``"max"`` or ``"average"`` over 2×2, or ``"strided"``: the stage's last convolution strides by 2.
        dense: Widths of the dense layers between the convolutions and the logits; may be empty.
        global_pooling: Average each channel over the image in place of flattening it.
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
        depth: int = 2,
        kernel_size: int = 3,
        padding: Literal["same", "valid"] = "same",
        pooling: Literal["max", "average", "strided"] = "max",
        dense: Sequence[int] = (128,),
        global_pooling: bool = False,
        order: Literal["conv-act-norm", "conv-norm-act", "norm-act-conv"] = "conv-act-norm",
        activation: Callable[[], nn.Module] = nn.ReLU,
        normalization: NormalizationFactory | None = nn.BatchNorm2d,
        dense_normalization: NormalizationFactory | None = nn.BatchNorm1d,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        check_choice("ConvNet", "padding", padding, ("same", "valid"))
        check_choice("ConvNet", "pooling", pooling, ("max", "average", "strided"))
        check_choice("ConvNet", "order", order, ("conv-act-norm", "conv-norm-act", "norm-act-conv"))
        check_range("ConvNet", "dropout", dropout, 0, 1, high_open=True)
        check_range("ConvNet", "depth", depth, 1)
        for name, values in (("widths", widths), ("dense", dense), ("kernel_size", [kernel_size])):
            for value in values:
                check_range("ConvNet", name, value, 1)
        if not widths or kernel_size % 2 == 0:
            raise ConfigurationError(
                f"ConvNet: needs at least one width and an odd kernel_size; got {widths=}, {kernel_size=}."
            )
        make_activation = factory_of(activation, nn.Module)

        def block(layer: nn.Module, width_in: int, width: int, norm: NormalizationFactory | None) -> nn.Sequential:
            parts = {"conv": lambda: layer, "act": make_activation}
            if norm is not None:
                parts["norm"] = lambda: make_normalization(norm, width_in if order == "norm-act-conv" else width)
            names = ["dense" if part == "conv" and isinstance(layer, nn.Linear) else part for part in order.split("-")]
            made = [(name, parts["conv" if name == "dense" else name]()) for name in names if name != "norm" or norm]
            stack = nn.Sequential()
            for name, module in made:
                stack.add_module(name, module)
            return stack

        self.stages = nn.Sequential()
        channels, (height, width) = in_channels, image_size
        for filters in widths:
            stage = nn.Sequential()
            for index in range(depth):
                stride = 2 if pooling == "strided" and index == depth - 1 else 1
                convolution = nn.Conv2d(
                    channels, filters, kernel_size, stride, padding=kernel_size // 2 if padding == "same" else 0
                )
                stage.append(block(convolution, channels, filters, normalization))
                height, width = (_after(side, kernel_size, stride, padding) for side in (height, width))
                channels = filters
            if pooling != "strided":
                stage.append(nn.MaxPool2d(2) if pooling == "max" else nn.AvgPool2d(2))
                height, width = height // 2, width // 2
            if min(height, width) < 1:
                raise ConfigurationError(
                    f"ConvNet: images of {image_size[0]}x{image_size[1]} are too small for widths={list(widths)}, "
                    f"depth={depth}, "
                    f"kernel_size={kernel_size}, padding={padding!r}: nothing is left after stage {len(self.stages) + 1}. Use "
                    "fewer stages, or padding='same'."
                )
            self.stages.append(stage)
        self.pool = nn.AdaptiveAvgPool2d(1) if global_pooling else nn.Identity()
        features = channels if global_pooling else channels * height * width
        self.head = nn.Sequential()
        for units in dense:
            stage = block(nn.Linear(features, units), features, units, dense_normalization)
            stage.add_module("dropout", nn.Dropout(dropout))
            self.head.append(stage)
            features = units
        if not dense and dropout > 0:
            self.head.append(nn.Dropout(dropout))
        self.classifier = nn.Linear(features, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of float images (N, C, H, W)."""
        return self.classifier(self.head(self.pool(self.stages(images)).flatten(1)))


def _after(side: int, kernel_size: int, stride: int, padding: str) -> int:
    return (side + (2 * (kernel_size // 2) if padding == "same" else 0) - kernel_size) // stride + 1
