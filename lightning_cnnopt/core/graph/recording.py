"""The computation of a network as one forward pass runs it, for networks that torch.fx can't trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode

from lightning_cnnopt.core.modes import modes_kept


@torch.no_grad()
def record(network: nn.Module, sample: Tensor, is_leaf: Callable[[nn.Module], bool]) -> torch.fx.Graph:
    """Run ``network`` once on a sample and return what was computed, in the form that torch.fx has for it.

    The network runs in evaluation mode: nothing is drawn, no statistics move, and control flow goes as the sample decides.

    Args:
        network: Left as it was.
        sample: A batch of inputs; its first two are used.
        is_leaf: Which modules are one node, whatever they compute inside.
    """
    recorder = _Recorder()
    handles = []
    for name, module in network.named_modules():
        if module is not network and is_leaf(module):
            # around the module alone: a layer that was inserted in front of it or behind it is no part of it
            handles += [
                module.register_forward_pre_hook(recorder.enter),
                module.register_forward_hook(recorder.leave(name), prepend=True, with_kwargs=True),
            ]
    try:
        sample = sample[:2]
        recorder.note(recorder.graph.placeholder("input"), sample)
        with modes_kept(network):
            network.eval()
            with recorder:
                output = network(sample)
        recorder.graph.output(recorder.nodes(output))
    finally:
        for handle in handles:
            handle.remove()
    return recorder.graph


class _Recorder(TorchFunctionMode):
    """Notes every function of torch that is called, and every leaf module, with the nodes that its inputs came from."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = torch.fx.Graph()
        self.inside = 0
        self._node_of: dict[int, torch.fx.Node] = {}
        self._kept: list[Tensor] = []  # an id is a tensor's own only while it lives

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not self.inside:
            self._add("call_function", func, args, kwargs or {}, output)
        return output

    def enter(self, module: nn.Module, args: Any) -> None:
        self.inside += 1

    def leave(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            self.inside -= 1
            if not self.inside:
                self._add("call_module", name, args, kwargs, output)

        return hook

    def note(self, node: torch.fx.Node, output: Any) -> None:
        """Keep ``node`` as the origin of the tensors in ``output``; an operation in place takes its tensor over."""

        def keep(value: Any) -> Any:
            if isinstance(value, Tensor):
                self._node_of[id(value)] = node
                self._kept.append(value)
            return value

        map_aggregate(output, keep)

    def nodes(self, values: Any) -> Any:
        """Return ``values`` with the node of each tensor that has one in its place."""
        return map_aggregate(values, lambda value: self._node_of.get(id(value), value))

    def _add(self, op: str, target: Any, args: Any, kwargs: Any, output: Any) -> None:
        node = self.graph.create_node(op, target, self.nodes(tuple(args)), self.nodes(dict(kwargs)))
        self.note(node, output)
