"""A small network that trains fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from lightning_cnnopt.core.errors import ConfigurationError, check_range
from lightning_cnnopt.core.spec import factory_of


class SpeedNet(nn.Module):
    """A small network that trains fast: a whitening stem, groups of two convolutions, and scaled logits.

    Stem: a 2×2 convolution named ``whiten`` to 2 · 4 · in_channels filters. An initializer that whitens patches sets it; its
    weights then stay as they are while its biases learn. Group: conv 3×3 → max-pool 2 → norm → GELU → conv 3×3 → norm → GELU.
    Then the maximum over the image, a linear layer without bias, and the logits times ``logit_scale``.

    Its batch normalization has no scale (γ = 1 stays) and forgets fast: each batch moves the running statistics by 0.4.

    Args:
        num_classes: Number of logits.
        in_channels: Channels of an image.
        image_size: Height and width; n groups need 2ⁿ + 1 pixels a side.
        widths: Channels of each group.
        train_whitening: Whether the weights of the stem are trained. Leave it off only if an initializer whitens them.
        logit_scale: Multiplies the logits. 1/9 keeps the first steps from being confident at the rates that it is made for.
        activation: Makes an activation layer.

    Shapes:
        (N, in_channels, H, W) → (N, num_classes)

    Raises:
        ConfigurationError: If an argument is out of range, or the images are too small for the groups.

    Reference:
        Page, "How to train your ResNet", 2018; Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024.

    Example:
        >>> network = SpeedNet(10, 3, (32, 32))
        >>> network.stem.whiten.weight.shape, network.stem.whiten.weight.requires_grad
        (torch.Size([24, 3, 2, 2]), False)
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: tuple[int, int] = (32, 32),
        widths: Sequence[int] = (64, 256, 256),
        train_whitening: bool = False,
        logit_scale: float = 1 / 9,
        activation: Callable[[], nn.Module] = nn.GELU,
    ) -> None:
        super().__init__()
        for name, value in (("num_classes", num_classes), ("in_channels", in_channels), *(("widths", w) for w in widths)):
            check_range("SpeedNet", name, value, 1)
        check_range("SpeedNet", "logit_scale", logit_scale, 0, low_open=True)
        if not widths:
            raise ConfigurationError("SpeedNet: widths=() leaves no group; give at least one width.")
        needed = 2 ** len(widths) + 1
        if min(image_size) < needed:
            raise ConfigurationError(
                f"SpeedNet: images of {image_size[0]}x{image_size[1]} are too small for {len(widths)} groups, which need "
                f"{needed} pixels a side: the stem takes one, each group halves. Give fewer widths."
            )
        make_activation = factory_of(activation, nn.Module)
        channels = 2 * 4 * in_channels
        self.stem = nn.Sequential()
        self.stem.add_module("whiten", nn.Conv2d(in_channels, channels, 2))
        self.stem.add_module("act", make_activation())
        self.stem.whiten.weight.requires_grad_(train_whitening)  # type: ignore[union-attr]
        self.groups = nn.Sequential()
        for width in widths:
            group = nn.Sequential()
            group.add_module("conv1", nn.Conv2d(channels, width, 3, padding=1, bias=False))
            group.add_module("pool", nn.MaxPool2d(2))
            group.add_module("norm1", _norm(width))
            group.add_module("act1", make_activation())
            group.add_module("conv2", nn.Conv2d(width, width, 3, padding=1, bias=False))
            group.add_module("norm2", _norm(width))
            group.add_module("act2", make_activation())
            self.groups.append(group)
            channels = width
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.classifier = nn.Linear(channels, num_classes, bias=False)
        self.logit_scale = logit_scale

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of float images (N, C, H, W)."""
        return self.classifier(self.pool(self.groups(self.stem(images))).flatten(1)) * self.logit_scale


def _norm(channels: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm
