"""How weights start, as functions on layers and networks."""

from lightning_cnnopt.initialization.functional.draws import (
    assign_,
    draw_,
    kaiming_normal_,
    kaiming_uniform_,
    layer_fans,
    normal_,
    orthogonal_,
    truncated_normal_,
    uniform_,
    xavier_normal_,
    xavier_uniform_,
    zero_bias_,
)
from lightning_cnnopt.initialization.functional.fitted import computation_order, lsuv_, whiten_patches_
from lightning_cnnopt.initialization.functional.structured import delta_orthogonal_, dirac_, prior_bias_, zero_gamma_

__all__ = [
    "assign_",
    "computation_order",
    "delta_orthogonal_",
    "dirac_",
    "draw_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "layer_fans",
    "lsuv_",
    "normal_",
    "orthogonal_",
    "prior_bias_",
    "truncated_normal_",
    "uniform_",
    "whiten_patches_",
    "xavier_normal_",
    "xavier_uniform_",
    "zero_bias_",
    "zero_gamma_",
]
