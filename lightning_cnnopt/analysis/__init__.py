"""Measuring and drawing."""

from lightning_cnnopt.analysis.classes import ClassReport, ClassResult, class_report
from lightning_cnnopt.analysis.plots import (
    plot_classes,
    plot_confusion,
    plot_costs,
    plot_curves,
    plot_images,
    plot_range_test,
    save_figure,
)
from lightning_cnnopt.analysis.predictions import WritePredictions
from lightning_cnnopt.analysis.profiling import NetworkProfile, ProfileNetwork, profile_network
from lightning_cnnopt.analysis.range_report import rate_overlay, write_range_test
from lightning_cnnopt.analysis.report import RunReport, locations, resolved_values
from lightning_cnnopt.analysis.training_images import TrainingImages, training_images

__all__ = [
    "ClassReport",
    "ClassResult",
    "NetworkProfile",
    "ProfileNetwork",
    "RunReport",
    "TrainingImages",
    "WritePredictions",
    "class_report",
    "locations",
    "plot_classes",
    "plot_confusion",
    "plot_costs",
    "plot_curves",
    "plot_images",
    "plot_range_test",
    "profile_network",
    "rate_overlay",
    "resolved_values",
    "save_figure",
    "training_images",
    "write_range_test",
]
