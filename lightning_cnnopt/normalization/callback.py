"""When the statistics of batch normalization are measured anew, held still, or folded away."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, Subset, TensorDataset
from typing_extensions import override

from lightning_cnnopt.core.callback import TechniqueCallback, callbacks_of
from lightning_cnnopt.core.errors import ConfigurationError, check_range
from lightning_cnnopt.core.randomness import Stream, rank, world_size
from lightning_cnnopt.core.schedule import DurationLike, TrainingLength, fraction_of, parse_duration, progress_of, steps_done
from lightning_cnnopt.core.surgery import network_of
from lightning_cnnopt.normalization.functional import batch_norms, fold_batch_norm, precise_statistics


class PreciseBN(TechniqueCallback):
    """Measures the running statistics of batch normalization anew before each validation; see :func:`precise_statistics`.

    They are then those of the weights that are validated and saved, and no average over weights that have been. Training
    itself does not use running statistics, so it is as without; it goes on averaging from the measured ones. Measured is once
    more when training ends, if it went on since the last validation. A checkpoint from between two validations holds what the
    average has become since the last one.

    The images are drawn anew each time from the set that the training loader serves, on a stream of this callback's, without
    batches of the loader being taken. Our data modules hand them out without augmentation; a data set of yours that augments
    its samples itself does so here, too.

    Args:
        samples: How many training images are used, over all processes; all of them if there are fewer. The paper finds 10³
            to 10⁴ enough.

    Raises:
        ConfigurationError: With a callback that averages weights, or a training loader that has no data set to draw from.

    Reference:
        Wu & Johnson, "Rethinking 'Batch' in BatchNorm", 2021.

    Example:
        >>> trainer = Trainer(callbacks=[PreciseBN(1000)], logger=False, enable_checkpointing=False)
    """

    single = True
    measures_statistics = True

    def __init__(self, samples: int = 2048) -> None:
        check_range("PreciseBN", "samples", samples, 2)
        self.samples = samples
        self.stream = Stream("precise_bn", per_rank=False)
        self._layers: list[_BatchNorm] = []
        self._frozen: set[nn.Module] = set()
        self._measured_at = -1

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for callback in callbacks_of(trainer):
            if isinstance(callback, WeightAveraging) or getattr(callback, "averages_weights", False):
                raise ConfigurationError(
                    f"{type(callback).__name__} averages the running statistics along with the weights, and PreciseBN measures "
                    "them for the weights as they are; keep one. To measure those of averaged weights, call "
                    "precise_statistics(model, loader) after training."
                )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._layers = list(batch_norms(pl_module).values())
        self._measured_at = -1
        if not self._layers:
            rank_zero_warn(f"{self!r} measures nothing: {type(pl_module).__name__} has no batch normalization with statistics.")
        else:
            _data_set(trainer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._frozen = {layer for layer in self._layers if not layer.training}  # in evaluation it can't be told any more

    @override
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._measure(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stage = trainer.state.stage
        trainer.validating = True  # so that no hook takes these batches for training and augments them
        try:
            self._measure(trainer, pl_module)
        finally:
            trainer.state.stage = stage

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"stream": self.stream.state_dict()}

    @override
    def resume(self, state_dict: dict[str, Any]) -> None:
        self.stream.load_state_dict(state_dict["stream"])

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> None:
        layers = [layer for layer in self._layers if layer not in self._frozen]
        if not layers or trainer.global_step == self._measured_at:
            return
        self._measured_at = trainer.global_step
        # batches of a data set of the user's may draw from any generator
        with isolate_rng(), trainer.precision_plugin.forward_context():
            batches = (trainer.strategy.batch_to_device(batch, pl_module.device) for batch in self._batches(trainer))
            precise_statistics(pl_module, batches, layers, network_of(pl_module))

    def _batches(self, trainer: Trainer) -> DataLoader:
        loader, data = _data_set(trainer)
        count = min(self.samples, len(data)) // world_size() * world_size()
        chosen = torch.randperm(len(data), generator=self.stream.generator)[:count]
        mine = Subset(data, chosen[rank() :: world_size()].tolist())
        size = getattr(loader, "batch_size", None) or getattr(getattr(loader, "batch_sampler", None), "batch_size", None) or 64
        return DataLoader(
            mine,
            size,
            # batch normalization can't use a batch of one, and every rank needs as many as the others
            drop_last=len(mine) > size,
            collate_fn=getattr(loader, "collate_fn", None),
            num_workers=getattr(loader, "num_workers", 0),
            worker_init_fn=getattr(loader, "worker_init_fn", None),
        )


class FreezeStatistics(TechniqueCallback):
    """Lets batch normalization normalize by its running statistics in training, too, and leaves them as they are.

    So a layer is the same affine map in training and in evaluation. From the beginning, that keeps the statistics of pretrained
    weights in fine-tuning with batches too small to measure any; from late in a training on, the weights settle on what is
    evaluated. Scale and shift are trained on. Parts of a network with their weights are frozen by ``Freeze``.

    Args:
        start: When the statistics are frozen. From the beginning by default, which is for pretrained weights: a network that
            starts from random ones has no statistics yet.

    Example:
        >>> trainer = Trainer(callbacks=[FreezeStatistics(0.9)], logger=False, enable_checkpointing=False)
    """

    single = True

    def __init__(self, start: DurationLike = 0.0) -> None:
        parse_duration(start, "FreezeStatistics: start")
        self.start = start
        self._layers: list[_BatchNorm] = []
        self._frozen: set[nn.Module] = set()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._layers = list(batch_norms(pl_module).values())
        self._frozen = set()
        if not self._layers:
            rank_zero_warn(f"{self!r} freezes nothing: {type(pl_module).__name__} has no batch normalization with statistics.")
        self._length = TrainingLength.of(trainer)
        self._begin = fraction_of(self.start, self._length, "start")

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if progress_of(trainer, self._length, steps_done(trainer)) >= self._begin:
            for layer in self._layers:
                if layer.training:  # the first time, and after code that switched the whole module to training
                    layer.eval()
                    self._frozen.add(layer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for layer in self._frozen:
            layer.train(pl_module.training)


class FoldBatchNorm(TechniqueCallback):
    """Folds batch normalization into the layers before it while testing and predicting; see :func:`fold_batch_norm`.

    The outputs are the same up to rounding, and come faster. Afterwards the network is as it was. For export, call the
    function.

    Args:
        submodule: Name of the part of the LightningModule that is the network; by default all of it.

    Example:
        >>> trainer = Trainer(callbacks=[FoldBatchNorm()], logger=False, enable_checkpointing=False)
    """

    single = True

    def __init__(self, submodule: str | None = None) -> None:
        self.submodule = submodule
        self._unfolded: list[tuple[nn.Module, dict[str, nn.Module | None]]] = []

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._fold(pl_module)

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._fold(pl_module)

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._unfold()

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._unfold()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._unfold()

    def _fold(self, pl_module: LightningModule) -> None:
        network = network_of(pl_module, self.submodule)
        self._unfolded = [(module, dict(module._modules)) for module in network.modules()]
        if fold_batch_norm(network) == 0:
            rank_zero_warn(
                f"{self!r} folded nothing: {type(network).__name__} has no batch normalization that follows a convolution or a "
                "dense layer directly."
            )

    def _unfold(self) -> None:
        for module, children in self._unfolded:
            module._modules.clear()
            module._modules.update(children)
        self._unfolded = []


def _data_set(trainer: Trainer) -> tuple[Any, Any]:
    loader: Any = trainer.train_dataloader
    data = getattr(loader, "dataset", None)
    if data is None and hasattr(loader, "images") and hasattr(loader, "targets"):  # our resident loader
        data = TensorDataset(loader.images, loader.targets)
        if getattr(loader, "places", None) is not None:  # a part of what it refers to, without the rest that validates
            data = Subset(data, loader.places.tolist())
    if not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        raise ConfigurationError(
            f"PreciseBN can't draw from {type(loader).__name__}: it has no data set with a length and samples by index. Call "
            "precise_statistics(model, loader) after training."
        )
    return loader, data
