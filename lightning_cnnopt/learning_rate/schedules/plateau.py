"""The schedule that follows the model's performance."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_cnnopt.core.errors import ConfigurationError, check_choice, check_range
from lightning_cnnopt.core.schedule import Schedule


class Plateau(Schedule):
    """Multiplies the rate by ``gamma`` when a metric has stopped improving. The one schedule that keeps state.

    torch's ``ReduceLROnPlateau`` makes the decision, after each validation.

    Args:
        monitor: Name of a logged metric.
        mode: ``"min"`` for a loss, ``"max"`` for an accuracy.
        gamma: Factor of each drop.
        patience: Validations without improvement that are tolerated.
        threshold: Relative change that counts as an improvement.
        cooldown: Validations after a drop that are not counted.
        minimum: Least factor.

    Example:
        >>> schedule = Plateau("val_loss", patience=0, gamma=0.5)
        >>> for loss in (1.0, 1.0, 1.0):
        ...     schedule.observe({"val_loss": loss})
        >>> schedule.factor(0.5)
        0.25
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        mode: Literal["min", "max"] = "min",
        gamma: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        cooldown: int = 0,
        minimum: float = 0.0,
    ) -> None:
        check_choice("Plateau", "mode", mode, ("min", "max"))
        check_range("Plateau", "gamma", gamma, 0, 1, low_open=True, high_open=True)
        check_range("Plateau", "patience", patience, 0)
        check_range("Plateau", "cooldown", cooldown, 0)
        check_range("Plateau", "threshold", threshold, 0)
        check_range("Plateau", "minimum", minimum, 0, 1)
        self.monitor = monitor
        self.mode = mode
        self.gamma = gamma
        self.patience = patience
        self.threshold = threshold
        self.cooldown = cooldown
        self.minimum = minimum
        # torch's scheduler works on an optimizer; one with a single group of rate 1 turns its rate into the factor
        self._optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        self._scheduler = ReduceLROnPlateau(
            self._optimizer, mode, gamma, patience, threshold, cooldown=cooldown, min_lr=minimum, eps=0.0
        )

    def factor(self, progress: float) -> float:
        """Return the product of the drops so far."""
        return float(self._optimizer.param_groups[0]["lr"])

    def observe(self, metrics: dict[str, float], progress: float = 1.0) -> None:
        """Count an improvement, or the lack of one.

        Raises:
            ConfigurationError: If the monitored metric is not there.
        """
        if self.monitor not in metrics:
            raise ConfigurationError(
                f"Plateau: monitor={self.monitor!r} was not logged in validation; there are {sorted(metrics)}."
            )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            self._scheduler.step(metrics[self.monitor])

    def state_dict(self) -> dict[str, Any]:
        """Return the factor and torch's counters."""
        names: tuple[str, ...] = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")
        return {"factor": self.factor(0.0), **{name: getattr(self._scheduler, name) for name in names}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`."""
        if state:
            self._optimizer.param_groups[0]["lr"] = state["factor"]
            for name in set(state) - {"factor"}:
                setattr(self._scheduler, name, state[name])
