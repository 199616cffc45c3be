"""How the computation of a network is taken down: by torch.fx, as a whole or in parts, or by running it once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch.fx
from torch import Tensor, nn

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.graph.recording import record
from lightning_cnnopt.core.parameters import NORMALIZATION_LAYERS
from lightning_cnnopt.core.surgery import inserted

WEIGHTED_LAYERS: tuple[type[nn.Module], ...] = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear)
"""Layers with fans: what initializers draw."""


@dataclass(frozen=True)
class Part:
    """A graph of a network, or of a part of it.

    Args:
        graph: The graph.
        prefix: Name of the module that it is of.
        host: Name of the module whose output it takes in, for what was inserted behind one.
        live: What its output depends on.
    """

    graph: torch.fx.Graph
    prefix: str = ""
    host: str | None = None
    live: frozenset[torch.fx.Node] = frozenset()

    def path(self, node: torch.fx.Node) -> str:
        """Return the name, within the network, of the module that a node calls."""
        return join(self.prefix, str(node.target))


class Tracer(torch.fx.Tracer):
    """Traces as far as layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module is one node, whatever it computes inside."""
        return (
            # timm's hold their activation, see NetworkGraph.activation_after; and either kind may hold what edits inserted
            isinstance(m, (*NORMALIZATION_LAYERS, *WEIGHTED_LAYERS))
            or (not isinstance(m, nn.Sequential) and not any(True for _ in m.children()))
            or super().is_leaf_module(m, module_qualified_name)
        )


class TracedNetwork:
    """The graphs of a network; see :class:`~lightning_cnnopt.core.graph.NetworkGraph`, which reads them."""

    def __init__(self, network: nn.Module, sample: Tensor | None = None) -> None:
        self.network = network
        self.modules = dict(network.named_modules())
        self.parts: list[Part] = []
        self.recorded = False
        self.obstacle = "torch.fx can't trace"
        if not self._trace(network, ""):
            if sample is not None:
                self._record(sample)
            if not self.parts:
                raise ConfigurationError(
                    f"{type(network).__name__} can't be traced by torch.fx, so what follows its layers is unknown. "
                    "Layers that a module "
                    "makes in its own setup or configure_model don't exist before: call the edit at the end of that method."
                )

    @property
    def is_whole(self) -> bool:
        """Whether all of the forward pass was traced."""
        return not self.recorded and any(part.prefix == "" for part in self.parts)

    def calls(self, path: str) -> Iterator[tuple[Part, torch.fx.Node]]:
        """Yield the nodes that call the module at ``path``."""
        for part in self.parts:
            for node in part.graph.nodes:
                if node.op == "call_module" and part.path(node) == path:
                    yield part, node

    def module_of(self, part: Part, node: torch.fx.Node) -> nn.Module | None:
        """Return the module that a node calls, or ``None``."""
        return self.modules[part.path(node)] if node.op == "call_module" else None

    def _trace(self, module: nn.Module, prefix: str, host: str | None = None) -> bool:
        try:
            part = _part(Tracer().trace(module), prefix, host)
        except Exception:  # whatever a forward may raise when it is run on proxies
            for name, child in module.named_children():
                if any(True for _ in child.children()) or isinstance(child, WEIGHTED_LAYERS):
                    self._trace(child, join(prefix, name))
            return False
        self.parts.append(part)
        for target in {str(node.target): None for node in part.graph.nodes if node.op == "call_module"}:
            called = module.get_submodule(target)
            for name in inserted(called):
                if any(True for _ in called.get_submodule(name).children()):
                    path = join(prefix, target)
                    self._trace(called.get_submodule(name), join(path, name), host=path)
        return True

    def _record(self, sample: Tensor) -> None:
        try:
            graph = record(self.network, sample, lambda module: Tracer().is_leaf_module(module, ""))
        except Exception as error:  # whatever a forward may raise on inputs that are none of its own
            reason = str(error).strip().split("\n")[0]
            self.obstacle = f"the network does not run on the sample ({reason}), and torch.fx can't trace"
        else:
            self.parts, self.recorded, self.obstacle = [_part(graph, "", None)], True, "the sample does not reach"


def ancestors(node: torch.fx.Node) -> set[torch.fx.Node]:
    """Return a node and all that it is computed from."""
    found, pending = set(), [node]
    while pending:
        current = pending.pop()
        if current not in found:
            found.add(current)
            pending.extend(current.all_input_nodes)
    return found


def join(prefix: str, name: str) -> str:
    """Return the name of a module within the network from that within a part of it."""
    return f"{prefix}.{name}" if prefix else name


def _part(graph: torch.fx.Graph, prefix: str, host: str | None) -> Part:
    outputs = [node for node in graph.nodes if node.op == "output"]
    return Part(graph, prefix, host, frozenset().union(*(ancestors(node) for node in outputs)))
