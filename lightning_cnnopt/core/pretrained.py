"""Which weights are more than a random start, so that no initialization may touch them."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_cnnopt.core.errors import ConfigurationError

_MARK = "_cnnopt_pretrained"
_ARGUMENTS = ("weights", "pretrained", "checkpoint_path", "weights_backbone")  # as torchvision and timm call them


def mark_pretrained(module: nn.Module, pretrained: bool = True, within: bool = True) -> None:
    """Say that the weights of a module, and of all modules inside it, have been trained; initializers then leave them alone.

    What is put in afterwards, such as a new head, is not marked. The marks are copied and pickled with the module; they are
    no part of its state dict. In a config, the edit ``MarkPretrained`` says the same.

    Args:
        module: A network, or a part of one.
        pretrained: ``False`` says that the weights may be drawn anew.
        within: Whether it is said of the modules inside, too.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        >>> mark_pretrained(net)
        >>> net[1] = nn.Linear(2, 3)
        >>> is_pretrained(net[0]), is_pretrained(net[1])
        (True, False)
    """
    for part in module.modules() if within else [module]:
        setattr(part, _MARK, pretrained)


def is_pretrained(module: nn.Module) -> bool:
    """Return whether this very module is marked by :func:`mark_pretrained`; what is inside it may be not."""
    return bool(getattr(module, _MARK, False))


def is_pretrained_throughout(network: nn.Module) -> bool:
    """Return whether every part of ``network`` that has weights is marked."""
    return all(is_pretrained(module) for module in network.modules() if _holds_weights(module))


def mark_what_is_loaded(network: nn.Module) -> None:
    """From now on, let ``load_state_dict`` on ``network``, on a part of it or on what it is in, mark what it loads."""
    for module in network.modules():
        if not _is_watched(module):
            module.register_load_state_dict_pre_hook(_mark_loaded)


def refuse_to_overwrite(network: nn.Module, given: object, initializer: object) -> None:
    """Raise if an initializer would draw weights that may have been trained, and nobody said that it should.

    Args:
        network: The network whose weights would be drawn.
        given: What the user gave as ``network``: an instance, a ``functools.partial``, or a spec.
        initializer: What would draw them.

    Raises:
        ConfigurationError: If no part of the network is marked, and it was given ready-made, put in place of the one that was
            made, or made with pretrained weights.
    """
    if is_stated(network):
        return
    name = type(network).__name__
    spec = given if isinstance(given, Mapping) else {}
    arguments = given.keywords if isinstance(given, functools.partial) else spec.get("init_args") or {}
    loads = [f"{key}={arguments[key]!r}" for key in _ARGUMENTS if arguments.get(key)]
    if loads:
        raise ConfigurationError(
            f"network= makes a {name} with {loads[0]} and initializer={initializer!r} would draw these weights anew. Leave "
            "one of the two out, or name the layers to be drawn, such as a new head: edits=[MarkPretrained(but=['fc'])], in "
            "YAML {class_path: MarkPretrained, init_args: {but: [fc]}}."
        )
    if isinstance(given, nn.Module) or not _is_watched(network):
        raise ConfigurationError(
            f"network= is a ready-made {name}, and initializer={initializer!r} would draw its weights anew, trained or not. "
            "Say which: mark_pretrained(network) of lightning_cnnopt.core keeps them, mark_pretrained(network, False) lets "
            "them be drawn; among edits, in YAML too, MarkPretrained and MarkPretrained(False). Or give what makes a new "
            "network: a class, or a functools.partial of one."
        )


def is_stated(network: nn.Module) -> bool:
    """Return whether somebody said of a part of ``network`` whether its weights are trained."""
    return any(hasattr(module, _MARK) for module in network.modules())


def seems_trained(network: nn.Module) -> bool:
    """Return whether statistics of batch normalization tell that ``network`` has seen data."""
    means = [getattr(module, "running_mean", None) for module in network.modules()]
    return any(bool(mean.any()) for mean in means if isinstance(mean, Tensor) and not mean.is_meta)


def _holds_weights(module: nn.Module) -> bool:
    return parametrize.is_parametrized(module) or next(module.parameters(recurse=False), None) is not None


def _is_watched(module: nn.Module) -> bool:
    return any(getattr(hook, "hook", None) is _mark_loaded for hook in module._load_state_dict_pre_hooks.values())


def _mark_loaded(module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
    # with strict=False some keys may be missing, and what they name is as new as before
    del rest
    loaded = set(state_dict)
    for path, part in module.named_modules(prefix=prefix.removesuffix(".")):
        start = f"{path}." if path else ""
        if _holds_weights(part) and any(start + name in loaded for name, _ in part.named_parameters()):
            setattr(part, _MARK, True)
