"""How weights start, as functions on tensors and networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.graph import WEIGHTED_LAYERS


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
    _draw(layer, lambda weight: weight.uniform_(-bound, bound, generator=generator), generator)


@torch.no_grad()
def xavier_normal_(layer: nn.Module, gain: float = 1.0, generator: torch.Generator | None = None) -> None:
    """Draw weights from N(0, σ²), σ = gain · √(2 / (fan_in + fan_out)).

    Some texts print the bound of the uniform form, √(6 / (fan_in + fan_out)), as this σ. That is ``gain=√3``, and keeps the
    variance of neither pass.

    Reference:
        Glorot & Bengio, 2010.
    """
    std = gain * math.sqrt(2 / sum(layer_fans(layer)))
    _draw(layer, lambda weight: weight.normal_(0, std, generator=generator), generator)


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
    _draw(layer, lambda weight: weight.normal_(0, std, generator=generator), generator)


@torch.no_grad()
def kaiming_uniform_(layer: nn.Module, gain: float, fan_out: bool = False, generator: torch.Generator | None = None) -> None:
    """Draw weights from U(-a, a), a = gain · √(3 / fan): the variance of :func:`kaiming_normal_`."""
    bound = gain * math.sqrt(3 / layer_fans(layer)[fan_out])
    _draw(layer, lambda weight: weight.uniform_(-bound, bound, generator=generator), generator)


@torch.no_grad()
def orthogonal_(layer: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draw a weight whose matrix, of one row for each output, is orthogonal: torch's own, on any layer."""
    _draw(layer, lambda weight: nn.init.orthogonal_(weight, generator=generator), generator)


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
def lsuv_(
    network: nn.Module,
    sample: Tensor,
    tolerance: float = 0.01,
    iterations: int = 10,
    layers: Collection[str] | None = None,
) -> dict[str, float]:
    """Scale every layer, in the order of computation, until its output on ``sample`` has variance 1.

    Weights are drawn orthogonal before; this is the second, data-driven half. The network runs in evaluation mode with
    dropout off, its BatchNorm statistics and the random state are left as they were.

    Args:
        network: Changed in place.
        sample: A batch of inputs as the network is fed: normalized floats.
        tolerance: How far from 1 the variance may stay.
        iterations: Most corrections per layer; one is enough but for numerical trouble.
        layers: Names of the layers to scale; by default all. The others count as they are.

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
        order = [item for item in _computation_order(network, sample) if layers is None or item[0] in layers]
        for name, layer in order:
            for _ in range(iterations):
                variance = _output_variance(network, layer, sample)
                if not 0 < variance < math.inf:
                    raise ConfigurationError(
                        f"LSUV: the output of {name!r} has variance {variance:g} on the sample, so no scale makes it 1."
                    )
                if abs(variance - 1) <= tolerance:
                    break
                assert isinstance(layer.weight, Tensor)
                assign_(layer, "weight", layer.weight / math.sqrt(variance))
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


def _draw(layer: nn.Module, fill: Callable[[Tensor], object], generator: torch.Generator | None) -> None:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    # where the generator is, whose draws are then the same for a network on any device and in any memory format
    device = weight.device if generator is None else generator.device
    value = torch.empty(weight.shape, dtype=torch.promote_types(weight.dtype, torch.float32), device=device)
    fill(value)
    assign_(layer, "weight", value)
