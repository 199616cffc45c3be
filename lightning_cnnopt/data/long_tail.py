"""Making a balanced set long-tailed, to study what imbalance does."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_cnnopt.core.errors import DataError, check_range


def long_tail(targets: Tensor, ratio: float, seed: int = 0) -> Tensor:
    """Return the samples of a long-tailed part of a set: class j keeps n₀ · ratio^(-j / (C - 1)), rounded to the nearest.

    The first class keeps all of its samples, the last one a ``ratio``-th of as many. A class that has fewer than that keeps
    what it has. Which ones are kept is drawn by the seed.

    Args:
        targets: (N,) classes.
        ratio: Of the commonest class to the rarest; 1 keeps as many of each.
        seed: Of the draw.

    Returns:
        Places of the samples that are kept, ascending.

    Raises:
        DataError: If the targets are no single labels, or the last class would keep none.

    Reference:
        Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", 2019.

    Example:
        >>> kept = long_tail(torch.arange(300) % 3, ratio=100)
        >>> torch.bincount(torch.arange(300)[kept] % 3)
        tensor([100,  10,   1])
    """
    check_range("long_tail", "ratio", ratio, 1)
    if targets.ndim != 1 or targets.is_floating_point():
        raise DataError(f"A long tail is one of single labels; got targets of shape {tuple(targets.shape)}.")
    classes = int(targets.max()) + 1
    first = int((targets == 0).sum())
    generator = torch.Generator().manual_seed(seed)
    kept = []
    for label in range(classes):
        places = (targets == label).nonzero().flatten()
        wanted = round(first * ratio ** (-label / max(1, classes - 1)))
        if wanted < 1:
            raise DataError(f"A long tail of ratio {ratio:g} over {first} samples of class 0 leaves none of class {label}.")
        kept.append(places[torch.randperm(len(places), generator=generator)[:wanted]])
    return torch.cat(kept).sort().values
