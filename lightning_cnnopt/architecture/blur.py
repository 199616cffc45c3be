"""Blurring before every stride of a network."""

from __future__ import annotations

import warnings

import torch
import torch.fx
from torch import nn
from torch.nn import functional as F

from lightning_cnnopt.architecture.layers import BinomialBlur2d
from lightning_cnnopt.core.graph import NetworkGraph
from lightning_cnnopt.core.surgery import insert_after, insert_before


def add_blur(network: nn.Module, filter_size: int = 3, convolutions: bool = True, min_channels: int = 16) -> int:
    """Let a network blur before it strides, so that shifting an image by a pixel changes less of what it computes.

    - A max-pooling with a stride takes every maximum, and then strides over their blur.
    - A convolution with a stride computes every value; behind its normalization and activation the blur strides.
    - A 1×1 convolution with a stride strides over the blur of its input, which is the same and cheaper.

    Sizes of all outputs and names of all weights stay. What strides already without a maximum or a convolution (average
    pooling, a blur) is left alone.

    Args:
        network: Changed in place.
        filter_size: Side of the blur, odd: 3 is [1, 2, 1] / 4 along each side.
        convolutions: Whether convolutions are changed, too, or pooling alone.
        min_channels: Convolutions of fewer input channels are left alone. With 16 that is the first one, at the image's
            full size, where computing every value would cost most.

    Returns:
        How many strides were changed.

    Reference:
        Zhang, "Making Convolutional Networks Shift-Invariant Again", 2019.

    Example:
        >>> import torchvision
        >>> add_blur(torchvision.models.resnet18())
        7
    """
    graph = NetworkGraph(network)
    count = 0
    for path, module in list(network.named_modules()):
        stride = _pair(getattr(module, "stride", 1))
        if max(stride) == 1:
            continue
        if isinstance(module, nn.MaxPool2d) and not module.return_indices:
            blur = BinomialBlur2d(stride, filter_size, module.ceil_mode)
            insert_after(network, path, "blur", blur)
        elif convolutions and isinstance(module, nn.Conv2d) and module.in_channels >= min_channels:
            blur = BinomialBlur2d(stride, filter_size)
            place, before = (path, True) if max(module.kernel_size) == 1 else graph.activated_at(path)
            (insert_before if before else insert_after)(network, place, "blur", blur)
        else:
            continue
        module.stride = (1, 1)
        count += 1
    called = sum(_strides(node) for node in graph.function_calls(F.max_pool2d, torch.max_pool2d))
    if called:
        warnings.warn(
            f"{type(network).__name__} calls max-pooling as a function in {called} places, which stay as they are.",
            stacklevel=2,
        )
    return count


def _pair(stride: object) -> tuple[int, int]:
    if isinstance(stride, (tuple, list)) and len(stride) == 2:
        return int(stride[0]), int(stride[1])
    return (stride, stride) if isinstance(stride, int) else (1, 1)


def _strides(pooling: torch.fx.Node) -> bool:
    # max_pool2d(images, kernel_size, stride), where no stride is the kernel size
    stride = pooling.kwargs.get("stride", pooling.args[2] if len(pooling.args) > 2 else None)
    return _pair(stride if stride is not None else pooling.args[1]) != (1, 1)
