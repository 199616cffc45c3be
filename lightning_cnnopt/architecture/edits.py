"""Edits of any network that belong to its architecture."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from lightning_cnnopt.architecture.blur import add_blur
from lightning_cnnopt.architecture.freezing import freeze
from lightning_cnnopt.architecture.functional import add_squeeze_excite, binomial_filter
from lightning_cnnopt.architecture.recomputation import checkpoint_activations
from lightning_cnnopt.architecture.stem import fit_stem_to_small_images
from lightning_cnnopt.core.errors import ConfigurationError, check_range
from lightning_cnnopt.core.spec import factory_of
from lightning_cnnopt.core.surgery import Edit


class SqueezeExcite(Edit):
    """Adds squeeze-and-excitation to every block of a network; see :func:`add_squeeze_excite`.

    Args:
        reduction: Divides the channels in the bottleneck. 16 in the paper.
        min_channels: Blocks with fewer channels are left alone.
        activation: The activation of the bottleneck.

    Example:
        >>> import torchvision
        >>> SqueezeExcite()(torchvision.models.resnet18())
        8
    """

    looks_for = "convolutions with enough channels"

    def __init__(self, reduction: int = 16, min_channels: int = 16, activation: Callable[[], nn.Module] = nn.ReLU) -> None:
        check_range("SqueezeExcite", "reduction", reduction, 1)
        check_range("SqueezeExcite", "min_channels", min_channels, 1)
        self.reduction = reduction
        self.min_channels = min_channels
        self.activation = activation

    def apply(self, network: nn.Module) -> int:
        """Add the layers and return how many there are."""
        return add_squeeze_excite(network, self.reduction, self.min_channels, factory_of(self.activation, nn.Module))


class BlurPool(Edit):
    """Blurs before every max-pooling and convolution that strides; see :func:`add_blur`.

    Args:
        filter_size: Side of the blur, odd: 3 is [1, 2, 1] / 4 along each side, 5 is [1, 4, 6, 4, 1] / 16.
        convolutions: Whether convolutions are changed, too, or pooling alone.
        min_channels: Convolutions of fewer input channels are left alone; 16 spares the first one, at the image's full size.

    Example:
        >>> import torchvision
        >>> BlurPool()(torchvision.models.resnet18())
        7
    """

    looks_for = "max-pooling and convolutions with a stride"

    def __init__(self, filter_size: int = 3, convolutions: bool = True, min_channels: int = 16) -> None:
        check_range("BlurPool", "filter_size", filter_size, 3)
        binomial_filter(filter_size)
        check_range("BlurPool", "min_channels", min_channels, 1)
        self.filter_size = filter_size
        self.convolutions = convolutions
        self.min_channels = min_channels

    def apply(self, network: nn.Module) -> int:
        """Change the strides and return how many there were."""
        return add_blur(network, self.filter_size, self.convolutions, self.min_channels)


class CheckpointActivations(Edit):
    """Lets blocks compute again in backpropagation what they would have kept; see :func:`checkpoint_activations`.

    Args:
        modules: Shell patterns on the names of the blocks. By default every residual block; in a network without any, the
            innermost modules with convolutions, if there are several.

    Example:
        >>> import torchvision
        >>> CheckpointActivations()(torchvision.models.resnet18())
        8
    """

    looks_for = "blocks"

    def __init__(self, modules: Sequence[str] | None = None) -> None:
        _check_patterns("CheckpointActivations", modules=modules)
        self.modules = None if modules is None else list(modules)

    def apply(self, network: nn.Module) -> int:
        """Change the blocks and return how many there are."""
        return checkpoint_activations(network, self.modules)


class Freeze(Edit):
    """Keeps parts of a network as they are: weights and, by default, statistics of normalization; see :func:`freeze`.

    Weights that are frozen never enter the optimizer of an ``ImageClassifier``. What later edits add inside a frozen part is
    trained.

    Args:
        modules: Shell patterns on the names of modules and parameters; a module's name stands for all that is in it.
        but: Patterns of what stays trainable all the same, such as ``["fc"]``.
        statistics: Whether normalization layers of the frozen part keep their running statistics, and normalize by them.

    Example:
        >>> import torchvision
        >>> Freeze(["conv1", "bn1", "layer[12]"])(torchvision.models.resnet18())
        20
    """

    looks_for = "trainable layers of these names"

    def __init__(self, modules: Sequence[str] = ("*",), but: Sequence[str] = (), statistics: bool = True) -> None:
        _check_patterns("Freeze", modules=modules, but=but)
        self.modules = list(modules)
        self.but = list(but)
        self.statistics = statistics

    def apply(self, network: nn.Module) -> int:
        """Freeze the parts and return how many layers there are."""
        return freeze(network, self.modules, self.but, self.statistics)


class SmallImageStem(Edit):
    """Lets the first convolution keep the image's size, without the pooling behind it; see :func:`fit_stem_to_small_images`.

    Args:
        kernel_size: Odd side of the new kernels.

    Example:
        >>> import torchvision
        >>> SmallImageStem()(torchvision.models.resnet18())
        2
    """

    looks_for = "first convolution with a stride"

    def __init__(self, kernel_size: int = 3) -> None:
        check_range("SmallImageStem", "kernel_size", kernel_size, 1)
        if kernel_size % 2 == 0:
            raise ConfigurationError(f"SmallImageStem: kernel_size={kernel_size} is even; give an odd one.")
        self.kernel_size = kernel_size

    def apply(self, network: nn.Module) -> int:
        """Change the layers and return how many there are."""
        return fit_stem_to_small_images(network, self.kernel_size)


def _check_patterns(owner: str, modules: Sequence[str] | None, but: Sequence[str] = ()) -> None:
    for name, patterns in (("modules", modules), ("but", but)):
        if isinstance(patterns, str):
            raise ConfigurationError(f"{owner}: {name}={patterns!r} is one string; expected a list of patterns.")
    if modules is not None and not modules:
        raise ConfigurationError(f"{owner}: modules=[] names nothing; give a pattern.")
