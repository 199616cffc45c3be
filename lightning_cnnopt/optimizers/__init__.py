"""Averages of weights that torch lacks, and optimizers of other packages switched between training and evaluation."""

from lightning_cnnopt.optimizers.callback import EMA
from lightning_cnnopt.optimizers.functional import ema_decay, ema_update_
from lightning_cnnopt.optimizers.switching import SwitchOptimizerMode, has_modes, switching_for

__all__ = ["EMA", "SwitchOptimizerMode", "ema_decay", "ema_update_", "has_modes", "switching_for"]
