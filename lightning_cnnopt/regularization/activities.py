"""What the loss is charged for the outputs of layers."""

from __future__ import annotations

import fnmatch
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lightning_cnnopt.core.errors import ConfigurationError, check_range
from lightning_cnnopt.core.graph import is_activation
from lightning_cnnopt.core.spec import Configurable


class ActivityPenalty(Configurable, ABC):
    """Base of penalties on what layers put out.

    Args:
        weight: λ, the strength.
        layers: Shell patterns on the names of modules; by default every activation layer.
    """

    def __init__(self, weight: float, layers: Sequence[str] | None = None) -> None:
        check_range(type(self).__name__, "weight", weight, 0)
        self.weight = weight
        self.layers = None if layers is None else list(layers)

    @abstractmethod
    def measure(self, activity: Tensor) -> Tensor:
        """Return what one output measures before λ."""

    def choose(self, network: nn.Module) -> dict[str, nn.Module]:
        """Return the layers of ``network`` whose outputs are charged, by name.

        Raises:
            ConfigurationError: If a pattern matches none, or there are no activation layers.
        """
        modules = {name: module for name, module in network.named_modules() if name}
        if self.layers is None:
            found = {name: module for name, module in modules.items() if is_activation(module)}
            if not found:
                raise ConfigurationError(
                    f"{self!r} finds no activation layers in {type(network).__name__} (functions are none); name the layers "
                    "to be charged with layers=."
                )
            return found
        for pattern in self.layers:
            if not fnmatch.filter(modules, pattern):
                raise ConfigurationError(
                    f"{type(self).__name__}: layers={pattern!r} matches none of {len(modules)} layers of "
                    f"{type(network).__name__}, such as {list(modules)[:3]}."
                )
        return {name: m for name, m in modules.items() if any(fnmatch.fnmatch(name, pattern) for pattern in self.layers)}

    def watch(self, network: nn.Module) -> ActivityCharges:
        """Return the charges of ``network``, recorded within ``with``, a training step in each.

        Example:
            >>> network = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
            >>> with ActivityL1(0.1).watch(network) as charges:
            ...     loss = network(torch.ones(4, 2)).sum()
            ...     (loss + charges.total()).backward()
        """
        return ActivityCharges([self], network)


class ActivityCharges:
    """Records what the outputs of layers are charged, from :meth:`begin` until :meth:`total`.

    Args:
        penalties: What is charged.
        network: Whose layers are watched, from :meth:`attach` until :meth:`detach`; ``with`` calls these and :meth:`begin`.
    """

    def __init__(self, penalties: Sequence[ActivityPenalty], network: nn.Module) -> None:
        self._watched = [(penalty, penalty.choose(network)) for penalty in penalties]
        self._amounts: list[Tensor] = []
        self._handles: list[RemovableHandle] = []
        self._is_recording = False

    def attach(self) -> None:
        """Watch the layers, until :meth:`detach`."""
        for penalty, layers in self._watched:
            self._handles += [layer.register_forward_hook(self._hook(penalty, name)) for name, layer in layers.items()]

    def detach(self) -> None:
        """Watch them no more."""
        while self._handles:
            self._handles.pop().remove()
        self._amounts = []

    def begin(self) -> None:
        """Record anew."""
        self._amounts = []
        self._is_recording = True

    def total(self) -> Tensor:
        """Return the sum of what was recorded, a scalar with gradient, and record no more.

        Raises:
            ConfigurationError: If none of the layers ran with gradients.
        """
        self._is_recording = False
        amounts, self._amounts = self._amounts, []
        if not amounts:
            names = [name for _, layers in self._watched for name in layers]
            raise ConfigurationError(
                f"None of the {len(names)} layers whose outputs are charged, such as {names[0]!r}, was run with gradients: "
                "they are not used, or only inside a checkpoint with use_reentrant=True."
            )
        return torch.stack(amounts).sum()

    def __enter__(self) -> ActivityCharges:
        """Watch and record."""
        self.attach()
        self.begin()
        return self

    def __exit__(self, *error: object) -> None:
        """Watch no more."""
        self.detach()

    def _hook(self, penalty: ActivityPenalty, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def charge(module: nn.Module, args: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise ConfigurationError(
                    f"{type(penalty).__name__}: the layer {name!r} puts out a {type(output).__name__} and not one tensor; "
                    "choose others with layers=."
                )
            if torch.is_grad_enabled():
                # computed even where it is not recorded: what a checkpoint recomputes has to be what it computed before.
                # In float32: squares of half-precision numbers overflow
                with torch.autocast(output.device.type, enabled=False):
                    amount = penalty.weight * penalty.measure(output.float())
                if self._is_recording:
                    self._amounts.append(amount)

        return charge


class ActivityL1(ActivityPenalty):
    """λ times the mean of |a| over each chosen output a, summed over outputs: activations become sparse.

    The mean is over batch, channels and positions, so λ means the same at any batch size and resolution.

    Args:
        weight: λ. 0.01: an output that is 1 in the mean is charged a hundredth.
        layers: Shell patterns on the names of modules; by default every activation layer.

    Reference:
        Glorot, Bordes & Bengio, "Deep Sparse Rectifier Neural Networks", 2011.
    """

    def __init__(self, weight: float = 0.01, layers: Sequence[str] | None = None) -> None:
        super().__init__(weight, layers)

    @override
    def measure(self, activity: Tensor) -> Tensor:
        """Return the mean of |a|."""
        return activity.abs().mean()


class ActivityL2(ActivityPenalty):
    """λ/2 times the mean of a² over each chosen output a, summed over outputs: large activations become smaller.

    Args:
        weight: λ. 0.01: an output whose mean square is 1 is charged half a hundredth.
        layers: Shell patterns on the names of modules; by default every activation layer.

    Reference:
        Merity, McCann & Socher, "Revisiting Activation Regularization for Language RNNs", 2017.
    """

    def __init__(self, weight: float = 0.01, layers: Sequence[str] | None = None) -> None:
        super().__init__(weight, layers)

    @override
    def measure(self, activity: Tensor) -> Tensor:
        """Return half the mean of a²."""
        return activity.square().mean() / 2
