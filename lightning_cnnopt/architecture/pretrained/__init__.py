"""Networks of torchvision and timm by name, with published weights and what belongs to them."""

from lightning_cnnopt.architecture.pretrained.base import PublishedNetwork
from lightning_cnnopt.architecture.pretrained.record import WeightsRecord
from lightning_cnnopt.architecture.pretrained.timm_network import TimmNetwork
from lightning_cnnopt.architecture.pretrained.torchvision_network import TorchvisionNetwork

__all__ = ["PublishedNetwork", "TimmNetwork", "TorchvisionNetwork", "WeightsRecord"]
