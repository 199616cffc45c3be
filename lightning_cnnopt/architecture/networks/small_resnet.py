"""Residual networks for small images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_cnnopt.core.errors import ConfigurationError, check_choice, check_range
from lightning_cnnopt.core.layers import NormalizationFactory, make_normalization
from lightning_cnnopt.core.spec import factory_of


class SmallResNet(nn.Module):
    """The residual network for small images: a 3×3 stem, three stages of residual blocks, global average pooling.

    Stage i has (depth − 2) / 6 basic blocks of 2 convolutions, or (depth − 2) / 9 bottleneck blocks of 3, on
    ``width`` · 2ⁱ channels at a half of the former stage's resolution. Normalization stands behind each convolution, the last
    activation behind the addition.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of an image.
        image_size: Height and width, at least 4.
        depth: Number of layers with weights: 6n + 2 for basic blocks (20, 32, 44, 56, 110 in the paper), 9n + 2 for
            bottlenecks.
        width: Channels of the first stage. 16, the paper's; 160 is ten times as wide.
        block: ``"basic"``, or ``"bottleneck"`` with a 1×1 convolution around the 3×3 one, whose outputs are four times as
            wide.
        shortcut: How a shortcut changes shape: ``"padded"`` takes every second pixel and fills the new channels with zeros,
            without weights, as the paper has it for small images; ``"projection"`` is a strided 1×1 convolution with
            normalization.
        activation: Makes an activation layer.
        normalization: Makes a normalization from a number of channels; ``None`` for none, and then convolutions have biases.

    Shapes:
        (N, in_channels, H, W) → (N, num_classes)

    Raises:
        ConfigurationError: If an argument is out of range, the depth is none of the form, or the images are too small.

    Reference:
        He, Zhang, Ren & Sun, "Deep Residual Learning for Image Recognition", 2016, section 4.2.

    Example:
        >>> network = SmallResNet(10, 3, depth=20)
        >>> sum(p.numel() for p in network.parameters())
        269722
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: tuple[int, int] = (32, 32),
        depth: int = 20,
        width: int = 16,
        block: Literal["basic", "bottleneck"] = "basic",
        shortcut: Literal["padded", "projection"] = "padded",
        activation: Callable[[], nn.Module] = nn.ReLU,
        normalization: NormalizationFactory | None = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        check_choice("SmallResNet", "block", block, ("basic", "bottleneck"))
        check_choice("SmallResNet", "shortcut", shortcut, ("padded", "projection"))
        for name, value in (("num_classes", num_classes), ("in_channels", in_channels), ("depth", depth), ("width", width)):
            check_range("SmallResNet", name, value, 1)
        step = 6 if block == "basic" else 9
        if depth < step + 2 or (depth - 2) % step:
            below = max(1, (depth - 2) // step)
            raise ConfigurationError(
                f"SmallResNet: depth={depth} is not of the form {step}n + 2 that {block} blocks have; the nearest are "
                f"{below * step + 2} and {(below + 1) * step + 2}."
            )
        if min(image_size) < 4:
            raise ConfigurationError(
                f"SmallResNet: images of {image_size[0]}x{image_size[1]} are too small: its stages halve them twice, so "
                "they need 4 pixels a side. Use a ConvNet with one stage."
            )
        blocks = (depth - 2) // step
        convolutions = _Convolutions(activation, normalization)
        self.stem = nn.Sequential()
        convolutions.add(self.stem, "", in_channels, width, 3)
        self.stages = nn.Sequential()
        channels = width
        for stage in range(3):
            made = nn.Sequential()
            for index in range(blocks):
                narrow = width * 2**stage
                wide = narrow if block == "basic" else 4 * narrow
                stride = 2 if stage > 0 and index == 0 else 1
                made.append(_Residual(convolutions, channels, narrow, wide, stride, shortcut))
                channels = wide
            self.stages.append(made)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of float images (N, C, H, W)."""
        return self.classifier(self.pool(self.stages(self.stem(images))).flatten(1))


class PaddedShortcut(nn.Module):
    """A shortcut without weights: every ``stride``-th pixel, and zeros for the new channels.

    Args:
        channels_in: Channels that come in.
        channels: Channels that go out.
        stride: Of the branch beside it.
    """

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels = channels - channels_in
        self.stride = stride

    def forward(self, images: Tensor) -> Tensor:
        """Return the images in the shape of the branch."""
        return F.pad(images[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))

    def extra_repr(self) -> str:
        """Return what it does, for ``repr``."""
        return f"new_channels={self.new_channels}, stride={self.stride}"


class _Convolutions:
    def __init__(self, activation: Callable[[], nn.Module] | None, normalization: NormalizationFactory | None) -> None:
        self.activation = activation
        self.normalization = normalization

    def add(
        self, to: nn.Module, number: str, channels_in: int, channels: int, size: int, stride: int = 1, last: bool = False
    ) -> None:
        bias = self.normalization is None
        to.add_module(f"conv{number}", nn.Conv2d(channels_in, channels, size, stride, size // 2, bias=bias))
        if self.normalization is not None:
            to.add_module(f"norm{number}", make_normalization(self.normalization, channels))
        if self.activation is not None and not last:
            to.add_module(f"act{number}", factory_of(self.activation, nn.Module)())


class _Residual(nn.Module):
    def __init__(
        self, convolutions: _Convolutions, channels_in: int, narrow: int, wide: int, stride: int, shortcut: str
    ) -> None:
        super().__init__()
        self.branch = nn.Sequential()
        if narrow == wide:
            convolutions.add(self.branch, "1", channels_in, narrow, 3, stride)
            convolutions.add(self.branch, "2", narrow, wide, 3, last=True)
        else:
            convolutions.add(self.branch, "1", channels_in, narrow, 1)
            convolutions.add(self.branch, "2", narrow, narrow, 3, stride)
            convolutions.add(self.branch, "3", narrow, wide, 1, last=True)
        self.shortcut: nn.Module
        if stride == 1 and channels_in == wide:
            self.shortcut = nn.Identity()
        elif shortcut == "padded":
            self.shortcut = PaddedShortcut(channels_in, wide, stride)
        else:
            self.shortcut = nn.Sequential()
            convolutions.add(self.shortcut, "", channels_in, wide, 1, stride, last=True)
        self.act = factory_of(convolutions.activation, nn.Module)()

    def forward(self, images: Tensor) -> Tensor:
        return self.act(self.branch(images) + self.shortcut(images))
