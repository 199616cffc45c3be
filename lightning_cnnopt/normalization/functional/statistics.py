"""The statistics of batch normalization, measured anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_cnnopt.core.batch import read_batch
from lightning_cnnopt.core.errors import DataError
from lightning_cnnopt.core.modes import modes_kept
from lightning_cnnopt.core.randomness import gather


def batch_norms(network: nn.Module) -> dict[str, _BatchNorm]:
    """Return the batch normalization layers of a network that keep running statistics, by name.

    Example:
        >>> list(batch_norms(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.GroupNorm(1, 2))))
        ['1']
    """
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
    }


@torch.no_grad()
def precise_statistics(
    network: nn.Module,
    batches: Iterable[Any],
    layers: Iterable[_BatchNorm] | None = None,
    forward: Callable[[Tensor], Any] | None = None,
) -> int:
    """Set the running statistics of batch normalization to those of all the batches together, exactly.

    What training leaves in a layer is a moving average of batch statistics, each measured while the weights were others. Here
    the weights stand still: mean and (unbiased) variance of everything that reaches the layer, as though all the batches were
    one; the variance *between* batches is in it. As in training, each layer normalizes by the statistics of the batch while it
    is measured. Everything else is in evaluation mode, so nothing is drawn and dropout, which evaluation does not have, does
    not spread the values. Modes, and the count of batches, are left as they were.

    Under distributed training every rank calls it with batches of its own, as many as the others, and all get the statistics
    of all batches.

    Args:
        network: Whose layers are measured.
        batches: Images (N, C, H, W), or batches that hold such, as the network takes them.
        layers: The layers; by default all that keep running statistics, but for those that are in evaluation mode while the
            network is in training mode: they are frozen.
        forward: What is called with images; by default the network.

    Returns:
        How many layers were set; those that no batch reaches are not.

    Raises:
        DataError: If there are no batches.

    Reference:
        Wu & Johnson, "Rethinking 'Batch' in BatchNorm", 2021.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm2d(3))
        >>> images = torch.randn(20, 3, 4, 4)
        >>> precise_statistics(net, images.split(5))
        1
        >>> net[0].running_var.allclose(images.var((0, 2, 3)))
        True
    """
    norms = batch_norms(network)
    chosen = [n for n in norms.values() if n.training or not network.training] if layers is None else list(layers)
    names: dict[nn.Module, str] = {norm: name for name, norm in norms.items()}
    seen: dict[nn.Module, list[tuple[int, Tensor, Tensor]]] = {norm: [] for norm in chosen}
    saved = {norm: {name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)} for norm in chosen}
    reference = next(network.parameters(), None)

    def measure(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        values = args[0].to(torch.promote_types(args[0].dtype, torch.float32))
        var, mean = torch.var_mean(values, dim=[0, *range(2, values.ndim)], correction=0)
        seen[norm].append((values.numel() // values.shape[1], mean, var))

    handles = [norm.register_forward_pre_hook(measure) for norm in chosen]
    count = 0
    try:
        with modes_kept(network):
            network.eval()
            for norm in chosen:
                norm.training = True
            for batch in batches:
                images = batch if isinstance(batch, Tensor) else read_batch(batch)[0]
                (forward or network)(images if reference is None else images.to(reference.device))
                count += 1
    finally:
        for handle in handles:
            handle.remove()
        for norm, buffers in saved.items():
            for name, buffer in buffers.items():
                norm.get_buffer(name).copy_(buffer)
    if count == 0:
        raise DataError("precise_statistics: there are no batches to measure.")
    mine = {names[norm]: _pool(parts) for norm, parts in seen.items() if parts}
    everywhere = gather(mine)
    for norm in chosen:
        parts = [rank[names[norm]] for rank in everywhere if names[norm] in rank]
        if parts:
            total, mean, var = _pool(parts)
            norm.running_mean.copy_(mean)  # type: ignore[union-attr]
            norm.running_var.copy_(var * (total / max(1, total - 1)))  # type: ignore[union-attr]
    return len(mine)


def _pool(parts: list[tuple[int, Tensor, Tensor]]) -> tuple[int, Tensor, Tensor]:
    """Return count, mean and variance of groups of values together, from those of each."""
    counts = torch.tensor([count for count, _, _ in parts], dtype=torch.float64).unsqueeze(1)
    means, variances = (torch.stack([part[index] for part in parts]).cpu().double() for index in (1, 2))  # type: ignore[misc]
    shares = counts / counts.sum()
    mean = (shares * means).sum(0)
    var = (shares * (variances + (means - mean).square())).sum(0)
    return int(counts.sum()), mean, var
