"""Initializations by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from lightning_cnnopt.core.errors import ConfigurationError, check_choice, check_range
from lightning_cnnopt.core.graph import WEIGHTED_LAYERS, NetworkGraph, gain_of
from lightning_cnnopt.core.spec import Configurable
from lightning_cnnopt.initialization.functional import (
    kaiming_normal_,
    kaiming_uniform_,
    lsuv_,
    xavier_normal_,
    xavier_uniform_,
    zero_bias_,
)


class Initializer(Configurable, ABC):
    """Base of initializations: calling one draws the weights of a network anew, in place.

    An initializer touches convolutions and linear layers, sets their biases to zero, and leaves normalization layers as
    they are.
    """

    needs_sample: ClassVar[bool] = False
    """Whether :meth:`__call__` needs a batch of normalized inputs."""

    @torch.no_grad()
    def __call__(self, network: nn.Module, sample: Tensor | None = None, generator: torch.Generator | None = None) -> list[str]:
        """Initialize ``network``.

        Args:
            network: Changed in place.
            sample: A batch of normalized inputs, for initializers that need one.
            generator: Source of randomness on the CPU; by default torch's own.

        Returns:
            Names of the layers that were touched.

        Raises:
            ConfigurationError: If a sample is needed and none was given.
        """
        if self.needs_sample and sample is None:
            raise ConfigurationError(f"{self!r} needs data: pass sample=, a batch of normalized inputs of the network.")
        layers = {name: module for name, module in network.named_modules() if isinstance(module, WEIGHTED_LAYERS)}
        if not layers:
            rank_zero_warn(f"{self!r} initialized nothing: {type(network).__name__} has no convolution and no linear layer.")
            return []
        for layer in layers.values():
            zero_bias_(layer)
        self.draw(network, layers, generator)
        if sample is not None:
            self.fit(network, sample)
        return list(layers)

    @abstractmethod
    def draw(self, network: nn.Module, layers: dict[str, nn.Module], generator: torch.Generator | None) -> None:
        """Draw the weights of ``layers``, which are part of ``network``."""

    def fit(self, network: nn.Module, sample: Tensor) -> None:
        """Adapt the drawn weights to data. Most initializers do nothing here."""


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

    def draw(self, network: nn.Module, layers: dict[str, nn.Module], generator: torch.Generator | None) -> None:
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

    def draw(self, network: nn.Module, layers: dict[str, nn.Module], generator: torch.Generator | None) -> None:
        """Draw each layer by its own fans."""
        for layer in layers.values():
            xavier_normal_(layer, self.gain, generator)


class Kaiming(Initializer):
    """Weights of variance gain² / fan, with the gain of the activation that follows *that* layer.

    The activation is found in the traced computation, so a layer before a ReLU, one before a GELU and the last one, with
    nothing behind it, each get their own. After a swap of activations the gains are the new ones.

    Args:
        distribution: ``"normal"`` or ``"uniform"``; the variance is the same.
        mode: ``"fan_in"`` keeps the variance of the forward pass, ``"fan_out"`` that of the backward pass.

    Reference:
        He et al., "Delving Deep into Rectifiers", 2015.

    Example:
        >>> net = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256))
        >>> _ = Kaiming()(net, generator=torch.Generator().manual_seed(0))
        >>> [round(float(net[i].weight.var() * 256), 1) for i in (0, 2)]
        [2.0, 1.0]
    """

    def __init__(
        self, distribution: Literal["normal", "uniform"] = "normal", mode: Literal["fan_in", "fan_out"] = "fan_in"
    ) -> None:
        check_choice("Kaiming", "distribution", distribution, ("normal", "uniform"))
        check_choice("Kaiming", "mode", mode, ("fan_in", "fan_out"))
        self.distribution = distribution
        self.mode = mode

    def draw(self, network: nn.Module, layers: dict[str, nn.Module], generator: torch.Generator | None) -> None:
        """Draw each layer by its own fan and the gain of its own activation."""
        graph = NetworkGraph(network)
        initialize = kaiming_normal_ if self.distribution == "normal" else kaiming_uniform_
        for name, layer in layers.items():
            initialize(layer, gain_of(graph.activation_after(name)), self.mode == "fan_out", generator)


class LSUV(Initializer):
    """Layer-sequential unit variance: orthogonal weights, each layer then scaled so that its output has variance 1 on data.

    Args:
        tolerance: How far from 1 the variance may stay. 0.01; the paper stops at 0.1, one more step costs nothing.
        iterations: Most corrections per layer.

    Reference:
        Mishkin & Matas, "All you need is a good init", 2016.
    """

    needs_sample = True

    def __init__(self, tolerance: float = 0.01, iterations: int = 10) -> None:
        check_range("LSUV", "tolerance", tolerance, 0, low_open=True)
        check_range("LSUV", "iterations", iterations, 1)
        self.tolerance = tolerance
        self.iterations = iterations

    def draw(self, network: nn.Module, layers: dict[str, nn.Module], generator: torch.Generator | None) -> None:
        """Draw orthogonal weights."""
        for layer in layers.values():
            assert isinstance(layer.weight, Tensor)
            nn.init.orthogonal_(layer.weight, generator=generator)

    def fit(self, network: nn.Module, sample: Tensor) -> None:
        """Scale layer by layer."""
        lsuv_(network, sample, self.tolerance, self.iterations)
