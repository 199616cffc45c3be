"""The swap of activations by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from lightning_cnnopt.activation.functional import swap_activation
from lightning_cnnopt.core.layers import layer_classes
from lightning_cnnopt.core.spec import factory_of
from lightning_cnnopt.core.surgery import Edit


class SwapActivation(Edit):
    """Replaces the activations of a network; see :func:`swap_activation`.

    Initialize afterwards, so that the gain is the new activation's: an ``ImageClassifier`` and ``InitializeWeights`` do.

    Args:
        activation: Makes the new layer: a class of ``torch.nn`` or your own, a ``functools.partial`` of one, or its name.
        replaces: Classes to replace: their names in ``torch.nn``, or import paths of others; by default all but gates
            (sigmoid, tanh).

    Example:
        >>> import torchvision
        >>> SwapActivation(nn.GELU)(torchvision.models.resnet18())
        9
    """

    looks_for = "activation layers"

    def __init__(self, activation: Callable[[], nn.Module], replaces: Sequence[str] | None = None) -> None:
        factory_of(activation, nn.Module)
        layer_classes("SwapActivation", "replaces", replaces or ())
        self.activation = activation
        self.replaces = None if replaces is None else list(replaces)

    def apply(self, network: nn.Module) -> int:
        """Replace the layers and return how many there were."""
        replaces = None if self.replaces is None else layer_classes("SwapActivation", "replaces", self.replaces)
        return swap_activation(network, factory_of(self.activation, nn.Module), replaces)
