"""Layers that torch and torchvision lack."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import center_crop

from lightning_cnnopt.architecture.functional import binomial_filter, generalized_mean_pool
from lightning_cnnopt.core.errors import check_range


class GeneralizedMeanPool2d(nn.Module):
    """Pooling by the generalized mean, (mean(xᵖ))^(1/p): the average for p = 1, towards the maximum as p grows.

    Values below ``eps`` count as ``eps``, so it belongs behind an activation that gives no negative values.

    Args:
        kernel_size: Side of the windows, which do not overlap; ``None`` for the whole image.
        p: The exponent, or where it starts. 3, the paper's.
        learnable: Whether the exponent is a parameter, shared by all channels; it is in the paper's best models.
        eps: Least value.

    Shapes:
        (N, C, H, W) → (N, C, H // kernel_size, W // kernel_size), or (N, C, 1, 1)

    Raises:
        ConfigurationError: If an argument is out of range.

    Reference:
        Radenović, Tolias & Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation", 2018.

    Example:
        >>> GeneralizedMeanPool2d(p=1.0)(torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])).item()
        3.0
    """

    p: Tensor

    def __init__(self, kernel_size: int | None = None, p: float = 3.0, learnable: bool = True, eps: float = 1e-6) -> None:
        super().__init__()
        name = type(self).__name__
        if kernel_size is not None:
            check_range(name, "kernel_size", kernel_size, 1)
        check_range(name, "p", p, 0, low_open=True)
        check_range(name, "eps", eps, 0, low_open=True)
        self.kernel_size = kernel_size
        self.eps = eps
        exponent = torch.tensor([float(p)])
        if learnable:
            self.p = nn.Parameter(exponent)
        else:
            self.register_buffer("p", exponent)

    def forward(self, images: Tensor) -> Tensor:
        """Return the pooled images."""
        return generalized_mean_pool(images, self.p, self.kernel_size, self.eps)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"kernel_size={self.kernel_size}, learnable={isinstance(self.p, nn.Parameter)}"


class BinomialBlur2d(nn.Module):
    """Strides over images that are blurred first, so that what is finer than the stride does not turn into false patterns.

    Each channel is convolved with the outer product of binomial coefficients, [1, 2, 1] / 4 or [1, 4, 6, 4, 1] / 16, along
    the sides that are strided over. The edges are mirrored; repeated, where the image is smaller than the filter.

    Args:
        stride: Of both sides, or of each.
        filter_size: Side of the filter, odd.
        ceil_mode: Round the size up in place of down, as pooling layers do with the argument of this name.

    Shapes:
        (N, C, H, W) → (N, C, ⌈H / stride⌉, ⌈W / stride⌉), the size that the stride alone would leave

    Raises:
        ConfigurationError: If an argument is out of range.

    Reference:
        Zhang, "Making Convolutional Networks Shift-Invariant Again", 2019.

    Example:
        >>> BinomialBlur2d()(torch.ones(1, 1, 5, 4)).shape
        torch.Size([1, 1, 3, 2])
    """

    filter: Tensor

    def __init__(self, stride: int | tuple[int, int] = 2, filter_size: int = 3, ceil_mode: bool = False) -> None:
        super().__init__()
        name = type(self).__name__
        self.stride = (stride, stride) if isinstance(stride, int) else (stride[0], stride[1])
        for side in self.stride:
            check_range(name, "stride", side, 1)
        self.filter_size = filter_size
        self.ceil_mode = ceil_mode
        rows, columns = (binomial_filter(filter_size if side > 1 else 1) for side in self.stride)
        # not in the state dict: weights saved without it fit with it
        self.register_buffer("filter", torch.outer(rows, columns)[None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the smaller images."""
        rows, columns = (size // 2 for size in self.filter.shape[2:])
        small = images.shape[2] <= rows or images.shape[3] <= columns
        images = F.pad(images, (columns, columns, rows, rows), mode="replicate" if small else "reflect")
        if self.ceil_mode:
            images = F.pad(images, (0, self.stride[1] - 1, 0, self.stride[0] - 1), mode="replicate")
        channels = images.shape[1]
        filters = self.filter.to(images.dtype).expand(channels, 1, -1, -1)
        return F.conv2d(images, filters, stride=self.stride, groups=channels)

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        return f"stride={self.stride}, filter_size={self.filter_size}, ceil_mode={self.ceil_mode}"


class ResizeImages(nn.Module):
    """Resizes float images on their device, with antialiasing; those of the right size pass unchanged.

    With ``crop``, evaluation sees their centre alone, as torchvision and timm evaluate published weights: the image is resized,
    in its proportions, until a window of ``size`` is that share of it, and the window in the middle is cut out. In training
    the whole image is resized all the same.

    Args:
        size: Height and width.
        interpolation: ``"bilinear"`` or ``"bicubic"``; for anything else it is bicubic.
        crop: Share of the sides that evaluation keeps; all of the image if none.

    Example:
        >>> ResizeImages((4, 6))(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 1, 4, 6])
    """

    def __init__(self, size: tuple[int, int], interpolation: str = "bilinear", crop: float | None = None) -> None:
        super().__init__()
        self.size = size
        self.interpolation = interpolation if interpolation == "bilinear" else "bicubic"
        self.crop = crop

    def forward(self, images: Tensor) -> Tensor:
        """Return the images in the size."""
        if self.crop is None or self.training:
            return self._resized(images, self.size)
        return center_crop(self._resized(images, self._around_the_window(images)), list(self.size))

    def extra_repr(self) -> str:
        """Return the arguments for ``repr``."""
        cropped = "" if self.crop is None else f", crop={self.crop:g}"
        return f"size={self.size}, interpolation={self.interpolation!r}{cropped}"

    def _resized(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        if images.shape[2:] == size:
            return images
        floats = images if images.dtype == torch.float64 else images.float()  # torch has no kernel for less, on every device
        resized = F.interpolate(floats, size, mode=self.interpolation, antialias=True, align_corners=False)
        return resized.to(images.dtype)

    def _around_the_window(self, images: Tensor) -> tuple[int, int]:
        assert self.crop is not None
        sides = images.shape[2:]
        # 224 / 0.875 is 256, and 224 / 0.9 is 248, as torchvision and timm round; 224 / (224 / 232) must not be 231
        least = [int(side / self.crop + 1e-6) for side in self.size]
        binding = max((0, 1), key=lambda axis: least[axis] / sides[axis])
        height, width = (side * least[binding] // sides[binding] for side in sides)
        return height, width


class HeldStatistics(nn.Module):
    """Keeps normalization layers of a network in evaluation mode, whatever mode the network is switched to.

    It stands in the network as a child without weights, and passes on what it is called with. The layers are known by name,
    so what takes their place (a synchronized batch normalization, a swap) is held, too.

    Args:
        network: The network.
        names: Names of its layers that are held.
    """

    def __init__(self, network: nn.Module, names: Iterable[str] = ()) -> None:
        super().__init__()
        self._network = (network,)  # in a tuple, so that it does not become a child of its child
        self.names: list[str] = []
        self.hold(names)

    def hold(self, names: Iterable[str]) -> None:
        """Hold further layers."""
        self.names += [name for name in names if name not in self.names]
        self.train(self.training)

    def train(self, mode: bool = True) -> HeldStatistics:
        """Called by the network when it is switched; it comes after the layers, which were there first."""
        super().train(mode)
        for name in self.names:
            self._network[0].get_submodule(name).training = False
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return what it is given: a Sequential runs all its children."""
        return images

    def extra_repr(self) -> str:
        """Return how many layers are held."""
        return f"{len(self.names)} layers"
