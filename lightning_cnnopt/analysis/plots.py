"""Pictures, drawn without a display and written whole or not at all."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor
from torchvision.utils import make_grid

from lightning_cnnopt.architecture import LayerCost
from lightning_cnnopt.learning_rate import RangeTest

Curve = Sequence[tuple[float, float]]
"""Points (x, y)."""


def plot_curves(history: Mapping[str, Curve], steps_per_epoch: float, title: str = "") -> Figure:
    """Draw loss, accuracy and learning rate over epochs.

    Args:
        history: Points (optimizer step, value) by metric: names that contain ``loss``, ``acc`` or ``lr`` are drawn, in a panel
            for each.
        steps_per_epoch: Turns steps into epochs.
        title: Heading.

    Example:
        >>> figure = plot_curves({"train_loss": [(10, 1.0), (20, 0.5)], "lr": [(0, 0.1)]}, steps_per_epoch=10)
        >>> [axes.get_title() for axes in figure.axes]
        ['loss', 'learning rate']
    """
    panels = {
        "loss": {name: curve for name, curve in history.items() if name.endswith("_loss")},
        "accuracy": {name: curve for name, curve in history.items() if name.endswith("_acc")},
        "learning rate": {name: curve for name, curve in history.items() if name.startswith("lr")},
    }
    panels = {name: curves for name, curves in panels.items() if any(curves.values())}
    figure = Figure(figsize=(5 * max(1, len(panels)), 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title)
    for index, (name, curves) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), index + 1)
        for label, curve in curves.items():
            if curve:
                marker = "o" if len(curve) < 3 else None
                axes.plot([x / steps_per_epoch for x, _ in curve], [y for _, y in curve], label=label, marker=marker)
        axes.set(title=name, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        values = [y for curve in curves.values() for _, y in curve if math.isfinite(y)]
        if name == "loss" and values and min(values) > 0 and max(values) / min(values) > 20:
            axes.set_yscale("log")
        if len(curves) > 1:
            axes.legend()
        axes.grid(alpha=0.3)
    return figure


def plot_images(rows: Mapping[str, Tensor], captions: Mapping[str, Sequence[str]] | None = None, title: str = "") -> Figure:
    """Draw rows of images under each other, such as originals and what training sees of them.

    Args:
        rows: By the row's name, images (N, C, H, W), uint8 or floats in [0, 1]; of other than 1 or 3 channels, their mean.
        captions: By the row's name, a text under each image.
        title: Heading.

    Example:
        >>> figure = plot_images({"original": torch.zeros(4, 1, 8, 8, dtype=torch.uint8)})
        >>> len(figure.axes)
        1
    """
    captions = captions or {}
    count = max(len(images) for images in rows.values())
    texts = {name: list(captions.get(name, [])) for name in rows}
    longest = max((len(line) for found in texts.values() for text in found for line in text.splitlines()), default=0)
    pixels = max(max(images.shape[-2:]) for images in rows.values())
    # inches: letters of captions are some 0.07 wide and lines 0.16 high, and large images get more room
    cell, left, top, gap = max(1.1, 0.075 * longest + 0.15, min(2.0, pixels / 100)), 0.35, 0.35 if title else 0.1, 0.12
    below = {name: 0.16 * max((len(text.splitlines()) for text in found), default=0) + gap for name, found in texts.items()}
    heights = {name: cell * images.shape[-2] / images.shape[-1] for name, images in rows.items()}
    width, height = left + cell * count + gap, top + sum(heights.values()) + sum(below.values())
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title, fontsize=9, y=1 - 0.15 / height, va="center")
    bottom = height - top
    for name, images in rows.items():
        bottom -= heights[name]
        share = len(images) / count
        axes = figure.add_axes((left / width, bottom / height, cell * count * share / width, heights[name] / height))
        bottom -= below[name]
        floats = images.float() / 255 if images.dtype == torch.uint8 else images.float()
        if floats.shape[1] not in (1, 3):
            floats = floats.mean(1, keepdim=True)
        grid = make_grid(floats.cpu().clamp(0, 1), nrow=count, padding=1, pad_value=1.0)
        side = images.shape[-1] + 1
        interpolation = "nearest" if pixels <= 64 else "antialiased"
        axes.imshow(grid.permute(1, 2, 0).numpy(), interpolation=interpolation, aspect="auto")
        axes.set_ylabel(name, fontsize=9)
        axes.set_yticks([])
        found = texts[name][: len(images)]
        axes.set_xticks([side * (i + 0.5) for i in range(len(found))], found, fontsize=8)
        axes.tick_params(length=0, pad=1)
        for spine in axes.spines.values():
            spine.set_visible(False)
    return figure


def plot_confusion(counts: Tensor, class_names: Sequence[str], title: str = "") -> Figure:
    """Draw a confusion matrix: how many images of each class (rows) were taken for which (columns).

    Args:
        counts: (C, C) numbers of images.
        class_names: Names of the C classes.
        title: Heading.

    Example:
        >>> figure = plot_confusion(torch.tensor([[9, 1], [0, 10]]), ["cat", "dog"])
        >>> figure.axes[0].get_ylabel()
        'true class'
    """
    classes = len(counts)
    side = min(14.0, 2.5 + 0.45 * classes)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Axes = figure.add_subplot()
    shares = counts / counts.sum(1, keepdim=True).clamp_min(1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    axes.set(xlabel="predicted class", ylabel="true class", title=title)
    step = max(1, math.ceil(classes / 40))
    ticks = list(range(0, classes, step))
    names = [class_names[index] for index in ticks]
    axes.set_xticks(ticks, names, rotation=90 if max(map(len, names)) > 2 else 0)
    axes.set_yticks(ticks, names)
    if classes <= 20:
        for row in range(classes):
            for column in range(classes):
                if counts[row, column] > 0:
                    axes.text(
                        column,
                        row,
                        str(int(counts[row, column])),
                        ha="center",
                        va="center",
                        fontsize=8,
                        color="white" if shares[row, column] > 0.6 else "black",
                    )
    return figure


def plot_classes(
    class_names: Sequence[str], recall: Sequence[float], train_samples: Sequence[int] | None = None, title: str = ""
) -> Figure:
    """Draw the recall of each class as a bar, the class with the most training samples first, and the samples as a line.

    Args:
        class_names: Names of the classes.
        recall: Share of each class that was recognized; NaN for a class without samples.
        train_samples: Training samples of each class; without them the classes keep their order.
        title: Heading.

    Example:
        >>> figure = plot_classes(["cat", "dog"], [0.5, 0.9], [10, 90])
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ['dog', 'cat']
    """
    order = list(range(len(class_names)))
    if train_samples is not None:
        order.sort(key=lambda label: -train_samples[label])
    figure = Figure(figsize=(min(24.0, 2.5 + 0.45 * len(order)), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Axes = figure.add_subplot()
    heights = [0.0 if math.isnan(recall[label]) else recall[label] for label in order]
    axes.bar(range(len(order)), heights, color="C0")
    step = max(1, math.ceil(len(order) / 50))
    names = [class_names[label] for label in order]
    axes.set_xticks(range(0, len(order), step), names[::step], rotation=90 if max(map(len, names)) > 2 else 0)
    axes.set(ylabel="recall", ylim=(0, 1), title=title)
    axes.grid(alpha=0.3, axis="y")
    if train_samples is not None:
        beside = axes.twinx()
        beside.plot(range(len(order)), [train_samples[label] for label in order], "o-", color="C1", markersize=3)
        beside.set_ylabel("training samples", color="C1")
        if min(train_samples) > 0 and max(train_samples) > 5 * min(train_samples):
            beside.set_yscale("log")
        else:
            beside.set_ylim(bottom=0)
    return figure


def plot_costs(layers: Sequence[LayerCost], latency: Mapping[str, float], title: str = "") -> Figure:
    """Draw what each layer costs, in the order of computation from the top: parameters, MACs, memory, latency.

    Args:
        layers: What :func:`~lightning_cnnopt.architecture.complexity` returned.
        latency: Milliseconds by layer.
        title: Heading.

    Example:
        >>> figure = plot_costs([LayerCost("conv", "Conv2d", (1, 8, 4, 4), 80, 80, 1152, 64)], {"conv": 0.1})
        >>> [axes.get_title() for axes in figure.axes]
        ['parameters', 'MMACs per image', 'kept for backward, MiB', 'forward, ms']
    """
    panels = {
        "parameters": [float(row.parameters) for row in layers],
        "MMACs per image": [row.macs / 1e6 for row in layers],
        "kept for backward, MiB": [row.activation_bytes / 2**20 for row in layers],
        "forward, ms": [latency.get(row.layer, 0.0) for row in layers],
    }
    figure = Figure(figsize=(13, min(60.0, 1.6 + 0.22 * len(layers))), layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(title)
    first: Axes | None = None
    for index, (name, values) in enumerate(panels.items()):
        axes: Axes = figure.add_subplot(1, len(panels), index + 1, sharey=first)
        axes.barh(range(len(layers)), values, color=f"C{index}")
        axes.set_title(name)
        axes.grid(alpha=0.3, axis="x")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        if first is None:
            first = axes
            axes.set_yticks(range(len(layers)), [f"{row.layer}  {row.kind}" for row in layers], fontsize=8)
            axes.set_ylim(len(layers) - 0.5, -0.5)
        else:
            axes.tick_params(labelleft=False)
    return figure


def plot_range_test(result: RangeTest, title: str = "") -> Figure:
    """Draw the loss of a range test over the rate, single steps and smoothed, and the suggested rates.

    Args:
        result: Of :func:`~lightning_cnnopt.learning_rate.range_test`.
        title: Heading.

    Example:
        >>> rates, losses = [10.0 ** (i / 5 - 5) for i in range(20)], [20.0 - i for i in range(20)]
        >>> figure = plot_range_test(RangeTest(rates, losses, losses, False, steepest=1e-3, valley=2e-3, minimum=5e-3))
        >>> [line.get_label() for line in figure.axes[0].lines]
        ['single steps', 'smoothed', 'steepest 0.001', 'valley 0.002', 'minimum / 10  0.005']
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Axes = figure.add_subplot()
    axes.plot(result.rates, result.losses, color="0.75", linewidth=1, label="single steps")
    axes.plot(result.rates, result.smoothed, color="C0", label="smoothed")
    styles = {"steepest": ("C1", ":"), "valley": ("C2", "-"), "minimum": ("C3", "--")}
    for name, rate in result.suggestions.items():
        color, style = styles[name]
        label = f"{'minimum / 10 ' if name == 'minimum' else name} {rate:.3g}"
        axes.axvline(rate, color=color, linestyle=style, label=label)
    low, high = min(result.smoothed), max(result.smoothed)
    room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    axes.set_ylim(low - room, high + room)  # where the loss explodes, single steps would leave nothing else to be seen
    axes.set_xscale("log")
    axes.set(xlabel="learning rate", ylabel="training loss", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG, or nothing: a reader never finds half a picture."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".png")
    os.close(handle)
    try:
        figure.savefig(temporary, dpi=120)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
