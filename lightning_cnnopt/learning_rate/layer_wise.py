"""Layer-wise learning rates: the layers of a network in the order of their use, and the rate of each."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_cnnopt.core.callback import TechniqueCallback, refuse_sharding
from lightning_cnnopt.core.errors import ConfigurationError, check_range, did_you_mean
from lightning_cnnopt.core.graph import WEIGHTED_LAYERS, NetworkGraph
from lightning_cnnopt.core.graph.tracing import join
from lightning_cnnopt.core.parameters import NORMALIZATION_LAYERS, named_weights, split_off
from lightning_cnnopt.core.surgery import network_of

_KEY = "layer"  # in an optimizer's group: whose parameters it holds


@dataclass(frozen=True, eq=False)
class LayerRate:
    """The rate of one layer.

    Args:
        layer: Its name.
        factor: Its learning rate as a multiple of the optimizer's.
        parameters: What it is trained by.
    """

    layer: str
    factor: float
    parameters: tuple[nn.Parameter, ...]


class LayerWiseRates(TechniqueCallback):
    """Lets the last layer of any LightningModule's network learn at the optimizer's rate, and each one before it slower.

    The layer that has k layers behind it learns at ``lr · decay^k``; see :func:`network_layers` for what a layer is. The
    rates are written into the ``lr`` of the optimizers' groups, which are split for it, before the first step. So every
    schedule that keeps the ratio between groups, as ours and torch's do, keeps them. On an
    :class:`~lightning_cnnopt.ImageClassifier` its argument ``layer_decay`` does the same.

    Args:
        decay: Rate of a layer over that of the one behind it.
        least: No layer's factor is less than this.
        layers: Shell patterns on names of modules that count as one layer each, such as ``["stem", "stage?", "head"]``; in
            place of the default rule.
        submodule: Name of the part of the LightningModule that is the network; by default what its ``forward`` runs, or its
            one child with weights where it has none. What is outside of it learns at the optimizer's own rate.

    Raises:
        ConfigurationError: If the rates are layer-wise already, the optimizer allows one rate only, a learning-rate scheduler
            was made for the groups as they were, or the strategy shards weights.

    Reference:
        Howard & Ruder, "Universal Language Model Fine-tuning", 2018; Bao et al., "BEiT", 2022.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[LayerWiseRates(0.75)], logger=False, enable_checkpointing=False)
    """

    single = True

    def __init__(
        self,
        decay: float = 0.75,
        least: float = 0.0,
        layers: Sequence[str] | None = None,
        submodule: str | None = None,
    ) -> None:
        check_range("LayerWiseRates", "decay", decay, 0, 1, low_open=True)
        check_range("LayerWiseRates", "least", least, 0, 1)
        if layers is not None:
            _check_patterns(layers)
        self.decay = decay
        self.least = least
        self.layers = None if layers is None else list(layers)
        self.submodule = submodule

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        refuse_sharding(trainer, "LayerWiseRates")

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # before Lightning restores the optimizers, whose states in a checkpoint have these groups
        rates = layer_rates(network_of(pl_module, self.submodule), self.decay, self.least, self.layers)
        for optimizer in trainer.optimizers:
            scheduler = next((c.scheduler for c in trainer.lr_scheduler_configs if c.scheduler.optimizer is optimizer), None)
            if scheduler is not None:
                raise ConfigurationError(
                    f"LayerWiseRates splits groups of {type(optimizer).__name__}, and {type(scheduler).__name__} was made for "
                    "them as they were. Put LayerWiseRates before the callback that schedules the rate, or, if the module has "
                    "the scheduler, take LayerWiseRates away and call scale_rates(optimizer, layer_rates(self.network)) of "
                    "lightning_cnnopt.learning_rate in configure_optimizers, before the scheduler is made."
                )
            scale_rates(optimizer, rates)
        tell(rates)


def layer_rates(
    network: nn.Module, decay: float = 0.75, least: float = 0.0, layers: Sequence[str] | None = None
) -> list[LayerRate]:
    """Return the rate of every layer of a network: max(least, decay^k) for the layer that has k layers behind it.

    Args:
        network: The network.
        decay: Rate of a layer over that of the one behind it.
        least: No factor is less than this.
        layers: As in :func:`network_layers`.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
        >>> [(rate.layer, rate.factor, len(rate.parameters)) for rate in layer_rates(net, 0.5)]
        [('0', 0.5, 4), ('4', 1.0, 2)]
    """
    parameters = dict(network.named_parameters())
    found = network_layers(network, layers)
    return [
        LayerRate(layer, max(least, decay ** (len(found) - 1 - index)), tuple(parameters[name] for name in names))
        for index, (layer, names) in enumerate(found.items())
    ]


def network_layers(network: nn.Module, patterns: Sequence[str] | None = None) -> dict[str, list[str]]:
    """Return the layers of a network in the order of their use, and the names of each one's parameters.

    A layer is what has one rate: a convolution or matrix that stands alone, or a residual block as a whole. The rule: a child
    of the network, with ``nn.Sequential``, ``nn.ModuleList`` and modules around these looked through; what adds or
    concatenates branches is never looked through. Normalization and other parameters without a kernel or matrix belong to the
    layer before them, those in front of all layers to the first. A network of timm brings its own rule (``group_matcher``),
    and that is taken.

    Args:
        network: The network.
        patterns: Shell patterns on names of modules that count as one layer each, in place of the rule; of modules within
            each other the outermost counts.

    Raises:
        ConfigurationError: If a pattern matches no module, or there is none.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
        >>> network_layers(net)
        {'0': ['0.weight', '0.bias', '1.weight', '1.bias'], '4': ['4.weight', '4.bias']}
    """
    names = [name for name, _ in network.named_parameters()]
    matched = _by_timm(network) if patterns is None else None
    if matched is not None:
        return matched
    graph = _graph_of(network)
    modules = _by_patterns(network, patterns) if patterns is not None else _by_rule(network, graph)
    modules = _in_order_of_use(modules, graph)
    weights = {name for name, _ in named_weights(network, frozen=True)}
    layers: dict[str, list[str]] = {}
    for module in modules:
        inside = [name for name in names if name.startswith(f"{module}.")]
        if weights.intersection(inside):
            layers[module] = inside
        elif layers:
            layers[next(reversed(layers))] += inside
    held = {name for inside in layers.values() for name in inside}
    loose = [name for name in names if name not in held]  # in front of all layers, or of the network itself
    if layers:
        first = next(iter(layers))
        layers[first] = [*loose, *layers[first]]
    elif names:
        layers[""] = names
    return layers


def scale_rates(optimizer: Optimizer, rates: Sequence[LayerRate]) -> None:
    """Write layer-wise rates into the groups of an optimizer, which are split so that each holds parameters of one layer.

    The rate of each new group is that of the group it is split from, times the layer's factor; all other options stay, and so
    does what the optimizer knows of each parameter. Call it before a scheduler is made for the optimizer.

    Args:
        optimizer: Changed in place, before its first step.
        rates: Of the layers; parameters of none stay as they are.

    Raises:
        ConfigurationError: If this was done before, or the optimizer has no ``lr`` or allows but one.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> scale_rates(optimizer, layer_rates(net, 0.5))
        >>> [(group["layer"], group["lr"], len(group["params"])) for group in optimizer.param_groups]
        [('0', 0.05, 2), ('2', 0.1, 2)]
    """
    name = type(optimizer).__name__
    if any(_KEY in group for group in optimizer.param_groups):
        raise ConfigurationError(
            f"The rates of {name} are layer-wise already, and the factors would multiply; keep one of layer_decay, "
            "LayerWiseRates and scale_rates."
        )
    refuse_parameter_free(optimizer, "Layer-wise rates")
    if "lr" not in optimizer.defaults:
        raise ConfigurationError(f"Layer-wise rates: {name} has no lr.")
    layer_of = {id(parameter): index for index, rate in enumerate(rates) for parameter in rate.parameters}
    for group in list(optimizer.param_groups):
        here = [layer_of.get(id(parameter)) for parameter in group["params"]]
        first, *others = sorted(set(here), key=lambda index: -1 if index is None else index)
        parts = [(first, group)]
        for index in others:
            layer = "" if index is None else rates[index].layer
            now = [layer_of.get(id(parameter)) == index for parameter in group["params"]]
            parts.append((index, split_off(optimizer, group, now, f"/{layer}")))
        if first is not None and "name" in group:
            group["name"] = f"{group['name']}/{rates[first].layer}"
        for index, part in parts:
            if index is not None:
                part[_KEY] = rates[index].layer
                part["lr"] = part["lr"] * rates[index].factor


def refuse_parameter_free(optimizer: Optimizer, what: str) -> None:
    """Raise if an optimizer finds its rate by itself and takes one factor for all parameters, as prodigyopt's do.

    Raises:
        ConfigurationError: Naming ``what`` can't be combined with it.
    """
    if type(optimizer).__module__.partition(".")[0] == "prodigyopt":
        raise ConfigurationError(
            f"{what} and {type(optimizer).__name__} exclude each other: it finds its rate by itself, and its lr is one factor "
            "for all parameters, 1 as a rule. Keep one of them."
        )


def tell(rates: Sequence[LayerRate]) -> None:
    """Say which layers learn at which rate, or warn if there is but one."""
    if len(rates) < 2:
        rank_zero_warn("Layer-wise rates change nothing: the network has a single layer. Name its layers with layers=.")
        return
    shown = [f"{rate.layer} {rate.factor:.3g}" for rate in rates]
    if len(shown) > 8:
        shown = [*shown[:3], "…", *shown[-3:]]
    rank_zero_info(f"{len(rates)} layers learn at a rate of their own, from input to output: {', '.join(shown)}.")


def _by_timm(network: nn.Module) -> dict[str, list[str]] | None:
    prefix, owner = next(((n, m) for n, m in network.named_modules() if hasattr(m, "group_matcher")), ("", None))
    if owner is None:
        return None
    try:
        from timm.models import group_parameters
    except ImportError:  # then it is no network of timm's
        return None
    matcher: Any = owner.group_matcher(coarse=False)
    ordinals: dict[str, int] = group_parameters(owner, matcher, reverse=True)
    start = f"{prefix}." if prefix else ""
    behind = max(ordinals.values(), default=0) + 1
    found: list[tuple[int, str]] = []
    for name, _ in network.named_parameters():
        if name.startswith(start):
            found.append((ordinals[name.removeprefix(start)], name))
        else:  # of what is around it: in front of it, or a layer behind it, such as a head
            found.append((behind if any(other.startswith(start) for _, other in found) else 0, name))
    layers: dict[str, list[str]] = {}
    for _, members in groupby(sorted(found, key=lambda item: item[0]), key=lambda item: item[0]):
        names = [name for _, name in members]
        label = _common_module(names)
        layers[label if label not in layers else names[0]] = names
    return layers


def _common_module(names: Sequence[str]) -> str:
    paths = [path for name in names if (path := name.split(".")[:-1])] or [["input"]]
    shared = [parts[0] for parts in zip(*paths, strict=False) if len(set(parts)) == 1]
    # of modules that share no name, such as a stem's, the first stands for all
    return ".".join(shared or paths[0])


def _check_patterns(patterns: Sequence[str]) -> None:
    if isinstance(patterns, str) or not patterns:
        raise ConfigurationError(f"layers={patterns!r} must be a list of patterns on names of modules, with at least one.")


def _by_patterns(network: nn.Module, patterns: Sequence[str]) -> list[str]:
    _check_patterns(patterns)
    names = [name for name, _ in network.named_modules() if name]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            near = did_you_mean(pattern, names)
            raise ConfigurationError(f"layers={pattern!r} matches none of {len(names)} modules, such as {names[:3]}.{near}")
    chosen = [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
    return [name for name in chosen if not any(name.startswith(f"{other}.") for other in chosen)]


def _by_rule(network: nn.Module, graph: NetworkGraph | None) -> list[str]:
    joints = set() if graph is None else {branch.block for branch in graph.residual_branches()} | _concatenating(graph)
    found: list[str] = []

    def visit(name: str, module: nn.Module, in_list: bool) -> None:
        children = [(n, c) for n, c in module.named_children() if any(True for _ in c.parameters())]
        is_layer = isinstance(module, (*WEIGHTED_LAYERS, *NORMALIZATION_LAYERS))
        opens = _is_list(module) or (not in_list and (len(children) == 1 or any(_is_list(m) for m in module.modules())))
        if name and (not children or is_layer or name in joints or not opens):
            found.append(name)
            return
        for child, inner in children:
            visit(join(name, child), inner, _is_list(module))

    visit("", network, False)
    return found


def _concatenating(graph: NetworkGraph) -> set[str]:
    calls = [(part, node) for part in graph.parts for node in part.graph.nodes if node.target in (torch.cat, torch.concat)]
    around = [(part.prefix, list(node.meta.get("nn_module_stack", {}).values())) for part, node in calls]
    return {join(prefix, stack[-1][0]) if stack else prefix for prefix, stack in around}


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, (nn.Sequential, nn.ModuleList))


def _graph_of(network: nn.Module) -> NetworkGraph | None:
    try:
        return NetworkGraph(network)
    except ConfigurationError:
        return None


def _in_order_of_use(modules: list[str], graph: NetworkGraph | None) -> list[str]:
    if graph is None:
        return modules
    used: dict[str, float] = {}
    calls = [part.path(node) for part in graph.parts for node in part.graph.nodes if node.op == "call_module"]
    for index, path in enumerate(calls):
        for module in modules:
            if path == module or path.startswith(f"{module}."):
                used.setdefault(module, index)
    # what was not traced stays behind the one it is registered behind
    position = -math.inf
    for module in modules:
        position = used.setdefault(module, position)
    return sorted(modules, key=used.__getitem__)
