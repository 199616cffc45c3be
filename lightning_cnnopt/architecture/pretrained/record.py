"""What comes with published weights."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WeightsRecord:
    """What weights were trained with, as torchvision and timm record it.

    Args:
        mean: Mean of each channel for pixels in [0, 1].
        std: Standard deviation of each channel.
        size: Height and width of the images.
        crop: Share of the shorter side that the central crop keeps in evaluation.
        interpolation: How images were resized: ``"bilinear"``, ``"bicubic"``, ….
        class_names: Names of the classes, where they are known.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    crop: float
    interpolation: str
    class_names: tuple[str, ...] | None = None

    def statistics(self, channels: int) -> tuple[list[float], list[float]]:
        """Return mean and standard deviation for images of another number of channels.

        As the filters are adapted: one channel stands for all and takes their average; more channels repeat them.

        Example:
            >>> record = WeightsRecord((0.25, 0.5, 0.75), (0.1, 0.2, 0.3), (224, 224), 0.875, "bilinear")
            >>> record.statistics(1)[0], record.statistics(4)[0]
            ([0.5], [0.25, 0.5, 0.75, 0.25])
        """
        adapted = []
        for values in (self.mean, self.std):
            if channels == 1:
                adapted.append([sum(values) / len(values)])
            else:
                adapted.append([values[channel % len(values)] for channel in range(channels)])
        return adapted[0], adapted[1]

    def to_dict(self) -> dict[str, object]:
        """Return the record as builtins, for a checkpoint and a report; without the names, which a module keeps."""
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "size": list(self.size),
            "crop": self.crop,
            "interpolation": self.interpolation,
        }
