"""Edits of a network, applied by a Trainer."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from typing_extensions import override

from lightning_cnnopt.core.callback import TechniqueCallback, callbacks_of
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.intact import check_intact, special_norms
from lightning_cnnopt.core.surgery import Edit, network_of


class EditNetwork(TechniqueCallback):
    """Applies edits to the network of any LightningModule: squeeze-and-excitation, swaps, stochastic depth.

    The edits are applied in ``setup``, at every stage and once: before weights are restored, before DDP wraps the module and
    before its optimizers exist. On an :class:`~lightning_cnnopt.ImageClassifier` its checkpoints hold them, too, so that
    they load without this callback; those of another module need the callback for loading, too.

    Layers that a module creates in its own ``setup`` or ``configure_model`` do not exist yet at this point. In such a module
    call the edit itself, at the end of that method: ``SqueezeExcite()(self.network)``.

    Args:
        edits: The edits, in their order. One alone need not be in a list.
        submodule: Name of the part of the LightningModule that is the network; by default what its ``forward`` runs, or its one
            child with weights where it has none.

    Raises:
        ConfigurationError: If there is no such submodule, a callback that copies the weights in ``setup`` comes first, or
            what was edited is gone when training starts (``sync_batchnorm`` and layers that ``SyncBatchNorm`` can't stand for).

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_cnnopt.architecture import SqueezeExcite
        >>> trainer = Trainer(callbacks=[EditNetwork(SqueezeExcite())], logger=False, enable_checkpointing=False)
    """

    def __init__(self, edits: Edit | list[Edit], submodule: str | None = None) -> None:
        self.edits = [edits] if isinstance(edits, Edit) else list(edits)
        self.submodule = submodule

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        others = callbacks_of(trainer)
        for callback in others[: others.index(self)]:
            if isinstance(callback, WeightAveraging):
                raise ConfigurationError(
                    f"EditNetwork comes after {type(callback).__name__}, which has copied the network already, so "
                    "the edits would "
                    "be lost. Put EditNetwork before it."
                )
        record = getattr(pl_module, "add_edit", None)
        network = network_of(pl_module, self.submodule)
        for edit in self.edits:
            if record is not None and self.submodule is None:
                record(edit)
            else:
                edit(network)
        self._norms = special_norms(network)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_intact(network_of(pl_module, self.submodule), self._norms)
