"""Pictures that hold their numbers."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image


def picture(number, size=(4, 4)):
    held = io.BytesIO()
    Image.fromarray(np.full(size, number, np.uint8)).save(held, "PNG")
    return held.getvalue()


def numbers(batches):
    seen = []
    for images, targets in batches:
        assert torch.equal(images[:, 0, 0, 0] % 3, targets)
        seen += images[:, 0, 0, 0].tolist()
    return seen
