"""Kinds of dropout. ``p`` is always the probability of dropping."""

from lightning_cnnopt.dropout.callback import ScheduleDropout
from lightning_cnnopt.dropout.edits import DropBlock, DropConnect, Dropout, SpatialDropout, StochasticDepth
from lightning_cnnopt.dropout.functional import (
    add_drop_connect,
    add_dropout,
    add_stochastic_depth,
    drop_rates,
    dropout_layers,
)
from lightning_cnnopt.dropout.layers import DropConnectConv2d, DropConnectLinear, FittingDropBlock2d

__all__ = [
    "DropBlock",
    "DropConnect",
    "DropConnectConv2d",
    "DropConnectLinear",
    "Dropout",
    "FittingDropBlock2d",
    "ScheduleDropout",
    "SpatialDropout",
    "StochasticDepth",
    "add_drop_connect",
    "add_dropout",
    "add_stochastic_depth",
    "drop_rates",
    "dropout_layers",
]
