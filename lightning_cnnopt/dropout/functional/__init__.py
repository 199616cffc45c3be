"""Dropout in any network, as functions."""

from lightning_cnnopt.dropout.functional.depth import add_stochastic_depth, drop_rates
from lightning_cnnopt.dropout.functional.finding import dropout_layers
from lightning_cnnopt.dropout.functional.places import Place, add_dropout, check_where
from lightning_cnnopt.dropout.functional.weights import add_drop_connect

__all__ = [
    "Place",
    "add_drop_connect",
    "add_dropout",
    "add_stochastic_depth",
    "check_where",
    "drop_rates",
    "dropout_layers",
]
