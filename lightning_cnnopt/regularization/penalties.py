"""What the loss is charged for, and what weights are held to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from lightning_cnnopt.core.errors import check_range
from lightning_cnnopt.core.parameters import named_weights
from lightning_cnnopt.core.spec import Configurable
from lightning_cnnopt.regularization.functional import l1, l2, max_norm_


class Penalty(Configurable, ABC):
    """Base of penalties: calling one returns what a network is charged, a scalar with gradient.

    Args:
        weight: λ, the strength.
        parameters: Shell patterns on parameter names; by default the weights of two or more dimensions, without those of
            normalization layers.
    """

    def __init__(self, weight: float, parameters: Sequence[str] | None = None) -> None:
        check_range(type(self).__name__, "weight", weight, 0)
        self.weight = weight
        self.parameters = None if parameters is None else list(parameters)

    def __call__(self, network: nn.Module) -> Tensor:
        """Return λ times the measure of the chosen weights of ``network``."""
        chosen = [parameter for _, parameter in named_weights(network, self.parameters)]
        if not chosen:
            rank_zero_warn(f"{self!r} charges nothing: {type(network).__name__} has no trainable weights of two dimensions.")
        return self.weight * self.measure(chosen)

    @abstractmethod
    def measure(self, weights: list[nn.Parameter]) -> Tensor:
        """Return what the weights measure before λ."""


class L1(Penalty):
    """λ Σ|w|, with gradient λ · sign(w): drives weights to zero at a constant pace.

    Args:
        weight: λ. 1e-5: a weight of 0.1 is gone after 10,000 steps of rate 1.
        parameters: Shell patterns on parameter names; by default kernels and matrices.

    Example:
        >>> L1(0.1)(nn.Sequential(nn.Linear(1, 1))).ndim
        0
    """

    def __init__(self, weight: float = 1e-5, parameters: Sequence[str] | None = None) -> None:
        super().__init__(weight, parameters)

    def measure(self, weights: list[nn.Parameter]) -> Tensor:
        """Return Σ|w|."""
        return l1(weights)


class L2(Penalty):
    """λ/2 Σw², with gradient λ · w: coupled weight decay.

    With an adaptive optimizer this is not weight decay: the step divides it by the gradient's scale (Loshchilov & Hutter,
    2019). For decoupled decay, set the optimizer's ``weight_decay``.

    Args:
        weight: λ. 5e-4, the usual choice with SGD.
        parameters: Shell patterns on parameter names; by default kernels and matrices.
    """

    def __init__(self, weight: float = 5e-4, parameters: Sequence[str] | None = None) -> None:
        super().__init__(weight, parameters)

    def measure(self, weights: list[nn.Parameter]) -> Tensor:
        """Return ½ Σw²."""
        return l2(weights)


class Constraint(Configurable, ABC):
    """Base of constraints: calling one projects the weights of a network, in place.

    Args:
        parameters: Shell patterns on parameter names; by default the weights of two or more dimensions, without those of
            normalization layers.
    """

    def __init__(self, parameters: Sequence[str] | None = None) -> None:
        self.parameters = None if parameters is None else list(parameters)

    def __call__(self, network: nn.Module) -> int:
        """Project the chosen weights and return how many tensors there are."""
        chosen = self.weights(network)
        for weight in chosen:
            self.project(weight)
        return len(chosen)

    def weights(self, network: nn.Module) -> list[Tensor]:
        """Return the weights of ``network`` that are projected, as views whose first dimension counts output units."""
        views: list[Tensor] = []
        for name, parameter in named_weights(network, self.parameters):
            owner = network.get_submodule(name.rpartition(".")[0])
            if isinstance(owner, nn.modules.conv._ConvTransposeNd):  # stored as (in, out / groups, …)
                views += [group.transpose(0, 1) for group in parameter.data.chunk(owner.groups)]
            else:
                views.append(parameter.data)
        return views

    @abstractmethod
    def project(self, weight: Tensor) -> None:
        """Project one tensor in place."""


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

    def project(self, weight: Tensor) -> None:
        """Scale units that exceed the limit back to it."""
        max_norm_(weight, self.limit)
