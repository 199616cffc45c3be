"""What a network costs, layer by layer: measured, as a table, as CSV and as a picture."""

from __future__ import annotations

import csv
import io
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn
from typing_extensions import override

from lightning_cnnopt.analysis.plots import plot_costs, save_figure
from lightning_cnnopt.architecture import LayerCost, complexity
from lightning_cnnopt.architecture.complexity import left_as_it_was, run_on, watched
from lightning_cnnopt.core.callback import TechniqueCallback, refuse_sharding
from lightning_cnnopt.core.errors import ConfigurationError, check_range
from lightning_cnnopt.core.surgery import network_of
from lightning_cnnopt.measurement import MeasuredModule


@dataclass(frozen=True)
class NetworkProfile:
    """What a network costs. Made by :func:`profile_network`."""

    network: str
    """Class of the network."""
    images: tuple[int, ...]
    """Shape of the batch it was run on."""
    device: str
    layers: list[LayerCost]
    """The layers in the order of computation."""
    latency: dict[str, float]
    """Milliseconds of each layer's forward pass in evaluation, for the batch, by name."""
    forward_ms: float
    """Milliseconds of the whole network's forward pass in evaluation, nothing watched."""
    step_ms: float
    """Milliseconds of its forward and backward pass in training."""

    @property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(row.parameters for row in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return sum(row.macs for row in self.layers)

    @property
    def activation_bytes(self) -> int:
        """Bytes that training keeps for the batch until its backward pass."""
        return sum(row.activation_bytes for row in self.layers)

    def table(self) -> str:
        """Return the table to be read: a line per layer, and the totals."""
        table = Table(title=f"{self.network}, {self.images[0]} images of {'x'.join(map(str, self.images[1:]))}, {self.device}")
        for index, name in enumerate(("layer", "kind", "output", "parameters", "MMACs/image", "kept, MiB", "latency, ms")):
            table.add_column(name, justify="left" if index < 3 else "right", no_wrap=True)
        for row in self.layers:
            table.add_row(
                escape(row.layer),
                row.kind,
                "x".join(map(str, row.output[1:])) or "-",
                *(f"{row.parameters:,}", f"{row.macs / 1e6:.3f}", f"{row.activation_bytes / 2**20:.3f}"),
                f"{self.latency.get(row.layer, 0.0):.3f}",
            )
        table.add_section()
        totals = (f"{self.parameters:,}", f"{self.macs / 1e6:.3f}", f"{self.activation_bytes / 2**20:.3f}")
        table.add_row("all", "", "", *totals, f"{self.forward_ms:.3f}")
        console = Console(file=io.StringIO(), width=max(100, 90 + max((len(row.layer) for row in self.layers), default=0)))
        console.print(table)
        console.print(f"A step of training, forward and backward, takes {self.step_ms:.3f} ms.", highlight=False)
        return str(console.file.getvalue())  # type: ignore[attr-defined]

    def write_csv(self, path: str | Path) -> Path:
        """Write a line per layer: the fields of :class:`~lightning_cnnopt.architecture.LayerCost`, and ``latency_ms``."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, [*LayerCost.__dataclass_fields__, "latency_ms"])
            writer.writeheader()
            for row in self.layers:
                values = {**vars(row), "output": "x".join(map(str, row.output))}
                writer.writerow({**values, "latency_ms": round(self.latency.get(row.layer, 0.0), 6)})
        return path


def profile_network(network: nn.Module, images: Tensor, repeats: int = 10) -> NetworkProfile:
    """Measure what each layer of a network costs: parameters, multiply-accumulates, activation memory, latency.

    The first three are counted, see :func:`~lightning_cnnopt.architecture.complexity`. A latency is the median over
    ``repeats`` passes, after one more that is not counted. That of a layer is its own time, that of the layers within it
    taken off, in evaluation; watching costs some microseconds a layer, so the sum exceeds ``forward_ms``. On CUDA every layer
    is waited for, which adds its launch. A compiled network runs as it was before it was compiled.

    Args:
        network: Any module that takes images. It is left as it was.
        images: (N, C, H, W), as the network takes them, on its device.
        repeats: Passes to measure.

    Raises:
        ConfigurationError: If the network does not take such images.

    Example:
        >>> profile = profile_network(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), torch.zeros(2, 1, 8, 8), repeats=2)
        >>> profile.parameters, profile.macs, [row.layer for row in profile.layers]
        (40, 1296, ['0', '1'])
    """
    check_range("profile_network", "repeats", repeats, 1)
    layers = complexity(network, images)
    clock = _Clock(images.device)
    passes: list[dict[str, float]] = []
    with left_as_it_was(network):
        network.eval()
        with torch.no_grad():
            with watched(network, clock.enter, clock.leave):
                for _ in range(repeats + 1):
                    clock.own = {}
                    run_on(network, images)
                    passes.append(clock.own)
            forward = [clock.time(lambda: run_on(network, images)) for _ in range(repeats + 1)]
        network.train()
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        step = [clock.time(lambda: _step(network, images, parameters)) for _ in range(repeats + 1)]
    latency = {name or "(network)": 1e3 * statistics.median(one[name] for one in passes[1:]) for name in passes[-1]}
    return NetworkProfile(
        type(network).__name__,
        tuple(images.shape),
        str(images.device),
        layers,
        latency,
        1e3 * statistics.median(forward[1:]),
        1e3 * statistics.median(step[1:]),
    )


class ProfileNetwork(TechniqueCallback):
    """Measures what the network costs at the start of a fit, after all edits, and leaves table, CSV and picture.

    ``profile.csv`` and ``profile.png`` are written to the run's directory, and the table is printed. The network, its
    running statistics and all random streams are left as they were; no batch is taken from a loader.

    Args:
        input_shape: (C, H, W) of an image as the network takes it. By default that of an ``ImageClassifier``, or of the
            LightningModule's ``example_input_array``.
        batch_size: Images in a batch.
        repeats: Passes that a latency is the median of.
        submodule: Dotted name of the network within the LightningModule. By default ``network`` of an ``ImageClassifier``,
            or what can be called with images.
        directory: Where to write; by default the Trainer's ``log_dir``.

    Raises:
        ConfigurationError: If an argument is out of range, or the shape of an image is not known.

    Example:
        >>> trainer = Trainer(callbacks=[ProfileNetwork((3, 32, 32))], logger=False, enable_checkpointing=False)
    """

    looks_on = True

    def __init__(
        self,
        input_shape: Sequence[int] | None = None,
        batch_size: int = 32,
        repeats: int = 10,
        submodule: str | None = None,
        directory: str | None = None,
    ) -> None:
        check_range("ProfileNetwork", "batch_size", batch_size, 1)
        check_range("ProfileNetwork", "repeats", repeats, 1)
        if input_shape is not None:
            if len(input_shape) != 3:
                raise ConfigurationError(f"ProfileNetwork: input_shape={list(input_shape)} is not (channels, height, width).")
            for side in input_shape:
                check_range("ProfileNetwork", "input_shape", side, 1)
        self.input_shape = None if input_shape is None else list(input_shape)
        self.batch_size = batch_size
        self.repeats = repeats
        self.submodule = submodule
        self.directory = directory
        self.profile: NetworkProfile | None = None
        """What was measured."""
        self._folder = Path()

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._folder = Path(self.directory or trainer.log_dir or trainer.default_root_dir)  # every rank takes part in log_dir

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        refuse_sharding(trainer, repr(self))
        if not trainer.is_global_zero:
            return
        submodule = "network" if self.submodule is None and isinstance(pl_module, MeasuredModule) else self.submodule
        network = network_of(pl_module, submodule)
        images = torch.zeros(self.batch_size, *self._shape(pl_module), device=pl_module.device)
        self.profile = profile_network(network, images, self.repeats)
        print(self.profile.table())
        self._folder.mkdir(parents=True, exist_ok=True)
        self.profile.write_csv(self._folder / "profile.csv")
        figure = plot_costs(self.profile.layers, self.profile.latency, f"{self.profile.network}, {self.batch_size} images")
        save_figure(figure, self._folder / "profile.png")

    def _shape(self, pl_module: LightningModule) -> Sequence[int]:
        if self.input_shape is not None:
            return self.input_shape
        example: Any = pl_module.example_input_array
        if isinstance(example, Tensor) and example.ndim == 4:
            return example.shape[1:]
        channels, size = getattr(pl_module, "in_channels", None), getattr(pl_module, "image_size", None)
        if channels is None or size is None:
            raise ConfigurationError(
                f"ProfileNetwork: {type(pl_module).__name__} does not state the shape of an image; pass input_shape=[channels, "
                "height, width], or give the LightningModule an example_input_array."
            )
        return [channels, *size]


class _Clock:
    """Seconds of each module's own work, those of the modules within it taken off."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.own: dict[str, float] = {}
        self._stack: list[str] = []
        self._since = 0.0

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def time(self, work: Any) -> float:
        begin = self.now()
        work()
        return self.now() - begin

    def enter(self, name: str) -> None:
        self._settle()
        self._stack.append(name)

    def leave(self, name: str, output: Any) -> None:
        self._settle()
        self._stack.pop()

    def _settle(self) -> None:
        now = self.now()
        if self._stack:
            self.own[self._stack[-1]] = self.own.get(self._stack[-1], 0.0) + now - self._since
        self._since = self.now()


def _step(network: nn.Module, images: Tensor, parameters: list[nn.Parameter]) -> None:
    outputs = run_on(network, images)
    values = list(outputs.values()) if isinstance(outputs, dict) else [outputs] if isinstance(outputs, Tensor) else outputs
    total = torch.stack([value.float().sum() for value in values if isinstance(value, Tensor)]).sum()
    if total.requires_grad:
        torch.autograd.grad(total, parameters, allow_unused=True)  # into no parameter's .grad
