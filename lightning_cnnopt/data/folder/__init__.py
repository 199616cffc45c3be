"""Image files: listed, decoded once into one mapped file or while training, and served in an order that can be resumed."""

from lightning_cnnopt.data.folder.datamodule import ImageFolder

__all__ = ["ImageFolder"]
