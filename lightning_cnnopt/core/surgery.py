"""Editing a network in place: idempotent, counted, and without losing what a layer carries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import chain
from typing import Any, ClassVar, cast

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.parameters import NORMALIZATION_LAYERS
from lightning_cnnopt.core.spec import Configurable

_MARK = "_cnnopt_edits"
_INSERTED = "_cnnopt_inserted"  # of a network: the places of the layers that were inserted into it
_PLACE = "_cnnopt_place"  # of an inserted layer: its path, which ends in its name within the module it runs behind
_IN_FRONT = "_cnnopt_in_front"


class Edit(Configurable, ABC):
    """Base of techniques that change the structure of a network.

    Calling an edit applies it once: a network that has it already is left alone, so it may be called at every stage. An
    edit that finds nothing to change warns and names what it looked for.
    """

    looks_for: ClassVar[str]
    """What the edit changes, for its warning: ``"activation layers"``."""

    @abstractmethod
    def apply(self, network: nn.Module) -> int:
        """Change ``network`` in place and return how many places were changed."""

    def __call__(self, network: nn.Module) -> int:
        """Apply the edit unless ``network`` has it already.

        Args:
            network: The network that is changed in place.

        Returns:
            How many places were changed.
        """
        if self in applied_edits(network):
            return 0
        count = self.apply(network)
        if count == 0:
            rank_zero_warn(f"{self!r} changed nothing: {type(network).__name__} has no {self.looks_for} left to change.")
        setattr(network, _MARK, [*applied_edits(network), self])
        return count


def applied_edits(network: nn.Module) -> list[Edit]:
    """Return the edits that were applied to ``network``, in their order."""
    return list(getattr(network, _MARK, []))


def replace_modules(root: nn.Module, wanted: Callable[[nn.Module], bool], make: Callable[[nn.Module], nn.Module]) -> int:
    """Replace every module that is ``wanted`` by what ``make`` returns for it.

    Names are kept. The new module takes over the old one's mode, device and dtype. A module that stands in several places
    is replaced by one new module in all of them, and what ``make`` returns is not searched again.

    Args:
        root: The network, changed in place. It is not itself replaced.
        wanted: Whether a module is to be replaced.
        make: Returns the new module for an old one.

    Returns:
        How many modules were replaced (one that stands in several places counts once).

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> replace_modules(net, lambda m: isinstance(m, nn.ReLU), lambda m: nn.Tanh())
        1
    """
    new_for: dict[nn.Module, nn.Module] = {}
    seen = {root}

    def visit(parent: nn.Module) -> None:
        for name, child in parent._modules.items():
            if child is None:
                continue
            if child not in new_for and child not in seen:
                if wanted(child):
                    new_for[child] = make(child)
                    adopt(child, new_for[child], parent, root)
                    if place_of(child) is not None:
                        setattr(new_for[child], _PLACE, place_of(child))
                    # squeeze-and-excitation, stochastic depth, blur: they stay around the new layer
                    for inner in (*inserted(child), *inserted_before(child)):
                        if inner not in new_for[child]._modules:
                            _add_running(new_for[child], inner, cast(nn.Module, child._modules[inner]))
                else:
                    seen.add(child)
                    visit(child)
            if child in new_for:
                parent._modules[name] = new_for[child]

    visit(root)
    return len(new_for)


def network_of(module: nn.Module, submodule: str | None = None) -> nn.Module:
    """Return the network of a LightningModule: what ``submodule`` names, or what can be called with images.

    A LightningModule without a ``forward`` of its own, whose steps call a child, stands for the one child with parameters.

    Args:
        module: The LightningModule.
        submodule: Dotted name of the network within it.

    Raises:
        ConfigurationError: If there is no such submodule.
    """
    if submodule is not None:
        try:
            return module.get_submodule(submodule)
        except AttributeError:
            children = [name for name, _ in module.named_children()]
            raise ConfigurationError(
                f"{type(module).__name__} has no submodule {submodule!r} in setup; it has {children}."
            ) from None
    if isinstance(module, LightningModule) and type(module).forward is LightningModule.forward:
        return _child_with_weights(module) or module
    return module


def inner_network(module: nn.Module, submodule: str | None = None) -> nn.Module:
    """Return the part of a LightningModule that its steps call: what ``submodule`` names, or its one child with parameters.

    A module that is itself the network, with several such children, is returned as it is.

    Args:
        module: The LightningModule.
        submodule: Dotted name of the network within it.

    Raises:
        ConfigurationError: If there is no such submodule.
    """
    if submodule is None:
        return _child_with_weights(module) or module
    return network_of(module, submodule)


def _child_with_weights(module: nn.Module) -> nn.Module | None:
    children = [child for child in module.children() if any(True for _ in child.parameters())]
    return children[0] if len(children) == 1 else None


def adopt(old: nn.Module, new: nn.Module, *around: nn.Module) -> None:
    """Give ``new`` the mode of ``old``, and the device and dtype of its first floating tensor.

    Where ``old`` has none (an activation), the first one of the modules ``around`` it counts.
    """
    tensors = (tensor for module in (old, *around) for tensor in chain(module.parameters(), module.buffers()))
    reference = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
    if reference is not None:
        new.to(device=reference.device, dtype=reference.dtype)
    new.train(old.training)


def insert_after(network: nn.Module, path: str, name: str, layer: nn.Module) -> None:
    """Let ``layer`` process the output of the module at ``path``.

    The layer becomes a child of that module, under ``name``: it is printed, moved, saved and switched between training and
    evaluation with it, and no other name in the network changes, so weights saved before still fit.

    Args:
        network: The network, changed in place.
        path: Dotted name of the module whose output is processed.
        name: The layer's name within that module.
        layer: The layer to insert.

    Raises:
        ConfigurationError: If the module has a child of that name already.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Identity())
        >>> insert_after(net, "0", "relu", nn.ReLU())
        >>> net(torch.tensor([-1.0, 1.0]))
        tensor([0., 1.])
    """
    module = network.get_submodule(path)
    if name in module._modules:
        raise ConfigurationError(f"{path} has a layer {name!r} already.")
    _insert(network, path, name, layer)


def lost_layers(network: nn.Module) -> list[str]:
    """Return the layers that were inserted in ``network`` and that no longer run, by where they were put.

    Code that replaces modules may drop what stood behind them or in front. What stands at a normalization layer is carried
    over when torch, timm or Lightning replace that one.
    """
    running, idle = set(), []
    for module in network.modules():
        runs = set(module._modules) if _runs_its_children(module) else {*inserted(module), *inserted_before(module)}
        for name, child in module.named_children():
            if (place := place_of(child)) is not None:
                running.add(place) if name in runs else idle.append(place)
    gone = [place for place in getattr(network, _INSERTED, []) if place not in running and place not in idle]
    return [*idle, *gone]


def insert_before(network: nn.Module, path: str, name: str, layer: nn.Module) -> None:
    """Let ``layer`` process the input of the module at ``path``; see :func:`insert_after`.

    Raises:
        ConfigurationError: If the module has a child of that name already, or runs all its children one after the other.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(1, 1, bias=False))
        >>> insert_before(net, "0", "relu", nn.ReLU())
        >>> bool(net(torch.tensor([-1.0])) == 0)
        True
    """
    module = network.get_submodule(path)
    if name in module._modules or isinstance(module, nn.Sequential):
        raise ConfigurationError(f"{path} has a layer {name!r} already, or is a Sequential, which would run it behind.")
    setattr(layer, _IN_FRONT, True)
    _insert(network, path, name, layer)


def inserted(module: nn.Module) -> list[str]:
    """Return the names of the children that :func:`insert_after` gave to ``module``."""
    return [hook.name for hook in module._forward_hooks.values() if isinstance(hook, _RunChild)]


def inserted_before(module: nn.Module) -> list[str]:
    """Return the names of the children that :func:`insert_before` gave to ``module``."""
    return [hook.name for hook in module._forward_pre_hooks.values() if isinstance(hook, _RunChildFirst)]


def place_of(layer: nn.Module) -> str | None:
    """Return where a layer was inserted, or ``None`` for one that was not."""
    return getattr(layer, _PLACE, None)


def _insert(network: nn.Module, path: str, name: str, layer: nn.Module) -> None:
    module, place = network.get_submodule(path), f"{path}.{name}"
    adopt(module, layer, network)
    setattr(layer, _PLACE, place)
    _add_running(module, name, layer)
    setattr(network, _INSERTED, [*getattr(network, _INSERTED, []), place])


def _add_running(module: nn.Module, name: str, layer: nn.Module) -> None:
    module.add_module(name, layer)
    _run_child(module, name, layer)


def _run_child(module: nn.Module, name: str, layer: nn.Module) -> None:
    if getattr(layer, _IN_FRONT, False):
        if name not in inserted_before(module):
            module.register_forward_pre_hook(_RunChildFirst(name))
    elif not _runs_its_children(module) and name not in inserted(module):
        module.register_forward_hook(_RunChild(name))


def _runs_its_children(module: nn.Module) -> bool:
    return type(module).forward is nn.Sequential.forward


class _RunChild:
    """A forward hook that runs a child on the output. A class, so that networks with it pickle."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Any:
        del args
        return module._modules[self.name](output)  # type: ignore[misc]


class _RunChildFirst:
    """A forward pre-hook that runs a child on the input."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        return (module._modules[self.name](args[0]), *args[1:])  # type: ignore[misc]


def _stay_behind(module: nn.Module, name: str, layer: nn.Module | None) -> None:
    # Whoever replaces a normalization layer (by SyncBatchNorm for sync_batchnorm, and back again) hands its children over to
    # the new layer under their names, but no hook: without this they would stand there and never run.
    if layer is not None and isinstance(module, NORMALIZATION_LAYERS) and (place_of(layer) or "").rpartition(".")[2] == name:
        _run_child(module, name, layer)


register_module_module_registration_hook(_stay_behind)
