"""Whether what edits put into a network is still there when training starts."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.graph import is_activation
from lightning_cnnopt.core.surgery import lost_layers, place_of


def special_norms(network: nn.Module) -> dict[str, type[nn.Module]]:
    """Return the batch normalization layers that do more than torch's: ghost batches, an activation that is held (timm's).

    ``sync_batchnorm`` of a Trainer replaces every batch normalization by torch's ``SyncBatchNorm``, these included, and what
    they do of their own is gone.
    """
    return {
        name: type(module)
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm)
        and not isinstance(module, nn.SyncBatchNorm)
        and type(module).forward is not _BatchNorm.forward
    }


def check_intact(network: nn.Module, norms: dict[str, type[nn.Module]]) -> None:
    """Raise unless the layers of a network are those that edits left behind.

    Called when a Trainer has made all its own changes, before the first step.

    Args:
        network: The network, as it is to be trained.
        norms: What :func:`special_norms` returned for it earlier.

    Raises:
        ConfigurationError: Naming what is gone, and how to keep it.
    """
    modules = dict(network.named_modules())
    replaced = [name for name in norms if isinstance(modules.get(name), nn.SyncBatchNorm)]
    if replaced:
        name, cls = replaced[0], norms[replaced[0]].__name__
        lacks, remedy = f"does not do what {cls} does", "choose another normalization"
        if any(is_activation(child) and place_of(child) is None for child in modules[name].children()):
            lacks = "does not run the activations inside"
            remedy = "let SwapNormalization(torch.nn.BatchNorm2d) be the first edit, which puts them behind the layers"
        raise ConfigurationError(
            f"sync_batchnorm=True of the Trainer has replaced {len(replaced)} layers {cls} of {type(network).__name__}, "
            f"such as {name!r}, by SyncBatchNorm, which {lacks}. Leave sync_batchnorm off, or {remedy}."
        )
    lost = lost_layers(network)
    if lost:
        raise ConfigurationError(
            f"{len(lost)} layers that edits inserted into {type(network).__name__} are gone or no longer run, such as "
            f"{lost[0]!r}: other code has replaced the modules they stood behind since. Let that code run before the edits."
        )
