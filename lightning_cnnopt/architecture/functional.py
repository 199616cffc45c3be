"""Edits of the architecture of any network, as functions."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torchvision.ops import SqueezeExcitation

from lightning_cnnopt.core.graph import NetworkGraph
from lightning_cnnopt.core.surgery import insert_after

# torchvision's name and timm's
_SQUEEZE_EXCITE_CLASSES = {"SqueezeExcitation", "SqueezeExcite", "SqueezeExciteCl", "SEModule", "EffectiveSEModule"}


def add_squeeze_excite(
    network: nn.Module,
    reduction: int = 16,
    min_channels: int = 16,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> int:
    """Let every block of a network weigh its channels: x · σ(W₂ δ(W₁ mean(x))).

    The layer goes to the end of each residual branch, before the addition, where the paper puts it; in a network without
    residual branches, behind each convolution with its normalization and activation. Branches that squeeze and excite
    already are left alone.

    Args:
        network: Changed in place.
        reduction: Divides the channels in the bottleneck. 16 in the paper.
        min_channels: Blocks with fewer channels are left alone.
        activation: δ, the activation of the bottleneck.

    Returns:
        How many layers were added.

    Reference:
        Hu, Shen & Sun, "Squeeze-and-Excitation Networks", 2018.

    Example:
        >>> import torchvision
        >>> add_squeeze_excite(torchvision.models.resnet18())
        8
    """
    modules = dict(network.named_modules())
    graph = NetworkGraph(network)
    branches = graph.residual_branches()
    if branches:
        places = {
            branch.end: _last_convolution(modules, branch.modules)
            for branch in branches
            if not any(_squeezes(name, modules) for name in branch.modules)
        }
    else:
        places = {
            graph.block_end(name): module
            for name, module in modules.items()
            if isinstance(module, nn.Conv2d) and not _squeezes(name, modules)
        }
    count = 0
    for place, convolution in places.items():
        if convolution is None or convolution.out_channels < min_channels or _squeezes(place, modules):
            continue
        channels = convolution.out_channels
        layer = SqueezeExcitation(channels, max(1, channels // reduction), activation=activation)
        insert_after(network, place, "squeeze_excite", layer)
        count += 1
    return count


def _last_convolution(modules: dict[str, nn.Module], names: tuple[str, ...]) -> nn.Conv2d | None:
    convolutions = [module for name in names if isinstance(module := modules[name], nn.Conv2d)]
    return convolutions[-1] if convolutions else None


def _squeezes(name: str, modules: dict[str, nn.Module]) -> bool:
    parts = name.split(".")
    around = [modules[".".join(parts[:end])] for end in range(1, len(parts) + 1)]
    return any(type(module).__name__ in _SQUEEZE_EXCITE_CLASSES for module in [*around, *modules[name].children()])
