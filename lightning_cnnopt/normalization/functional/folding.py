"""Folding batch normalization into the layers before it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights
from torchvision.ops import FrozenBatchNorm2d

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.graph import NetworkGraph
from lightning_cnnopt.core.surgery import inserted, replace_modules
from lightning_cnnopt.normalization.functional.swap import held_by
from lightning_cnnopt.normalization.layers import GhostBatchNorm2d, StandardizedConv2d

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FOLDED_INTO = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED, nn.Linear)


def fold_batch_norm(network: nn.Module) -> int:
    """Multiply batch normalization into the convolutions and dense layers before it, in place, for inference.

    A layer W, b followed by normalization with mean μ, variance σ², scale γ and shift β becomes the layer
    γ W / √(σ² + ε), γ (b − μ) / √(σ² + ε) + β: the outputs are the same up to rounding, and the normalization is gone. What
    it held, or what was inserted behind it, stays under its name.

    Folded is what is surely the same: a normalization layer in evaluation that takes the output of one layer, alone and
    directly. One behind an activation (the order conv, activation, norm), or in front of its layer, stays; so does one
    whose layer is used twice or changed by hooks. A dense layer is taken to give (N, features).

    Args:
        network: Changed in place; in evaluation mode.

    Returns:
        How many normalization layers were folded.

    Raises:
        ConfigurationError: If the network is in training mode, where batch statistics can't be folded.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
        >>> fold_batch_norm(net), net[1]
        (1, Identity())
    """
    modules = dict(network.named_modules())
    norms = {name: module for name, module in modules.items() if _is_plain_in_evaluation(module)}
    if not norms:
        return 0
    in_training = [name for name, norm in norms.items() if norm.training and isinstance(norm, _BatchNorm)]
    if in_training:
        raise ConfigurationError(
            f"fold_batch_norm: {in_training[0]!r} of {type(network).__name__} is in training mode and normalizes by its batch; "
            "call eval() first."
        )
    graph = NetworkGraph(network)
    new: dict[nn.Module, nn.Module] = {}
    for name, layer in modules.items():
        follower = graph.only_user(name) if isinstance(layer, _FOLDED_INTO) and _is_untouched(layer) else None
        if follower in norms:
            norm = norms[follower]
            folded = _fold(_plain(layer), norm)
            if folded is not None:
                new[layer], new[norm] = folded, _what_is_left(norm)
    return replace_modules(network, new.__contains__, new.__getitem__) // 2


def _is_plain_in_evaluation(module: nn.Module) -> bool:
    if isinstance(module, FrozenBatchNorm2d):
        return True
    if not isinstance(module, _BatchNorm) or module.running_mean is None or module._forward_pre_hooks:
        return False
    own = len(inserted(module))
    known = type(module).forward in (_BatchNorm.forward, nn.SyncBatchNorm.forward, GhostBatchNorm2d.forward)
    return len(module._forward_hooks) == own and (known or type(module).__module__ == "timm.layers.norm_act")


def _is_untouched(layer: nn.Module) -> bool:
    return not layer._forward_hooks and not layer._forward_pre_hooks


def _plain(layer: nn.Module) -> nn.Module:
    """Return a copy of a layer whose weight is what it computes with."""
    layer = copy.deepcopy(layer)
    if parametrize.is_parametrized(layer):
        for name in list(layer.parametrizations):  # type: ignore[arg-type]
            parametrize.remove_parametrizations(layer, name)
    if isinstance(layer, StandardizedConv2d):
        layer.weight = nn.Parameter(layer.standardized_weight().detach(), layer.weight.requires_grad)
        layer.__class__ = nn.Conv2d  # type: ignore[assignment]
    return layer


@torch.no_grad()
def _fold(layer: nn.Module, norm: nn.Module) -> nn.Module | None:
    if type(layer) not in _FOLDED_INTO and type(layer).__name__ != "Conv2dSame":  # timm's pads, and convolves as torch's does
        return None
    weight, bias = layer.weight, layer.bias
    mean, var, scale, shift = norm.running_mean, norm.running_var, norm.weight, norm.bias
    assert isinstance(weight, Tensor)
    assert isinstance(mean, Tensor)
    scale = torch.ones_like(mean) if scale is None else scale
    shift = torch.zeros_like(mean) if shift is None else shift
    if isinstance(layer, nn.Linear):
        if layer.out_features != len(mean):
            return None
        layer.weight, layer.bias = fuse_linear_bn_weights(weight, bias, mean, var, norm.eps, scale, shift)  # type: ignore[arg-type]
        return layer
    if isinstance(layer, _TRANSPOSED) and layer.groups > 1:  # torch has no formula for it
        return None
    transposed = isinstance(layer, _TRANSPOSED)
    fused = fuse_conv_bn_weights(weight, bias, mean, var, norm.eps, scale, shift, transposed)  # type: ignore[arg-type]
    layer.weight, layer.bias = fused
    return layer


def _what_is_left(norm: nn.Module) -> nn.Module:
    held = held_by(norm)
    return nn.Sequential(held) if held else nn.Identity()
