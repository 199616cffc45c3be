"""Random weights by name."""

from __future__ import annotations

from typing import Literal

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from lightning_cnnopt.core.errors import ConfigurationError, check_choice, check_range
from lightning_cnnopt.core.graph import Unknown, activations_after, gain_of
from lightning_cnnopt.initialization.functional import (
    delta_orthogonal_,
    kaiming_normal_,
    kaiming_uniform_,
    normal_,
    orthogonal_,
    truncated_normal_,
    uniform_,
    xavier_normal_,
    xavier_uniform_,
)
from lightning_cnnopt.initialization.initializers.base import Initializer


class Uniform(Initializer):
    """Weights from U(low, high), whatever the layer.

    Args:
        low: Least weight. ±0.05, Keras' ``RandomUniform``.
        high: Greatest weight.

    Example:
        >>> net = nn.Sequential(nn.Linear(100, 100))
        >>> _ = Uniform(-0.1, 0.1)(net)
        >>> bool(net[0].weight.abs().max() <= 0.1)
        True
    """

    def __init__(self, low: float = -0.05, high: float = 0.05) -> None:
        check_range("Uniform", "low", low)
        check_range("Uniform", "high", high)
        if low >= high:
            raise ConfigurationError(f"Uniform: low={low} must be less than high={high}.")
        self.low = low
        self.high = high

    def draw(
        self, network: nn.Module, layers: dict[str, nn.Module], sample: Tensor | None, generator: torch.Generator | None
    ) -> None:
        """Draw every layer from the same law."""
        for layer in layers.values():
            uniform_(layer, self.low, self.high, generator)


class Normal(Initializer):
    """Weights from N(0, std²), whatever the layer.

    Args:
        std: Standard deviation. 0.05, Keras' ``RandomNormal``; AlexNet took 0.01.
    """

    def __init__(self, std: float = 0.05) -> None:
        check_range("Normal", "std", std, 0, low_open=True)
        self.std = std

    def draw(
        self, network: nn.Module, layers: dict[str, nn.Module], sample: Tensor | None, generator: torch.Generator | None
    ) -> None:
        """Draw every layer from the same law."""
        for layer in layers.values():
            normal_(layer, self.std, generator)


class TruncatedNormal(Initializer):
    """Weights from N(0, std²), drawn again where they lie beyond ± cut · std.

    The variance that is left is less than std²; of a cut at 2 it is 0.774 std².

    Args:
        std: Standard deviation before the cut. 0.02, as timm starts heads and vision transformers.
        cut: Where the law is cut, in standard deviations.
    """

    def __init__(self, std: float = 0.02, cut: float = 2.0) -> None:
        check_range("TruncatedNormal", "std", std, 0, low_open=True)
        check_range("TruncatedNormal", "cut", cut, 0, low_open=True, finite=False)
        self.std = std
        self.cut = cut

    def draw(
        self, network: nn.Module, layers: dict[str, nn.Module], sample: Tensor | None, generator: torch.Generator | None
    ) -> None:
        """Draw every layer from the same law."""
        for layer in layers.values():
            truncated_normal_(layer, self.std, self.cut, generator)


class XavierUniform(Initializer):
    """Weights from U(-a, a), a = gain · √(6 / (fan_in + fan_out)); Keras' default.

    Args:
        gain: Multiplies the bound. 1 as in the paper, for activations that are linear near 0.

    Reference:
        Glorot & Bengio, 2010.

    Example:
        >>> XavierUniform()(nn.Sequential(nn.Linear(4, 2)))
        ['0']
    """

    def __init__(self, gain: float = 1.0) -> None:
        check_range(type(self).__name__, "gain", gain, 0, low_open=True)
        self.gain = gain

    def draw(
        self, network: nn.Module, layers: dict[str, nn.Module], sample: Tensor | None, generator: torch.Generator | None
    ) -> None:
        """Draw each layer by its own fans."""
        for layer in layers.values():
            xavier_uniform_(layer, self.gain, generator)


class XavierNormal(Initializer):
    """Weights from N(0, σ²), σ = gain · √(2 / (fan_in + fan_out)).

    The formula that is sometimes printed for it, σ = √(6 / (fan_in + fan_out)), is ``XavierNormal(gain=3**0.5)``.

    Args:
        gain: Multiplies σ.

    Reference:
        Glorot & Bengio, 2010.
    """

    def __init__(self, gain: float = 1.0) -> None:
        check_range(type(self).__name__, "gain", gain, 0, low_open=True)
        self.gain = gain

    def draw(
        self, network: nn.Module, layers: dict[str, nn.Module], sample: Tensor | None, generator: torch.Generator | None
    ) -> None:
        """Draw each layer by its own fans."""
        for layer in layers.values():
            xavier_normal_(layer, self.gain, generator)


class Kaiming(Initializer):
    """Weights of variance gain² / fan, with the gain of the activation that follows *that* layer.

    The activation is found in the traced computation, so a layer before a ReLU, one before a GELU and the last one, with
    nothing behind it, each get their own. After a swap of activations the gains are the new ones. A network that torch.fx can't
    trace is run once on two samples, where there are some. Where the activation can't be told, a warning names the layers.

    Args:
        distribution: ``"normal"`` or ``"uniform"``; the variance is the same.
        mode: ``"fan_in"`` keeps the variance of the forward pass, ``"fan_out"`` that of the backward pass.
        unknown_gain: Gain of layers of which it can't be told what follows; by default 1, with a warning.

    Reference:
        He et al., "Delving Deep into Rectifiers", 2015.

    Example:
        >>> net = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256))
        >>> _ = Kaiming()(net, generator=torch.Generator().manual_seed(0))
        >>> [round(float(net[i].weight.var() * 256), 1) for i in (0, 2)]
        [2.0, 1.0]
    """

    sample_size = 2

    def __init__(
        self,
        distribution: Literal["normal", "uniform"] = "normal",
        mode: Literal["fan_in", "fan_out"] = "fan_in",
        unknown_gain: float | None = None,
    ) -> None:
        check_choice("Kaiming", "distribution", distribution, ("normal", "uniform"))
        check_choice("Kaiming", "mode", mode, ("fan_in", "fan_out"))
        if unknown_gain is not None:
            check_range("Kaiming", "unknown_gain", unknown_gain, 0, low_open=True)
        self.distribution = distribution
        self.mode = mode
        self.unknown_gain = unknown_gain

    def draw(
        self, network: nn.Module, layers: dict[str, nn.Module], sample: Tensor | None, generator: torch.Generator | None
    ) -> None:
        """Draw each layer by its own fan and the gain of its own activation."""
        initialize = kaiming_normal_ if self.distribution == "normal" else kaiming_uniform_
        for name, gain in gains_of(self, network, layers, sample, self.unknown_gain).items():
            initialize(layers[name], gain, self.mode == "fan_out", generator)


class RandomOrthogonal(Initializer):
    """Weights whose matrix, a row for each output, is a random orthogonal one times a gain.

    Where rows are orthonormal, an output has the variance of the input times gain²; Kaiming's has so on average only.

    Args:
        gain: Multiplies the matrix; by default that of the activation which follows the layer, as in :class:`Kaiming`.

    Reference:
        Saxe, McClelland & Ganguli, 2014.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 4))
        >>> _ = RandomOrthogonal()(net)
        >>> bool(torch.allclose(net[0].weight @ net[0].weight.T, torch.eye(4), atol=1e-5))
        True
    """

    sample_size = 2

    def __init__(self, gain: float | None = None) -> None:
        if gain is not None:
            check_range(type(self).__name__, "gain", gain, 0, low_open=True)
        self.gain = gain

    def draw(
        self, network: nn.Module, layers: dict[str, nn.Module], sample: Tensor | None, generator: torch.Generator | None
    ) -> None:
        """Draw each layer by the gain of its own activation, or the one that was given."""
        for name, gain in self._gains(network, layers, sample).items():
            orthogonal_(layers[name], gain, generator)

    def _gains(self, network: nn.Module, layers: dict[str, nn.Module], sample: Tensor | None) -> dict[str, float]:
        return gains_of(self, network, layers, sample) if self.gain is None else dict.fromkeys(layers, self.gain)


class DeltaOrthogonal(RandomOrthogonal):
    """Convolutions with a random orthogonal matrix at the centre of the kernel and zeros around it.

    Each keeps the length of every pixel's vector, so that signals and gradients pass through thousands of layers without
    normalization or shortcuts. It holds where a layer has at least as many outputs as inputs.

    Args:
        gain: Multiplies the matrix; by default that of the activation which follows the layer.

    Reference:
        Xiao et al., "Dynamical Isometry and a Mean Field Theory of CNNs", 2018.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1))
        >>> _ = DeltaOrthogonal()(net)
        >>> int((net[0].weight != 0).sum())
        4
    """

    def draw(
        self, network: nn.Module, layers: dict[str, nn.Module], sample: Tensor | None, generator: torch.Generator | None
    ) -> None:
        """Set each layer by the gain of its own activation, or the one that was given."""
        for name, gain in self._gains(network, layers, sample).items():
            delta_orthogonal_(layers[name], gain, generator)


def gains_of(
    initializer: Initializer,
    network: nn.Module,
    layers: dict[str, nn.Module],
    sample: Tensor | None,
    unknown_gain: float | None = None,
) -> dict[str, float]:
    """Return for each layer the gain of the activation that follows it; warn of those of which that can't be told.

    Args:
        initializer: Who asks, for the warning.
        network: What the layers are part of.
        layers: The layers by name.
        sample: A batch of inputs, for a network that can't be traced.
        unknown_gain: Gain of layers of which it can't be told what follows; by default 1, with a warning.
    """
    after = activations_after(network, layers, sample)
    unknown = {name: found.reason for name, found in after.items() if isinstance(found, Unknown)}
    if unknown and unknown_gain is None:
        named = ", ".join(f"{name!r} ({reason})" for name, reason in list(unknown.items())[:3])
        rank_zero_warn(
            f"{initializer!r} can't tell which activation follows {len(unknown)} of {len(layers)} layers of "
            f"{type(network).__name__}, such as {named}. They got gain 1. Kaiming(unknown_gain=…) states another; an "
            "activation layer of your own may state its gain as an attribute `gain`; with sample=, a batch of inputs, a "
            "network that can't be traced is run once and followed."
        )
    return {name: (unknown_gain or 1.0) if isinstance(found, Unknown) else gain_of(found) for name, found in after.items()}
