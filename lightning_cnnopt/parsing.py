"""How the command line reads names and reports what is wrong with them: jsonargparse with four habits changed."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from jsonargparse import _typehints
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser
from torch import nn
from torch.optim import Optimizer

from lightning_cnnopt.core.errors import ConfigurationError, did_you_mean
from lightning_cnnopt.core.spec import Configurable

# what a short name means when several imported packages have a class of that name (timm's GELU and torch's)
_FIRST = ("lightning_cnnopt.", "torch.nn.", "torch.optim.", "lightning.pytorch.")

# around a report that may be part of another one
_OPEN, _MIDDLE, _CLOSE = "\N{LEFT WHITE SQUARE BRACKET}", "\N{BROKEN BAR}", "\N{RIGHT WHITE SQUARE BRACKET}"


class Parser(LightningArgumentParser):
    """Raises what it finds wrong, as one paragraph, in place of printing the usage."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        raise ConfigurationError(explain(message)) from ex


def plain(text: str) -> str:
    """Return a report for people: the path of the argument, a colon, and what is wrong."""
    return text.replace(_OPEN, "").replace(_MIDDLE, ": ").replace(_CLOSE, "")


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


def _forget_former_class() -> None:
    # When a later config names another class, jsonargparse keeps those arguments of the former one that fit, its defaults
    # included: SGD in place of AdamW would silently decay weights by 0.01. Here a new class starts from its own defaults.
    keep = _typehints.discard_init_args_on_class_path_change

    def discard(parser_or_action: Any, former: Any, value: Any) -> None:
        if former and former.get("init_args") and former["class_path"] != value["class_path"]:
            former["init_args"] = type(former["init_args"])()
        keep(parser_or_action, former, value)

    _typehints.discard_init_args_on_class_path_change = discard


def _replace_whole_lists() -> None:
    # Of a list that is given again, jsonargparse fills each item up from the former item at its place, if the lists are of one
    # length and the items of one class. Here a list replaces the former one, arguments of its items included.
    adapt = _typehints.adapt_typehints

    def adapt_typehints(val: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(val, list) and isinstance(kwargs.get("prev_val"), list) and not kwargs.get("append"):
            kwargs["prev_val"] = None
        return adapt(val, *args, **kwargs)

    _typehints.adapt_typehints = adapt_typehints


def _prefer_known_packages() -> None:
    resolve = _typehints.resolve_class_path_by_name

    def resolve_class_path_by_name(cls: Any, name: str) -> str:
        try:
            return resolve(cls, name)
        except ValueError:
            paths = [path for path in _typehints.get_all_subclass_paths(cls) if path.rpartition(".")[2] == name]
            for package in _FIRST:
                known = [path for path in paths if path.startswith(package)]
                if len(known) == 1:
                    return known[0]
            raise

    _typehints.resolve_class_path_by_name = resolve_class_path_by_name


_forget_former_class()
_replace_whole_lists()
_prefer_known_packages()
