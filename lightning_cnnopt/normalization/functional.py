"""Normalization as functions, and its swap in any network."""

from __future__ import annotations

import inspect
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_cnnopt.core.graph import is_activation
from lightning_cnnopt.core.layers import NormalizationFactory, make_normalization
from lightning_cnnopt.core.spec import factory_of
from lightning_cnnopt.core.surgery import insert_after, replace_modules


def ghost_batch_norm(
    images: Tensor,
    ghost_size: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize each ghost batch by its own mean and variance.

    The batch is cut into round(N / ghost_size) parts of nearly equal size, at least one; a batch smaller than the ghost size
    is one part, and then this is plain batch normalization.

    Args:
        images: (N, C, H, W).
        ghost_size: Samples in a ghost batch.
        weight: (C,) scale.
        bias: (C,) shift.
        eps: Added to the variance.

    Returns:
        The normalized images, and mean and unbiased variance (C,) averaged over ghost batches by their sizes.

    Reference:
        Hoffer, Hubara & Soudry, "Train longer, generalize better", 2017.

    Example:
        >>> out, mean, var = ghost_batch_norm(torch.randn(8, 2, 4, 4), 4)
        >>> bool(out[:4].mean().abs() < 1e-6)
        True
    """
    count, channels = images.shape[:2]
    parts = max(1, round(count / ghost_size))
    # what batch_norm accepts: statistics in the dtype of scale and shift
    dtype = torch.promote_types(images.dtype, torch.float32) if weight is None else weight.dtype
    mean, var = (torch.zeros(channels, device=images.device, dtype=dtype) for _ in range(2))
    outputs = []
    for part in images.tensor_split(parts):
        share = len(part) / count
        part_mean, part_var = torch.zeros_like(mean), torch.ones_like(var)
        # momentum 1 makes batch_norm write the part's own statistics
        outputs.append(F.batch_norm(part, part_mean, part_var, weight, bias, training=True, momentum=1.0, eps=eps))
        mean, var = mean + share * part_mean, var + share * part_var
    return (outputs[0] if parts == 1 else torch.cat(outputs)), mean, var


def swap_normalization(
    network: nn.Module,
    normalization: NormalizationFactory,
    replaces: tuple[type[nn.Module], ...] = (nn.BatchNorm2d,),
) -> int:
    """Replace normalization layers of a network, in place.

    Scale, shift and running statistics are taken over where the new layer has them in the same shape; parameters stay the
    same objects. So are momentum and eps of batch normalization, unless ``normalization`` states others. An activation that
    the old layer held (timm's) stays, behind the new one.

    Args:
        network: Changed in place.
        normalization: Makes the new layer from a number of channels.
        replaces: Which classes are replaced. Subclasses count; layers that are of the new class already do not.

    Returns:
        How many layers were replaced.

    Example:
        >>> import torchvision
        >>> swap_normalization(torchvision.models.resnet18(), lambda channels: nn.GroupNorm(8, channels))
        20
    """
    probe = next((module for module in network.modules() if isinstance(module, replaces)), None)
    if probe is None:
        return 0
    new_class = type(make_normalization(normalization, _channels(probe)))
    factory = factory_of(normalization, nn.Module)
    stated = set(factory.keywords) if isinstance(factory, partial) else set()

    def make(old: nn.Module) -> nn.Module:
        new = make_normalization(normalization, _channels(old))
        _carry(old, new, stated)
        for name, child in old.named_children():
            if is_activation(child):
                holder = nn.ModuleDict({"norm": new})
                insert_after(holder, "norm", name, child)
        return new

    return replace_modules(network, lambda module: isinstance(module, replaces) and type(module) is not new_class, make)


def _channels(norm: nn.Module) -> int:
    for name in ("num_features", "num_channels"):
        if hasattr(norm, name):
            return int(getattr(norm, name))
    shape = norm.normalized_shape if isinstance(norm, (nn.LayerNorm, nn.RMSNorm)) else ()
    return int(shape[0])


def _carry(old: nn.Module, new: nn.Module, stated: set[str]) -> None:
    for name in ("weight", "bias"):
        value, target = getattr(old, name, None), getattr(new, name, None)
        if isinstance(value, nn.Parameter) and isinstance(target, nn.Parameter) and value.shape == target.shape:
            setattr(new, name, value)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        value, target = getattr(old, name, None), getattr(new, name, None)
        if isinstance(value, Tensor) and isinstance(target, Tensor) and value.shape == target.shape:
            setattr(new, name, value)
    if isinstance(old, nn.modules.batchnorm._NormBase) and isinstance(new, nn.modules.batchnorm._NormBase):
        for name in ("momentum", "eps"):
            # what is not the default was stated, too: by a function that makes the layer, or in a class of the user's
            if name not in stated and getattr(new, name) == _default(type(new), name):
                setattr(new, name, getattr(old, name))


def _default(cls: type, name: str) -> object:
    signatures = (inspect.signature(base.__init__) for base in cls.__mro__ if "__init__" in vars(base))  # type: ignore[misc]
    return next(signature.parameters[name].default for signature in signatures if name in signature.parameters)
