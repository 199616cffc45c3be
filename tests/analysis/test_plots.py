from __future__ import annotations

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from lightning_cnnopt.analysis import plot_confusion, plot_curves, plot_images, plot_range_test, save_figure
from lightning_cnnopt.learning_rate import RangeTest

HISTORY = {
    "train_loss": [(10, 1.0), (20, 0.5), (30, 0.2)],
    "val_loss": [(20, 0.7)],
    "val_acc": [(20, 0.6)],
    "lr": [(0, 0.1), (30, 0.0)],
    "noise": [(1, 1.0)],
}


def is_a_picture(path) -> bool:
    """A whole PNG that shows something."""
    with Image.open(path) as image:
        image.verify()
    with Image.open(path) as image:
        low, high = image.convert("L").getextrema()
        return image.format == "PNG" and min(image.size) > 50 and high - low > 50


def test_curves_show_every_point_over_epochs_in_a_panel_for_each_kind():
    figure = plot_curves(HISTORY, steps_per_epoch=10, title="run")
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert set(panels) == {"loss", "accuracy", "learning rate"}
    drawn = {line.get_label(): line.get_xydata().tolist() for line in panels["loss"].lines}
    assert drawn == {"train_loss": [[1, 1.0], [2, 0.5], [3, 0.2]], "val_loss": [[2, 0.7]]}
    assert panels["learning rate"].lines[0].get_xydata().tolist() == [[0, 0.1], [3, 0.0]]


def test_losses_over_orders_of_magnitude_are_drawn_on_a_logarithmic_scale_and_others_not():
    assert plot_curves({"a_loss": [(0, 100.0), (1, 0.01)]}, 1).axes[0].get_yscale() == "log"
    assert plot_curves({"a_loss": [(0, 1.0), (1, 0.5)]}, 1).axes[0].get_yscale() == "linear"
    assert plot_curves({"a_loss": [(0, 100.0), (1, 0.0)]}, 1).axes[0].get_yscale() == "linear"


@pytest.mark.parametrize(
    "history",
    [HISTORY, {}, {"val_acc": []}, {"train_loss": [(1, float("nan")), (2, float("inf"))]}],
    ids=["full", "none", "empty", "bad"],
)
def test_any_history_can_be_drawn(history, tmp_path):
    assert save_figure(plot_curves(history, 10), tmp_path / "curves.png").stat().st_size > 0


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_images_of_any_number_of_channels_are_drawn(channels, dtype, tmp_path):
    images = torch.randint(0, 256, (4, channels, 9, 7), dtype=torch.uint8)
    images = images if dtype == torch.uint8 else images / 255
    figure = plot_images({"original": images, "training": images.flip(-1)}, {"original": list("abcd")})
    assert [axes.get_ylabel() for axes in figure.axes] == ["original", "training"]
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == list("abcd")
    assert is_a_picture(save_figure(figure, tmp_path / "images.png"))


def test_a_drawn_image_has_the_pixels_it_was_given():
    images = torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8)
    shown = torch.as_tensor(plot_images({"row": images}).axes[0].images[0].get_array())
    assert torch.allclose(shown[1:6, 1:6], images[0].permute(1, 2, 0) / 255)
    assert torch.allclose(shown[1:6, 7:12], images[1].permute(1, 2, 0) / 255)


def test_a_confusion_matrix_tells_every_count_and_share(tmp_path):
    counts = torch.tensor([[9, 1, 0], [2, 6, 0], [0, 0, 0]])
    figure = plot_confusion(counts, ["cat", "dog", "owl"], "title")
    axes = figure.axes[0]
    told = {(int(t.get_position()[1]), int(t.get_position()[0])): int(t.get_text()) for t in axes.texts}
    assert told == {(0, 0): 9, (0, 1): 1, (1, 0): 2, (1, 1): 6}
    shares = torch.as_tensor(axes.images[0].get_array())
    assert torch.allclose(shares.float(), torch.tensor([[0.9, 0.1, 0], [0.25, 0.75, 0], [0, 0, 0]]))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "owl"]
    assert is_a_picture(save_figure(figure, tmp_path / "confusion.png"))


@pytest.mark.parametrize("classes", [2, 21, 100])
def test_a_confusion_matrix_of_many_classes_is_drawn(classes, tmp_path):
    figure = plot_confusion(torch.eye(classes).long() * 5, [f"class {i}" for i in range(classes)])
    assert len(figure.axes[0].get_xticklabels()) <= 50
    assert is_a_picture(save_figure(figure, tmp_path / "confusion.png"))


def test_a_picture_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = save_figure(plot_curves(HISTORY, 10), tmp_path / "new" / "curves.png")
    assert is_a_picture(path)
    before = path.read_bytes()

    def fail(self, target, **kwargs):
        with open(target, "wb") as stream:
            stream.write(b"half")
        raise OSError("disk is full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="full"):
        save_figure(plot_curves({}, 1), path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["curves.png"]


def test_a_range_test_shows_the_losses_over_rates_and_every_suggestion(tmp_path):
    result = RangeTest([1e-4, 1e-3, 1e-2, 1e-1], [3.0, 2.0, 1.0, 1e9], [3.0, 2.0, 1.0, 4.0], True, 1e-3, 2e-3, 5e-3)
    figure = plot_range_test(result, "range test")
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    assert [line.get_ydata().tolist() for line in axes.lines[:2]] == [result.losses, result.smoothed]
    assert [line.get_xdata()[0] for line in axes.lines[2:]] == [1e-3, 2e-3, 5e-3]
    assert axes.get_ylim()[1] < 5  # a loss that explodes leaves the rest to be seen
    assert is_a_picture(save_figure(figure, tmp_path / "range.png"))
    assert len(plot_range_test(RangeTest([1e-3, 1e-2], [1.0, 1.0], [1.0, 1.0], False)).axes[0].lines) == 2
