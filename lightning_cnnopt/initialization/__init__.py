"""How weights start."""

from lightning_cnnopt.initialization.callback import InitializeWeights
from lightning_cnnopt.initialization.functional import (
    kaiming_normal_,
    kaiming_uniform_,
    layer_fans,
    lsuv_,
    xavier_normal_,
    xavier_uniform_,
)
from lightning_cnnopt.initialization.initializers import LSUV, Initializer, Kaiming, XavierNormal, XavierUniform

__all__ = [
    "LSUV",
    "InitializeWeights",
    "Initializer",
    "Kaiming",
    "XavierNormal",
    "XavierUniform",
    "kaiming_normal_",
    "kaiming_uniform_",
    "layer_fans",
    "lsuv_",
    "xavier_normal_",
    "xavier_uniform_",
]
