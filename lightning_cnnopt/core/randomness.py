"""Random streams that have a name, differ between ranks, and are part of a checkpoint; and what ranks agree on."""

from __future__ import annotations

import hashlib
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from typing_extensions import override

from lightning_cnnopt.core.callback import TechniqueCallback, is_last_batch


class Stream:
    """A named random stream on the CPU, independent of every other stream and of the global generators.

    Its seed is a hash of the run's seed, the name and the rank, so that adding a technique changes no draw of another, and
    ranks draw differently.

    Args:
        name: What draws from it.
        seed: The run's seed; by default that of torch (what ``seed_everything`` set).
        per_rank: Whether ranks draw differently. If not, they draw alike as far as they have the same seed: what must be the
            same on every rank, as the order of samples must, takes :func:`shared_seed`.

    Example:
        >>> a, b = Stream("crop", seed=0), Stream("flip", seed=0)
        >>> state = a.state_dict()
        >>> first = torch.rand(1, generator=a.generator)
        >>> bool(first == torch.rand(1, generator=b.generator))
        False
        >>> a.load_state_dict(state)
        >>> bool(first == torch.rand(1, generator=a.generator))
        True
    """

    def __init__(self, name: str, seed: int | None = None, per_rank: bool = True) -> None:
        self.name = name
        self.seed = seed
        self.per_rank = per_rank
        self._generator: torch.Generator | None = None

    @property
    def generator(self) -> torch.Generator:
        """The generator, seeded at its first use: by then the run's seed and the rank are known."""
        if self._generator is None:
            self._generator = torch.Generator()
            self._generator.manual_seed(self._derived_seed(rank() if self.per_rank else 0))
        return self._generator

    def state_dict(self) -> dict[str, Any]:
        """Return the states of this stream on every rank. Under DDP every rank has to call it."""
        return {"states": gather(self.generator.get_state())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken; ranks that did not exist then start anew from the run's seed."""
        states = state["states"]
        mine = rank() if self.per_rank else 0
        if mine < len(states):
            self.generator.set_state(states[mine].cpu())

    def _derived_seed(self, rank: int) -> int:
        seed = torch.initial_seed() if self.seed is None else self.seed
        digest = hashlib.sha256(f"{seed}/{self.name}/{rank}".encode()).digest()
        return int.from_bytes(digest[:8], "little") >> 1

    def __getstate__(self) -> dict[str, Any]:
        # generators don't pickle; their state does
        state = None if self._generator is None else self._generator.get_state()
        return {**self.__dict__, "_generator": state}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self._generator, Tensor):
            generator = torch.Generator()
            generator.set_state(self._generator)
            self._generator = generator


@runtime_checkable
class ContinuedLoader(Protocol):
    """A loader whose state leads from any place of an epoch to the rest of it, or to the epoch after it."""

    def state_dict(self) -> dict[str, Any]:
        """Return the position within the epoch, and all that the next epoch depends on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the batch that would have been next when ``state`` was taken."""

    def end_epoch(self) -> None:
        """Drop what is left of an epoch that a loaded state is in the middle of: the next iteration is the next epoch."""


class ResumeRandomState(TechniqueCallback):
    """Brings back on resume what a run draws from that Lightning forgets: torch's generators, and the order of the data.

    - torch's own generators, of the CPU and of every CUDA device, of every rank. ``nn.Dropout`` and plain data loaders draw
      from them and Lightning does not save them, so without this a resumed run with dropout is another run.
    - The state of a training loader such as :class:`~lightning_cnnopt.ResidentLoader`. Lightning saves it always, but gives
      it back in the middle of an epoch only, so without this the epochs after a checkpoint of an epoch's end come in another
      order. Loaders of others are left alone, unless they have the method ``end_epoch`` (:class:`ContinuedLoader`).

    :class:`~lightning_cnnopt.ImageClassifier` and our data modules attach it by themselves. The state is set when training
    starts, after everything that may have drawn in between.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[ResumeRandomState()], logger=False, enable_checkpointing=False)
    """

    single = True

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None
        self._loader_states: list[dict[str, Any]] = []

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restored, self._loader_states = None, []  # of a resume that failed before its training started

    @override
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        if self._state_is_ours:
            loop = checkpoint.get("loops", {}).get("fit_loop", {})
            self._loader_states = loop.get("state_dict", {}).get("combined_loader", [])

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loaders = _stateful_loaders(trainer)
        if len(loaders) == len(self._loader_states):
            for loader, state in zip(loaders, self._loader_states, strict=True):
                if isinstance(loader, ContinuedLoader):
                    loader.load_state_dict(state)
                    if is_last_batch(trainer):
                        loader.end_epoch()
        self._loader_states = []
        if self._restored is not None:
            torch.set_rng_state(self._restored["cpu"].cpu())
            states = self._restored["cuda"]
            if torch.cuda.is_available() and len(states) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all([state.cpu() for state in states])
            self._restored = None

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # where a run was stopped in the middle of an epoch, Lightning goes on with the next one
        for loader in _stateful_loaders(trainer):
            if isinstance(loader, ContinuedLoader):
                loader.end_epoch()

    @override
    def state_dict(self) -> dict[str, Any]:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return {"states": gather({"cpu": torch.get_rng_state(), "cuda": cuda})}

    @override
    def resume(self, state_dict: dict[str, Any]) -> None:
        states = state_dict["states"]
        if rank() < len(states):
            self._restored = states[rank()]


def rank() -> int:
    """Return this process's rank, 0 outside of distributed training."""
    return torch.distributed.get_rank() if _distributed() else 0


def world_size() -> int:
    """Return the number of processes, 1 outside of distributed training."""
    return torch.distributed.get_world_size() if _distributed() else 1


def gather(value: Any) -> list[Any]:
    """Return the values of all ranks, in the order of ranks. Every rank has to call it."""
    if not _distributed():
        return [value]
    values: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def shared_seed() -> int:
    """Return torch's seed on rank 0, whatever the other ranks were seeded with. Every rank has to call it."""
    return int(gather(torch.initial_seed())[0])


@torch.no_grad()
def start_equal(module: nn.Module) -> None:
    """Give every rank the parameters and buffers of rank 0. Every rank has to call it."""
    if world_size() > 1:
        for tensor in (*module.parameters(), *module.buffers()):
            sent = tensor.detach().contiguous()
            torch.distributed.broadcast(sent, src=0)
            tensor.copy_(sent)


def _stateful_loaders(trainer: Trainer) -> list[Any]:
    """Return the training loaders of which Lightning saves a state, in its order."""
    loaders = CombinedLoader(trainer.train_dataloader).flattened
    return [loader for loader in loaders if hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")]


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
