"""Counting saturated outputs and dead units while a network runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cnnopt.activation.functional import is_rectifier, slope_of
from lightning_cnnopt.core.batch import read_batch
from lightning_cnnopt.core.randomness import gather


@dataclass
class ActivationCount:
    """What was counted of one activation layer.

    Args:
        layer: Its name in the network; ``#2`` is appended for the second call in one pass of a layer that is shared.
        kind: Its class.
        units: How many units a rectifier has: channels of images, features of vectors. 0 for other kinds.
        dead: How many of them never gave anything but their least value.
        values: How many outputs a layer that saturates has given. 0 for other kinds.
        saturated: How many of them had a slope below the threshold.
    """

    layer: str
    kind: str
    units: int = 0
    dead: int = 0
    values: int = 0
    saturated: int = 0

    @property
    def dead_share(self) -> float:
        """Dead units as a share of all, 0 where there are none."""
        return self.dead / self.units if self.units else 0.0

    @property
    def saturated_share(self) -> float:
        """Saturated outputs as a share of all, 0 where there are none."""
        return self.saturated / self.values if self.values else 0.0


class ActivationCounter:
    """Counts, as a context, what the activation layers of a network give; it changes no value and draws nothing.

    Args:
        network: What is called within the context.
        threshold: An output is saturated where the slope |f′| is below it.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
        >>> _ = nn.init.constant_(net[0].bias, -100.0)
        >>> with ActivationCounter(net) as counter:
        ...     _ = net(torch.rand(8, 2))
        >>> counter.counts()
        [ActivationCount(layer='1', kind='ReLU', units=3, dead=3, values=0, saturated=0)]
    """

    def __init__(self, network: nn.Module, threshold: float = 0.05) -> None:
        self.network = network
        self.threshold = threshold
        self.layers = {n: m for n, m in network.named_modules() if is_rectifier(m) or slope_of(m) is not None}
        self._calls: dict[str, int] = {}
        self._alive: dict[str, Tensor] = {}
        self._saturated: dict[str, tuple[int, Tensor]] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> ActivationCounter:
        self._handles = [self.network.register_forward_pre_hook(lambda *_: self.start_pass())]
        self._handles += [layer.register_forward_hook(self._look(name)) for name, layer in self.layers.items()]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop counting; what was counted stays."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def start_pass(self) -> None:
        """Note that the network starts anew, so that the next call of each layer is its first. Calling the network does it."""
        self._calls = {}

    def counts(self) -> list[ActivationCount]:
        """Return what was counted, over all ranks, in the order of the layers. Under DDP every rank has to call it."""
        mine = (
            {name: alive.cpu() for name, alive in self._alive.items()},
            {name: (values, int(saturated)) for name, (values, saturated) in self._saturated.items()},
        )
        everywhere = gather(mine)
        found = []
        for layer in dict.fromkeys(name for alive, saturated in everywhere for name in (*alive, *saturated)):
            count = ActivationCount(layer, type(self.layers[layer.partition("#")[0]]).__name__)
            alive = [rank[0][layer] for rank in everywhere if layer in rank[0]]
            if alive:
                anywhere = torch.stack(alive).any(0)
                count.units, count.dead = anywhere.numel(), int((~anywhere).sum())
            for _, saturated in everywhere:
                values, number = saturated.get(layer, (0, 0))
                count.values, count.saturated = count.values + values, count.saturated + number
            found.append(count)
        order = list(self.layers)
        return sorted(found, key=lambda count: order.index(count.layer.partition("#")[0]))

    def _look(self, name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            self._calls[name] = call = self._calls.get(name, 0) + 1
            key = name if call == 1 else f"{name}#{call}"
            with torch.no_grad():
                if is_rectifier(layer):
                    # a layer that works in place has overwritten its input, by something as positive as that
                    alive = (args[0].transpose(0, 1).flatten(1) if args[0].ndim > 1 else args[0].unsqueeze(1)).amax(1) > 0
                    self._alive[key] = alive | self._alive[key] if key in self._alive else alive
                slope = slope_of(layer)
                if slope is not None:
                    values, number = self._saturated.get(key, (0, torch.zeros((), dtype=torch.long, device=output.device)))
                    number = number + (slope(output.float()) < self.threshold).sum()
                    self._saturated[key] = values + output.numel(), number

        return hook


@torch.no_grad()
def count_activations(network: nn.Module, batches: Iterable[Any], threshold: float = 0.05) -> list[ActivationCount]:
    """Return how many outputs of a network's activations are saturated, and how many units are dead, over some batches.

    Args:
        network: Is called with the images of each batch, in the mode it is in.
        batches: Images, or batches that hold such.
        threshold: An output is saturated where the slope |f′| of its activation is below it.

    Returns:
        A count for each layer that can saturate (sigmoid, tanh, their hard forms, softsign) or die (ReLU and its squares).

    Example:
        >>> net = nn.Sequential(nn.Linear(1, 2), nn.Tanh())
        >>> [count] = count_activations(net, [1000 * torch.ones(4, 1)])
        >>> count.saturated_share
        1.0
    """
    with ActivationCounter(network, threshold) as counter:
        for batch in batches:
            network(batch if isinstance(batch, Tensor) else read_batch(batch)[0])
    return counter.counts()
