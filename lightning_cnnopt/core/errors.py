"""Errors that a user can act on, and the checks that raise them.

Every message names the argument, its value, what was expected and, for names, the nearest right spelling. The command
line prints these as one paragraph without a traceback; in Python they are ordinary exceptions.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence

_EXTRAS = {
    "timm": "timm",
    "schedulefree": "optimizers",
    "prodigyopt": "optimizers",
    "datasets": "huggingface",
    "webdataset": "webdataset",
}


class CnnoptError(Exception):
    """Base class of what this package raises on purpose."""


class ConfigurationError(CnnoptError, ValueError):
    """An argument, or a combination of techniques, that can't be right."""


class DataError(CnnoptError, ValueError):
    """Data that is missing, damaged or not what its labels say."""


class CheckpointError(CnnoptError, RuntimeError):
    """A checkpoint that does not belong to what it is loaded into."""


class DivergenceError(CnnoptError, RuntimeError):
    """Training that left the finite numbers."""


def check_range(
    owner: str,
    name: str,
    value: float,
    low: float | None = None,
    high: float | None = None,
    *,
    low_open: bool = False,
    high_open: bool = False,
    whole: bool = False,
    finite: bool = True,
) -> None:
    """Raise unless ``value`` is a number within the bounds.

    Args:
        owner: The class or function whose argument it is.
        name: The argument.
        value: What was given.
        low: Least value allowed; ``None`` for no bound.
        high: Greatest value allowed; ``None`` for no bound.
        low_open: Whether ``low`` itself is excluded.
        high_open: Whether ``high`` itself is excluded.
        whole: Whether it has to be an ``int``, as what counts something.
        finite: Whether infinity is refused, too.

    Raises:
        ConfigurationError: If ``value`` is no such number or out of range.

    Example:
        >>> check_range("Dropout", "p", 1.5, 0, 1)
        Traceback (most recent call last):
        ...
        lightning_cnnopt.core.errors.ConfigurationError: Dropout: p=1.5 is out of range; expected 0 <= p <= 1.
    """
    is_number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    too_low = is_number and low is not None and (value <= low if low_open else value < low)
    too_high = is_number and high is not None and (value >= high if high_open else value > high)
    allowed = is_number and not math.isnan(value) and not (finite and math.isinf(value))
    if allowed and not too_low and not too_high:
        return
    expected = name
    if low is not None:
        expected = f"{low} {'<' if low_open else '<='} {expected}"
    if high is not None:
        expected = f"{expected} {'<' if high_open else '<='} {high}"
    problem = "is out of range" if is_number else f"is not a {'whole ' if whole else ''}number"
    raise ConfigurationError(f"{owner}: {name}={value!r} {problem}; expected {expected}.")


def sides_of(owner: str, name: str, size: int | Sequence[int]) -> tuple[int, int]:
    """Return height and width that an argument says: both, or one number for both.

    Raises:
        ConfigurationError: Naming the argument, where it says something else.

    Example:
        >>> sides_of("Crop", "size", 8), sides_of("Crop", "size", [8, 9])
        ((8, 8), (8, 9))
    """
    if isinstance(size, (list, tuple)) and len(size) != 2:
        raise ConfigurationError(f"{owner}: {name}={size!r}; expected height and width, or one number for both.")
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    for side in (height, width):
        check_range(owner, name, side, 1, whole=True)
    return height, width


def check_choice(owner: str, name: str, value: object, choices: Iterable[str]) -> None:
    """Raise unless ``value`` is one of ``choices``.

    Raises:
        ConfigurationError: Naming the choices and the nearest one.

    Example:
        >>> check_choice("MixUp", "per", "sampel", ["sample", "batch"])
        Traceback (most recent call last):
        ...
        lightning_cnnopt.core.errors.ConfigurationError: MixUp: per='sampel' is unknown; expected one of ...
    """
    choices = list(choices)
    if value in choices:
        return
    listed = ", ".join(repr(choice) for choice in choices)
    raise ConfigurationError(
        f"{owner}: {name}={value!r} is unknown; expected one of {listed}.{did_you_mean(str(value), choices)}"
    )


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return a sentence with the nearest candidates, or an empty string when none is near.

    Example:
        >>> did_you_mean("KaimingNromal", ["KaimingNormal", "XavierNormal"])
        " Did you mean 'KaimingNormal'?"
    """
    by_lower = {candidate.lower(): candidate for candidate in candidates}
    near = [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=2, cutoff=0.7)]
    if near and near[0].lower() == name.lower():
        near = near[:1]
    if not near:
        return ""
    return f" Did you mean {' or '.join(repr(match) for match in near)}?"


def extra_of(module: str) -> str:
    """Return a sentence that says how an optional package is installed, or an empty string for any other module.

    Example:
        >>> extra_of("schedulefree.adamw_schedulefree")
        ' It comes with pip install "lightning-cnnopt[optimizers]".'
        >>> extra_of("numpy")
        ''
    """
    extra = _EXTRAS.get(module.partition(".")[0])
    return f' It comes with pip install "lightning-cnnopt[{extra}]".' if extra else ""
