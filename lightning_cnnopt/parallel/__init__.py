"""Batch-size scaling, memory format and compilation."""

from lightning_cnnopt.parallel.callback import ScaleRateWithBatchSize
from lightning_cnnopt.parallel.functional import ramp, rate_scale, to_channels_last
from lightning_cnnopt.parallel.network import ChannelsLast, CompileNetwork

__all__ = ["ChannelsLast", "CompileNetwork", "ScaleRateWithBatchSize", "ramp", "rate_scale", "to_channels_last"]
