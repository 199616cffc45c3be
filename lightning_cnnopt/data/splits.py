"""Which samples are held out of a training set."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_cnnopt.core.errors import DataError


def held_out_part(targets: Tensor, size: int | float, seed: int, owner: str) -> Tensor:
    """Return the places of samples to hold out, ascending: of each class in proportion, where targets are single labels.

    Args:
        targets: (N,) classes, or (N, labels), which are not stratified.
        size: A fraction, or a number of samples.
        seed: Of the draw.
        owner: Whose argument ``val_size`` it is, for the message.

    Raises:
        DataError: If there are too few samples for it.

    Example:
        >>> held_out_part(torch.arange(12) % 3, 0.5, 0, "Example").remainder(3).bincount()
        tensor([2, 2, 2])
    """
    from sklearn.model_selection import train_test_split  # here, as importing it takes long

    stratify = targets.numpy() if targets.ndim == 1 else None
    try:
        places = np.arange(len(targets))  # a list of numbers would take more than the targets
        _, chosen = train_test_split(places, test_size=size, random_state=seed, stratify=stratify)
    except ValueError as error:
        raise DataError(f"{owner}: val_size={size} can't be split off {_words(targets)}: {error}") from error
    return torch.from_numpy(np.sort(chosen))


def held_out_fold(targets: Tensor, folds: int, fold: int, seed: int, owner: str) -> Tensor:
    """Return the places of the samples of one fold, ascending. The folds of a seed are disjoint, and together they are all.

    Every class is shared out to the folds as equally as can be, where targets are single labels; scikit-learn warns of a class
    that has fewer samples than there are folds.

    Args:
        targets: (N,) classes, or (N, labels), which are not stratified.
        folds: How many there are.
        fold: Which one, from 0.
        seed: Of the draw.
        owner: Whose argument ``folds`` it is, for the message.

    Raises:
        DataError: If there are fewer samples than folds, or so of every class.

    Example:
        >>> [held_out_fold(torch.arange(12) % 2, 3, fold, 0, "Example").remainder(2).tolist().count(1) for fold in range(3)]
        [2, 2, 2]
    """
    from sklearn.model_selection import KFold, StratifiedKFold  # here, as importing it takes long

    kind = StratifiedKFold if targets.ndim == 1 else KFold
    try:
        parts = list(kind(folds, shuffle=True, random_state=seed).split(np.arange(len(targets)), targets.numpy()))
    except ValueError as error:
        raise DataError(f"{owner}: {_words(targets)} can't be shared out to folds={folds}: {error}") from error
    return torch.from_numpy(parts[fold][1])


def _words(targets: Tensor) -> str:
    classes = f"{len(targets.unique())} classes" if targets.ndim == 1 else f"{targets.shape[1]} labels"
    return f"{len(targets)} training samples of {classes}"
