"""The set that is always there."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from typing_extensions import override

from lightning_cnnopt.data.datamodule import ImageDataModule
from lightning_cnnopt.data.image_set import ImageSet


class Digits(ImageDataModule):
    """scikit-learn's handwritten digits: 1,797 real images of 8×8, inside that package, so nothing is downloaded.

    A fixed, stratified fifth is the test split, so that seeds vary training only.

    Args:
        **arguments: Those of :class:`ImageDataModule`: batch sizes, augmentation, mixing, the validation split.

    Example:
        >>> digits = Digits()
        >>> digits.num_classes, digits.image_size, len(digits.train_set), len(digits.test_set)
        (10, (8, 8), 1293, 360)
    """

    num_classes = 10
    in_channels = 1
    image_size = (8, 8)

    @override
    def load(self, split: Literal["train", "test"]) -> ImageSet:
        from sklearn.datasets import load_digits  # here, as it takes half as long to import as the rest of this package
        from sklearn.model_selection import train_test_split

        pixels, labels = load_digits(return_X_y=True)
        train, test = train_test_split(range(len(labels)), test_size=0.2, random_state=0, stratify=labels)
        chosen = sorted(train if split == "train" else test)
        # 17 grey levels, 0 to 16, spread over those of uint8
        images = np.rint(pixels[chosen].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
        return ImageSet(torch.from_numpy(images), torch.from_numpy(labels[chosen]).long())
