"""Swapping normalization in any network."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from functools import partial

from torch import Tensor, nn

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.layers import NormalizationFactory, make_normalization
from lightning_cnnopt.core.spec import factory_of
from lightning_cnnopt.core.surgery import insert_after, place_of, replace_modules


def swap_normalization(
    network: nn.Module,
    normalization: NormalizationFactory,
    replaces: tuple[type[nn.Module], ...] = (nn.BatchNorm2d,),
) -> int:
    """Replace normalization layers of a network, in place.

    Scale, shift and running statistics are taken over where the new layer has them in the same shape; trained parameters
    stay the same objects. So are momentum and eps of batch normalization, unless ``normalization`` states others. What the
    old layer held (the activation of timm's) stays, behind the new one.

    Args:
        network: Changed in place.
        normalization: Makes the new layer from a number of channels. It may be of the same class, with other arguments.
        replaces: Which classes are replaced. Subclasses count; layers that are what would be made already do not.

    Returns:
        How many layers were replaced.

    Raises:
        ConfigurationError: If a layer can't be made for the channels of one that it replaces: groups that don't divide them.

    Example:
        >>> import torchvision
        >>> swap_normalization(torchvision.models.resnet18(), partial(nn.GroupNorm, num_groups=8))
        20
    """
    factory = factory_of(normalization, nn.Module)
    stated = set(factory.keywords) if isinstance(factory, partial) else set()
    old = {module: name for name, module in network.named_modules() if isinstance(module, replaces) and module is not network}
    widths = {module: channels_of(module, name) for module, name in old.items()}
    made: dict[nn.Module, nn.Module] = {}
    for module, name in old.items():
        new = make_normalization(factory, widths[module], name, widths.values())
        _carry(module, new, stated)
        if type(new) is not type(module) or new.extra_repr() != module.extra_repr():
            made[module] = new
            _take_over_children(module, new)
    return replace_modules(network, made.__contains__, made.__getitem__)


def channels_of(norm: nn.Module, name: str = "") -> int:
    """Return how many channels a normalization layer normalizes.

    Args:
        norm: The layer.
        name: What it is called in an error.

    Raises:
        ConfigurationError: If it does not tell.
    """
    for attribute in ("num_features", "num_channels"):
        if hasattr(norm, attribute):
            return int(getattr(norm, attribute))
    shape = getattr(norm, "normalized_shape", None) or getattr(getattr(norm, "weight", None), "shape", None)
    if not shape:
        raise ConfigurationError(f"{type(norm).__name__} {name!r} does not tell its number of channels; it can't be replaced.")
    return int(shape[0])


def held_by(norm: nn.Module) -> OrderedDict[str, nn.Module]:
    """Return the layers that a normalization layer runs on its output by itself, in their order: an activation, dropout.

    Those that were inserted behind it are not among them.
    """
    children = norm.named_children()
    return OrderedDict((name, m) for name, m in children if place_of(m) is None and not isinstance(m, nn.Identity))


def _take_over_children(old: nn.Module, new: nn.Module) -> None:
    for name, child in old.named_children():
        if name in new._modules:  # a layer that holds an activation, in the place of another that does
            new._modules[name] = child
    for name, child in held_by(old).items():
        if name not in new._modules:
            insert_after(nn.ModuleDict({"norm": new}), "norm", name, child)


def _carry(old: nn.Module, new: nn.Module, stated: set[str]) -> None:
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        value, target = getattr(old, name, None), getattr(new, name, None)
        if not isinstance(value, Tensor) or not isinstance(target, Tensor) or value.shape != target.shape:
            continue
        if isinstance(value, nn.Parameter) == isinstance(target, nn.Parameter):
            setattr(new, name, value)
        else:  # into a layer whose scale and shift are frozen, or out of one
            setattr(new, name, nn.Parameter(value) if isinstance(target, nn.Parameter) else value.detach())
    if hasattr(old, "running_mean") and hasattr(new, "running_mean"):
        for name in ("momentum", "eps"):
            # what is not the default was stated, too: by a function that makes the layer, or in a class of the user's
            if name not in stated and hasattr(old, name) and getattr(new, name, None) == _default(type(new), name):
                setattr(new, name, getattr(old, name))


def _default(cls: type, name: str) -> object:
    signatures = (inspect.signature(base.__init__) for base in cls.__mro__ if "__init__" in vars(base))  # type: ignore[misc]
    return next((s.parameters[name].default for s in signatures if name in s.parameters), inspect.Parameter.empty)
