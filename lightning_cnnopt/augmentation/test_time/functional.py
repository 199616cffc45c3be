"""Views of an image, and means over what a network says of them, as pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import TypedDict

from lightning_cnnopt.augmentation.functional.copies import shift
from lightning_cnnopt.core.errors import ConfigurationError, check_choice, check_range

ViewSet = Literal["flip", "shift", "flip_and_shift"]
"""Sets of views by name: the image and its mirror image; the image and both diagonal shifts by a pixel; all of these."""


class View(TypedDict, total=False):
    """How an image is looked at: shifted, then mirrored. All are left out by default."""

    down: int
    """Whole pixels down; negative for up. What comes in is the image reflected at its border."""
    right: int
    """Whole pixels to the right; negative for left."""
    horizontal_flip: bool
    """Whether it is mirrored left and right."""
    vertical_flip: bool
    """Whether it is mirrored top and bottom."""
    weight: float
    """How much it counts against the others; 1."""


_SETS: dict[str, list[View]] = {
    "flip": [{}, {"horizontal_flip": True}],
    "shift": [{"weight": 0.5}, {"down": -1, "right": -1, "weight": 0.25}, {"down": 1, "right": 1, "weight": 0.25}],
    # Jordan's: as they are, half of the weight; a pixel up and left, and down and right, a quarter each
    "flip_and_shift": [
        {"weight": 0.25},
        {"horizontal_flip": True, "weight": 0.25},
        {"down": -1, "right": -1, "weight": 0.125},
        {"down": -1, "right": -1, "horizontal_flip": True, "weight": 0.125},
        {"down": 1, "right": 1, "weight": 0.125},
        {"down": 1, "right": 1, "horizontal_flip": True, "weight": 0.125},
    ],
}


def views_of(views: ViewSet | Sequence[View], owner: str = "views_of") -> list[View]:
    """Return views as a list, checked.

    Args:
        views: Name of a set, or the views themselves. The first one is the image as it is.
        owner: What wants them, for messages.

    Raises:
        ConfigurationError: If there are none, one is not known, or the first one changes the image.

    Example:
        >>> len(views_of("flip")), len(views_of("flip_and_shift"))
        (2, 6)
    """
    if isinstance(views, str):
        check_choice(owner, "views", views, _SETS)
        return list(_SETS[views])
    names = list(View.__annotations__)
    for view in views:
        if not isinstance(view, Mapping):
            raise ConfigurationError(
                f"{owner}: views={views!r} holds {view!r}; expected a mapping with some of {', '.join(names)}."
            )
        for name in view:
            check_choice(owner, "views", name, names)
        check_range(owner, "weight", view.get("weight", 1.0), 0, low_open=True)
        check_range(owner, "down", view.get("down", 0), whole=True)
        check_range(owner, "right", view.get("right", 0), whole=True)
        for name, value in view.items():
            if name.endswith("flip") and not isinstance(value, bool):
                raise ConfigurationError(f"{owner}: {name}={value!r} is neither true nor false.")
    if not views or any(views[0].get(name) for name in names if name != "weight"):
        raise ConfigurationError(
            f"{owner}: views={views!r} has to begin with the image as it is, as [{{}}, {{horizontal_flip: true}}] does: its "
            "prediction says whether others are needed."
        )
    return list(views)


def look(images: Tensor, view: View) -> Tensor:
    """Return a view of images (N, C, H, W), an exact copy of their pixels.

    Raises:
        ConfigurationError: If it shifts by more than an image can be reflected.

    Example:
        >>> look(torch.tensor([[[[1, 2, 3]]]]), {"right": 1, "horizontal_flip": True}).flatten().tolist()
        [2, 1, 2]
    """
    down, right = view.get("down", 0), view.get("right", 0)
    height, width = images.shape[-2:]
    if abs(down) >= height or abs(right) >= width:
        raise ConfigurationError(f"The view {view} shifts by more than an image of {(height, width)} has to reflect.")
    if down or right:
        count = len(images)
        images = shift(images, torch.full((count,), down), torch.full((count,), right), "reflect")
    sides = [side for side, name in ((-1, "horizontal_flip"), (-2, "vertical_flip")) if view.get(name)]
    return images.flip(sides) if sides else images


def average(
    logits: Sequence[Tensor],
    weights: Sequence[float],
    mean: Literal["probabilities", "logits"] = "probabilities",
    exclusive: bool = True,
) -> Tensor:
    """Return the logits of a weighted mean over views.

    The logits of mean probabilities are their logarithms, so that softmax gives the mean back; for labels that are not
    exclusive log p - log(1 - p), so that sigmoid does.

    Args:
        logits: Those of each view, (N, C) or (N,).
        weights: How much each view counts; they need not add up to 1.
        mean: What is averaged.
        exclusive: Whether one class of C is true, or each label is by itself.

    Example:
        >>> views = [torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])]
        >>> average(views, [1, 1]).softmax(1)
        tensor([[0.6904, 0.3096]])
        >>> average(views, [1, 1], "logits").softmax(1)
        tensor([[0.7311, 0.2689]])
    """
    stacked = torch.stack([one if one.dtype == torch.float64 else one.float() for one in logits])
    shares = stacked.new_tensor(weights).view(-1, *[1] * (stacked.ndim - 1))
    shares = shares / shares.sum()
    if mean == "logits":
        return (shares * stacked).sum(0)
    if exclusive:
        return torch.logsumexp(F.log_softmax(stacked, -1) + shares.log(), 0)
    present, absent = (torch.logsumexp(F.logsigmoid(sign * stacked) + shares.log(), 0) for sign in (1, -1))
    return present - absent


def certainty(logits: Tensor, by: Literal["margin", "confidence"] = "margin", exclusive: bool = True) -> Tensor:
    """Return how sure a prediction is, from 0 to 1, (N,).

    Args:
        logits: (N, C) or (N,).
        by: Probability of the likeliest class, less that of the second (``"margin"``) or alone (``"confidence"``).
        exclusive: Whether one class of C is true; else each label is present or absent, and the least sure one counts.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0], [9.0, 0.0]])
        >>> certainty(logits), certainty(logits, "confidence")
        (tensor([0.0000, 0.9998]), tensor([0.5000, 0.9999]))
    """
    if exclusive:
        first, second = logits.float().softmax(-1).topk(2, -1).values.unbind(-1)
        return first - second if by == "margin" else first
    present = logits.float().sigmoid().view(len(logits), -1)
    likelier = torch.maximum(present, 1 - present).amin(1)
    return 2 * likelier - 1 if by == "margin" else likelier
