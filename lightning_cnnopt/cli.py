"""``cnnopt fit | validate | test | predict | profile | lr_find | show``: arguments to calls, nothing else."""

from __future__ import annotations

import inspect
import os
import re
import shlex
import sys
import traceback
import warnings
from argparse import SUPPRESS
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_cnnopt import callbacks as _callbacks  # noqa: F401 - short names resolve among imported classes
from lightning_cnnopt import data as _data  # noqa: F401
from lightning_cnnopt.analysis import RunReport, WritePredictions, locations, write_range_test
from lightning_cnnopt.augmentation import AverageViews
from lightning_cnnopt.augmentation.test_time import Stage, ViewSet
from lightning_cnnopt.commands import CommandTrainer, RequireTest
from lightning_cnnopt.core import checkpoints
from lightning_cnnopt.core.errors import CheckpointError, ConfigurationError, check_choice, check_range
from lightning_cnnopt.messages import cannot_be_made, paragraph, refusal
from lightning_cnnopt.module import ImageClassifier
from lightning_cnnopt.parsing import Parser, read_config

_FROM_DATA = ("num_classes", "in_channels", "image_size", "task", "class_names")
_RUNS = tuple(LightningCLI.subcommands())
_EVALUATIONS = ("validate", "test", "predict")


class CnnoptCLI(LightningCLI):
    """LightningCLI with this project's defaults: one directory per run, and shapes that flow from data to model."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.run_directory: Path | None = None
        self._arguments = list(arguments)
        super().__init__(
            LightningModule,
            LightningDataModule,
            trainer_class=CommandTrainer,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,  # parameters that edits add later would never enter its optimizers
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            parser_class=Parser,
            args=list(arguments),
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return the commands, and the arguments of each that are not the user's to give."""
        return LightningCLI.subcommands() | {name: {"model", "datamodule"} for name in ("profile", "lr_find", "show")}

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        # Lightning makes a parser with every flag for each command; one is run, and the others cost start-up time
        command = self._arguments[0]
        description = str(inspect.getdoc(getattr(CommandTrainer, command))).partition("\n\n")[0]
        kwargs = {"description": description, **kwargs.get(command, {})}
        self._subcommand_parsers = {command: self._prepare_subcommand_parser(CommandTrainer, command, **kwargs)}
        parser.add_subcommands().add_subcommand(command, self._subcommand_parsers[command])

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add this project's own arguments, and the links from data to model."""
        parser.add_argument("--name", type=str | None, help="Name of the run; by default that of the first config file.")
        parser.add_argument("--test_after_fit", type=bool, default=False, help="Test the best checkpoint when fit is done.")
        about = "Test-time augmentation: mean probabilities over views. Of validate, test, predict, and of test_after_fit."
        parser.add_argument("--tta", type=ViewSet | None, help=about)
        if self._arguments[0] not in _RUNS:
            for name in ("ckpt_path", "weights_only"):  # a config that a fit left holds them, and says nothing there
                parser.add_argument(f"--{name}", type=type(None), default=None, help=SUPPRESS)
        parser.set_defaults({"model": {"class_path": "lightning_cnnopt.ImageClassifier"}})
        for name in _FROM_DATA:
            parser.link_arguments("data", f"model.init_args.{name}", compute_fn=_reader(name), apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, after refusing by hand what the data says: jsonargparse would drop it without a word."""
        given = [re.sub(r"^--model\.(init_args\.)?|=.*$", "", a) for a in self._arguments if a.startswith("--model.")]
        for path in _config_paths(self._arguments):
            model = read_config(path).get("model") if os.path.exists(path) else None
            init_args = model.get("init_args") if isinstance(model, dict) else None
            given += [str(name) for name in init_args] if isinstance(init_args, dict) else []
        for name in set(given) & set(_FROM_DATA):
            raise ConfigurationError(f"model.{name} comes from the data and can't be given by hand; it would be written twice.")
        super().parse_arguments(parser, args)
        config = self.config[self.config.subcommand]
        _check_ranges(config)
        if self.config.subcommand == "fit" and config.tta and not config.test_after_fit:
            raise ConfigurationError(f"tta={config.tta} is for what is measured after training; add test_after_fit: true.")
        if self.config.subcommand in ("fit", "lr_find", "show") and config.trainer.limit_train_batches == 0:
            raise ConfigurationError("trainer.limit_train_batches=0 leaves nothing to train on.")

    def _parse_ckpt_path(self) -> None:
        # Lightning merges the checkpoint's hyperparameters into every config. Here a resumed fit keeps its config, and the
        # other commands take their whole model from the checkpoint
        subcommand = self.config.subcommand
        path, weights_only = (self.config[subcommand].get(name) for name in ("ckpt_path", "weights_only"))
        if not path or weights_only is False or not _is_local(path):
            return
        checkpoint = checkpoints.read(path)
        stored = checkpoints.model_config(checkpoint, set(_FROM_DATA)) if subcommand in _EVALUATIONS else None
        if stored is not None:
            self.config[subcommand].pop("model", None)
            self.config = self.parser.parse_object({subcommand: {"model": stored}}, self.config)

    def instantiate_classes(self) -> None:
        """Make data, model and Trainer; what a constructor refuses is an argument that the user can mend."""
        try:
            super().instantiate_classes()
        except (ValueError, TypeError) as error:
            if refusal(error) is not None:
                raise
            raise ConfigurationError(cannot_be_made(error)) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer, with one directory for all that a run leaves behind."""
        config = self._get(self.config_init, "trainer")
        given = config["callbacks"] or []
        callbacks: list[Callback] = [given] if isinstance(given, Callback) else list(given)
        root = Path(config["default_root_dir"] or "runs")
        name = self._get(self.config, "name") or _config_name(self._arguments) or "run"
        self.run_directory = _next_version(root / name)
        if self.subcommand not in _RUNS:
            kwargs |= {"logger": False, "enable_model_summary": False, "enable_progress_bar": False}
            kwargs["enable_checkpointing"] = _has(callbacks, ModelCheckpoint)
            if self.subcommand == "show":
                kwargs |= {"devices": 1, "num_nodes": 1, "strategy": "auto"}
        elif config["logger"] is None or config["logger"] is True:
            place: dict[str, Any] = {
                "save_dir": root,
                "name": name,
                "version": int(self.run_directory.name.removeprefix("version_")),
            }
            kwargs["logger"] = [CSVLogger(**place), TensorBoardLogger(**place)]
        if not config["default_root_dir"]:
            kwargs["default_root_dir"] = str(self.run_directory)
        if self.subcommand == "fit" and not config["fast_dev_run"]:
            if config["enable_checkpointing"] is not False and not _has(callbacks, ModelCheckpoint):
                callbacks.append(self._checkpoint())
            if config["logger"] is not False and not _has(callbacks, LearningRateMonitor):
                callbacks.append(LearningRateMonitor(logging_interval="step"))
        if self.subcommand == "fit" and self._get(self.config, "test_after_fit"):
            callbacks.append(RequireTest())
        if (views := self._get(self.config, "tta")) and self.subcommand in _RUNS:
            callbacks.append(AverageViews(views, stages=[_averaged_stage(self.subcommand)]))
        if self.subcommand == "predict" and not _has(callbacks, WritePredictions):
            callbacks.append(WritePredictions())
        if not _has(callbacks, RunReport):
            callbacks.append(RunReport())
        _check_twins(callbacks)
        trainer = super().instantiate_trainer(callbacks=callbacks, **kwargs)
        _check_processes(trainer)
        return trainer

    def before_fit(self) -> None:
        """Find the run's directory; every rank takes part in asking for it."""
        self.run_directory = Path(self.trainer.log_dir or self.trainer.default_root_dir)

    before_validate = before_test = before_predict = before_profile = before_show = before_fit

    def after_fit(self) -> None:
        """Test the best checkpoint, if asked to, and say where everything is."""
        if self._get(self.config, "test_after_fit"):
            best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
            self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best or None)
        self._tell()

    def after_validate(self) -> None:
        """Say where everything is."""
        self._tell()

    after_test = after_predict = after_profile = after_show = after_validate

    def lr_find(self, **arguments: Any) -> None:
        """Run the range test, write what it found, and say which rate to use."""
        assert isinstance(self.trainer, CommandTrainer)
        assert self.run_directory is not None
        result = self.trainer.lr_find(**arguments)
        config = self.config.lr_find.clone()
        said = write_range_test(result, self.run_directory, config.model.as_dict(), shlex.join(["cnnopt", *self._arguments]))
        for name in self._subcommand_method_arguments["lr_find"]:
            config.pop(name)  # so that fit takes the file
        text = self._parser("lr_find").dump(config, skip_validation=True)
        (self.run_directory / "config.yaml").write_text(text, encoding="utf-8")
        print(f"\n{said}")
        if result.recommended is None:
            raise ConfigurationError(result.remark)

    def _checkpoint(self) -> ModelCheckpoint:
        if isinstance(self.model, ImageClassifier) and getattr(self.datamodule, "has_validation", False):
            return ModelCheckpoint(monitor="val_acc", mode="max", save_last=True, filename="best-{epoch}-{val_acc:.4f}")
        return ModelCheckpoint(save_last=True)

    @rank_zero_only
    def _tell(self) -> None:
        assert self.run_directory is not None
        print(f"\nThis run is in {self.run_directory}:")
        for label, path in locations(self.trainer, self.run_directory):
            print(f"  {label + ':':32}{path}")


def run(arguments: Sequence[str], debug: bool = False) -> int:
    """Run one command and return its exit status: 0, 2 for what the user can mend, 1 for anything else.

    Args:
        arguments: The command and its options.
        debug: Let exceptions through, with their tracebacks.
    """
    _quiet()
    try:
        check_choice("cnnopt", "command", arguments[0], CnnoptCLI.subcommands())
        CnnoptCLI(arguments)
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else 1
    except Exception as error:
        if debug:
            raise
        if (said := refusal(error)) is not None:
            print(f"cnnopt: error: {said}", file=sys.stderr)
            return 2
        where = traceback.extract_tb(error.__traceback__)[-1]
        print(
            f"cnnopt: unexpected {type(error).__name__} in {Path(where.filename).name}:{where.lineno}: {paragraph(error)}\n"
            "Run it again as `cnnopt --debug …` for the traceback.",
            file=sys.stderr,
        )
        return 1
    return 0


def _reader(name: str) -> Callable[[Any], Any]:
    def read(data: Any) -> Any:
        if not hasattr(data, name):
            if name in ("task", "class_names"):
                return {"task": "multiclass", "class_names": None}[name]
            raise ConfigurationError(
                f"{type(data).__name__} does not state its {name}. Give the data module an attribute or property {name}, as "
                "lightning_cnnopt.ImageDataModule has."
            )
        return getattr(data, name)

    return read


def _averaged_stage(subcommand: str) -> Stage:
    return "validate" if subcommand == "validate" else "predict" if subcommand == "predict" else "test"


def _config_paths(arguments: Sequence[str]) -> list[str]:
    paths = [value for flag, value in pairwise(arguments) if flag in ("-c", "--config")]
    return paths + [a.partition("=")[2] for a in arguments if a.startswith(("--config=", "-c="))]


def _config_name(arguments: Sequence[str]) -> str | None:
    paths = [Path(path) for path in _config_paths(arguments) if path.endswith((".yaml", ".yml"))]
    if not paths:
        return None
    # the first one names the run, and what is laid over it varies it; one that an earlier run left is named after that run
    return paths[0].resolve().parent.parent.name if paths[0].stem == "config" else paths[0].stem


def _next_version(parent: Path) -> Path:
    taken = [int(match[1]) for path in parent.glob("version_*") if (match := re.fullmatch(r"version_(\d+)", path.name))]
    return parent / f"version_{max(taken, default=-1) + 1}"


def _has(callbacks: Sequence[Callback], kind: type[Callback]) -> bool:
    return any(isinstance(callback, kind) for callback in callbacks)


def _is_local(path: str) -> bool:
    # best, last, hpc and registry:… are Lightning's names for checkpoints that it finds by itself
    if path in ("best", "last", "hpc") or path.startswith("registry") or "://" in path:
        return False
    folder = Path(path)
    if folder.is_dir() and not (folder / "meta.pt").exists():  # sharding strategies save folders, with that file inside
        inside = ", ".join(sorted(found.name for found in folder.rglob("*.ckpt"))) or "none"
        raise CheckpointError(f"ckpt_path={path} is a folder; expected a checkpoint. Those inside: {inside}.")
    if not folder.exists():
        raise CheckpointError(f"ckpt_path={path} does not exist.")
    return folder.is_file()


def _check_ranges(config: Any) -> None:
    # what Lightning takes without a word, or stumbles over later
    for name, least in {"accumulate_grad_batches": 1, "gradient_clip_val": 0, "log_every_n_steps": 0, "num_nodes": 1}.items():
        if config["trainer"][name] is not None:
            check_range("trainer", name, config["trainer"][name], least)
    if not isinstance(config["seed_everything"], bool):
        check_range("cnnopt", "seed_everything", config["seed_everything"], 0, 2**32 - 1)


def _check_twins(callbacks: Sequence[Callback]) -> None:
    keys = [callback.state_key for callback in callbacks if is_overridden("state_dict", callback, Callback)]
    for callback in callbacks:
        if keys.count(callback.state_key) > 1:
            raise ConfigurationError(
                f"trainer.callbacks holds {type(callback).__name__} more than once, and their states could not be told apart; "
                "keep one. `callbacks+:` adds to the callbacks of the configs before; `callbacks:` replaces them."
            )


def _check_processes(trainer: Trainer) -> None:
    cores = os.cpu_count() or 1
    most = max(8, cores)  # a few more than cores are of use in a trial
    if isinstance(trainer.accelerator, CPUAccelerator) and trainer.num_devices > most:
        raise ConfigurationError(
            f"trainer.devices={trainer.num_devices} would start as many processes on {cores} cores; give {most} at most."
        )


def _quiet() -> None:
    # true of every run here, and nothing the user could or should change
    for message in (
        ".*does not have many workers which may be a bottleneck.*",
        ".*The number of training batches .* is smaller than the logging interval.*",
        "Experiment logs directory .* exists and is not empty.*",
        ".*instantiate_classes.*was deprecated.*",
        "Checkpoint directory .* exists and is not empty.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*JsonargparseDeprecationWarning.*",
        "LightningCLI's args parameter is intended to run from within Python.*",
    ):
        warnings.filterwarnings("ignore", message=message, append=False)
