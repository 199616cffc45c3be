"""What weights are held to after every optimizer step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_cnnopt.core.errors import ConfigurationError, check_range
from lightning_cnnopt.core.spec import Configurable
from lightning_cnnopt.regularization.functional import max_norm_, soft_threshold_, sparsity, unit_norm_
from lightning_cnnopt.regularization.weights import Layout, StepWeights, Weight, choose_weights, trainable, views


class Constraint(Configurable, ABC):
    """Base of constraints: calling one after an optimizer step projects the weights of a network, in place.

    A constraint is a proximal step. Of a limit it is a projection, the same at any rate; of a penalty it goes as far as the
    rate of the optimizer step says.

    Args:
        parameters: Shell patterns on parameter names; by default the weights of two or more dimensions, without those of
            normalization layers.
    """

    layout: ClassVar[Layout] = "units"
    """How the weights are handed to :meth:`project`."""

    sparsifies: ClassVar[bool] = False
    """Whether it is there for zeros, whose share is then logged."""

    def __init__(self, parameters: Sequence[str] | None = None) -> None:
        self.parameters = None if parameters is None else list(parameters)

    def __call__(self, network: nn.Module, rate: float = 1.0) -> int:
        """Project the chosen weights and return how many tensors there are.

        Args:
            network: Whose weights are projected.
            rate: Learning rate of the step that was taken. Only proximal steps of penalties depend on it.
        """
        chosen = trainable(self.choose(network))
        self.apply(chosen, rate)
        return len(chosen)

    @abstractmethod
    def project(self, weights: list[Tensor], rate: float) -> None:
        """Project weights in place, after a step of learning rate ``rate``."""

    def choose(self, network: nn.Module) -> list[Weight]:
        """Return the weights of ``network`` that are held as far as they are trained."""
        return choose_weights(network, self.parameters)

    @torch.no_grad()
    def apply(self, weights: Sequence[Weight], rate: float) -> None:
        """Project weights that were chosen before."""
        self.project(views(weights, self.layout), rate)


class Projections:
    """Constraints with the weights that each of them holds, chosen once for a fit.

    Parameters that are frozen or unfrozen later are left out or taken in from the next step on.

    Args:
        constraints: The constraints, in their order.
        network: Whose weights are held.

    Raises:
        ConfigurationError: If a constraint finds no weights.
    """

    def __init__(self, constraints: Sequence[Constraint], network: nn.Module) -> None:
        self._chosen = [(constraint, StepWeights(constraint.choose(network))) for constraint in constraints]
        for constraint, chosen in self._chosen:
            if not trainable(chosen.weights):
                raise ConfigurationError(f"{constraint!r} finds no weights in {type(network).__name__}.")

    def apply(self, optimizer: Optimizer) -> None:
        """Project what ``optimizer`` has just stepped."""
        for constraint, chosen in self._chosen:
            for group, weights in chosen.of(optimizer):
                constraint.apply(weights, float(group.get("lr", 1.0)))

    @torch.no_grad()
    def sparsity(self) -> Tensor | None:
        """Return the share of zeros among what constraints for sparsity hold; ``None`` without any."""
        held = {w.parameter for constraint, chosen in self._chosen if constraint.sparsifies for w in chosen.weights}
        return sparsity(held) if held else None


class MaxNorm(Constraint):
    """Holds the norm of each output unit's incoming weights to at most ``limit``, after every optimizer step.

    Args:
        limit: Greatest Euclidean norm. 3, within the 3 to 4 of the paper.
        parameters: Shell patterns on parameter names; by default kernels and matrices.

    Reference:
        Srivastava et al., "Dropout", 2014.

    Example:
        >>> layer = nn.Sequential(nn.Linear(100, 2))
        >>> nn.init.constant_(layer[0].weight, 1.0).norm(dim=1).tolist()
        [10.0, 10.0]
        >>> MaxNorm(2.0)(layer)
        1
        >>> [round(norm, 4) for norm in layer[0].weight.norm(dim=1).tolist()]
        [2.0, 2.0]
    """

    def __init__(self, limit: float = 3.0, parameters: Sequence[str] | None = None) -> None:
        check_range("MaxNorm", "limit", limit, 0, low_open=True)
        super().__init__(parameters)
        self.limit = limit

    @override
    def project(self, weights: list[Tensor], rate: float) -> None:
        """Scale units that exceed the limit back to it."""
        for weight in weights:
            max_norm_(weight, self.limit)


class UnitNorm(Constraint):
    """Holds the norm of each output unit's incoming weights to 1, after every optimizer step.

    Training then moves their directions alone. A unit whose weights are all zero has no direction and stays.

    Args:
        parameters: Shell patterns on parameter names; by default kernels and matrices.

    Reference:
        Keras' ``UnitNorm``; of the direction alone: Salimans & Kingma, "Weight Normalization", 2016.

    Example:
        >>> layer = nn.Sequential(nn.Linear(100, 2))
        >>> UnitNorm()(layer)
        1
        >>> [round(norm, 4) for norm in layer[0].weight.norm(dim=1).tolist()]
        [1.0, 1.0]
    """

    def __init__(self, parameters: Sequence[str] | None = None) -> None:
        super().__init__(parameters)

    @override
    def project(self, weights: list[Tensor], rate: float) -> None:
        """Scale every unit to a norm of 1."""
        for weight in weights:
            unit_norm_(weight)


class ProximalL1(Constraint):
    """λ Σ|w| by proximal steps: after every optimizer step weights move towards zero by rate · λ, and stop there.

    w ← sign(w) · max(|w| - rate · λ, 0). The gradient of :class:`L1` steps over zero and back; this ends *at* zero, and a
    weight stays there until the task pulls it away by more than rate · λ. The rate is that of the weight's own group. With
    an adaptive optimizer it acts beside the adaptive step, as decoupled weight decay does. The share of zeros is logged as
    ``sparsity``.

    Args:
        weight: λ. 1e-5, that of :class:`L1`.
        parameters: Shell patterns on parameter names; by default kernels and matrices.

    Reference:
        Daubechies, Defrise & De Mol, "An iterative thresholding algorithm", 2004; Duchi & Singer, "Efficient Online and
        Batch Learning Using Forward Backward Splitting", 2009.

    Example:
        >>> layer = nn.Sequential(nn.Linear(3, 1))
        >>> _ = layer[0].weight.data.copy_(torch.tensor([[-2.0, 0.25, 1.0]]))
        >>> ProximalL1(5.0)(layer, rate=0.1)
        1
        >>> layer[0].weight.tolist()
        [[-1.5, 0.0, 0.5]]
    """

    layout = "whole"
    sparsifies = True

    def __init__(self, weight: float = 1e-5, parameters: Sequence[str] | None = None) -> None:
        check_range("ProximalL1", "weight", weight, 0)
        super().__init__(parameters)
        self.weight = weight

    @override
    def project(self, weights: list[Tensor], rate: float) -> None:
        """Move weights towards zero by ``rate`` · λ."""
        soft_threshold_(weights, rate * self.weight)
