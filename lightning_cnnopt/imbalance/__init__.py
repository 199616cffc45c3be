"""Training on classes of very different frequency."""

from lightning_cnnopt.imbalance.callback import ClassWeights
from lightning_cnnopt.imbalance.functional import class_weights, effective_number, positive_weights

__all__ = ["ClassWeights", "class_weights", "effective_number", "positive_weights"]
