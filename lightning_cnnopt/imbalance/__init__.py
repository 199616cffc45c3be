"""Training on classes of very different frequency."""

from lightning_cnnopt.imbalance.callback import ClassWeights
from lightning_cnnopt.imbalance.functional import Scheme, class_weights, effective_number, positive_weights, sample_weights

__all__ = ["ClassWeights", "Scheme", "class_weights", "effective_number", "positive_weights", "sample_weights"]
