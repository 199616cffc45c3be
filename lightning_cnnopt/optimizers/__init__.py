"""Optimizers and averages that torch lacks."""

from lightning_cnnopt.optimizers.callback import EMA
from lightning_cnnopt.optimizers.functional import ema_decay, ema_update_

__all__ = ["EMA", "ema_decay", "ema_update_"]
