"""Test-time augmentation: a prediction as the mean over several views of an image."""

from lightning_cnnopt.augmentation.test_time.callback import AverageViews, Stage
from lightning_cnnopt.augmentation.test_time.functional import View, ViewSet, views_of
from lightning_cnnopt.augmentation.test_time.wrapper import TestTimeAugmentation, ViewAverage

__all__ = ["AverageViews", "Stage", "TestTimeAugmentation", "View", "ViewAverage", "ViewSet", "views_of"]
