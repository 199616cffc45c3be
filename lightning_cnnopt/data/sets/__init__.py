"""Data sets by name."""

from lightning_cnnopt.data.sets.cifar import CIFAR10, CIFAR100
from lightning_cnnopt.data.sets.digits import Digits
from lightning_cnnopt.data.sets.idx import KMNIST, MNIST, FashionMNIST
from lightning_cnnopt.data.sets.svhn import SVHN
from lightning_cnnopt.data.sets.tensors import TensorData

__all__ = ["CIFAR10", "CIFAR100", "KMNIST", "MNIST", "SVHN", "Digits", "FashionMNIST", "TensorData"]
