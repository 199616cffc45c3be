"""Chains of transforms, planned so that images are gone through as few times as can be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lightning_cnnopt.augmentation.alternating import AlternatingFlip, check_alternates
from lightning_cnnopt.augmentation.functional.colours import Recolouring
from lightning_cnnopt.augmentation.functional.copies import Placement
from lightning_cnnopt.augmentation.functional.warps import Outside, warp
from lightning_cnnopt.augmentation.transforms.base import ColourStep, ExactCopy, Geometric, LinearColour, Transform
from lightning_cnnopt.augmentation.transforms.colours import Brightness, Contrast, Hue, Saturation
from lightning_cnnopt.core.batch import look_normalized
from lightning_cnnopt.core.errors import ConfigurationError, DataError, check_range
from lightning_cnnopt.core.memory import keep_freed_memory
from lightning_cnnopt.core.randomness import Stream
from lightning_cnnopt.core.spec import listed


class Augment:
    """A chain of transforms of whole batches, each sample with its own draws, in as few passes over the images as can be.

    Neighbours of one kind are one pass:

    - flips, whole-pixel shifts and crops are one exact copy;
    - transforms that resample multiply into one matrix for each sample, and resample once; so do exact copies next to them.
      What lies outside the image is seen once, too: where a chain taken step by step would have lost a corner and turned the
      loss back into sight, the image itself is seen;
    - linear changes of colour multiply into one matrix for each sample, and a hue behind them is turned on the way. Levels are
      cut off at black and white once, behind the matrix.

    Everything else is a pass of its own. Nothing is reordered, and draws are those of the transforms one by one.

    The draws come from one stream, which differs between processes; a checkpoint of yours holds :meth:`state_dict`. Our data
    modules and ``AugmentBatches`` make one of these of the transforms that they are given.

    Args:
        transforms: Applied in their order. One alone need not be in a list.
        seed: Of the stream; by default torch's own at the first call.

    Raises:
        ConfigurationError: If one of them is no :class:`Transform`.

    Example:
        >>> from lightning_cnnopt.augmentation import Brightness, Contrast, HorizontalFlip, PaddedCrop
        >>> augment = Augment([HorizontalFlip(), PaddedCrop(4), Brightness(), Contrast()], seed=0)
        >>> augment(torch.zeros(8, 3, 32, 32, dtype=torch.uint8)).shape
        torch.Size([8, 3, 32, 32])
        >>> print(augment.explain())
        4 transforms in 2 passes over the images:
        1. one exact copy: HorizontalFlip(p=0.5), PaddedCrop(padding=4, mode='constant')
        2. one change of colour: Brightness(strength=0.4, p=1.0), Contrast(strength=0.4, p=1.0)
    """

    def __init__(self, transforms: Transform | Sequence[Transform] = (), seed: int | None = None) -> None:
        self.transforms: list[Transform] = listed(transforms)
        for transform in self.transforms:
            if not isinstance(transform, Transform):
                raise ConfigurationError(
                    f"{transform!r} is no transform of whole batches; expected instances of lightning_cnnopt.augmentation."
                    "Transform. What changes one image at a time, as torchvision's do, belongs to the data set."
                )
        check_alternates(self.transforms)
        self.passes = plan(self.transforms)
        self._has_looked = False
        self.stream = Stream("augmentation", seed)
        self.seed = seed

    def __call__(self, images: Tensor, epoch: int | None = None) -> Tensor:
        """Return the transformed images.

        Args:
            images: (N, C, H, W), uint8, or floats in [0, 1], on any device; not written to.
            epoch: Number of the epoch, for ``AlternatingFlip``.

        Raises:
            ConfigurationError: If ``AlternatingFlip`` is in the chain and the epoch is not given.
            DataError: If the first batch is of floats far from [0, 1], and a transform goes by levels.
        """
        if images.device.type == "cpu":
            keep_freed_memory()
        if not self._has_looked and images.numel():
            self._look(images)
        for step in self.passes:
            transform = step.transforms[0]
            if isinstance(transform, AlternatingFlip):
                images = transform(images, epoch=_known(epoch), seed=self._coin_seed())
            else:
                images = step(images, self.stream.generator)
        return images

    def _look(self, images: Tensor) -> None:
        """Refuse levels that a transform would take for others; of the first batch alone, as it waits for the device."""
        self._has_looked = True
        reading = next((one for step in self.passes for one in step.transforms if one.reads_levels), None)
        if reading is None or not images.is_floating_point():
            return
        low, high = (float(value) for value in images.aminmax())
        if look_normalized(low, high):
            raise DataError(
                f"{reading!r} takes 0 for black and 1 for white, and cuts off what is beyond; it was given floats from "
                f"{low:g} to {high:g}. Augment uint8, or floats in [0, 1], and normalize afterwards: what a data module of "
                "this package is given as augmentation= comes before its normalization."
            )

    def _coin_seed(self) -> int:
        self.seed = torch.initial_seed() if self.seed is None else self.seed
        return self.seed

    def explain(self) -> str:
        """Return what is done in how many passes, a line for each."""
        lines = [f"{number}. {step}" for number, step in enumerate(self.passes, 1)]
        counts = [
            f"{n} {word}{'' if n == 1 else plural}"
            for n, word, plural in ((len(self.transforms), "transform", "s"), (len(self.passes), "pass", "es"))
        ]
        return "\n".join([f"{' in '.join(counts)} over the images{':' if lines else '.'}", *lines])

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the stream, of every process. Under DDP every one has to call it."""
        return {**self.stream.state_dict(), "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the stream."""
        self.stream.load_state_dict(state)
        self.seed = state["seed"]


class Pass(ABC):
    """One pass over the images: neighbouring transforms that are done at once.

    Args:
        transforms: In their order.
    """

    what: ClassVar[str]

    def __init__(self, transforms: Sequence[Any]) -> None:
        self.transforms = list(transforms)

    @abstractmethod
    def __call__(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return the images after all of the transforms."""

    def __str__(self) -> str:
        return f"{self.what}: {', '.join(map(repr, self.transforms))}"

    def joined(self, transform: Transform) -> Pass | None:
        """Return the pass that does ``transform``, too; ``None`` where it has to be one of its own."""
        del transform
        return None


class Alone(Pass):
    """A transform that is a pass by itself."""

    what = "by itself"

    @override
    def __call__(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        return self.transforms[0](images, generator)


class Copying(Pass):
    """Moves whole pixels, once."""

    what = "one exact copy"

    @override
    def __call__(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        placement = Placement.whole(images)
        for transform in self.transforms:
            placement = transform.place(placement, generator)
        return placement.copy(images)

    @override
    def joined(self, transform: Transform) -> Pass | None:
        if isinstance(transform, ExactCopy) and not transform.reflects:
            return Copying([*self.transforms, transform])
        if isinstance(transform, Geometric) and all(_fits(copy, transform.outside) for copy in self.transforms):
            return Resampling([*self.transforms, transform])
        return None


class Resampling(Pass):
    """Resamples, once."""

    what = "one resampling"

    @override
    def __call__(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        size = (images.shape[-2], images.shape[-1])
        total = torch.eye(3).expand(len(images), 3, 3)
        for transform in self.transforms:
            if isinstance(transform, ExactCopy):
                placement = transform.place(Placement.of(len(images), size), generator)
                total, size = total @ placement.matrices(), placement.size
            else:
                total, size = total @ transform.matrices(len(images), size, generator), transform.result_size(size)
        return warp(images, total, size, *self._manner())

    @override
    def joined(self, transform: Transform) -> Pass | None:
        same = isinstance(transform, Geometric) and (transform.interpolation, transform.outside) == self._manner()
        copies = isinstance(transform, ExactCopy) and _fits(transform, self._manner()[1])
        return Resampling([*self.transforms, transform]) if same or copies else None

    def _manner(self) -> Any:
        first = next(transform for transform in self.transforms if isinstance(transform, Geometric))
        return first.interpolation, first.outside


class Colouring(Pass):
    """Changes colours, linear steps at once, and turns the hue in the same pass."""

    what = "one change of colour"

    @override
    def __call__(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        colours = Recolouring(images)
        for transform in self.transforms:
            colours = transform.recolour(colours, generator)
        return colours.apply()

    @override
    def joined(self, transform: Transform) -> Pass | None:
        joins = isinstance(self.transforms[-1], LinearColour) and isinstance(transform, ColourStep)
        return Colouring([*self.transforms, transform]) if joins else None


class Compound(Transform):
    """Base of transforms that are a chain of others; a plan takes them apart."""

    @abstractmethod
    def parts(self) -> list[Transform]:
        """Return the transforms, in their order."""

    @override
    def __call__(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the images after all of its parts."""
        for step in plan(self.parts()):
            images = step(images, generator)
        return images


class ColourJitter(Compound):
    """Changes brightness, contrast, saturation and hue of each image, each by its own draw, in this order.

    Args:
        brightness: How far the factor goes from 1: U(max(0, 1 - b), 1 + b). 0 leaves it alone, as for the others.
        contrast: The same for the distance from the image's mean grey.
        saturation: The same for the distance of a pixel from its own grey.
        hue: Greatest part of the circle that the hue is turned by, at most 0.5.
        p: Probability of each of the four, for each image.

    Raises:
        ConfigurationError: If nothing is to be changed.
        DataError: For images of neither one channel nor three, where saturation or hue is changed.

    Example:
        >>> ColourJitter(0.4, 0.4, 0.4)(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).dtype
        torch.uint8
    """

    def __init__(
        self, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0, p: float = 1.0
    ) -> None:
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue
        self.p = p
        for name, most in (("brightness", None), ("contrast", None), ("saturation", None), ("hue", 0.5), ("p", 1)):
            check_range("ColourJitter", name, getattr(self, name), 0, most)
        if not self.parts():
            raise ConfigurationError("ColourJitter: give at least one of brightness, contrast, saturation and hue.")

    @override
    def parts(self) -> list[Transform]:
        kinds = ((Brightness, self.brightness), (Contrast, self.contrast), (Saturation, self.saturation), (Hue, self.hue))
        return [kind(strength, self.p) for kind, strength in kinds if strength]


def _fits(copy: ExactCopy, outside: Outside) -> bool:
    """Return whether a copy can be a part of a resampling that sees ``outside`` where nothing of the image is."""
    return copy.shows_all or (outside == "zeros" and not copy.reflects)


def plan(transforms: Sequence[Transform]) -> list[Pass]:
    """Return the passes that do what the transforms do one by one, in their order."""
    passes: list[Pass] = []
    for transform in _taken_apart(transforms):
        joined = passes[-1].joined(transform) if passes else None
        if joined is not None:
            passes[-1] = joined
        else:
            passes.append(_begun(transform))
    return passes


def _taken_apart(transforms: Sequence[Transform]) -> list[Transform]:
    parts: list[Transform] = []
    for transform in transforms:
        parts += _taken_apart(transform.parts()) if isinstance(transform, Compound) else [transform]
    return parts


def _begun(transform: Transform) -> Pass:
    for base, kind in ((ExactCopy, Copying), (Geometric, Resampling), (ColourStep, Colouring)):
        if isinstance(transform, base):
            return kind([transform])
    return Alone([transform])


def _known(epoch: int | None) -> int:
    if epoch is None:
        raise ConfigurationError("AlternatingFlip needs to know the epoch: give the augmentation epoch=.")
    return epoch
