"""Measuring and drawing."""

from lightning_cnnopt.analysis.classes import ClassReport, ClassResult, class_report
from lightning_cnnopt.analysis.plots import plot_classes, plot_confusion, plot_costs, plot_curves, plot_images, save_figure
from lightning_cnnopt.analysis.predictions import WritePredictions
from lightning_cnnopt.analysis.profiling import NetworkProfile, ProfileNetwork, profile_network
from lightning_cnnopt.analysis.report import RunReport, locations, resolved_values

__all__ = [
    "ClassReport",
    "ClassResult",
    "NetworkProfile",
    "ProfileNetwork",
    "RunReport",
    "WritePredictions",
    "class_report",
    "locations",
    "plot_classes",
    "plot_confusion",
    "plot_costs",
    "plot_curves",
    "plot_images",
    "profile_network",
    "resolved_values",
    "save_figure",
]
