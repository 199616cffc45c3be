"""Activations in any network, and what saturates or dies in it."""

from lightning_cnnopt.activation.callback import WatchActivations
from lightning_cnnopt.activation.counting import ActivationCount, count_activations
from lightning_cnnopt.activation.edits import SwapActivation
from lightning_cnnopt.activation.functional import swap_activation
from lightning_cnnopt.activation.layers import ReLUSquared, ReLUStar

__all__ = [
    "ActivationCount",
    "ReLUSquared",
    "ReLUStar",
    "SwapActivation",
    "WatchActivations",
    "count_activations",
    "swap_activation",
]
