"""What edits and initializers ask of the computation of a network."""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from lightning_cnnopt.core.graph.activations import calls_activation, function_name, is_activation
from lightning_cnnopt.core.graph.following import Unknown, activation_after
from lightning_cnnopt.core.graph.tracing import WEIGHTED_LAYERS, TracedNetwork, ancestors, join
from lightning_cnnopt.core.parameters import NORMALIZATION_LAYERS

_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")


@dataclass(frozen=True)
class Branch:
    """A residual branch: what is computed beside a shortcut and added to it.

    Args:
        end: Name of the module that computes the branch's last value.
        modules: Names of all modules of the branch, in the order of computation.
        block: Name of the module whose forward adds the branch to the shortcut; empty for the network itself.
    """

    end: str
    modules: tuple[str, ...]
    block: str = field(default="", compare=False)


class NetworkGraph(TracedNetwork):
    """The computation of a network, traced with torch.fx.

    Args:
        network: Any module. One that can't be traced (control flow that depends on data) is run once on ``sample``, where
            that is given. Otherwise its traceable parts are followed; a network without any raises.
        sample: A batch of inputs.

    Raises:
        ConfigurationError: If neither the network nor any of its children can be traced, and there is no sample.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh())
        >>> NetworkGraph(net).activation_after("0")
        Tanh()
    """

    def activation_after(self, path: str) -> nn.Module | Unknown | None:
        """Return the activation that the output of the module at ``path`` goes through.

        Normalization, pooling, dropout, reshaping and arithmetic are looked through. Another layer with weights ends a path,
        but not the others: what squeeze-and-excitation weighs goes on beside its two layers. A normalization layer that
        holds its activation (timm's) counts as both.

        Returns:
            The activation; of one that is called as a function, a module of the same meaning. ``None`` if none follows.
            :class:`Unknown` where that can't be told: the value goes where torch.fx does not follow, or through a function
            or a layer that is not known to be linear.
        """
        return activation_after(self, path)

    def functional_activations(self) -> list[str]:
        """Return the activations that are called as functions and so can't be replaced as modules."""
        return [function_name(node) for part in self.parts for node in part.graph.nodes if calls_activation(node)]

    def function_calls(self, *functions: Any) -> list[torch.fx.Node]:
        """Return where any of ``functions`` is called, which no edit of modules reaches."""
        return [
            node for part in self.parts for node in part.graph.nodes if node.op == "call_function" and node.target in functions
        ]

    def residual_branches(self) -> list[Branch]:
        """Return the residual branches in the order of computation.

        A branch ends in an addition whose other side, the shortcut, starts from the same value. Where both sides have
        modules (a projection shortcut), the branch is the side with more of them.
        """
        branches = []
        for part in self.parts:
            graph, prefix = part.graph, part.prefix
            calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
            order = {node: index for index, node in enumerate(graph.nodes)}
            for node in graph.nodes:
                if node.op not in ("call_function", "call_method") or node.target not in _ADDITIONS:
                    continue
                sides = [argument for argument in node.args if isinstance(argument, torch.fx.Node)]
                if len(sides) != 2 or sides[0] is sides[1]:
                    continue
                first, second = (ancestors(side) for side in sides)
                own = [(first - second, sides[0]), (second - first, sides[1])]
                if not (first & second):
                    continue
                paths = [
                    ([n for n in sorted(nodes, key=order.__getitem__) if n.op == "call_module"], side) for nodes, side in own
                ]
                inside, end = max(paths, key=lambda item: len(item[0]))
                last = _last_module(end, node, set(inside), calls)
                if inside and last is not None:
                    around = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
                    names = tuple(part.path(n) for n in inside)
                    branches.append(Branch(join(prefix, last), names, join(prefix, around[-1]) if around else prefix))
        return branches

    def block_end(self, path: str) -> str:
        """Return the last module of the chain of normalization and activation behind the layer at ``path``.

        Modules that are used in several places (a shared ReLU) don't belong to the chain.
        """
        end = path
        for part, node in self.calls(path):
            while len(node.users) == 1:
                node = next(iter(node.users))
                if node.op != "call_module" or len(list(self.calls(part.path(node)))) > 1:
                    break
                module = self.modules[part.path(node)]
                if not (isinstance(module, NORMALIZATION_LAYERS) or is_activation(module)):
                    break
                end = part.path(node)
        return end

    def reaches_addition(self, path: str) -> bool:
        """Return whether the output of the module at ``path`` reaches an addition without an activation or weights between."""
        for part, call in self.calls(path):
            pending, seen = list(call.users), set()
            while pending:
                node = pending.pop()
                if node.target in _ADDITIONS:
                    return True
                module = self.module_of(part, node)
                weighs = module is not None and (is_activation(module) or any(p.ndim > 1 for p in module.parameters()))
                if node not in seen and not weighs and not calls_activation(node):
                    pending += node.users
                seen.add(node)
        return False

    def activated_at(self, path: str) -> tuple[str, bool]:
        """Return where the output of the layer at ``path`` has been through its normalization and activation.

        Args:
            path: Dotted name of the layer.

        Returns:
            The name of a module, and whether the place is in front of it (true) or behind it (false). In front: where the
            activation is a function or is shared with other places, the layer that takes its value alone stands for it.
        """
        end = path
        for part, start in self.calls(path):
            node = start
            while len(node.users) == 1:
                node = next(iter(node.users))
                name = part.path(node) if node.op == "call_module" else ""
                module = self.modules.get(name)
                own = module is not None and len(list(self.calls(name))) == 1
                activates = calls_activation(node) or (module is not None and is_activation(module))
                if own and (activates or isinstance(module, (*NORMALIZATION_LAYERS, nn.Identity))):
                    end = name
                elif activates and len(node.users) == 1:
                    after = next(iter(node.users))
                    name = part.path(after) if after.op == "call_module" else ""
                    if name and len(list(self.calls(name))) == 1:
                        return name, True
                if not own or activates or end != name:
                    break
        return end, False

    def only_user(self, path: str) -> str | None:
        """Return the module that takes the output of the module at ``path``, alone and directly, both called in one place."""
        calls = list(self.calls(path))
        if len(calls) != 1 or len(calls[0][1].users) != 1:
            return None
        part, user = calls[0][0], next(iter(calls[0][1].users))
        name = part.path(user)
        return name if user.op == "call_module" and len(list(self.calls(name))) == 1 else None

    def is_normalized(self, path: str) -> bool:
        """Return whether a normalization follows the layer at ``path`` before another layer with weights does.

        Other modules and additions are looked through.
        """
        for part, start in self.calls(path):
            pending, seen = list(start.users), set()
            while pending:
                node = pending.pop(0)
                if node in seen:
                    continue
                seen.add(node)
                module = self.module_of(part, node)
                if isinstance(module, NORMALIZATION_LAYERS):
                    return True
                passed = module is not None or node.target in _ADDITIONS or calls_activation(node)
                if isinstance(module, WEIGHTED_LAYERS) or not passed:
                    continue
                pending.extend(node.users)
        return False


def activations_after(
    network: nn.Module, layers: dict[str, nn.Module], sample: Tensor | None = None
) -> dict[str, nn.Module | Unknown | None]:
    """Return, for each named layer, the activation that follows it; see :meth:`NetworkGraph.activation_after`."""
    graph = NetworkGraph(network, sample)
    return {name: graph.activation_after(name) for name in layers}


def _last_module(node: torch.fx.Node, addition: torch.fx.Node, inside: set[torch.fx.Node], calls: Counter[Any]) -> str | None:
    around = {path for path, _ in addition.meta.get("nn_module_stack", {}).values()}
    while True:
        if node.op == "call_module":
            return str(node.target) if node in inside and calls[node.target] == 1 else None
        for call, (path, _) in node.meta.get("nn_module_stack", {}).items():
            if path not in around:  # the value leaves this module, so it is what the module returns
                return None if "@" in call else path
        if len(node.all_input_nodes) != 1:
            return None
        node = node.all_input_nodes[0]
