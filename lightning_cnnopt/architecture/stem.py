"""The first layers of networks for photographs, made to fit small images."""

from __future__ import annotations

import torch
from torch import nn

from lightning_cnnopt.core.surgery import replace_modules

_DEEPEST_STEM = 3  # convolutions in front of the first pooling


@torch.no_grad()
def fit_stem_to_small_images(network: nn.Module, kernel_size: int = 3) -> int:
    """Let the first convolution of a network keep the image's size, and leave out the max-pooling behind it.

    Networks for images of 224 pixels a side shrink them fourfold before the first block, which leaves little of 32 pixels.
    The convolution gets stride 1 and kernels of side ``kernel_size``: the middle of its former ones, scaled so that their
    norm stays, and with it the scale of what comes out.

    Args:
        network: Changed in place. A network whose first convolution does not stride is left alone.
        kernel_size: Odd side of the new kernels; smaller ones stay as they are.

    Returns:
        How many layers were changed: the convolution and, where there is one, the pooling.

    Example:
        >>> import torchvision
        >>> network = torchvision.models.resnet18()
        >>> fit_stem_to_small_images(network), network.conv1, network.maxpool
        (2, Conv2d(3, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False), Identity())
    """
    convolutions = 0
    first: nn.Conv2d | None = None
    pooling: nn.Module | None = None
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            first = first or module
            convolutions += 1
        elif isinstance(module, nn.MaxPool2d) and first is not None and convolutions <= _DEEPEST_STEM:
            pooling = pooling or module
    if first is None or max(first.stride) == 1:
        return 0
    first.stride = (1, 1)
    if max(first.kernel_size) > kernel_size:
        rows, columns = ((side - kernel_size) // 2 for side in first.kernel_size)
        middle = first.weight[:, :, rows : rows + kernel_size, columns : columns + kernel_size]
        scale = first.weight.norm() / middle.norm()
        first.weight = nn.Parameter(middle * scale, requires_grad=first.weight.requires_grad)
        first.kernel_size = (kernel_size, kernel_size)
    if not isinstance(first.padding, str):
        first.padding = (first.kernel_size[0] // 2, first.kernel_size[1] // 2)
    replaced = replace_modules(network, lambda module: module is pooling, lambda _: nn.Identity())
    return 1 + replaced
