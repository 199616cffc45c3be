"""Data modules and loaders."""

from lightning_cnnopt.data.datamodule import ImageDataModule
from lightning_cnnopt.data.decoding import read_image
from lightning_cnnopt.data.folder import ImageFolder
from lightning_cnnopt.data.image_set import ImageSet
from lightning_cnnopt.data.long_tail import long_tail
from lightning_cnnopt.data.resident import ResidentLoader
from lightning_cnnopt.data.sets import CIFAR10, CIFAR100, KMNIST, MNIST, SVHN, Digits, FashionMNIST, TensorData
from lightning_cnnopt.data.streams import HuggingFaceImages, WebDatasetImages

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "KMNIST",
    "MNIST",
    "SVHN",
    "Digits",
    "FashionMNIST",
    "HuggingFaceImages",
    "ImageDataModule",
    "ImageFolder",
    "ImageSet",
    "ResidentLoader",
    "TensorData",
    "WebDatasetImages",
    "long_tail",
    "read_image",
]
