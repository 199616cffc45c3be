"""Putting dropout into any network."""

from __future__ import annotations

import copy
import fnmatch
import warnings
from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

from torch import nn
from torch.nn import functional as F

from lightning_cnnopt.core.errors import ConfigurationError, check_choice, did_you_mean
from lightning_cnnopt.core.graph import WEIGHTED_LAYERS, NetworkGraph
from lightning_cnnopt.core.surgery import insert_after, insert_before

Place: TypeAlias = Literal["head", "convolutions", "existing"]
"""Where dropout goes by a rule; shell patterns on the names of modules say it one by one."""


def add_dropout(network: nn.Module, layer: nn.Module, where: Place | Sequence[str] = "head", name: str = "dropout") -> int:
    """Let a network drop at some places, in place. A place that has such a layer already gets the new rate, and no second one.

    Args:
        network: Changed in place.
        layer: What is put in, each place its own copy: ``nn.Dropout``, ``nn.Dropout2d``, DropBlock.
        where: ``"head"``: in front of the last layer with weights. ``"convolutions"``: behind every convolution wider than 1×1
            and the normalization and activation that belong to it; so neither shortcuts nor squeeze-and-excitation are hit.
            ``"existing"``: where such a layer is already. Or shell patterns on the names of modules, behind which it goes.
        name: Under which the layer becomes a child of the module at its place.

    Returns:
        At how many places the network drops now by ``layer``.

    Raises:
        ConfigurationError: If a pattern matches nothing.

    Example:
        >>> import torchvision
        >>> network = torchvision.models.resnet18()
        >>> add_dropout(network, nn.Dropout(0.2)), add_dropout(network, nn.Dropout2d(0.1), ["layer[34].*.bn1"])
        (1, 4)
    """
    kind: type[nn.Module] = next(cls for cls in type(layer).__mro__ if cls.__module__.startswith(("torch.nn", "torchvision")))
    modules = dict(network.named_modules())
    by_function = [module for module in modules.values() if kind is nn.Dropout and _drops_before_its_head(module)]
    if where == "existing":
        found = [module for module in modules.values() if isinstance(module, kind)]
        _set([*found, *by_function], layer)
        return len(found) or len(by_function)
    count = 0
    for path, in_front, beside in _places(network, modules, where):
        here = (modules[path], modules[path]._modules.get(name), *(modules[other] for other in beside))
        present = [module for module in here if isinstance(module, kind)]
        if present or (where == "head" and by_function):
            _set(present[:1] or by_function, layer)
        else:
            (insert_before if in_front else insert_after)(network, path, name, copy.deepcopy(layer))
        count += 1
    return count


def check_where(owner: str, where: object, rules: Sequence[str]) -> None:
    """Raise unless ``where`` is one of the rules or a list of patterns.

    Raises:
        ConfigurationError: Naming it.
    """
    if isinstance(where, (list, tuple)):
        if not where or not all(isinstance(pattern, str) for pattern in where):
            raise ConfigurationError(f"{owner}: where={where!r} must be a list of patterns on the names of modules.")
    else:
        check_choice(owner, "where", where, rules)


def _places(
    network: nn.Module, modules: dict[str, nn.Module], where: Place | Sequence[str]
) -> Iterator[tuple[str, bool, list[str]]]:
    """Yield the name of a module, whether the place is in front of it, and the modules that may drop there already."""
    graph = NetworkGraph(network) if where == "convolutions" else _graph_or_none(network)
    if where == "head":
        head = _head(network, modules)
        if head is not None:
            yield head, True, _before(graph, modules, head)
        return
    if where == "convolutions":
        assert graph is not None
        wide = [n for n, m in modules.items() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1]
        behind = list(dict.fromkeys(graph.block_end(n) for n in wide if any(True for _ in graph.calls(n))))
    else:
        behind = _matching(network, modules, where)
    for path in behind:
        follower = graph.only_user(path) if graph is not None else None
        yield path, False, [follower] if follower in modules else []


def _matching(network: nn.Module, modules: dict[str, nn.Module], patterns: Sequence[str]) -> list[str]:
    chosen: list[str] = []
    names = [name for name in modules if name]
    for pattern in patterns:
        matched = fnmatch.filter(names, pattern)
        if not matched:
            raise ConfigurationError(
                f"where={pattern!r} matches no module of {type(network).__name__}, whose parts are "
                f"{', '.join(name for name, _ in network.named_children())}.{did_you_mean(pattern, names)}"
            )
        chosen += [name for name in matched if name not in chosen]
    return chosen


def _head(network: nn.Module, modules: dict[str, nn.Module]) -> str | None:
    classifier = getattr(network, "get_classifier", None)  # timm's
    head = classifier() if callable(classifier) else None
    if isinstance(head, nn.Identity):  # the network was made without one
        return None
    named = [name for name, module in modules.items() if isinstance(module, WEIGHTED_LAYERS)]
    return next((name for name in named if modules[name] is head), named[-1] if named else None)


def _before(graph: NetworkGraph | None, modules: dict[str, nn.Module], head: str) -> list[str]:
    calls = [] if graph is None else list(graph.calls(head))
    if len(calls) != 1:  # untraced: in a Sequential, the layer that stands before it
        above, _, own = head.rpartition(".")
        siblings = list(modules[above]._modules) if above in modules else []
        index = siblings.index(own) if own in siblings else 0
        return [f"{above}.{siblings[index - 1]}" if above else siblings[index - 1]] if index > 0 else []
    part, node = calls[0]
    while len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
        if node.op == "call_module":
            return [part.path(node)]
        if node.target is F.dropout and not any(map(_drops_before_its_head, modules.values())):
            warnings.warn(
                f"{type(modules['']).__name__} drops by a function in front of {head!r}; that stays, beside the new layer.",
                stacklevel=2,
            )
    return []


def _graph_or_none(network: nn.Module) -> NetworkGraph | None:
    try:
        return NetworkGraph(network)
    except ConfigurationError:
        return None


def _drops_before_its_head(module: nn.Module) -> bool:
    # timm's: by a function, at the rate that the network was made with
    return type(module).__module__.startswith("timm.models") and bool(vars(module).get("drop_rate"))


def _set(modules: Sequence[nn.Module], layer: nn.Module) -> None:
    rates = {name: value for name, value in vars(layer).items() if name in ("p", "block_size")}
    for module in modules:
        for name, value in rates.items() if hasattr(module, "p") else [("drop_rate", rates["p"])]:
            setattr(module, name, value)
