"""Batch-size scaling, memory format, compilation, and several steps a call."""

from lightning_cnnopt.parallel.callback import ScaleRateWithBatchSize
from lightning_cnnopt.parallel.functional import ramp, rate_scale, to_channels_last
from lightning_cnnopt.parallel.network import ChannelsLast, CompileNetwork
from lightning_cnnopt.parallel.several_steps import SeveralSteps

__all__ = ["ChannelsLast", "CompileNetwork", "ScaleRateWithBatchSize", "SeveralSteps", "ramp", "rate_scale", "to_channels_last"]
