"""Which activation follows a layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch.fx
from torch import nn

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.graph.activations import (
    activation_called,
    function_name,
    is_activation,
    is_elementwise,
    is_layer_called,
    is_part_of_formula,
    keeps_linear,
    reads_shape_only,
)
from lightning_cnnopt.core.graph.tracing import WEIGHTED_LAYERS, Part, TracedNetwork
from lightning_cnnopt.core.parameters import NORMALIZATION_LAYERS
from lightning_cnnopt.core.surgery import inserted


@dataclass(frozen=True)
class Unknown:
    """What follows a layer can't be told; that is another thing than that nothing follows.

    Args:
        reason: What stands in the way.
    """

    reason: str


def activation_after(traced: TracedNetwork, path: str) -> nn.Module | Unknown | None:
    """Return what :meth:`NetworkGraph.activation_after` does."""
    layer = traced.modules[path]
    for behind in (layer.get_submodule(name) for name in inserted(layer)):
        if is_activation(behind):
            return behind
    parent = path.rpartition(".")[0]
    # attention is one node, and its output is that of its last layer
    place = parent if isinstance(traced.modules.get(parent), nn.MultiheadAttention) else path
    found = [_search(traced, part, list(node.users), {node}) for part, node in traced.calls(place)]
    if not found:
        return _verdict_on_uncalled(traced, path)
    verdicts = [verdict for verdict in found if verdict is not None]
    return min(verdicts, key=lambda verdict: isinstance(verdict, Unknown), default=None)


def _verdict_on_uncalled(traced: TracedNetwork, path: str) -> Unknown | None:
    names = path.split(".")
    for depth in range(len(names) - 1, 0, -1):
        parent = ".".join(names[:depth])
        if any(traced.calls(parent)):
            return Unknown(f"it is computed inside {type(traced.modules[parent]).__name__}")
    return None if traced.is_whole else Unknown(f"{traced.obstacle} the code that calls it")


def _search(
    traced: TracedNetwork, part: Part, nodes: list[torch.fx.Node], linear: set[torch.fx.Node]
) -> nn.Module | Unknown | None:
    """Follow a value, breadth first, through ``nodes`` that take it; ``linear`` is what it has been so far."""
    pending = [(part, node) for node in nodes]
    while pending:
        part, node = pending.pop(0)
        if node in linear or not (node in part.live or _is_in_place(traced, part, node)):
            continue
        if node.op == "output":
            if part.host is not None:
                pending += [(outer, user) for outer, call in traced.calls(part.host) for user in call.users]
            elif part.prefix:
                return Unknown(f"{traced.obstacle} what becomes of the output of {part.prefix!r}")
            continue
        found: nn.Module | str | None = None
        module = traced.module_of(part, node)
        if module is not None:
            found = _activation_in(module)
            if found is None and _has_weights(module):
                continue
        elif reads_shape_only(node) or is_layer_called(node):
            continue
        else:
            found = activation_called(node)
            if found is None and not keeps_linear(node):
                found = f"the function {function_name(node)}"
        if isinstance(found, nn.Module):
            return Unknown("a formula written out") if is_part_of_formula(node, linear) else found
        if found is not None:
            return Unknown(found)
        linear.add(node)
        pending += [(part, user) for user in node.users]
    return None


def _activation_in(module: nn.Module) -> nn.Module | str | None:
    """Return the activation that a leaf module is or holds, or a description of one that may be there."""
    if is_activation(module) or isinstance(module, nn.GLU):
        return module
    if isinstance(module, NORMALIZATION_LAYERS):
        return next((child for child in module.children() if is_activation(child)), None)
    if type(module).__module__.startswith("torch.") or _has_weights(module):
        return None
    try:
        within = TracedNetwork(module)
    except ConfigurationError:
        return f"the layer {type(module).__name__}, which torch.fx can't trace"
    [part] = within.parts
    inputs = [node for node in part.graph.nodes if node.op == "placeholder"]
    found = _search(within, part, [user for node in inputs for user in node.users], set(inputs))
    if found is not None and len(inputs) == 1 and all(is_elementwise(node) for node in part.graph.nodes):
        return module  # an activation of one's own: its gain is that of what it computes
    return f"the layer {type(module).__name__}: {found.reason}" if isinstance(found, Unknown) else found


def _has_weights(module: nn.Module) -> bool:
    matrices = (p for p in module.parameters() if sum(size > 1 for size in p.shape) > 1)
    return isinstance(module, WEIGHTED_LAYERS) or (not isinstance(module, NORMALIZATION_LAYERS) and any(True for _ in matrices))


def _is_in_place(traced: TracedNetwork, part: Part, node: torch.fx.Node) -> bool:
    # what an operation in place returns may be used by nobody, though the value goes on
    module = traced.module_of(part, node)
    if module is not None:
        return bool(getattr(module, "inplace", False))
    name = function_name(node)
    return bool(node.kwargs.get("inplace")) or (name.endswith("_") and not name.endswith("__"))
