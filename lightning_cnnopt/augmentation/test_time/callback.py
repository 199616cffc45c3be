"""Test-time augmentation on any Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lightning_cnnopt.augmentation.test_time.functional import View, ViewSet
from lightning_cnnopt.augmentation.test_time.wrapper import Task, ViewAverage, task_of
from lightning_cnnopt.core.callback import TechniqueCallback, callbacks_of
from lightning_cnnopt.core.errors import ConfigurationError, check_choice
from lightning_cnnopt.core.surgery import inner_network

Stage = Literal["validate", "test", "predict"]


class AverageViews(TechniqueCallback):
    """Tests and predicts with the mean over several views of each image, on any LightningModule; test-time augmentation.

    The network of the module answers with the mean while a test or a prediction runs, so whatever the module makes of its
    logits (loss, metrics, probabilities, confusion matrix) comes from the mean. Training never sees it, and no running
    statistic moves. By default validation does not either: it is run often, and compares epochs as well without.

    Args:
        views: See :class:`~lightning_cnnopt.augmentation.TestTimeAugmentation`, for all but the following two.
        mean: Mean of ``"probabilities"`` or of ``"logits"``.
        stages: Some of ``"validate"``, within a fit, too, ``"test"`` and ``"predict"``.
        only_below: Look again only at images whose prediction is less certain than this.
        by: How certainty is measured: ``"margin"`` or ``"confidence"``.
        task: What the logits are of; by default what the LightningModule says in its attribute ``task``, or ``"multiclass"``.
        submodule: Name of the part of the LightningModule that gives logits; by default its one child with weights.

    Raises:
        ConfigurationError: If an argument can't be right, the network does not give logits, or two of these are to average
            one stage.

    Example:
        >>> callback = AverageViews("flip", only_below=0.9)
        >>> trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)
    """

    looks_on = True

    def __init__(
        self,
        views: ViewSet | Sequence[View] = "flip",
        mean: Literal["probabilities", "logits"] = "probabilities",
        stages: Sequence[Stage] = ("test", "predict"),
        only_below: float | None = None,
        by: Literal["margin", "confidence"] = "margin",
        task: Task | None = None,
        submodule: str | None = None,
    ) -> None:
        for stage in stages:
            check_choice("AverageViews", "stages", stage, get_args(Stage))
        if task is not None:
            check_choice("AverageViews", "task", task, get_args(Task))
        self._average = ViewAverage(views, mean, only_below, by, "AverageViews")
        self.views = views if isinstance(views, str) else list(views)
        self.mean = mean
        self.stages = list(stages)
        self.only_below = only_below
        self.by = by
        self.task = task
        self.submodule = submodule
        self._of_module: Task = "multiclass"
        self._hook: RemovableHandle | None = None
        self._within = False
        self._averaged = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for other in callbacks_of(trainer):
            both = sorted(set(self.stages) & set(other.stages)) if isinstance(other, AverageViews) and other is not self else []
            if both:
                raise ConfigurationError(
                    f"{self!r} and {other!r} would both average {' and '.join(both)}, one over the other's views; keep one."
                )

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin("validate", trainer, pl_module)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end(pl_module)

    @override
    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin("test", trainer, pl_module)

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end(pl_module)

    @override
    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin("predict", trainer, pl_module)

    @override
    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._end(pl_module)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._leave()

    def _begin(self, stage: Stage, trainer: Trainer, pl_module: LightningModule) -> None:
        if stage not in self.stages:
            return
        if trainer.state.fn == stage:  # not at each validation of a fit
            of = "all images" if self.only_below is None else f"images whose {self.by} is below {self.only_below:g}"
            rank_zero_info(f"AverageViews: predictions are the mean over {len(self._average.views)} views of {of}.")
        self._leave()
        self._averaged = False
        self._of_module = task_of("AverageViews", pl_module, self.task)
        network = inner_network(pl_module, self.submodule)
        self._hook = network.register_forward_hook(self._answer, with_kwargs=True)

    def _end(self, pl_module: LightningModule) -> None:
        if self._hook is not None and not self._averaged:
            network = type(inner_network(pl_module, self.submodule)).__name__
            rank_zero_warn(
                f"AverageViews averaged nothing: {type(pl_module).__name__} did not call {network} with images (N, C, H, W). "
                "Name the part that it calls as submodule=."
            )
        self._leave()

    def _leave(self) -> None:
        self._within = False
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _answer(self, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
        images = args[0] if args else next(iter(kwargs.values()), None)
        if self._within or network.training or not isinstance(images, Tensor) or images.ndim != 4:
            return None

        def answer(view: Tensor) -> Tensor:
            return network(view, *args[1:], **kwargs) if args else network(**{**kwargs, next(iter(kwargs)): view})

        self._within = self._averaged = True
        try:
            return self._average(answer, images, self._of_module, output)
        finally:
            self._within = False
