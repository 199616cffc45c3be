"""What networks of other packages have in common here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn

from lightning_cnnopt.architecture.layers import ResizeImages
from lightning_cnnopt.architecture.pretrained.record import WeightsRecord
from lightning_cnnopt.core.errors import ConfigurationError, check_choice, check_range
from lightning_cnnopt.core.pretrained import mark_pretrained

Argument: TypeAlias = bool | int | float | str | None
InputSize: TypeAlias = int | tuple[int, int] | Literal["weights"] | None
Crop: TypeAlias = float | Literal["weights"] | None


class PublishedNetwork(nn.Module):
    """Base of networks that another package builds by name: the network is the child ``body``.

    Its weights may be published ones. Then ``weights_record`` says what they were trained with, and an ``ImageClassifier``
    normalizes by it; ``class_names`` are theirs where the head is theirs, too.
    """

    body: nn.Module
    resize: nn.Module
    weights_record: WeightsRecord | None
    class_names: list[str] | None
    rebuilt_with: dict[str, Argument]
    """Constructor arguments that a checkpoint stores in place of the given ones: it brings the weights itself."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of normalized images (N, C, H, W)."""
        return self.body(self.resize(images))

    def _check(
        self, num_classes: int, in_channels: int, image_size: tuple[int, int], input_size: InputSize, crop: Crop
    ) -> None:
        for name, said in (("input_size", input_size), ("crop", crop)):
            if isinstance(said, str):
                check_choice(type(self).__name__, name, said, ["weights"])
        sizes = [] if input_size is None or input_size == "weights" else _sides(input_size)
        for name, values in (
            *(("num_classes", [num_classes]), ("in_channels", [in_channels])),
            *(("image_size", image_size), ("input_size", sizes)),
        ):
            for value in values:
                check_range(type(self).__name__, name, value, 1)
        if crop is not None and crop != "weights":
            check_range(type(self).__name__, "crop", crop, 0, 1, low_open=True)

    def _finish(
        self,
        body: nn.Module,
        record: WeightsRecord | None,
        image_size: tuple[int, int],
        input_size: InputSize,
        crop: Crop,
        rebuilt_with: dict[str, Argument],
    ) -> None:
        self.body = body
        self.weights_record = record
        self.rebuilt_with = rebuilt_with
        self.class_names = None
        size = self._size(image_size, input_size, record)
        interpolation = record.interpolation if record is not None else "bilinear"
        share = self._share(crop, record)
        is_needed = share is not None or size != tuple(image_size)
        self.resize = ResizeImages(size, interpolation, share) if is_needed else nn.Identity()
        if record is not None and size != record.size:
            rank_zero_info(
                f"{type(self).__name__}: its weights were trained on images of {record.size[0]}x{record.size[1]} and see "
                f"{size[0]}x{size[1]}; input_size: weights resizes them."
            )

    def _share(self, crop: Crop, record: WeightsRecord | None) -> float | None:
        if crop != "weights":
            return crop
        if record is None:
            raise ConfigurationError(
                f"{type(self).__name__}: crop='weights' needs published weights by name, which state a crop; give a number, "
                "such as 0.875."
            )
        return record.crop

    def _size(self, image_size: tuple[int, int], input_size: InputSize, record: WeightsRecord | None) -> tuple[int, int]:
        if input_size is None:
            return image_size[0], image_size[1]
        if input_size != "weights":
            return _sides(input_size)
        if record is None:
            raise ConfigurationError(
                f"{type(self).__name__}: input_size='weights' needs published weights by name, which state a size; give a "
                "number."
            )
        return record.size

    def _weights_are_read(
        self, name: str, keeps_head: bool, head: Sequence[str], record: WeightsRecord | None, num_classes: int
    ) -> None:
        mark_pretrained(self.body)
        if not keeps_head:
            for layer in head:
                mark_pretrained(self.body.get_submodule(layer), False)
        else:
            self.class_names = list(record.class_names) if record is not None and record.class_names is not None else None
        rank_zero_info(
            f"{type(self).__name__}: {name} has its weights; the head is "
            + (f"that of the weights, for their {num_classes} classes." if keeps_head else f"new, for {num_classes} classes.")
        )


def call_builder(owner: str, build: object, arguments: Mapping[str, Argument], **given: object) -> nn.Module:
    """Return what ``build`` makes of both kinds of arguments.

    Raises:
        ConfigurationError: If it refuses them, or one is given twice.
    """
    twice = sorted(set(arguments) & set(given))
    if twice:
        raise ConfigurationError(f"{owner}: arguments={dict(arguments)} holds {twice[0]!r}, which {owner} gives by itself.")
    try:
        made = build(**given, **arguments)  # type: ignore[operator]
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigurationError(f"{owner} can't be built with arguments={dict(arguments)}: {reason}") from error
    assert isinstance(made, nn.Module)
    return made


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
