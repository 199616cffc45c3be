"""Kinds of dropout. ``p`` is always the probability of dropping."""

from lightning_cnnopt.dropout.callback import ScheduleDropout
from lightning_cnnopt.dropout.edits import StochasticDepth
from lightning_cnnopt.dropout.functional import add_stochastic_depth, drop_rates, dropout_layers

__all__ = ["ScheduleDropout", "StochasticDepth", "add_stochastic_depth", "drop_rates", "dropout_layers"]
