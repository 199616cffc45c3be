"""Initializations by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_cnnopt.core.errors import ConfigurationError, check_choice, check_range
from lightning_cnnopt.core.graph import WEIGHTED_LAYERS, Unknown, activations_after, gain_of
from lightning_cnnopt.core.pretrained import is_pretrained, is_stated, seems_trained
from lightning_cnnopt.core.spec import Configurable
from lightning_cnnopt.initialization.functional import (
    assign_,
    kaiming_normal_,
    kaiming_uniform_,
    lsuv_,
    orthogonal_,
    xavier_normal_,
    xavier_uniform_,
    zero_bias_,
)


class Initializer(Configurable, ABC):
    """Base of initializations: calling one draws the weights of a network anew, in place.

    An initializer touches convolutions and linear layers, sets their biases to zero, and leaves normalization layers as
    they are. Layers that :func:`~lightning_cnnopt.core.mark_pretrained` marked are left alone.
    """

    needs_sample: ClassVar[bool] = False
    """Whether :meth:`__call__` can't do without a batch of inputs, as the network is fed them: normalized."""

    sample_size: ClassVar[int] = 0
    """How many inputs :meth:`__call__` makes use of, where there are some; 0 for none."""

    @torch.no_grad()
    def __call__(self, network: nn.Module, sample: Tensor | None = None, generator: torch.Generator | None = None) -> list[str]:
        """Initialize ``network``.

        Args:
            network: Changed in place.
            sample: A batch of normalized inputs, for initializers that make use of one.
            generator: Source of randomness; by default torch's own. The same one draws the same on every device.

        Returns:
            Names of the layers that were touched.

        Raises:
            ConfigurationError: If a sample is needed and none was given, or layers have no weights yet.
        """
        if self.needs_sample and sample is None:
            raise ConfigurationError(f"{self!r} needs data: pass sample=, a batch of normalized inputs of the network.")
        layers = {name: module for name, module in network.named_modules() if isinstance(module, WEIGHTED_LAYERS)}
        if not layers:
            rank_zero_warn(f"{self!r} initialized nothing: {type(network).__name__} has no convolution and no linear layer.")
        layers = self._settable(self._new(network, layers))
        if layers:
            for layer in layers.values():
                zero_bias_(layer)
            self.draw(network, layers, sample, generator)
        return list(layers)

    @abstractmethod
    def draw(
        self, network: nn.Module, layers: dict[str, nn.Module], sample: Tensor | None, generator: torch.Generator | None
    ) -> None:
        """Draw the weights of ``layers``, which are part of ``network``; see :meth:`__call__`."""

    def _new(self, network: nn.Module, layers: dict[str, nn.Module]) -> dict[str, nn.Module]:
        new = {name: layer for name, layer in layers.items() if not is_pretrained(layer)}
        if layers and not new:
            rank_zero_warn(
                f"{self!r} initialized nothing: all {len(layers)} layers of {type(network).__name__} have trained weights. "
                "mark_pretrained(network, False) of lightning_cnnopt.core lets them be drawn anew."
            )
        elif len(new) < len(layers):
            rank_zero_info(
                f"{self!r} leaves {len(layers) - len(new)} of {len(layers)} layers alone: their weights are trained."
            )
        elif new and seems_trained(network) and not is_stated(network):
            rank_zero_warn(
                f"{self!r} draws all weights of {type(network).__name__} anew, and the statistics of its batch normalization "
                "are not those of a new network. If it is pretrained, mark_pretrained(network) of lightning_cnnopt.core keeps "
                "its weights; mark_pretrained(network, False) says that this is meant."
            )
        shapeless = [name for name, layer in new.items() if is_lazy(layer.weight) or layer.weight.numel() == 0]  # type: ignore
        if shapeless:
            raise ConfigurationError(
                f"{self!r}: {len(shapeless)} layers have no weights to draw, such as {shapeless[0]!r}, a "
                f"{type(new[shapeless[0]]).__name__}. Lazy layers get theirs when the network runs; run it on a batch before."
            )
        return new

    def _settable(self, layers: dict[str, nn.Module]) -> dict[str, nn.Module]:
        refused = {name: reason for name, layer in layers.items() if (reason := _why_not_settable(layer)) is not None}
        if refused:
            name, reason = next(iter(refused.items()))
            rank_zero_warn(f"{self!r} leaves {len(refused)} layers as they are, such as {name!r}: {reason}")
        return {name: layer for name, layer in layers.items() if name not in refused}


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
        after = activations_after(network, layers, sample)
        unknown = {name: found.reason for name, found in after.items() if isinstance(found, Unknown)}
        if unknown and self.unknown_gain is None:
            named = ", ".join(f"{name!r} ({reason})" for name, reason in list(unknown.items())[:3])
            rank_zero_warn(
                f"{self!r} can't tell which activation follows {len(unknown)} of {len(layers)} layers of "
                f"{type(network).__name__}, such as {named}. They got gain 1. Kaiming(unknown_gain=…) states another; an "
                "activation layer of your own may state its gain as an attribute `gain`; with sample=, a batch of inputs, a "
                "network that can't be traced is run once and followed."
            )
        for name, layer in layers.items():
            found = after[name]
            gain = (self.unknown_gain or 1.0) if isinstance(found, Unknown) else gain_of(found)
            initialize(layer, gain, self.mode == "fan_out", generator)


class LSUV(Initializer):
    """Layer-sequential unit variance: orthogonal weights, each layer then scaled so that its output has variance 1 on data.

    Args:
        tolerance: How far from 1 the variance may stay. 0.01; the paper stops at 0.1, one more step costs nothing.
        iterations: Most corrections per layer.

    Reference:
        Mishkin & Matas, "All you need is a good init", 2016.
    """

    needs_sample = True
    sample_size = 256

    def __init__(self, tolerance: float = 0.01, iterations: int = 10) -> None:
        check_range("LSUV", "tolerance", tolerance, 0, low_open=True)
        check_range("LSUV", "iterations", iterations, 1)
        self.tolerance = tolerance
        self.iterations = iterations

    def draw(
        self, network: nn.Module, layers: dict[str, nn.Module], sample: Tensor | None, generator: torch.Generator | None
    ) -> None:
        """Draw orthogonal weights and scale them layer by layer."""
        assert sample is not None
        for layer in layers.values():
            orthogonal_(layer, generator)
        variances = lsuv_(network, sample, self.tolerance, self.iterations, layers)
        off = {name: variance for name, variance in variances.items() if abs(variance - 1) > self.tolerance}
        if off:
            name, variance = next(iter(off.items()))
            rank_zero_warn(
                f"{self!r}: {len(off)} layers kept another variance than 1, such as {name!r} with {variance:.3g}. A layer "
                "that computes its weight may undo every scale (spectral norm and standardization do)."
            )


def _why_not_settable(layer: nn.Module) -> str | None:
    for name in ("weight", "bias"):
        value = getattr(layer, name)
        if isinstance(value, Tensor) and name not in layer._parameters:
            try:
                assign_(layer, name, value.detach().clone())
            except ConfigurationError as error:
                return str(error)
    return None
