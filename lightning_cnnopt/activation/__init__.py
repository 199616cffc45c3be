"""Activations in any network."""

from lightning_cnnopt.activation.edits import SwapActivation
from lightning_cnnopt.activation.functional import swap_activation

__all__ = ["SwapActivation", "swap_activation"]
