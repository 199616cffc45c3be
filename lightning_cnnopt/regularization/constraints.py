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
from lightning_cnnopt.regularization.functional import max_norm_
from lightning_cnnopt.regularization.weights import Layout, StepWeights, Weight, choose_weights, trainable, views


class Constraint(Configurable, ABC):
    """Base of constraints: calling one projects the weights of a network, in place.

    Args:
        parameters: Shell patterns on parameter names; by default the weights of two or more dimensions, without those of
            normalization layers.
    """

    layout: ClassVar[Layout] = "units"
    """How the weights are handed to :meth:`project`."""

    def __init__(self, parameters: Sequence[str] | None = None) -> None:
        self.parameters = None if parameters is None else list(parameters)

    def __call__(self, network: nn.Module) -> int:
        """Project the chosen weights and return how many tensors there are."""
        chosen = trainable(self.choose(network))
        self.apply(chosen)
        return len(chosen)

    @abstractmethod
    def project(self, weights: list[Tensor]) -> None:
        """Project weights in place."""

    def choose(self, network: nn.Module) -> list[Weight]:
        """Return the weights of ``network`` that are held as far as they are trained."""
        return choose_weights(network, self.parameters)

    @torch.no_grad()
    def apply(self, weights: Sequence[Weight]) -> None:
        """Project weights that were chosen before."""
        self.project(views(weights, self.layout))


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
            for _, weights in chosen.of(optimizer):
                constraint.apply(weights)


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
    def project(self, weights: list[Tensor]) -> None:
        """Scale units that exceed the limit back to it."""
        for weight in weights:
            max_norm_(weight, self.limit)
