"""Networks of our own."""

from lightning_cnnopt.architecture.networks.conv_net import ConvNet
from lightning_cnnopt.architecture.networks.factory import NetworkFactory
from lightning_cnnopt.architecture.networks.small_resnet import SmallResNet
from lightning_cnnopt.architecture.networks.speed_net import SpeedNet

__all__ = ["ConvNet", "NetworkFactory", "SmallResNet", "SpeedNet"]
