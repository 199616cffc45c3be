"""Training in parallel: what the Trainer's strategies leave to the recipe."""

from lightning_cnnopt.parallel.callback import ScaleRateWithBatchSize
from lightning_cnnopt.parallel.functional import ramp, rate_scale

__all__ = ["ScaleRateWithBatchSize", "ramp", "rate_scale"]
