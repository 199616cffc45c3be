"""The memory format and the compilation of any LightningModule's network."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn
from typing_extensions import override

from lightning_cnnopt.core.callback import TechniqueCallback
from lightning_cnnopt.core.errors import ConfigurationError, check_choice
from lightning_cnnopt.core.surgery import inner_network
from lightning_cnnopt.parallel.functional import to_channels_last

Mode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]


class ChannelsLast(TechniqueCallback):
    """Runs the network of any LightningModule in channels-last layout; see :func:`to_channels_last`.

    It is done in ``setup``: before weights are restored, before DDP lays out its buckets. Put it behind callbacks that add
    layers. Weights keep names and shapes, so checkpoints fit with and without it; sums run in another order, so results
    differ in the last bits.

    Args:
        submodule: Name of the part of the LightningModule that is the network; by default its one child with weights.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[ChannelsLast()], logger=False, enable_checkpointing=False)
    """

    def __init__(self, submodule: str | None = None) -> None:
        self.submodule = submodule

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        network = inner_network(pl_module, self.submodule)
        to_channels_last(network)
        if not any(isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) for module in network.modules()):
            rank_zero_warn(f"{self!r} changed nothing: {type(network).__name__} has no 2d convolution.")


class CompileNetwork(TechniqueCallback):
    """Compiles the network of any LightningModule with ``torch.compile``, in place: the keys of its state stay as they are.

    ``torch.compile(network)`` wraps it and prefixes every key with ``_orig_mod.``; here the network compiles its own call, so
    checkpoints fit with and without. The first batch of each shape waits for the compiler: leave a smaller last batch out
    (``drop_last``), and expect one more compilation for validation.

    Which kernels a shape gets depends on the shapes that came before, so a resumed run ends with the same bits only where
    all training batches are of one size, or with ``dynamic=True``.

    Args:
        backend: Of ``torch.compile``.
        mode: Of ``torch.compile``; by default the backend's own.
        fullgraph: Raise where the network can't be compiled as a whole, in place of falling back to Python there.
        dynamic: Compile for any batch size at once; by default torch decides when it meets a second one.
        submodule: Name of the part of the LightningModule that is compiled; by default its one child with weights.

    Raises:
        ConfigurationError: If ``mode`` is given for another backend than inductor.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[CompileNetwork()], logger=False, enable_checkpointing=False)
    """

    def __init__(
        self,
        backend: str = "inductor",
        mode: Mode | None = None,
        fullgraph: bool = False,
        dynamic: bool | None = None,
        submodule: str | None = None,
    ) -> None:
        check_choice("CompileNetwork", "backend", backend, torch.compiler.list_backends(exclude_tags=()))
        if mode is not None:
            check_choice("CompileNetwork", "mode", mode, get_args(Mode))
            if backend != "inductor":
                raise ConfigurationError(f"CompileNetwork: mode={mode!r} is one of inductor's, and the backend is {backend!r}.")
        self.backend = backend
        self.mode: Mode | None = mode
        self.fullgraph = fullgraph
        self.dynamic = dynamic
        self.submodule = submodule

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # not in setup, where the network is still edited and tried on two images
        self._compile(pl_module)

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._compile(pl_module)

    on_test_start = on_predict_start = on_validation_start

    def _compile(self, module: LightningModule) -> None:
        network = inner_network(module, self.submodule)
        if network._compiled_call_impl is None:
            network.compile(backend=self.backend, mode=self.mode, fullgraph=self.fullgraph, dynamic=self.dynamic)
