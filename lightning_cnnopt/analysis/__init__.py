"""Measuring and drawing."""

from lightning_cnnopt.analysis.plots import plot_confusion, plot_curves, plot_images, save_figure
from lightning_cnnopt.analysis.predictions import WritePredictions
from lightning_cnnopt.analysis.report import RunReport, locations, resolved_values

__all__ = [
    "RunReport",
    "WritePredictions",
    "locations",
    "plot_confusion",
    "plot_curves",
    "plot_images",
    "resolved_values",
    "save_figure",
]
