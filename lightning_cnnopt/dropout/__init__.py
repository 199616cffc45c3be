"""Kinds of dropout. ``p`` is always the probability of dropping."""

from lightning_cnnopt.dropout.edits import StochasticDepth
from lightning_cnnopt.dropout.functional import add_stochastic_depth, drop_rates

__all__ = ["StochasticDepth", "add_stochastic_depth", "drop_rates"]
