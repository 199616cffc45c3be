"""Data that outgrows one machine: read from its source batch by batch."""

from lightning_cnnopt.data.streams.huggingface import HuggingFaceImages
from lightning_cnnopt.data.streams.shards import WebDatasetImages

__all__ = ["HuggingFaceImages", "WebDatasetImages"]
