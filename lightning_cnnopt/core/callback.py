"""The base of our callbacks."""

from __future__ import annotations

from lightning.pytorch import Callback, Trainer
from typing_extensions import override

from lightning_cnnopt.core.spec import Configurable


class TechniqueCallback(Configurable, Callback):
    """A callback that its constructor arguments describe: ``repr`` rebuilds it, and its state is kept under them.

    Two callbacks are equal only if they are one: a Trainer looks its callbacks up by equality.
    """

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    @property
    @override
    def state_key(self) -> str:
        return repr(self)


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return a Trainer's callbacks, an attribute that its class does not declare."""
    return trainer.callbacks  # type: ignore[attr-defined]


def is_logged(trainer: Trainer, batch_idx: int) -> bool:
    """Return whether the batch ends an interval of ``log_every_n_steps``."""
    interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return interval > 0 and (batch_idx + 1) % interval == 0
