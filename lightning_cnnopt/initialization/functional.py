"""How weights start, as functions on tensors and networks."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.graph import WEIGHTED_LAYERS


def layer_fans(layer: nn.Module) -> tuple[int, int]:
    """Return fan-in and fan-out of a layer: how many inputs feed one output, and how many outputs one input feeds.

    torch's own ``_calculate_fan_in_and_fan_out`` sees only the weight's shape. Of a grouped convolution it counts outputs of
    all groups, and of a transposed one it swaps the two; here both are right.

    Args:
        layer: A convolution of any kind, ``nn.Linear`` or ``nn.Bilinear``.

    Raises:
        ConfigurationError: If the layer has no fans.

    Example:
        >>> layer_fans(nn.Conv2d(8, 16, 3, groups=4)), layer_fans(nn.ConvTranspose2d(8, 16, 3))
        ((18, 36), (72, 144))
    """
    if isinstance(layer, nn.modules.conv._ConvNd):
        field = math.prod(layer.kernel_size)
        return layer.in_channels // layer.groups * field, layer.out_channels // layer.groups * field
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if isinstance(layer, nn.Bilinear):
        return layer.in1_features * layer.in2_features, layer.out_features
    raise ConfigurationError(f"{type(layer).__name__} has no fan-in and fan-out; initialize convolutions and linear layers.")


@torch.no_grad()
def xavier_uniform_(layer: nn.Module, gain: float = 1.0, generator: torch.Generator | None = None) -> None:
    """Draw weights from U(-a, a), a = gain · √(6 / (fan_in + fan_out)).

    Reference:
        Glorot & Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010.

    Example:
        >>> layer = nn.Linear(4, 2)
        >>> xavier_uniform_(layer)
        >>> bool(layer.weight.abs().max() <= 1)
        True
    """
    bound = gain * math.sqrt(6 / sum(layer_fans(layer)))
    _weight(layer).uniform_(-bound, bound, generator=generator)


@torch.no_grad()
def xavier_normal_(layer: nn.Module, gain: float = 1.0, generator: torch.Generator | None = None) -> None:
    """Draw weights from N(0, σ²), σ = gain · √(2 / (fan_in + fan_out)).

    Some texts print the bound of the uniform form, √(6 / (fan_in + fan_out)), as this σ. That is ``gain=√3``, and keeps the
    variance of neither pass.

    Reference:
        Glorot & Bengio, 2010.
    """
    _weight(layer).normal_(0, gain * math.sqrt(2 / sum(layer_fans(layer))), generator=generator)


@torch.no_grad()
def kaiming_normal_(layer: nn.Module, gain: float, fan_out: bool = False, generator: torch.Generator | None = None) -> None:
    """Draw weights from N(0, σ²), σ = gain / √fan.

    Args:
        layer: The layer.
        gain: Gain of the activation that follows; see :func:`lightning_cnnopt.core.graph.gain_of`.
        fan_out: Keep the variance of the backward pass in place of the forward pass.
        generator: Source of randomness.

    Reference:
        He et al., "Delving Deep into Rectifiers", 2015.
    """
    _weight(layer).normal_(0, gain / math.sqrt(layer_fans(layer)[fan_out]), generator=generator)


@torch.no_grad()
def kaiming_uniform_(layer: nn.Module, gain: float, fan_out: bool = False, generator: torch.Generator | None = None) -> None:
    """Draw weights from U(-a, a), a = gain · √(3 / fan): the variance of :func:`kaiming_normal_`."""
    bound = gain * math.sqrt(3 / layer_fans(layer)[fan_out])
    _weight(layer).uniform_(-bound, bound, generator=generator)


@torch.no_grad()
def zero_bias_(layer: nn.Module) -> None:
    """Set the bias of a layer to zero, where it has one."""
    if isinstance(layer.bias, Tensor):
        layer.bias.zero_()


@torch.no_grad()
def lsuv_(network: nn.Module, sample: Tensor, tolerance: float = 0.01, iterations: int = 10) -> dict[str, float]:
    """Scale every layer, in the order of computation, until its output on ``sample`` has variance 1.

    Weights are drawn orthogonal before; this is the second, data-driven half. The network runs in evaluation mode with
    dropout off, its BatchNorm statistics and the random state are left as they were.

    Args:
        network: Changed in place.
        sample: A batch of inputs as the network is fed: normalized floats.
        tolerance: How far from 1 the variance may stay.
        iterations: Most corrections per layer; one is enough but for numerical trouble.

    Returns:
        The variance of each layer's output afterwards, by name, in the order of computation.

    Raises:
        ConfigurationError: If a layer's output has no variance at all (a dead network, or a constant sample).

    Reference:
        Mishkin & Matas, "All you need is a good init", 2016.
    """
    training = {module: module.training for module in network.modules()}
    network.eval()
    try:
        order = _computation_order(network, sample)
        for name, layer in order:
            for _ in range(iterations):
                variance = _output_variance(network, layer, sample)
                if not 0 < variance < math.inf:
                    raise ConfigurationError(
                        f"LSUV: the output of {name!r} has variance {variance:g} on the sample, so no scale makes it 1."
                    )
                if abs(variance - 1) <= tolerance:
                    break
                _weight(layer).div_(math.sqrt(variance))
        return {name: _output_variance(network, layer, sample) for name, layer in order}
    finally:
        for module, mode in training.items():
            module.training = mode


class _Reached(Exception):
    pass


def _output_variance(network: nn.Module, layer: nn.Module, sample: Tensor) -> float:
    seen: list[float] = []

    def look(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        # the bias shifts each channel's mean and no scale of the weights changes that; variance is about the mean
        seen.append(float(output.float().var(unbiased=False)))
        raise _Reached

    handle = layer.register_forward_hook(look)
    try:
        network(sample)
    except _Reached:
        pass
    finally:
        handle.remove()
    return seen[0]


def _computation_order(network: nn.Module, sample: Tensor) -> list[tuple[str, nn.Module]]:
    order: list[tuple[str, nn.Module]] = []

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if all(module is not known for _, known in order):
                order.append((name, module))

        return hook

    handles = [m.register_forward_pre_hook(note(n)) for n, m in network.named_modules() if isinstance(m, WEIGHTED_LAYERS)]
    try:
        network(sample)
    finally:
        for handle in handles:
            handle.remove()
    return order


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight
