"""Initialization of any LightningModule by a Trainer."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from typing_extensions import override

from lightning_cnnopt.core.callback import SHARDING_STRATEGIES, TechniqueCallback
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.pretrained import is_pretrained_throughout, mark_pretrained
from lightning_cnnopt.core.randomness import Stream, start_equal
from lightning_cnnopt.core.surgery import network_of
from lightning_cnnopt.initialization.initializers import Initializer, as_initializer


class InitializeWeights(TechniqueCallback):
    """Draws the weights of any LightningModule anew before its first fit; never on resume, nor when it is fitted again.

    Weights that are marked by :func:`~lightning_cnnopt.core.mark_pretrained` stay, and a fit marks all weights of its module.
    On an :class:`~lightning_cnnopt.ImageClassifier`, set its argument ``initializer`` instead.

    Args:
        initializer: How the weights start. Several, in a list, start them after each other.
        sample: A batch of inputs for initializers that make use of one, as what is initialized is fed them. By default drawn
            from our data module.
        submodule: Name of the part of the LightningModule that is initialized; by default what its ``forward`` runs, or
            its one child with weights where it has none.

    Raises:
        ConfigurationError: If the initializer needs data and there is none, or on an ``ImageClassifier`` that has an
            initializer of its own.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_cnnopt.initialization import Kaiming
        >>> trainer = Trainer(callbacks=[InitializeWeights(Kaiming())], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self, initializer: Initializer | list[Initializer], sample: Tensor | None = None, submodule: str | None = None
    ) -> None:
        self.initializer = as_initializer(initializer)
        self.sample = sample
        self.submodule = submodule
        self.stream = Stream("initialization", per_rank=False)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if getattr(pl_module, "initializer", None) is not None:
            raise ConfigurationError(
                f"{type(pl_module).__name__} has initializer={pl_module.initializer!r} and the callback InitializeWeights "
                "draws the same weights; keep one."
            )
        if isinstance(trainer.strategy, SHARDING_STRATEGIES):
            raise ConfigurationError(
                f"InitializeWeights needs whole weights; {type(trainer.strategy).__name__} shards them. Call the initializer "
                "in your module's configure_model."
            )
        network_of(pl_module, self.submodule)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # here and not in setup, where nothing tells a run that will be resumed from a fresh one
        if trainer.ckpt_path is not None:
            return
        network = network_of(pl_module, self.submodule)
        if is_pretrained_throughout(network):
            rank_zero_info(f"{self!r} draws nothing: all weights of {type(network).__name__} are trained.")
            return
        sample = self.sample if self.sample is not None else sample_for(self.initializer, trainer, network)
        touched = initialize(with_counts(self.initializer, trainer), network, sample, self.stream)
        start_equal(network)
        rank_zero_info(f"{self.initializer!r} initialized {len(touched)} layers.")

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        mark_pretrained(pl_module)  # the mark is the module's: another callback or Trainer finds it


def sample_for(initializer: Initializer | None, trainer: Trainer, network: nn.Module) -> Tensor | None:
    """Return images of a Trainer's data module as ``network`` is fed them, if ``initializer`` makes use of some.

    Args:
        initializer: How the weights start.
        trainer: The Trainer, whose data module may be one of ours.
        network: The Trainer's LightningModule, or a part of it.
    """
    draw: Any = getattr(getattr(trainer, "datamodule", None), "sample_batch", None)
    if draw is None or initializer is None or not initializer.sample_size:
        return None
    module = trainer.lightning_module
    images: Tensor = draw(initializer.sample_size).to(module.device)
    preprocessing: nn.Module | None = getattr(module, "preprocessing", None)
    if preprocessing is not None:
        return images if network is module else preprocessing(images)
    return images if images.is_floating_point() else None  # who normalizes them, and how, is unknown


def with_counts(initializer: Initializer, trainer: Trainer) -> Initializer:
    """Return ``initializer`` with the frequencies of the classes, if it starts from them and the data module states them."""
    data: Any = getattr(trainer, "datamodule", None)
    if not initializer.needs_counts or not hasattr(data, "class_counts"):
        return initializer
    exclusive = getattr(data, "task", "multiclass") == "multiclass"
    return initializer.bind(data.class_counts(), None if exclusive else data.num_train_samples)


def initialize(initializer: Initializer, network: nn.Module, sample: Tensor | None, stream: Stream) -> list[str]:
    """Initialize ``network`` from a stream."""
    if sample is not None:
        reference = next(network.parameters())
        sample = sample.to(reference.device, reference.dtype if sample.is_floating_point() else None)
    return initializer(network, sample, stream.generator)
