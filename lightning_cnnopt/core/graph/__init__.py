"""What really follows a layer: read off the computation, not off the order of registration."""

from lightning_cnnopt.core.graph.activations import gain_of, is_activation
from lightning_cnnopt.core.graph.following import Unknown
from lightning_cnnopt.core.graph.network import Branch, NetworkGraph, activations_after
from lightning_cnnopt.core.graph.tracing import WEIGHTED_LAYERS

__all__ = ["WEIGHTED_LAYERS", "Branch", "NetworkGraph", "Unknown", "activations_after", "gain_of", "is_activation"]
