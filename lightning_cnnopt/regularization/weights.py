"""Which weights are charged or held: chosen once for a fit, and looked up by what an optimizer steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_cnnopt.core.parameters import named_weights

Layout = Literal["whole", "units", "matrices"]
"""How a weight is looked at: as it is stored; as tensors whose first dimension counts output units; or as one tensor
(groups, units of a group, inputs of a group, …)."""


@dataclass(frozen=True, eq=False)
class Weight:
    """A parameter, and how its output units lie in it.

    Args:
        parameter: A kernel (out, in / groups, …), that of a transposed convolution (in, out / groups, …), or any other.
        groups: Of a convolution.
        transposed: Whether it is that of a transposed convolution.
    """

    parameter: nn.Parameter
    groups: int = 1
    transposed: bool = False

    def views(self, tensor: Tensor, layout: Layout) -> list[Tensor]:
        """Return views of ``tensor``, which is the parameter or its gradient.

        A parameter of less than two dimensions has a unit in each element.
        """
        if layout == "whole":
            return [tensor]
        if tensor.ndim < 2:
            units = tensor.view(-1, 1)
            return [units if layout == "units" else units.unsqueeze(0)]
        if layout == "units":
            return [part.transpose(0, 1) for part in tensor.chunk(self.groups)] if self.transposed else [tensor]
        grouped = tensor.view(self.groups, -1, *tensor.shape[1:])
        return [grouped.transpose(1, 2) if self.transposed else grouped]


def choose_weights(network: nn.Module, patterns: Iterable[str] | None = None) -> list[Weight]:
    """Return the weights of ``network`` that are acted on, frozen ones included.

    Args:
        network: Where to look.
        patterns: Shell patterns on parameter names; by default the weights of two or more dimensions, without those of
            normalization layers.

    Raises:
        ConfigurationError: If a pattern matches no parameter.

    Example:
        >>> [tuple(weight.parameter.shape) for weight in choose_weights(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)))]
        [(2, 1, 3, 3)]
    """
    chosen: list[Weight] = []
    for name, parameter in named_weights(network, patterns, frozen=True):
        owner = network.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, nn.modules.conv._ConvNd):
            chosen.append(Weight(parameter, owner.groups, owner.transposed))
        else:
            chosen.append(Weight(parameter))
    return chosen


def views(weights: Iterable[Weight], layout: Layout) -> list[Tensor]:
    """Return the weights as tensors of a layout, in the graph of autograd where that is recorded."""
    return [view for weight in weights for view in weight.views(weight.parameter, layout)]


def trainable(weights: Iterable[Weight]) -> list[Weight]:
    """Return those that are trained at present."""
    return [weight for weight in weights if weight.parameter.requires_grad]


class StepWeights:
    """Those of some weights that an optimizer steps, by its groups.

    Looked up once for each optimizer, and again when it is given more parameters, as gradual unfreezing does.

    Args:
        weights: What is acted on.
    """

    def __init__(self, weights: Sequence[Weight]) -> None:
        self.weights = list(weights)
        self._found: dict[Optimizer, tuple[list[int], list[list[Weight]]]] = {}

    def of(self, optimizer: Optimizer) -> Iterator[tuple[dict[str, Any], list[Weight]]]:
        """Yield every group of ``optimizer`` with those of its weights that are trained at present."""
        sizes = [len(group["params"]) for group in optimizer.param_groups]
        if optimizer not in self._found or self._found[optimizer][0] != sizes:
            held = [{id(parameter) for parameter in group["params"]} for group in optimizer.param_groups]
            self._found[optimizer] = sizes, [[w for w in self.weights if id(w.parameter) in ids] for ids in held]
        for group, weights in zip(optimizer.param_groups, self._found[optimizer][1], strict=True):
            if now := trainable(weights):
                yield group, now
