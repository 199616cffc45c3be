"""What the loss is charged for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_cnnopt.core.errors import check_range
from lightning_cnnopt.core.spec import Configurable
from lightning_cnnopt.regularization.functional import (
    add_orthogonality_gradient_,
    add_scaled_,
    add_sign_,
    add_unit_directions_,
    group_lasso,
    l1,
    l2,
    orthogonality,
)
from lightning_cnnopt.regularization.weights import Layout, StepWeights, Weight, choose_weights, trainable, views


class Penalty(Configurable, ABC):
    """Base of penalties: calling one returns what a network is charged, a scalar with gradient.

    A subclass says what weights measure; the gradient is autograd's, unless it says that, too.

    Args:
        weight: λ, the strength.
        parameters: Shell patterns on parameter names; by default the weights of two or more dimensions, without those of
            normalization layers.
    """

    layout: ClassVar[Layout] = "whole"
    """How the weights are handed to :meth:`measure`."""

    def __init__(self, weight: float, parameters: Sequence[str] | None = None) -> None:
        check_range(type(self).__name__, "weight", weight, 0)
        self.weight = weight
        self.parameters = None if parameters is None else list(parameters)

    def __call__(self, network: nn.Module) -> Tensor:
        """Return λ times the measure of the chosen weights of ``network``."""
        return self.charge(self.choose(network))

    @abstractmethod
    def measure(self, weights: list[Tensor]) -> Tensor:
        """Return what the weights measure before λ."""

    def add_gradients_(self, weights: list[Tensor], gradients: list[Tensor]) -> None:
        """Add λ times the gradient of :meth:`measure` to ``gradients``, in place."""
        with torch.enable_grad():
            leaves = [weight.detach().requires_grad_() for weight in weights]
            found = torch.autograd.grad(self.measure(leaves), leaves, allow_unused=True, materialize_grads=True)
        torch._foreach_add_(gradients, found, alpha=self.weight)

    def choose(self, network: nn.Module) -> list[Weight]:
        """Return the weights of ``network`` that are charged as far as they are trained; warn if there are none."""
        chosen = choose_weights(network, self.parameters)
        if not trainable(chosen):
            rank_zero_warn(f"{self!r} charges nothing: {type(network).__name__} has no trainable weights of two dimensions.")
        return chosen

    def charge(self, weights: Sequence[Weight]) -> Tensor:
        """Return λ times the measure of weights that were chosen before."""
        return self.weight * self.measure(views(trainable(weights), self.layout))


class Charges:
    """Penalties with the weights that each of them charges, chosen once for a fit.

    Parameters that are frozen or unfrozen later are left out or taken in from the next step on. A layer that the network is
    given later is not.

    Args:
        penalties: What is charged.
        network: Whose weights are charged.
    """

    def __init__(self, penalties: Sequence[Penalty], network: nn.Module) -> None:
        self._chosen = [(penalty, StepWeights(penalty.choose(network))) for penalty in penalties]

    @torch.no_grad()
    def add_gradients_(self, optimizer: Optimizer) -> None:
        """Add the gradients of all charges to those of the loss, which are in ``.grad`` already.

        Called right before the step of ``optimizer``, a charge counts once per step, whatever the accumulation, the number
        of ranks or of backward passes, and gradients are neither scaled nor in low precision.
        """
        for penalty, chosen in self._chosen:
            weights = [weight for _, held in chosen.of(optimizer) for weight in held]
            if not weights:
                continue
            gradients: list[Tensor] = []
            for weight in weights:
                if weight.parameter.grad is None:
                    weight.parameter.grad = torch.zeros_like(weight.parameter)
                gradients += weight.views(weight.parameter.grad, penalty.layout)
            penalty.add_gradients_(views(weights, penalty.layout), gradients)

    @torch.no_grad()
    def total(self) -> Tensor | None:
        """Return what the weights are charged at present; ``None`` where none are."""
        amounts = [penalty.charge(chosen.weights) for penalty, chosen in self._chosen if trainable(chosen.weights)]
        return torch.stack(amounts).sum() if amounts else None


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

    @override
    def measure(self, weights: list[Tensor]) -> Tensor:
        """Return Σ|w|."""
        return l1(weights)

    @override
    def add_gradients_(self, weights: list[Tensor], gradients: list[Tensor]) -> None:
        """Add λ · sign(w)."""
        add_sign_(gradients, weights, self.weight)


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

    @override
    def measure(self, weights: list[Tensor]) -> Tensor:
        """Return ½ Σw²."""
        return l2(weights)

    @override
    def add_gradients_(self, weights: list[Tensor], gradients: list[Tensor]) -> None:
        """Add λ · w."""
        add_scaled_(gradients, weights, self.weight)


class ElasticNet(Penalty):
    """λ (ρ Σ|w| + (1 - ρ)/2 Σw²): L1 and L2 in one, with gradient λ (ρ sign(w) + (1 - ρ) w).

    Weights go to zero as with L1, and weights that do the same share what is left, as with L2.

    Args:
        weight: λ. 1e-5, that of :class:`L1`.
        l1_ratio: ρ, from 0 (L2) to 1 (L1). 0.5, as in scikit-learn, whose names and formula these are.
        parameters: Shell patterns on parameter names; by default kernels and matrices.

    Reference:
        Zou & Hastie, "Regularization and variable selection via the elastic net", 2005.

    Example:
        >>> layer = nn.Sequential(nn.Linear(1, 1))
        >>> _ = nn.init.constant_(layer[0].weight, 2.0)
        >>> round(ElasticNet(0.1, l1_ratio=0.25)(layer).item(), 4)
        0.2
    """

    def __init__(self, weight: float = 1e-5, l1_ratio: float = 0.5, parameters: Sequence[str] | None = None) -> None:
        super().__init__(weight, parameters)
        check_range("ElasticNet", "l1_ratio", l1_ratio, 0, 1)
        self.l1_ratio = l1_ratio

    @override
    def measure(self, weights: list[Tensor]) -> Tensor:
        """Return ρ Σ|w| + (1 - ρ)/2 Σw²."""
        return self.l1_ratio * l1(weights) + (1 - self.l1_ratio) * l2(weights)

    @override
    def add_gradients_(self, weights: list[Tensor], gradients: list[Tensor]) -> None:
        """Add λ (ρ sign(w) + (1 - ρ) w)."""
        add_sign_(gradients, weights, self.weight * self.l1_ratio)
        add_scaled_(gradients, weights, self.weight * (1 - self.l1_ratio))


class GroupLasso(Penalty):
    """λ Σ √p ‖w‖₂ over output units (filters, neurons) with their p weights: drives whole units to zero.

    The gradient is λ √p w/‖w‖₂, and 0 for a unit of zeros. √p makes λ mean the same for small and large filters.

    Args:
        weight: λ. 1e-5: a unit whose weights are 0.1 in the mean (root of the mean square) is gone after 10,000 steps of
            rate 1, as with :class:`L1`.
        parameters: Shell patterns on parameter names; by default kernels and matrices. A parameter of one dimension has a
            unit in each element.

    Reference:
        Yuan & Lin, "Model selection and estimation in regression with grouped variables", 2006; for filters: Wen et al.,
        "Learning Structured Sparsity in Deep Neural Networks", 2016.

    Example:
        >>> layer = nn.Sequential(nn.Linear(4, 2))
        >>> _ = nn.init.constant_(layer[0].weight, 1.0)
        >>> round(GroupLasso(0.1)(layer).item(), 4)
        0.8
    """

    layout = "units"

    def __init__(self, weight: float = 1e-5, parameters: Sequence[str] | None = None) -> None:
        super().__init__(weight, parameters)

    @override
    def measure(self, weights: list[Tensor]) -> Tensor:
        """Return Σ √p ‖w‖₂."""
        return group_lasso(weights)

    @override
    def add_gradients_(self, weights: list[Tensor], gradients: list[Tensor]) -> None:
        """Add λ √p w/‖w‖₂."""
        add_unit_directions_(gradients, weights, self.weight)


class Orthogonal(Penalty):
    """λ Σ ‖WWᵀ - I‖²_F over layers, a row of W for each output unit: units that are orthonormal keep gradients in scale.

    The gradient is 4λ (WWᵀ - I) W. With more units than inputs it is the columns that are held orthonormal, by the same
    gradient. Of a grouped convolution each group is a W of its own, since filters of two groups share no input.

    Args:
        weight: λ. 1e-4, of the order of a usual weight decay.
        parameters: Shell patterns on parameter names; by default kernels and matrices.

    Reference:
        Bansal, Chen & Wang, "Can We Gain More from Orthogonality Regularizations in Training Deep CNNs?", 2018: the soft
        orthogonality.

    Example:
        >>> layer = nn.Sequential(nn.Linear(3, 2))
        >>> _ = nn.init.orthogonal_(layer[0].weight)
        >>> bool(Orthogonal(1.0)(layer) < 1e-9)
        True
    """

    layout = "matrices"

    def __init__(self, weight: float = 1e-4, parameters: Sequence[str] | None = None) -> None:
        super().__init__(weight, parameters)

    @override
    def measure(self, weights: list[Tensor]) -> Tensor:
        """Return Σ ‖WWᵀ - I‖²_F."""
        return orthogonality(weights)

    @override
    def add_gradients_(self, weights: list[Tensor], gradients: list[Tensor]) -> None:
        """Add 4λ (WWᵀ - I) W."""
        add_orthogonality_gradient_(gradients, weights, self.weight)
