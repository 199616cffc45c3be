"""What the command line says is wrong: one paragraph that names argument, value and the nearest right name."""

from __future__ import annotations

import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import Optimizer

from lightning_cnnopt.core.errors import CnnoptError, did_you_mean, extra_of
from lightning_cnnopt.core.spec import Configurable, import_path

# around a report that may be part of another one
_OPEN, _MIDDLE, _CLOSE = "\N{LEFT WHITE SQUARE BRACKET}", "\N{BROKEN BAR}", "\N{RIGHT WHITE SQUARE BRACKET}"


def refusal(error: BaseException) -> str | None:
    """Return what an exception says, as one paragraph, if it is about something that the user gave; else ``None``.

    That is what this package raises on purpose, what Lightning's own code raises, and files that can't be used.
    """
    for link in chain(error):
        if isinstance(link, (CnnoptError, MisconfigurationException)):
            return paragraph(link)
    if isinstance(error, (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)):
        return paragraph(error)
    where = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    raised_by_lightning = Path(lightning.__file__).parent in where.parents
    return paragraph(error) if raised_by_lightning and isinstance(error, (ValueError, TypeError, RuntimeError)) else None


def cannot_be_made(error: Exception) -> str:
    """Return what a constructor refused, as one paragraph that names its class. jsonargparse wraps it in reports of its own."""
    cause = list(chain(error))[-1]
    made = [
        type(frame.f_locals["self"]).__name__
        for frame, _ in traceback.walk_tb(cause.__traceback__)
        if frame.f_code.co_name == "__init__" and "self" in frame.f_locals
    ]
    return f"{made[-1]} can't be made: {paragraph(cause)}" if made else paragraph(cause)


def paragraph(error: BaseException) -> str:
    """Return the message of an exception as one paragraph."""
    return plain(" ".join(str(error).split())) or type(error).__name__


def plain(text: str) -> str:
    """Return a report for people: the path of the argument, a colon, and what is wrong."""
    return text.replace(_OPEN, "").replace(_MIDDLE, ": ").replace(_CLOSE, "")


def explain(message: str, options: Sequence[str] = ()) -> str:
    r"""Return jsonargparse's report of a wrong argument as one paragraph, with the nearest right names.

    jsonargparse reports an argument within an argument as a report within a report, and the cause is the innermost one.

    Args:
        message: The report.
        options: Names of the parser's own arguments.

    Example:
        >>> explain("Option 'degres' is not accepted")
        "Option 'degres' is not accepted. Did you mean 'degrees'?"
        >>> plain(explain('Parser key "trainer.max_epochs":\n  Expected a <class \'int\'>. Got value: three'))
        "trainer.max_epochs: expected int. Got 'three'."
    """
    key = match[1] if (match := re.search(r'[Pp]arser key "([^"]+)"', message)) else ""
    inner = re.search(rf"{_OPEN}(.*?){_CLOSE}", message, re.DOTALL)
    if inner:
        path, _, reason = inner[1].partition(_MIDDLE)
        return _report(".".join(filter(None, (key, path))), " ".join(reason.split()))
    if unknown := re.search(r"Option '([\w.]+)' is not accepted", message):
        return _report(key, f"{unknown[0]}.{_nearest_argument(unknown[1])}")
    if unknown := re.search(r"does not accept option '([\w.]+)'", message):
        return f"There is no argument {unknown[1]!r}.{_nearest_option(unknown[1], options)}"
    if unknown := re.match(r"unrecognized arguments: (-*)(\S+)", message):
        return f"{message}.{_nearest_option(unknown[2].partition('=')[0], options) if unknown[1] else ''}"
    if missing := re.match(r"the following arguments are required: \w+\.(\w+)$", message):
        return f"{missing[1]} is missing; give it in a config, or as --{missing[1]}."
    if several := re.search(r"Multiple subclasses with name .+", message):
        return _report(key, several[0].strip())
    given = match[1] if (match := re.search(r"(?:Given|Got) value: (.+)", message)) else ""
    kinds = re.findall(r"\w+(?:\.\w+)+", match[1]) if (match := re.search(r"Subtypes: \[(.*)\]", message)) else []
    lines = [line.strip(" -") for line in message.splitlines() if line.strip()]
    reasons = [_translate(line, kinds, given) for line in lines if not _NOISE.match(line)]
    reasons = list(dict.fromkeys(filter(None, reasons))) or [" ".join(lines)]
    # of the kinds of value that an argument takes, the one that was meant says more than that it is none of the others
    precise = [reason for reason in reasons if not reason.startswith("expected ")]
    expected = " or ".join(reason.removeprefix("expected ") for reason in reasons if reason not in precise)
    reason = " ".join(precise) or f"expected {expected}"
    if not precise and given and len(given) < 80:
        choices = re.findall(r"[^\W_][-\w]+", expected)
        reason = f"{reason.rstrip('.')}. Got {given!r}.{did_you_mean(given, choices)}"
    return _report(key, reason)


_NOISE = re.compile(
    r"[Pp]arser key \"[^\"]+\":$|Given value|Subtypes:|Errors:|Does not validate against any|Expected a <class 'NoneType'>|"
    r"Expected a path but|Problem with given class_path|Subclass types expect|an? (class path|dict) "
)


def _translate(line: str, kinds: Sequence[str], given: str) -> str:
    line = re.sub(r"\.? ?Got value: .*", "", line)
    line = re.sub(r"^Type .* expects a function or a callable class: ", "", line)
    if match := re.search(r"Expected a dot import path string: (\S+)", line):
        if kinds and all(kind == "torch.Tensor" for kind in kinds):
            return ""  # a number that may be a tensor, too: nobody means the class
        return _unknown_class(match[1], kinds)
    if match := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", line):
        return f"there is no {match[2]!r} in {match[1]}.{did_you_mean(match[2], dir(sys.modules.get(match[1])))}"
    if match := re.search(r"No module named '([\w.]+)'", line):
        near = extra_of(match[1]) or did_you_mean(match[1], {name.partition(".")[0] for name in sys.modules})
        return f"there is no module {match[1]!r}, neither installed nor in the working directory.{near}"
    for pattern, text in (
        (r"Expected a <class '(?:\w+\.)*(?:Sequence|Iterable|list)'>", "expected a list"),
        (r"Expected a <class '(?:\w+\.)*(?:Mapping|dict)'>", "expected names with their values"),
        (r"Expected a <class '(?:\w+\.)*(\w+)'>", r"expected \1"),
        (r"Expected a typing.Literal\[(.*)\]", r"expected one of \1"),
        (r"Not a valid subclass of (\w+)", r"expected a \1, by the name of a class or as {class_path, init_args}"),
        (r"Expected '([\w.]+)' to be a subclass of <class '(\w+)'>\.*", r"\1 is no \2."),
        (r"Import path ([\w.]+) does not correspond to a subclass of (\w+)", r"\1 is no \2."),
        (r"Import path does not correspond to a subclass of (\w+)", rf"{given} is no \1."),
        (r"'(\w+)' object has no attribute 'keys'", r"init_args is a \1; expected names with their values."),
        (r"argument of type '(\w+)' is not iterable", r"class_path is a \1; expected the name of a class."),
        (r"the following arguments are required: (.+)", r"\1 is missing."),
    ):
        if match := re.search(pattern, line):
            return match.expand(text)
    return line


def _report(path: str, reason: str) -> str:
    return f"{_OPEN}{path}{_MIDDLE}{reason}{_CLOSE}" if path else reason


def _unknown_class(path: str, kinds: Sequence[str]) -> str:
    name = path.rpartition(".")[2]
    bases = [cls for kind in kinds if isinstance(cls := _imported(kind), type)]
    if elsewhere := [cls for cls in _classes("") if cls.__name__ == name]:
        near = did_you_mean(name, _class_names("lightning_cnnopt", bases))
        return f"{import_path(elsewhere[0])} is no class of the kind that belongs here.{near}"
    return f"there is no class {path!r}.{_nearest(name, lambda package: _class_names(package, bases))}"


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)


def _nearest_argument(path: str) -> str:
    first, _, rest = path.partition(".")
    if near := did_you_mean(first, ("class_path", "init_args", "dict_kwargs")):
        return near
    if rest and first in _class_names(""):
        return f" Write it as {{class_path: {first}, init_args: {{{rest}: …}}}}."
    return _nearest(path.rpartition(".")[2], _argument_names)


def _nearest_option(path: str, options: Sequence[str]) -> str:
    return did_you_mean(path, options) or did_you_mean(path.partition(".")[0], {name.partition(".")[0] for name in options})


def _nearest(name: str, candidates: Callable[[str], list[str]]) -> str:
    # our own names first: those of everything that is imported are many, and some are always near
    return did_you_mean(name, candidates("lightning_cnnopt")) or did_you_mean(name, candidates(""))


def _classes(package: str, bases: Sequence[type] = ()) -> list[type]:
    found: list[type] = []
    pending = list(bases) or [
        Configurable,
        Callback,
        Logger,
        Strategy,
        LightningDataModule,
        LightningModule,
        nn.Module,
        Optimizer,
    ]
    while pending:
        below: list[type] = pending.pop().__subclasses__()
        found += [cls for cls in below if cls.__module__.startswith(package) and not cls.__name__.startswith("_")]
        pending += below
    return found


def _class_names(package: str, bases: Sequence[type] = ()) -> list[str]:
    return sorted({cls.__name__ for cls in _classes(package, bases)})


def _argument_names(package: str) -> list[str]:
    return sorted({name for cls in _classes(package) for name in inspect.signature(cls.__init__).parameters})  # type: ignore[misc]


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an exception and what it was raised from, up to the first cause."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
