"""Random weights, drawn by the fans of a layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from lightning_cnnopt.core.errors import ConfigurationError


def layer_fans(layer: nn.Module) -> tuple[int, int]:
    """Return fan-in and fan-out of a layer: how many inputs feed one output, and how many outputs one input feeds.

    torch's own ``_calculate_fan_in_and_fan_out`` sees only the weight's shape. Of a grouped convolution it counts outputs of
    all groups, and of a transposed one it swaps the two; here both are right.

    Args:
        layer: A convolution of any kind, ``nn.Linear`` or ``nn.Bilinear``.

    Raises:
        ConfigurationError: If the layer has no fans, or none yet.

    Example:
        >>> layer_fans(nn.Conv2d(8, 16, 3, groups=4)), layer_fans(nn.ConvTranspose2d(8, 16, 3))
        ((18, 36), (72, 144))
    """
    if isinstance(layer, nn.modules.conv._ConvNd):
        field = math.prod(layer.kernel_size)
        fans = layer.in_channels // layer.groups * field, layer.out_channels // layer.groups * field
    elif isinstance(layer, nn.Linear):
        fans = layer.in_features, layer.out_features
    elif isinstance(layer, nn.Bilinear):
        fans = layer.in1_features * layer.in2_features, layer.out_features
    else:
        raise ConfigurationError(
            f"{type(layer).__name__} has no fan-in and fan-out; initialize convolutions and linear layers."
        )
    if 0 in fans:
        raise ConfigurationError(
            f"{layer!r} has no weights; a lazy layer gets them when the network runs, so run it once on a batch before."
        )
    return fans


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
    draw_(layer, lambda weight: weight.uniform_(-bound, bound, generator=generator), generator)


@torch.no_grad()
def xavier_normal_(layer: nn.Module, gain: float = 1.0, generator: torch.Generator | None = None) -> None:
    """Draw weights from N(0, σ²), σ = gain · √(2 / (fan_in + fan_out)).

    Some texts print the bound of the uniform form, √(6 / (fan_in + fan_out)), as this σ. That is ``gain=√3``, and keeps the
    variance of neither pass.

    Reference:
        Glorot & Bengio, 2010.
    """
    std = gain * math.sqrt(2 / sum(layer_fans(layer)))
    draw_(layer, lambda weight: weight.normal_(0, std, generator=generator), generator)


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
    std = gain / math.sqrt(layer_fans(layer)[fan_out])
    draw_(layer, lambda weight: weight.normal_(0, std, generator=generator), generator)


@torch.no_grad()
def kaiming_uniform_(layer: nn.Module, gain: float, fan_out: bool = False, generator: torch.Generator | None = None) -> None:
    """Draw weights from U(-a, a), a = gain · √(3 / fan): the variance of :func:`kaiming_normal_`."""
    bound = gain * math.sqrt(3 / layer_fans(layer)[fan_out])
    draw_(layer, lambda weight: weight.uniform_(-bound, bound, generator=generator), generator)


@torch.no_grad()
def uniform_(layer: nn.Module, low: float, high: float, generator: torch.Generator | None = None) -> None:
    """Draw weights from U(low, high)."""
    draw_(layer, lambda weight: weight.uniform_(low, high, generator=generator), generator)


@torch.no_grad()
def normal_(layer: nn.Module, std: float, generator: torch.Generator | None = None) -> None:
    """Draw weights from N(0, std²)."""
    draw_(layer, lambda weight: weight.normal_(0, std, generator=generator), generator)


@torch.no_grad()
def truncated_normal_(layer: nn.Module, std: float, cut: float = 2.0, generator: torch.Generator | None = None) -> None:
    """Draw weights from N(0, std²), and again those beyond ± ``cut`` · std.

    The variance that is left is less than std²: 0.774 of it for a cut of 2.
    """
    bound = cut * std
    draw_(layer, lambda weight: nn.init.trunc_normal_(weight, 0, std, -bound, bound, generator=generator), generator)


@torch.no_grad()
def orthogonal_(layer: nn.Module, gain: float = 1.0, generator: torch.Generator | None = None) -> None:
    """Draw a weight whose matrix, of one row for each output, is ``gain`` times an orthogonal one.

    Rows are orthonormal; where there are more of them than columns, columns are. Each group of a grouped convolution has a
    matrix of its own, which torch's ``nn.init.orthogonal_`` makes.

    Reference:
        Saxe, McClelland & Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks",
        2014.

    Example:
        >>> layer = nn.Conv2d(8, 8, 3, groups=2)
        >>> orthogonal_(layer)
        >>> rows = layer.weight.detach().flatten(1)[:4]
        >>> bool(torch.allclose(rows @ rows.T, torch.eye(4), atol=1e-5))
        True
    """

    def fill(weight: Tensor) -> None:
        for group in weight.chunk(getattr(layer, "groups", 1)):
            group.copy_(nn.init.orthogonal_(torch.empty_like(group), gain, generator=generator))

    draw_(layer, fill, generator)


@torch.no_grad()
def zero_bias_(layer: nn.Module) -> None:
    """Set the bias of a layer to zero, where it has one."""
    if isinstance(layer.bias, Tensor):
        assign_(layer, "bias", torch.zeros_like(layer.bias))


@torch.no_grad()
def assign_(layer: nn.Module, name: str, value: Tensor) -> None:
    """Set the weight or the bias of a layer, also where the layer computes it from other parameters.

    A parametrized one (``torch.nn.utils.parametrize``: weight norm, spectral norm, …) is set through the ``right_inverse`` of
    its parametrization, and the layer then has what the parametrization makes of ``value``. The older
    ``torch.nn.utils.weight_norm`` is known, too.

    Args:
        layer: The layer.
        name: ``"weight"`` or ``"bias"``.
        value: The new value, on any device.

    Raises:
        ConfigurationError: If the layer computes it and no ``right_inverse`` says from what.

    Example:
        >>> layer = parametrizations.weight_norm(nn.Linear(2, 1))
        >>> assign_(layer, "weight", torch.tensor([[3.0, 4.0]]))
        >>> layer.parametrizations.weight.original0
        Parameter containing:
        tensor([[5.]], requires_grad=True)
    """
    parameter = layer._parameters.get(name)
    if parameter is not None:
        parameter.copy_(value)
    elif parametrize.is_parametrized(layer, name):
        _assign_parametrized(layer, name, value.to(getattr(layer, name)))
    else:
        hooks: list[Any] = [hook for hook in layer._forward_pre_hooks.values() if type(hook).__name__ == "WeightNorm"]
        hook = next((hook for hook in hooks if hook.name == name), None)
        if hook is None:
            raise ConfigurationError(f"{type(layer).__name__} computes its {name} in a way that can't be inverted.")
        layer.get_parameter(f"{name}_g").copy_(torch.norm_except_dim(value, 2, hook.dim))
        layer.get_parameter(f"{name}_v").copy_(value)
        hook(layer, ())


def _assign_parametrized(layer: nn.Module, name: str, value: Tensor) -> None:
    cuda = [value.device] if value.is_cuda else []
    generators = [torch.default_generator, *(torch.cuda.default_generators[device.index] for device in cuda)]
    # torch completes an orthogonal matrix from the global generators; it has to be the same on every rank
    with torch.random.fork_rng(devices=cuda):
        for generator in generators:
            generator.manual_seed(0)
        try:
            setattr(layer, name, value)
        except (RuntimeError, NotImplementedError) as error:
            raise ConfigurationError(f"{type(layer).__name__} computes its {name}: {error}") from error
    for step in layer.parametrizations[name]:  # type: ignore[index]
        if isinstance(step, parametrizations._SpectralNorm):
            # it goes on from the singular vectors of the former weight, one iteration each time it is read in training
            mode = step.training
            step.train()
            for _ in range(15):  # as in its constructor
                getattr(layer, name)
            step.train(mode)


@torch.no_grad()
def draw_(layer: nn.Module, fill: Callable[[Tensor], object], generator: torch.Generator | None) -> None:
    """Set the weight of a layer to what ``fill`` writes into an empty tensor of its shape."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    # where the generator is, whose draws are then the same for a network on any device and in any memory format
    device = weight.device if generator is None else generator.device
    value = torch.empty(weight.shape, dtype=torch.promote_types(weight.dtype, torch.float32), device=device)
    fill(value)
    assign_(layer, "weight", value)
