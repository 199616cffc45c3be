"""The commands that Lightning's Trainer has not, as methods of a Trainer: that is how LightningCLI finds a command."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities.model_helpers import is_overridden
from typing_extensions import override

from lightning_cnnopt.analysis import ProfileNetwork, save_figure, training_images
from lightning_cnnopt.core.callback import callbacks_of
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.learning_rate import RangeTest, range_test


class RequireTest(Callback):
    """Refuses a fit that is to be tested at its end and can't be: before it trains, and once the data is there to be asked.

    Raises:
        ConfigurationError: If the data has no test split, or the module no test step.
    """

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        data: LightningDataModule | None = trainer.datamodule  # type: ignore[attr-defined]
        missing = None
        if not is_overridden("test_step", pl_module):
            missing = f"{type(pl_module).__name__} has no test_step"
        elif data is not None and not (is_overridden("test_dataloader", data) and getattr(data, "has_test", True)):
            missing = f"{type(data).__name__} has no test split"
        if missing is not None:
            raise ConfigurationError(
                f"test_after_fit=true would find nothing to test when training is done: {missing}. Add one, or set "
                "test_after_fit: false."
            )


class CommandTrainer(Trainer):
    """A Trainer with the further commands of ``cnnopt``."""

    def profile(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        batch_size: int = 32,
        repeats: int = 10,
    ) -> None:
        """Measure what each layer costs: parameters, MACs, activation memory, latency.

        Nothing is trained. The table is printed, and written as CSV and picture.

        Args:
            model: Its network is measured, after the edits of all callbacks.
            datamodule: States the shape of an image.
            batch_size: Images in the batch that is measured.
            repeats: Passes that a latency is the median of.
        """
        callback = ProfileNetwork(batch_size=batch_size, repeats=repeats)
        callbacks_of(self)[:] = [one for one in callbacks_of(self) if not isinstance(one, ProfileNetwork)] + [callback]
        self.limit_train_batches = self.limit_val_batches = self.num_sanity_val_steps = 0
        self.fit(model, datamodule=datamodule)

    def show(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        images: int = 8,
        draws: int = 3,
    ) -> Path:
        """Draw what training sees: images as they are stored, and several draws of what becomes of them.

        Nothing is trained. The picture is written as PNG; where targets are mixed, captions say how.

        Args:
            model: The module.
            datamodule: Its data.
            images: At most so many images of the first batch.
            draws: How often they are augmented and mixed.
        """
        path = Path(self.log_dir or self.default_root_dir) / "training_images.png"
        return save_figure(training_images(self, model, None, datamodule, images, draws).figure(), path)

    def lr_find(
        self,
        model: LightningModule,
        datamodule: LightningDataModule | None = None,
        min_lr: float = 1e-7,
        max_lr: float = 1.0,
        steps: int = 100,
        divergence: float = 4.0,
    ) -> RangeTest:
        """Find a learning rate: train some steps at a growing one, and suggest rates by the losses.

        Args:
            model: The module.
            datamodule: Its data.
            min_lr: Rate of the first step.
            max_lr: Rate of the last step.
            steps: Optimizer steps.
            divergence: The test ends when the loss is more than this times its least value.
        """
        without = (SaveConfigCallback,)
        return range_test(self, model, None, datamodule, min_lr, max_lr, steps, divergence, without)
