"""When saturated outputs and dead units are counted, and what is said of them."""

from __future__ import annotations

import csv
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from typing_extensions import override

from lightning_cnnopt.activation.counting import ActivationCount, ActivationCounter
from lightning_cnnopt.core.callback import TechniqueCallback
from lightning_cnnopt.core.errors import ConfigurationError, check_range
from lightning_cnnopt.core.graph import NetworkGraph
from lightning_cnnopt.core.surgery import network_of


class WatchActivations(TechniqueCallback):
    """Counts, while validating, which outputs are saturated and which units are dead, and warns of layers with many.

    An output of sigmoid or tanh is saturated where the slope |f′| is below ``threshold``: hardly any gradient passes. A unit
    of a ReLU is dead if it was at its least value for every pixel of every image of the validation: no gradient passes at
    all. A unit is a channel of images (N, C, H, W) and a feature of vectors (N, F).

    Each count is kept in :attr:`counts`, written to ``activations.csv``, and as ``val_dead_units`` and ``val_saturated``, the
    shares over the whole network, to the loggers. Each layer is named in a warning once. Nothing that is computed changes, and
    outside of validation there are no hooks.

    Args:
        threshold: Slope below which an output is saturated. 0.05 is a fifth of the sigmoid's greatest slope, and a twentieth of
            tanh's.
        warn_above: Share of dead units or saturated outputs of a layer above which it is named.
        every: Count at every so-many-th validation of a fit.
        directory: Where to write; by default the Trainer's ``log_dir``.
        submodule: Name of the part of the LightningModule that is watched; by default what its ``forward`` runs, or its one
            child with weights where it has none.

    Reference:
        Glorot & Bengio, 2010, for saturation; Maas et al., "Rectifier Nonlinearities", 2013, for units that die.

    Example:
        >>> trainer = Trainer(callbacks=[WatchActivations()], logger=False, enable_checkpointing=False)
    """

    single = True
    looks_on = True

    def __init__(
        self,
        threshold: float = 0.05,
        warn_above: float = 0.5,
        every: int = 1,
        directory: str | None = None,
        submodule: str | None = None,
    ) -> None:
        check_range("WatchActivations", "threshold", threshold, 0, 1, low_open=True)
        check_range("WatchActivations", "warn_above", warn_above, 0, 1)
        check_range("WatchActivations", "every", every, 1)
        self.threshold = threshold
        self.warn_above = warn_above
        self.every = every
        self.directory = directory
        self.submodule = submodule
        self.counts: list[ActivationCount] = []
        """What was counted in the last validation, layer by layer."""
        self._counter: ActivationCounter | None = None
        self._validations = 0
        self._named: set[str] = set()
        self._folder = Path()
        self._is_begun = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._folder = Path(self.directory or trainer.log_dir or trainer.default_root_dir)  # every rank takes part in log_dir
        if stage in ("fit", "validate"):
            self._say_what_is_not_seen(pl_module)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._is_begun = trainer.ckpt_path is not None
        if trainer.ckpt_path is None:
            self._validations = 0

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        if trainer.state.fn == "fit":
            self._validations += 1
            if self._validations % self.every:
                return
        counter = ActivationCounter(network_of(pl_module, self.submodule), self.threshold)
        if counter.layers:
            self._counter = counter.__enter__()

    @override
    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self._counter is not None:
            self._counter.start_pass()

    @override
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._counter is None:
            return
        self._close()
        self.counts = self._counter.counts()
        self._counter = None
        if not self.counts:
            rank_zero_warn(f"{self!r} counted nothing: no activation layer of {type(pl_module).__name__} was called.")
            return
        units, values = (sum(getattr(count, name) for count in self.counts) for name in ("units", "values"))
        shares = {}
        if units:
            shares["val_dead_units"] = sum(count.dead for count in self.counts) / units
        if values:
            shares["val_saturated"] = sum(count.saturated for count in self.counts) / values
        for logger in trainer.loggers:
            logger.log_metrics(shares, step=trainer.global_step)
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._write(trainer)
        self._warn()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()
        self._counter = None

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    @override
    def resume(self, state_dict: dict[str, Any]) -> None:
        self._validations = state_dict["validations"]

    def _close(self) -> None:
        if self._counter is not None:
            self._counter.close()

    def _say_what_is_not_seen(self, pl_module: LightningModule) -> None:
        network = network_of(pl_module, self.submodule)
        try:
            called = NetworkGraph(network).functional_activations()
        except ConfigurationError:  # nothing can be traced
            called = []
        if called:
            rank_zero_warn(
                f"{len(called)} activations of {type(network).__name__} are called as functions "
                f"({', '.join(sorted(set(called)))}); {type(self).__name__} does not see them."
            )
        if not ActivationCounter(network).layers:
            rank_zero_warn(f"{self!r} watches nothing: {type(network).__name__} has no layer that can saturate or die.")

    def _write(self, trainer: Trainer) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "activations.csv"
        rows = [{"step": trainer.global_step, "epoch": trainer.current_epoch, **asdict(count)} for count in self.counts]
        goes_on = self._is_begun and path.exists()
        with path.open("a" if goes_on else "w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            if not goes_on:
                table.writeheader()
            table.writerows(rows)
        self._is_begun = True

    def _warn(self) -> None:
        told = []
        for count in self.counts:
            if count.layer in self._named:
                continue
            if count.dead_share > self.warn_above:
                told.append(f"{count.layer} ({count.kind}): {count.dead} of {count.units} units are dead")
            elif count.saturated_share > self.warn_above:
                told.append(f"{count.layer} ({count.kind}): {count.saturated_share:.0%} of the outputs are saturated")
            else:
                continue
            self._named.add(count.layer)
        if told:
            rank_zero_warn(
                f"Little gradient passes {len(told)} activations: {'; '.join(told)}. Lower the learning rate, initialize for "
                "these activations (Kaiming, XavierNormal), normalize before it, or take one that neither saturates nor dies "
                "(LeakyReLU, GELU)."
            )
