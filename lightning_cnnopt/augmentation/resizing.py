"""Training on smaller images first, on any LightningModule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torchvision.transforms.v2.functional import resize
from typing_extensions import override

from lightning_cnnopt.core.errors import ConfigurationError, check_range
from lightning_cnnopt.core.modes import modes_kept
from lightning_cnnopt.core.schedule import DurationLike, Schedule, TrainingLength, fraction_of, parse_duration
from lightning_cnnopt.core.surgery import inner_network
from lightning_cnnopt.core.values import Driven, ScheduleValue


def scaled_size(size: Sequence[int], scale: float, multiple: int = 4) -> list[int]:
    """Return height and width times ``scale``, each to the nearest ``multiple``, at least that and at most what it is.

    Example:
        >>> scaled_size((32, 30), 0.5), scaled_size((32, 30), 1.0), scaled_size((32, 30), 0.01)
        ([16, 16], [32, 30], [4, 4])
    """
    if scale >= 1:
        return list(size)
    return [min(side, max(multiple, multiple * round(scale * side / multiple))) for side in size]


class ScheduleImageSize(ScheduleValue):
    """Progressive resizing: a network trains on smaller images first, resampled on the device, and on whole ones at the end.

    Images are resized in front of the network, behind augmentation and mixing, by torchvision's ``resize`` with
    antialiasing, so no loader is rebuilt, and a run that is resumed in mid-epoch goes on at the size that it would have had.
    The size is height and width times ``1 - (1 - start) · factor``, to a multiple. A smaller image costs less: half the sides
    are a quarter of the work of a convolution. Validation and test see whole images.

    Running statistics of batch normalization average over images of several sizes; ``PreciseBN`` measures them on whole ones.

    Args:
        schedule: From 1, where images are smallest, to 0, over the training without its last part: ``Polynomial()`` grows them
            evenly, ``Step`` in stages.
        start: Share of the sides at the factor 1.
        full: The last part of the training, which sees whole images: a fraction, ``"5ep"``, ``"500st"``.
        multiple: Sides are multiples of this: the network's strides, or 8 where kernels want it.
        submodule: Name of the part of the LightningModule that is the network; by default its one child with weights.

    Raises:
        ConfigurationError: If an argument is out of range, ``full`` takes all of the training, or an ``ImageClassifier`` has
            a network of fixed image size.

    Reference:
        Howard, "Training Imagenet in 3 hours for 25 minutes", 2018; Touvron et al., "Fixing the train-test resolution
        discrepancy", 2019, for the last part.

    Example:
        >>> from lightning_cnnopt.learning_rate import Polynomial
        >>> callback = ScheduleImageSize(Polynomial(), start=0.5, full=0.2)
        >>> trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)
    """

    quantity = "image size"
    single = True

    def __init__(
        self,
        schedule: Schedule,
        start: float = 0.5,
        full: DurationLike = 0.2,
        multiple: int = 4,
        submodule: str | None = None,
    ) -> None:
        check_range("ScheduleImageSize", "start", start, 0, 1, low_open=True)
        check_range("ScheduleImageSize", "multiple", multiple, 1, whole=True)
        parse_duration(full, "ScheduleImageSize: full")
        super().__init__(schedule, start, 1.0)
        self.full = full
        self.multiple = multiple
        self.submodule = submodule
        self.scale = 1.0
        """Share of the sides that is trained on at present."""
        self._trainer: Trainer | None = None
        self._hook: RemovableHandle | None = None

    @override
    def bind(self, trainer: Trainer, length: TrainingLength) -> Schedule:
        """Return the schedule over the training without its last part."""
        rest = fraction_of(self.full, length, "ScheduleImageSize: full")
        if rest >= 1:
            raise ConfigurationError(
                f"ScheduleImageSize: full={self.full!r} takes all of the training; nothing is left for {self.schedule!r}."
            )
        self._bound = _Until(super().bind(trainer, length.part(1 - rest)), 1 - rest)
        self._length = length
        return self._bound

    @override
    def places(self, trainer: Trainer, pl_module: LightningModule) -> list[Driven]:
        """Return the scale that the images in front of the network get."""
        network = inner_network(pl_module, self.submodule)
        self._check_takes_sizes(network, pl_module)
        self._leave()
        self._trainer = trainer
        self._hook = network.register_forward_pre_hook(self._resize, with_kwargs=True)
        return [Driven(1.0, self._set_scale)]

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._leave()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._leave()

    def _leave(self) -> None:
        self.restore()
        self._trainer = None
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _set_scale(self, scale: float) -> None:
        self.scale = scale

    def _resize(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._trainer is None or not self._trainer.training or self.scale >= 1:
            return None
        images = args[0] if args else next(iter(kwargs.values()), None)
        if not isinstance(images, Tensor) or images.ndim != 4:
            return None
        small = resize(images, scaled_size(images.shape[2:], self.scale, self.multiple), antialias=True)
        if args:
            return (small, *args[1:]), kwargs
        return args, {**kwargs, next(iter(kwargs)): small}

    def _check_takes_sizes(self, network: nn.Module, pl_module: LightningModule) -> None:
        channels, size = getattr(pl_module, "in_channels", None), getattr(pl_module, "image_size", None)
        if channels is None or size is None:
            return
        assert self.start is not None
        least = scaled_size(size, self.start, self.multiple)
        try:
            with modes_kept(network), torch.no_grad(), torch.compiler.set_stance("force_eager"):
                network.eval()
                network(torch.zeros(2, channels, *least, device=pl_module.device))
        except (RuntimeError, ValueError, AssertionError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise ConfigurationError(
                f"ScheduleImageSize: {type(network).__name__} takes images of {size[0]}x{size[1]} and none of "
                f"{least[0]}x{least[1]}: {reason}. Take a network that pools over the whole image (ConvNet: global_pooling), "
                "or a larger start."
            ) from error


class _Until(Schedule):
    """A schedule over the first part of training, and 0 after it."""

    def __init__(self, schedule: Schedule, end: float) -> None:
        self.schedule = schedule
        self.end = end

    @override
    def factor(self, progress: float) -> float:
        return self.schedule.factor(progress / self.end) if progress < self.end - 1e-9 else 0.0

    @override
    def observe(self, metrics: dict[str, float], progress: float = 1.0) -> None:
        self.schedule.observe(metrics, min(1.0, progress / self.end))

    @override
    def state_dict(self) -> dict[str, Any]:
        return self.schedule.state_dict()

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.schedule.load_state_dict(state)
