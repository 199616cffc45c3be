"""``cnnopt fit | validate | test | predict``: arguments to calls, nothing else."""

from __future__ import annotations

import inspect
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import _typehints
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn
from torch.optim import Optimizer

from lightning_cnnopt import callbacks as _callbacks  # noqa: F401 - short names resolve among imported classes
from lightning_cnnopt import data as _data  # noqa: F401
from lightning_cnnopt.analysis import RunReport, WritePredictions, locations
from lightning_cnnopt.core.checkpoints import read_model_config
from lightning_cnnopt.core.errors import CnnoptError, ConfigurationError, did_you_mean
from lightning_cnnopt.core.spec import Configurable
from lightning_cnnopt.module import ImageClassifier

_FROM_DATA = ("num_classes", "in_channels", "image_size", "task", "class_names")
_EVALUATIONS = ("validate", "test", "predict")


def _forget_former_class() -> None:
    # When a later config names another class, jsonargparse keeps those arguments of the former one that fit, its defaults
    # included: SGD in place of AdamW would silently decay weights by 0.01. Here a new class starts from its own defaults.
    keep = _typehints.discard_init_args_on_class_path_change

    def discard(parser_or_action: Any, former: Any, value: Any) -> None:
        if former and former.get("init_args") and former["class_path"] != value["class_path"]:
            former["init_args"] = type(former["init_args"])()
        keep(parser_or_action, former, value)

    _typehints.discard_init_args_on_class_path_change = discard


_forget_former_class()

# around a report that may be part of another one
_OPEN, _MIDDLE, _CLOSE = "\N{LEFT WHITE SQUARE BRACKET}", "\N{BROKEN BAR}", "\N{RIGHT WHITE SQUARE BRACKET}"


class _Parser(LightningArgumentParser):
    """Raises what it finds wrong, as one paragraph, in place of printing the usage."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        raise ConfigurationError(explain(message)) from ex


class CnnoptCLI(LightningCLI):
    """LightningCLI with this project's defaults: one directory per run, and shapes that flow from data to model."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self.run_directory: Path | None = None
        self._arguments = list(arguments)
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,  # parameters that edits add later would never enter its optimizers
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            parser_class=_Parser,
            args=list(arguments),
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add this project's own arguments, and the links from data to model."""
        parser.add_argument("--name", type=str | None, help="Name of the run; by default that of the first config file.")
        parser.add_argument("--test_after_fit", type=bool, default=False, help="Test the best checkpoint when fit is done.")
        parser.set_defaults({"model": {"class_path": "lightning_cnnopt.ImageClassifier"}})
        for name in _FROM_DATA:
            parser.link_arguments("data", f"model.init_args.{name}", compute_fn=_reader(name), apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, after refusing by hand what the data says: jsonargparse would drop it without a word."""
        given = [re.sub(r"^--model\.(init_args\.)?|=.*$", "", a) for a in self._arguments if a.startswith("--model.")]
        for path in _config_paths(self._arguments):
            content = yaml.safe_load(Path(path).read_text()) if Path(path).is_file() else None
            model = content.get("model") if isinstance(content, dict) else None
            given += [str(key) for key in (model.get("init_args") or {})] if isinstance(model, dict) else []
        for name in set(given) & set(_FROM_DATA):
            raise ConfigurationError(f"model.{name} comes from the data and can't be given by hand; it would be written twice.")
        super().parse_arguments(parser, args)

    def _parse_ckpt_path(self) -> None:
        # Lightning merges the checkpoint's hyperparameters into every config. Here a resumed fit keeps its config, and the
        # other commands take their whole model from the checkpoint
        subcommand = self.config.subcommand
        path = self.config[subcommand].get("ckpt_path")
        if subcommand in _EVALUATIONS and path and Path(path).is_file():
            stored = read_model_config(path, set(_FROM_DATA))
            if stored is not None:
                self.config[subcommand].pop("model", None)
                self.config = self.parser.parse_object({subcommand: {"model": stored}}, self.config)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer, with one directory for all that a run leaves behind."""
        config = self._get(self.config_init, "trainer")
        callbacks: list[Callback] = list(config["callbacks"] or [])
        root = Path(config["default_root_dir"] or "runs")
        name = self._get(self.config, "name") or _config_name(self._arguments) or "run"
        self.run_directory = _next_version(root / name)
        if config["logger"] is None or config["logger"] is True:
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
        if self.subcommand == "predict" and not _has(callbacks, WritePredictions):
            callbacks.append(WritePredictions())
        if not _has(callbacks, RunReport):
            callbacks.append(RunReport())
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    def before_fit(self) -> None:
        """Find the run's directory; every rank takes part in asking for it."""
        self.run_directory = Path(self.trainer.log_dir or self.trainer.default_root_dir)

    before_validate = before_test = before_predict = before_fit

    def after_fit(self) -> None:
        """Test the best checkpoint, if asked to, and say where everything is."""
        if self._get(self.config, "test_after_fit"):
            best = getattr(self.trainer.checkpoint_callback, "best_model_path", "")
            self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best or None)
        self._tell()

    def after_validate(self) -> None:
        """Say where everything is."""
        self._tell()

    after_test = after_predict = after_validate

    def _checkpoint(self) -> ModelCheckpoint:
        if isinstance(self.model, ImageClassifier) and getattr(self.datamodule, "val_size", False):
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
        CnnoptCLI(arguments)
    except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
        if debug:
            raise
        print(f"cnnopt: error: {error.strerror or error}: {error.filename}", file=sys.stderr)
        return 2
    except SystemExit as exit:
        return exit.code if isinstance(exit.code, int) else 1
    except Exception as error:
        if debug:
            raise
        if (known := _on_purpose(error)) is not None:
            print(f"cnnopt: error: {_paragraph(known)}", file=sys.stderr)
            return 2
        where = traceback.extract_tb(error.__traceback__)[-1]
        print(
            f"cnnopt: unexpected {type(error).__name__} in {Path(where.filename).name}:{where.lineno}: {_paragraph(error)}\n"
            "Run it again as `cnnopt --debug …` for the traceback.",
            file=sys.stderr,
        )
        return 1
    return 0


def explain(message: str) -> str:
    """Return jsonargparse's report of a wrong argument as one paragraph, with the nearest right names.

    jsonargparse reports an argument within an argument as a report within a report, and the cause is the innermost one.

    Example:
        >>> explain("Option 'degres' is not accepted")
        "Option 'degres' is not accepted. Did you mean 'degrees'?"
    """
    key = match[1] if (match := re.search(r'[Pp]arser key "([^"]+)"', message)) else ""
    inner = re.search(rf"{_OPEN}(.*?){_CLOSE}", message, re.DOTALL)
    if inner:
        path, _, reason = inner[1].partition(_MIDDLE)
        return _report(".".join(filter(None, (key, path))), " ".join(reason.split()))
    if unknown := re.search(r"Expected a dot import path string: (\S+)", message):
        name = unknown[1].rpartition(".")[2]
        return _report(key, f"there is no class {unknown[1]!r}.{_nearest(name, _class_names)}")
    if unknown := re.search(r"Option '([\w.]+)' is not accepted", message):
        return _report(key, f"{unknown[0]}.{_nearest(unknown[1].rpartition('.')[2], _argument_names)}")
    if several := re.search(r"Multiple subclasses with name .+", message):
        return _report(key, several[0].strip())
    lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
    noise = r"Parser key \"[^\"]+\":$|Given value|Subtypes:|Errors:|Does not validate against any|Expected a <class 'NoneType'>"
    reason = " ".join(line for line in lines if not re.match(noise, line)) or " ".join(lines)
    given = f" Got {match[1]!r}." if (match := re.search(r"Given value: (.+)", message)) else ""
    return _report(key, f"{reason}.{given}" if given else reason)


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


def _report(path: str, reason: str) -> str:
    return f"{_OPEN}{path}{_MIDDLE}{reason}{_CLOSE}" if path else reason


def _nearest(name: str, candidates: Callable[[str], list[str]]) -> str:
    # our own names first: those of everything that is imported are many, and some are always near
    return did_you_mean(name, candidates("lightning_cnnopt")) or did_you_mean(name, candidates(""))


def _classes(package: str) -> list[type]:
    found: list[type] = []
    pending: list[type] = [Configurable, Callback, LightningDataModule, LightningModule, nn.Module, Optimizer]
    while pending:
        below: list[type] = pending.pop().__subclasses__()
        found += [cls for cls in below if cls.__module__.startswith(package) and not cls.__name__.startswith("_")]
        pending += below
    return found


def _class_names(package: str) -> list[str]:
    return sorted({cls.__name__ for cls in _classes(package)})


def _argument_names(package: str) -> list[str]:
    return sorted({name for cls in _classes(package) for name in inspect.signature(cls.__init__).parameters})  # type: ignore[misc]


def _on_purpose(error: BaseException) -> Exception | None:
    # jsonargparse wraps what a constructor raises in reports of its own
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, (CnnoptError, MisconfigurationException)):
            return current
        current = current.__cause__ or current.__context__
    return None


def _paragraph(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text.replace(_OPEN, "").replace(_MIDDLE, ": ").replace(_CLOSE, "")


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
