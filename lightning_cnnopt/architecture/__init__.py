"""Networks, and edits of any network."""

from lightning_cnnopt.architecture.blur import add_blur
from lightning_cnnopt.architecture.callback import EditNetwork
from lightning_cnnopt.architecture.complexity import LayerCost, complexity
from lightning_cnnopt.architecture.edits import BlurPool, CheckpointActivations, Freeze, SmallImageStem, SqueezeExcite
from lightning_cnnopt.architecture.freezing import freeze
from lightning_cnnopt.architecture.functional import (
    CompoundScaling,
    adapt_input_filters,
    add_squeeze_excite,
    compound_scaling,
    generalized_mean_pool,
    round_channels,
)
from lightning_cnnopt.architecture.layers import BinomialBlur2d, GeneralizedMeanPool2d
from lightning_cnnopt.architecture.networks import ConvNet, NetworkFactory, SmallResNet, SpeedNet
from lightning_cnnopt.architecture.preprocessing import Preprocessing
from lightning_cnnopt.architecture.pretrained import PublishedNetwork, TimmNetwork, TorchvisionNetwork, WeightsRecord
from lightning_cnnopt.architecture.recomputation import checkpoint_activations
from lightning_cnnopt.architecture.stem import fit_stem_to_small_images

__all__ = [
    "BinomialBlur2d",
    "BlurPool",
    "CheckpointActivations",
    "CompoundScaling",
    "ConvNet",
    "EditNetwork",
    "Freeze",
    "GeneralizedMeanPool2d",
    "LayerCost",
    "NetworkFactory",
    "Preprocessing",
    "PublishedNetwork",
    "SmallImageStem",
    "SmallResNet",
    "SpeedNet",
    "SqueezeExcite",
    "TimmNetwork",
    "TorchvisionNetwork",
    "WeightsRecord",
    "adapt_input_filters",
    "add_blur",
    "add_squeeze_excite",
    "checkpoint_activations",
    "complexity",
    "compound_scaling",
    "fit_stem_to_small_images",
    "freeze",
    "generalized_mean_pool",
    "round_channels",
]
