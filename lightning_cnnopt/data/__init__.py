"""Data modules and loaders."""

from lightning_cnnopt.data.datamodule import ImageDataModule, ImageSet
from lightning_cnnopt.data.resident import ResidentLoader
from lightning_cnnopt.data.sets import Digits, FashionMNIST, TensorData

__all__ = ["Digits", "FashionMNIST", "ImageDataModule", "ImageSet", "ResidentLoader", "TensorData"]
