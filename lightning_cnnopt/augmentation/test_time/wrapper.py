"""Any network as the mean over views of its images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor, nn
from typing_extensions import override

from lightning_cnnopt.augmentation.test_time.functional import View, ViewSet, average, certainty, look, views_of
from lightning_cnnopt.core.errors import ConfigurationError, check_choice, check_range

Task = Literal["multiclass", "binary", "multilabel"]


class ViewAverage:
    """Averages what a network says over views of images.

    Args:
        views: As of :class:`TestTimeAugmentation`, and so all others.
        mean: What is averaged.
        only_below: Certainty from which on the first view is enough.
        by: How certainty is measured.
        owner: What it is a part of, for messages.
    """

    def __init__(
        self,
        views: ViewSet | Sequence[View] = "flip",
        mean: Literal["probabilities", "logits"] = "probabilities",
        only_below: float | None = None,
        by: Literal["margin", "confidence"] = "margin",
        owner: str = "ViewAverage",
    ) -> None:
        check_choice(owner, "mean", mean, ("probabilities", "logits"))
        check_choice(owner, "by", by, ("margin", "confidence"))
        if only_below is not None:
            check_range(owner, "only_below", only_below, 0, 1, low_open=True)
        self.views = views_of(views, owner)
        self.mean = mean
        self.only_below = only_below
        self.by = by
        self.owner = owner

    def __call__(self, network: Callable[[Tensor], Tensor], images: Tensor, task: Task, first: Tensor | None = None) -> Tensor:
        """Return the logits of the mean.

        Args:
            network: From images to logits, (N, C) or (N,).
            images: (N, C, H, W).
            task: What the logits are of.
            first: Those of the images as they are, where they are known.

        Raises:
            ConfigurationError: If the network gives something else.
        """
        first = network(images) if first is None else first
        if not isinstance(first, Tensor) or first.ndim not in (1, 2) or len(first) != len(images):
            shape = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
            raise ConfigurationError(
                f"{self.owner} averages logits of shape (N, classes), and the network gives {shape} for {len(images)} images. "
                "Name the part of the module that gives them."
            )
        exclusive = task == "multiclass" and first.ndim == 2 and first.shape[1] > 1
        if self.only_below is None:
            return self._mean([first, *(network(look(images, view)) for view in self.views[1:])], exclusive)
        result = average([first], [1], self.mean, exclusive)
        unsure = (certainty(first, self.by, exclusive) < self.only_below).nonzero().flatten()
        if len(unsure):
            chosen = images[unsure]
            more = [network(look(chosen, view)) for view in self.views[1:]]
            result[unsure] = self._mean([first[unsure], *more], exclusive)
        return result

    def _mean(self, logits: list[Tensor], exclusive: bool) -> Tensor:
        return average(logits, [view.get("weight", 1.0) for view in self.views], self.mean, exclusive)


class TestTimeAugmentation(nn.Module):
    """Any network that answers with the mean over several views of each image, in evaluation.

    It gives logits, as the network does, so softmax (or sigmoid) gives the mean probabilities. In training mode it is the
    network alone. Running statistics are never moved: in evaluation no layer keeps any.

    The default is the mean of probabilities. They are bounded, so no view outweighs the others, and a constant that a network
    adds to all logits of one view counts for nothing. The mean of logits, Jordan's, is a geometric mean of probabilities: a
    view that is very sure, or very sure that a class is not there, decides for all. Of either the cross entropy is at most
    the views' mean cross entropy.

    Args:
        module: From images (N, C, H, W) to logits (N, C), or (N,) for a binary task; a LightningModule as well.
        views: ``"flip"``, the image and its mirror image; ``"shift"``, the image at half of the weight, and shifted by a
            pixel up and left, and down and right; ``"flip_and_shift"``, Jordan's six: those three and their mirror images; or
            views of your own, each with some of ``down``, ``right``, ``horizontal_flip``, ``vertical_flip`` and ``weight``.
            The first one is the image as it is.
        mean: Mean of ``"probabilities"`` or of ``"logits"``. Outputs that are no logits (distances, say) are averaged as they
            are by ``"logits"``.
        task: What the logits are of; by default what the module says in its attribute ``task``, or else ``"multiclass"``. A
            single output is binary.
        only_below: Look again only at images whose prediction is less certain than this, in one smaller batch; the others
            keep the first. By default all views are taken of all.
        by: Certainty: ``"margin"``, the probability of the likeliest class less that of the second, or ``"confidence"``, the
            former alone. Of labels, the least certain one counts.

    Raises:
        ConfigurationError: If an argument can't be right, or the module does not give logits.

    Reference:
        Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024, for the six views.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> averaged, images = TestTimeAugmentation(network, views="flip").eval(), torch.rand(4, 1, 8, 8)
        >>> by_hand = (network(images).softmax(1) + network(images.flip(-1)).softmax(1)) / 2
        >>> torch.allclose(averaged(images).softmax(1), by_hand, atol=1e-6)
        True
    """

    __test__ = False  # its name has pytest take it for a test

    def __init__(
        self,
        module: nn.Module,
        views: ViewSet | Sequence[View] = "flip",
        mean: Literal["probabilities", "logits"] = "probabilities",
        task: Task | None = None,
        only_below: float | None = None,
        by: Literal["margin", "confidence"] = "margin",
    ) -> None:
        super().__init__()
        self.module = module
        self.average = ViewAverage(views, mean, only_below, by, "TestTimeAugmentation")
        self.task: Task = task_of("TestTimeAugmentation", module, task)

    @override
    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            return self.module(images)
        return self.average(self.module, images, self.task)


def task_of(owner: str, module: nn.Module, task: Task | None = None) -> Task:
    """Return what a module's logits are of: ``task``, or what it says itself, or one class of many.

    Raises:
        ConfigurationError: If ``task`` is unknown.
    """
    tasks = ("multiclass", "binary", "multilabel")
    if task is not None:
        check_choice(owner, "task", task, tasks)
        return task
    stated = getattr(module, "task", None)
    return stated if isinstance(stated, str) and stated in tasks else "multiclass"  # type: ignore[return-value]
