"""The base of initializations, and several of them after each other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.graph import WEIGHTED_LAYERS
from lightning_cnnopt.core.pretrained import is_pretrained, is_stated, seems_trained
from lightning_cnnopt.core.spec import Configurable, build
from lightning_cnnopt.initialization.functional import assign_, zero_bias_


class Initializer(Configurable, ABC):
    """Base of initializations: calling one draws the weights of a network anew, in place.

    An initializer touches convolutions and linear layers, sets their biases to zero, and leaves normalization layers as
    they are. Layers that :func:`~lightning_cnnopt.core.mark_pretrained` marked are left alone.
    """

    needs_sample: bool = False
    """Whether :meth:`__call__` can't do without a batch of inputs, as the network is fed them: normalized."""

    sample_size: int = 0
    """How many inputs :meth:`__call__` makes use of, where there are some; 0 for none."""

    needs_counts: bool = False
    """Whether it starts from the frequencies of the classes; see :meth:`bind`."""

    looks_for: str = "convolution and no linear layer"
    """What it sets, for the warning that there is none."""

    def bind(self, counts: Sequence[int], total: int | None = None) -> Initializer:
        """Return this initialization with the frequencies of the classes, for those that start from them.

        Args:
            counts: Training samples of each class, or positive ones of each label.
            total: All training samples, for labels that are not exclusive.
        """
        del counts, total
        return self

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
        layers = self.choose(network, layers, sample)
        if not layers:
            rank_zero_warn(f"{self!r} initialized nothing: {type(network).__name__} has no {self.looks_for}.")
        layers = self._settable(self._new(network, layers))
        if layers:
            for layer in layers.values():
                zero_bias_(layer)
            self.draw(network, layers, sample, generator)
        return list(layers)

    def choose(self, network: nn.Module, layers: dict[str, nn.Module], sample: Tensor | None) -> dict[str, nn.Module]:
        """Return those of ``layers`` that are set. By default all."""
        del network, sample
        return layers

    @abstractmethod
    def draw(
        self, network: nn.Module, layers: dict[str, nn.Module], sample: Tensor | None, generator: torch.Generator | None
    ) -> None:
        """Set the weights of ``layers``, which are part of ``network`` and have biases of zero; see :meth:`__call__`."""

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


class Chain(Initializer):
    """Several initializations after each other, each on what the ones before left: a list in a config is one.

    Args:
        initializers: In their order: one for all layers first, those for single layers behind.

    Example:
        >>> import torchvision
        >>> from lightning_cnnopt.initialization import Kaiming, ZeroGamma
        >>> len(Chain([Kaiming(), ZeroGamma()])(torchvision.models.resnet18()))
        29
    """

    def __init__(self, initializers: Sequence[Initializer]) -> None:
        self.initializers = list(initializers)
        if not self.initializers:
            raise ConfigurationError("Chain: initializers=[] starts nothing; give one or more.")
        self.needs_sample = any(initializer.needs_sample for initializer in self.initializers)
        self.sample_size = max(initializer.sample_size for initializer in self.initializers)
        self.needs_counts = any(initializer.needs_counts for initializer in self.initializers)

    def bind(self, counts: Sequence[int], total: int | None = None) -> Initializer:
        """Return the same with the frequencies of the classes handed to each."""
        return Chain([initializer.bind(counts, total) for initializer in self.initializers])

    def __call__(self, network: nn.Module, sample: Tensor | None = None, generator: torch.Generator | None = None) -> list[str]:
        """Initialize ``network`` by each in turn; see :meth:`Initializer.__call__`."""
        touched = [name for initializer in self.initializers for name in initializer(network, sample, generator)]
        return list(dict.fromkeys(touched))

    def draw(
        self, network: nn.Module, layers: dict[str, nn.Module], sample: Tensor | None, generator: torch.Generator | None
    ) -> None:
        """Draw ``layers`` by each in turn."""
        for initializer in self.initializers:
            initializer.draw(network, layers, sample, generator)


def as_initializer(value: object) -> Initializer:
    """Return one initialization for what a user gave: an object or its spec, or a list of them."""
    if isinstance(value, (list, tuple)):
        return Chain([as_initializer(item) for item in value])
    return build(value, Initializer)  # type: ignore[type-abstract]


def _why_not_settable(layer: nn.Module) -> str | None:
    for name in ("weight", "bias"):
        value = getattr(layer, name)
        if isinstance(value, Tensor) and name not in layer._parameters:
            try:
                assign_(layer, name, value.detach().clone())
            except ConfigurationError as error:
                return str(error)
    return None
