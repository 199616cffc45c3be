"""How the command line reads configs and names: jsonargparse with five habits changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, _typehints
from lightning.pytorch.cli import LightningArgumentParser

from lightning_cnnopt.core.errors import CnnoptError, ConfigurationError
from lightning_cnnopt.messages import chain, explain

# what a short name means when several imported packages have a class of that name (timm's GELU and torch's)
_FIRST = ("lightning_cnnopt.", "torch.nn.", "torch.optim.", "lightning.pytorch.")


class Parser(LightningArgumentParser):
    """Raises what it finds wrong, as one paragraph, in place of printing the usage."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        raise ConfigurationError(explain(message, _options(self))) from ex


def read_config(path: str) -> dict[str, Any]:
    """Return the content of a config as it is written.

    Raises:
        ConfigurationError: If it is no YAML, or holds something other than arguments by name.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 0
        hint = " Indent with spaces; YAML has no tabs." if "\\t" in str(error.problem) else ""
        raise ConfigurationError(f"{path} is no YAML: line {line}: {error.problem}.{hint}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is no YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise ConfigurationError(
            f"{path} holds {_kind(content)}; expected arguments by name, such as trainer: {{max_epochs: 3}}."
        )
    for section in ("trainer", "model", "data"):
        value = content.get(section, {})
        if not isinstance(value, dict) and (section == "trainer" or not isinstance(value, str)):
            raise ConfigurationError(f"{section} in {path} holds {_kind(value)}; expected arguments by name.")
    return content


def _options(parser: ArgumentParser) -> list[str]:
    subcommands = parser._subcommands_action
    parsers = [parser, *(subcommands._name_parser_map.values() if subcommands is not None else ())]
    return sorted({action.dest for one in parsers for action in one._actions})


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _forget_former_class() -> None:
    # When a later config names another class, jsonargparse keeps those arguments of the former one that fit, its defaults
    # included: SGD in place of AdamW would silently decay weights by 0.01. Here a new class starts from its own defaults.
    keep = _typehints.discard_init_args_on_class_path_change

    def discard(parser_or_action: Any, former: Any, value: Any) -> None:
        if former and former.get("init_args") and former["class_path"] != value["class_path"]:
            former["init_args"] = type(former["init_args"])()
        keep(parser_or_action, former, value)

    _typehints.discard_init_args_on_class_path_change = discard


def _replace_lists() -> None:
    # Where two configs give a list of the same length, jsonargparse takes its items for the same ones, and keeps the former
    # arguments of those that have the same class. A list of a later config is another list.
    adapt = _typehints.adapt_typehints

    def adapt_typehints(val: Any, typehint: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(val, list) and isinstance(kwargs.get("prev_val"), list) and not kwargs.get("append"):
            kwargs["prev_val"] = None
        return adapt(val, typehint, *args, **kwargs)

    _typehints.adapt_typehints = adapt_typehints


def _blame_what_was_meant() -> None:
    # Of an argument that takes an object or a list of them, jsonargparse reports first why a list is no object. What a
    # constructor refused tells that the kind was right and what is wrong with it.
    report = _typehints.raise_union_unexpected_value

    def raise_union_unexpected_value(subtypes: Any, val: Any, exceptions: list[Exception]) -> NoReturn:
        report(subtypes, val, sorted(exceptions, key=lambda error: not any(isinstance(e, CnnoptError) for e in chain(error))))

    _typehints.raise_union_unexpected_value = raise_union_unexpected_value


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
_replace_lists()
_blame_what_was_meant()
_prefer_known_packages()
