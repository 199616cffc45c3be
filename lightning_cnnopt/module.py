"""The LightningModule that assembles a network with techniques, trains it and measures it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MetricCollection
from typing_extensions import override

from lightning_cnnopt.activation import SwapActivation
from lightning_cnnopt.architecture import ConvNet, NetworkFactory, Preprocessing, PublishedNetwork
from lightning_cnnopt.augmentation.callback import mixing_of
from lightning_cnnopt.core import checkpoints
from lightning_cnnopt.core.batch import read_batch
from lightning_cnnopt.core.callback import SHARDING_STRATEGIES
from lightning_cnnopt.core.errors import ConfigurationError, check_choice, check_range
from lightning_cnnopt.core.intact import check_intact, special_norms
from lightning_cnnopt.core.layers import NormalizationFactory
from lightning_cnnopt.core.pretrained import (
    is_pretrained_throughout,
    mark_pretrained,
    mark_what_is_loaded,
    refuse_to_overwrite,
)
from lightning_cnnopt.core.randomness import Stream, start_equal
from lightning_cnnopt.core.spec import build, call_with_known, factory_of, listed
from lightning_cnnopt.core.surgery import Edit, applied_edits
from lightning_cnnopt.initialization import Initializer
from lightning_cnnopt.initialization.callback import initialize, sample_for, with_counts
from lightning_cnnopt.initialization.initializers import as_initializer
from lightning_cnnopt.learning_rate import Schedule
from lightning_cnnopt.measurement import MetricFactory, Task, make_metrics
from lightning_cnnopt.normalization import SwapNormalization
from lightning_cnnopt.optimization import OptimizedModule
from lightning_cnnopt.regularization import Penalty


class ImageClassifier(OptimizedModule):
    """Trains and measures an image classifier; every technique is an argument, a method to override, or a callback.

    Networks, optimizers and layers are given as something that makes them (a class, ``functools.partial(cls, …)``, or
    ``{class_path, init_args}``), so that the checkpoint can hold them as builtins and ``load_from_checkpoint`` rebuilds
    everything by itself. A ready-made network works, too; loading then needs it again as ``network=``.

    Hooks, each to be overridden by itself: :meth:`configure_network`, :meth:`configure_normalization`,
    :meth:`configure_activation`, :meth:`initialize`, :meth:`loss`, :meth:`regularization`, :meth:`parameter_groups`,
    :meth:`layer_rates`, :meth:`configure_metrics`. The first three run inside ``__init__``: a subclass sets what they need
    before ``super().__init__``.

    Args:
        network: Makes the network; it is given ``num_classes``, ``in_channels`` and ``image_size``, as far as it takes them.
        num_classes: Number of classes or labels; 1 for a binary task. The CLI takes it from the data, as the next four.
        in_channels: Channels of an image.
        image_size: Height and width.
        task: ``"multiclass"`` (one label each), ``"binary"`` or ``"multilabel"``.
        class_names: Names of the classes; by default those of published weights whose head the network kept.
        criterion: Makes the loss; by default ``CrossEntropyLoss``, or ``BCEWithLogitsLoss`` for the other tasks.
        optimizer: Makes the optimizer from parameter groups. Its weight decay spares biases and norms.
        schedule: Of the learning rate; none by default.
        layer_decay: Rate of a layer over that of the one behind it; by default all learn at the optimizer's.
        activation: Makes an activation that replaces those of the network.
        normalization: Makes a normalization, from a number of channels, that replaces those of the network.
        initializer: How the weights start; by default as the network made them. Those that were loaded stay, and so do parts
            that ``mark_pretrained`` marked; a ready-made network has to be marked as either.
        penalties: What the loss is charged for. One alone need not be in a list.
        edits: Further edits of the network, in their order. One alone need not be in a list.
        metrics: Metrics beside the default ones, by the name under which they are logged.
        mean: Mean of each channel for pixels in [0, 1]. By default what published weights were trained with, or else that of
            our data modules, whose ``pixel_statistics()`` hand it over; with any other data nothing is normalized but what is
            given here, and uint8 is divided by 255.
        std: Standard deviation of each channel, likewise.

    Logs:
        ``train_loss``, ``train_acc`` and ``train_penalty``; ``val_`` and ``test_`` ``loss``, ``acc`` (top-1), ``acc_top5``
        (with ten classes or more), ``f1`` (macro), ``ece`` (expected calibration error). With mixed targets, ``train_acc``
        counts an image as right when its largest share is predicted.

    Raises:
        ConfigurationError: If arguments can't be right, or network and data do not fit.

    Example:
        >>> from functools import partial
        >>> model = ImageClassifier(partial(ConvNet, widths=(8,)), optimizer=partial(torch.optim.SGD, lr=0.1))
        >>> model(torch.zeros(2, 1, 28, 28, dtype=torch.uint8)).shape
        torch.Size([2, 10])
    """

    _network: NetworkFactory | nn.Module

    def __init__(
        self,
        network: NetworkFactory | nn.Module = ConvNet,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: tuple[int, int] = (28, 28),
        task: Task = "multiclass",
        class_names: Sequence[str] | None = None,
        criterion: Callable[[], nn.Module] | None = None,
        optimizer: Callable[[Iterable], Optimizer] = torch.optim.AdamW,
        schedule: Schedule | None = None,
        layer_decay: float | None = None,
        activation: Callable[[], nn.Module] | None = None,
        normalization: NormalizationFactory | None = None,
        initializer: Initializer | list[Initializer] | None = None,
        penalties: Penalty | Sequence[Penalty] = (),
        edits: Edit | Sequence[Edit] = (),
        metrics: Mapping[str, MetricFactory] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        check_choice("ImageClassifier", "task", task, ("multiclass", "binary", "multilabel"))
        check_range("ImageClassifier", "num_classes", num_classes, 1)
        check_range("ImageClassifier", "in_channels", in_channels, 1)
        if layer_decay is not None:
            check_range("ImageClassifier", "layer_decay", layer_decay, 0, 1, low_open=True)
        if (mean is None) != (std is None):
            raise ConfigurationError("ImageClassifier: mean and std belong together; give both or neither.")
        if class_names is not None and len(class_names) != num_classes and task != "binary":
            raise ConfigurationError(f"ImageClassifier: {len(class_names)} class_names for num_classes={num_classes}.")
        super().__init__(
            optimizer,
            None if schedule is None else build(schedule, Schedule),  # type: ignore[type-abstract]
            layer_decay,
            [build(penalty, Penalty) for penalty in listed(penalties)],  # type: ignore[type-abstract]
        )
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.image_size: tuple[int, int] = (image_size[0], image_size[1])
        self.task: Task = task
        self.class_names = list(class_names) if class_names is not None else None
        self.initializer: Initializer | None = None if initializer is None else as_initializer(initializer)
        vars(self)["_network"] = (
            network  # one that is ready-made would be a child beside the one that is trained, and saved twice
        )
        self._activation = activation
        self._normalization = normalization
        self._metrics = dict(metrics or {})
        default = nn.CrossEntropyLoss if task == "multiclass" else nn.BCEWithLogitsLoss
        self.criterion: nn.Module = build(criterion if criterion is not None else default, nn.Module)
        if hasattr(self.criterion, "label_smoothing"):  # torch would find out in the first step
            check_range(type(self.criterion).__name__, "label_smoothing", self.criterion.label_smoothing, 0, 1)  # type: ignore[arg-type]
        self.preprocessing = Preprocessing(in_channels, mean, std)
        self.network = self.configure_network()
        if isinstance(self.network, PublishedNetwork):
            self.class_names = self.class_names or self.network.class_names
            if mean is None and self.network.weights_record is not None:
                mean, std = self.network.weights_record.statistics(in_channels)
                self.preprocessing.set(mean, std)
        self.configure_normalization(self.network)
        self.configure_activation(self.network)
        for edit in listed(edits):
            built: Edit = build(edit, Edit)  # type: ignore[type-abstract]
            built(self.network)
        metric_set = self.configure_metrics()
        self.val_metrics = metric_set.clone(prefix="val_")
        self.test_metrics = metric_set.clone(prefix="test_")
        mark_what_is_loaded(self.network)  # what came from somewhere else than its constructor is not drawn anew
        self._stream = Stream("initialization", per_rank=False)
        self.added_edits: list[Edit] = []
        """What :meth:`add_edit` was given; checkpoints hold it."""
        self._has_inspected = self._knows_statistics = False

    # hooks to override

    def configure_network(self) -> nn.Module:
        """Return the network, one logit per class. By default what ``network`` makes."""
        if isinstance(self._network, nn.Module):
            return self._network
        said = checkpoints.storable(self._network)
        try:
            made = call_with_known(
                factory_of(self._network, nn.Module),
                num_classes=self.num_classes,
                in_channels=self.in_channels,
                image_size=self.image_size,
            )
        except TypeError as error:
            raise ConfigurationError(f"network={said!r} can't be built: {error}.") from error
        if not isinstance(made, nn.Module):
            raise ConfigurationError(f"network={said!r} makes a {type(made).__name__}; expected a network.")
        return made

    def configure_normalization(self, network: nn.Module) -> None:
        """Choose the normalization of ``network``, in place. By default ``normalization`` replaces it, where given."""
        if self._normalization is not None:
            SwapNormalization(self._normalization)(network)

    def configure_activation(self, network: nn.Module) -> None:
        """Choose the activations of ``network``, in place. By default ``activation`` replaces them, where given."""
        if self._activation is not None:
            SwapActivation(self._activation)(network)

    def initialize(self, network: nn.Module, sample: Tensor | None) -> None:
        """Start the weights of ``network``, in place, before the first fit. By default ``initializer`` does, where given.

        Args:
            network: The network with all edits.
            sample: Normalized images, if the initializer makes use of some and the data module has them.
        """
        if self.initializer is not None:
            touched = initialize(with_counts(self.initializer, self.trainer), network, sample, self._stream)
            rank_zero_info(f"{self.initializer!r} initialized {len(touched)} layers.")

    @override
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the task's loss. By default ``criterion``; it gets probabilities as targets when batches are mixed."""
        if self.task != "multiclass":
            logits, targets = logits.view_as(targets), targets.to(logits.dtype)
        try:
            return self.criterion(logits, targets)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ConfigurationError(
                f"criterion={self.criterion!r} does not take logits of shape {tuple(logits.shape)} with "
                f"{'class numbers' if targets.ndim == 1 and self.task == 'multiclass' else 'probabilities'} of shape "
                f"{tuple(targets.shape)} and type {targets.dtype} as targets: {str(error).splitlines()[0]}"
            ) from error

    def configure_metrics(self) -> MetricCollection:
        """Return the metrics of validation and test. By default accuracy, macro F1, calibration error, and ``metrics``."""
        return make_metrics(self.task, self.num_classes, self._metrics)

    # assembling

    def add_edit(self, edit: Edit) -> None:
        """Edit the network, once, and remember it in checkpoints, so that they load without help."""
        if edit in applied_edits(self.network):
            return
        edit(self.network)
        mark_what_is_loaded(self.network)
        self.added_edits.append(edit)

    @override
    def setup(self, stage: str) -> None:
        data: Any = getattr(self.trainer, "datamodule", None)
        checkpoints.check_data_fits(self, data)
        statistics = getattr(data, "pixel_statistics", None)  # not mean and std: others may have applied theirs already
        is_set = getattr(self.preprocessing, "is_set", True)  # a subclass may have put a module of its own there
        if not is_set and statistics is not None:
            self.preprocessing.set(*statistics())
        checkpoints.check_network_fits(self)
        known = type(self.criterion).__module__.startswith(("torch.nn.", "lightning_cnnopt."))
        if known and not is_overridden("loss", self, ImageClassifier):
            # not for a loss of the user's own: it may want other targets
            checkpoints.check_criterion_fits(self, mixing_of(self.trainer) if stage == "fit" else None)
        self._norms = special_norms(self.network)

    @override
    def on_fit_start(self) -> None:
        check_intact(self.network, self._norms)
        # here and not in setup, where nothing tells a run that will be resumed from a fresh one
        self._knows_statistics = getattr(self.preprocessing, "is_set", True)
        self.preprocessing.is_set = True  # weights are trained on what goes through it now
        if self.trainer.ckpt_path is not None or is_pretrained_throughout(self.network):
            if self.initializer is not None:
                rank_zero_info(f"{self.initializer!r} draws nothing: all weights of the network are trained.")
            mark_pretrained(self.network)
            return
        if self.initializer is not None:
            refuse_to_overwrite(self.network, self._network, self.initializer)
        self.initialize(self.network, sample_for(self.initializer, self.trainer, self.network))
        if not isinstance(self.trainer.strategy, SHARDING_STRATEGIES):
            start_equal(self.network)
        mark_pretrained(self.network)

    # training and measuring

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images (N, C, H, W), uint8 or floats in [0, 1]."""
        return self.network(self.preprocessing(images))

    @override
    def on_train_start(self) -> None:
        super().on_train_start()
        self._has_inspected = False

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, targets = read_batch(batch)
        if not self._has_inspected and isinstance(self.preprocessing, Preprocessing):
            self.preprocessing.inspect(images, self._knows_statistics)
        self._has_inspected = True
        logits = self(images)
        loss = self.loss(logits, targets)
        self.add_up(loss, logits, targets)
        return loss

    # checkpoints

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoints.sign(self, checkpoint)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoints.replay_edits(self, checkpoint)
        checkpoints.check_signature(self, checkpoint)
        super().on_load_checkpoint(checkpoint)
