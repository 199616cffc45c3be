"""An object as ``{class_path, init_args}`` and back.

Checkpoints hold builtins and tensors only, so networks, techniques and optimizers are stored as the *spec* that rebuilds
them. It is the form that YAML uses too: what a config names, a checkpoint stores and ``repr`` shows is one thing.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from torchmetrics import Metric

from lightning_cnnopt.core.errors import ConfigurationError, did_you_mean, extra_of

Spec: TypeAlias = "dict[str, Any]"
T = TypeVar("T")

# A checkpoint may come from a stranger. Names are imported only from packages that this one depends on anyway; anything
# else has to be imported already, by the user's own code (the rule of Lightning 2.6.6 for its own class paths).
_IMPORTABLE = (
    *("lightning_cnnopt.", "torch.nn.", "torch.optim.", "torchvision.", "torchmetrics."),
    *("timm.", "schedulefree.", "prodigyopt."),
)
# Functions run code of their own choosing, so only those whose whole job is to build a network are accepted by name: these,
# and what torchvision and timm register as a model. A module of theirs holds others, such as load_state_dict_from_url.
_FACTORY_FUNCTIONS = ("torchvision.models.get_model", "timm.create_model")


class Configurable:
    """Base of objects that their constructor arguments describe completely.

    The convention (scikit-learn's): every constructor parameter is kept in an attribute of the same name. From that follow
    a ``repr`` that rebuilds the object, equality, and its spec.

    Example:
        >>> class Scale(Configurable):
        ...     def __init__(self, factor: float = 2.0) -> None:
        ...         self.factor = factor
        >>> Scale(3.0)
        Scale(factor=3.0)
        >>> Scale(3.0) == Scale(factor=3.0)
        True
    """

    def init_args(self) -> dict[str, Any]:
        """Return the constructor's arguments, factories and classes in the form of a spec."""
        names = [
            name
            for name, parameter in inspect.signature(type(self).__init__).parameters.items()
            if name != "self" and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        return {name: _plain(getattr(self, name)) for name in names}

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.init_args().items())
        return f"{type(self).__name__}({arguments})"

    def __eq__(self, other: object) -> bool:
        return self is other or (
            type(self) is type(other) and has_spec(self) and has_spec(other) and to_spec(self) == to_spec(other)
        )

    def __hash__(self) -> int:
        return hash(repr(self))


def to_spec(value: Any) -> Any:
    """Return ``value`` as builtins: itself, or the spec that rebuilds it.

    Args:
        value: A builtin, a container of them, a :class:`Configurable`, a class, an importable function, or a
            ``functools.partial`` of either.

    Raises:
        ConfigurationError: If there is no spec for it (a ready-made ``nn.Module``, a lambda).

    Example:
        >>> import torch
        >>> to_spec(functools.partial(torch.nn.LeakyReLU, 0.01))
        Traceback (most recent call last):
        ...
        lightning_cnnopt.core.errors.ConfigurationError: ... pass arguments by name.
        >>> to_spec(functools.partial(torch.nn.LeakyReLU, negative_slope=0.01))
        {'class_path': 'torch.nn.LeakyReLU', 'init_args': {'negative_slope': 0.01}}
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): to_spec(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_spec(item) for item in value]
    if isinstance(value, Configurable):
        return {"class_path": import_path(type(value)), "init_args": to_spec(value.init_args())}
    if isinstance(value, type) or inspect.isfunction(value):
        return {"class_path": import_path(value)}
    if isinstance(value, functools.partial):
        target, keywords = _unwrap_partial(value)
        spec: Spec = {"class_path": import_path(target)}
        if keywords:
            spec["init_args"] = to_spec(keywords)
        return spec
    raise ConfigurationError(
        f"{value!r} can't be stored: it is a ready-made {type(value).__name__}. Pass its class, a functools.partial of the "
        "class, or a {class_path, init_args} dictionary in its place."
    )


def has_spec(value: Any) -> bool:
    """Return whether :func:`to_spec` can describe ``value``."""
    try:
        to_spec(value)
    except ConfigurationError:
        return False
    return True


def is_spec(value: Any) -> bool:
    """Return whether ``value`` looks like ``{class_path, init_args}``."""
    return isinstance(value, Mapping) and "class_path" in value and set(value) <= {"class_path", "init_args"}


def build(value: Any, base: type[T] = object) -> T:  # type: ignore[assignment]
    """Return the object that ``value`` describes; an object that exists is returned as it is.

    Args:
        value: An instance of ``base``, a class, a ``functools.partial``, or a spec.
        base: What the result has to be an instance of.

    Raises:
        ConfigurationError: If the result is no ``base``, or its constructor refuses the arguments.
    """
    if isinstance(value, base) and base is not object:
        return value
    factory = factory_of(value, base)
    try:
        result = factory()
    except TypeError as error:
        raise ConfigurationError(f"{_name(value)} can't be built: {error}.") from error
    if not isinstance(result, base):
        raise ConfigurationError(f"{_name(value)} gives a {type(result).__name__}; expected a {base.__name__}.")
    return result


def rebuild(value: Any) -> Any:
    """Return what :func:`to_spec` was given: techniques as objects, classes and partials as factories, the rest as it is.

    Raises:
        ConfigurationError: If a class is unknown, or not trusted.

    Example:
        >>> import torch
        >>> rebuild(to_spec({"norm": torch.nn.BatchNorm2d, "channels": [3, 4]}))
        {'norm': <class 'torch.nn...BatchNorm2d'>, 'channels': [3, 4]}
    """
    if is_spec(value):
        target = _resolve(value["class_path"], object)
        # a technique inside another is an object; a layer or an optimizer named there is a factory, and stays one
        if isinstance(target, type) and issubclass(target, Configurable):
            return build(value)
        return factory_of(value)
    if isinstance(value, Mapping):
        return {key: rebuild(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rebuild(item) for item in value]
    return value


def listed(value: Any) -> list[Any]:
    """Return the items of a sequence as a list, and one item alone as a list of one.

    Example:
        >>> listed("GELU"), listed(("GELU", "SiLU"))
        (['GELU'], ['GELU', 'SiLU'])
    """
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def factory_of(value: Any, base: type = object) -> Callable[..., Any]:
    """Return a callable with the arguments of ``value`` filled in.

    Args:
        value: A class, a function, a ``functools.partial`` (jsonargparse's included), a spec, or the import path of a
            class (``torch.nn`` may be left out).
        base: For a spec or a path: the class that it has to be a subclass of.

    Raises:
        ConfigurationError: If the class is unknown, of another kind, or not trusted.

    Example:
        >>> import torch
        >>> factory_of("GELU", torch.nn.Module)()
        GELU(approximate='none')
    """
    if isinstance(value, str):
        value = {"class_path": value}
    if is_spec(value):
        target = _resolve(value["class_path"], base)
        arguments = {name: rebuild(item) for name, item in (value.get("init_args") or {}).items()}
        return functools.partial(target, **arguments) if arguments else target
    if isinstance(value, functools.partial):
        target, keywords = _unwrap_partial(value)
        return functools.partial(target, **keywords)
    if callable(value):
        return value
    raise ConfigurationError(
        f"{value!r} names nothing to build; expected a class, a functools.partial of one, or {{class_path, init_args}}."
    )


def without_defaults(value: Any) -> Any:
    """Return a factory that the command line made without the arguments that equal the class's defaults.

    It writes every default out, so what a user said can't be told from what he left; anything else is returned as it is.
    """
    if not _is_of_the_command_line(value):
        return value
    target, keywords = _unwrap_partial(value)
    parameters = inspect.signature(target).parameters
    said = {name: item for name, item in keywords.items() if name not in parameters or parameters[name].default != item}
    return functools.partial(target, **said)


def call_with_known(factory: Callable[..., T], **offered: Any) -> T:
    """Call ``factory`` with those of the offered arguments that it takes and does not have yet.

    So ``MyNet(num_classes)`` and ``ConvNet(num_classes, in_channels, image_size)`` are both built from what the data says,
    by name, never by position.

    Example:
        >>> call_with_known(dict, a=1)
        {'a': 1}
        >>> call_with_known(lambda num_classes: num_classes, num_classes=10, in_channels=3)
        10
    """
    fixed = factory.keywords if isinstance(factory, functools.partial) else {}
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:
        return factory(**offered)
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - set(fixed)
    if any(p.kind is p.VAR_KEYWORD for p in parameters) and inspect.isfunction(getattr(factory, "func", factory)):
        names |= {"num_classes"} - set(fixed)  # torchvision's builders hand it on to the network
    return factory(**{name: value for name, value in offered.items() if name in names})


def import_path(target: Any) -> str:
    """Return the shortest dotted path under which ``target`` is public.

    Example:
        >>> import torch
        >>> import_path(torch.nn.modules.activation.GELU)
        'torch.nn.GELU'
    """
    module, name = target.__module__, target.__qualname__
    if "<" in name:
        raise ConfigurationError(f"{name} can't be stored: it is defined inside a function. Define it in a module.")
    parts = module.split(".")
    for end in range(1, len(parts)):
        package = ".".join(parts[:end])
        if getattr(sys.modules.get(package), name, None) is target and package != "torch":
            return f"{package}.{name}"
    return f"{module}.{name}"


def _unwrap_partial(value: functools.partial) -> tuple[Any, dict[str, Any]]:
    if _is_of_the_command_line(value):
        return value.args[-1], dict(value.keywords)
    if value.args:
        raise ConfigurationError(f"{value!r} can't be stored: its arguments are positional; pass arguments by name.")
    return value.func, dict(value.keywords)


def _is_of_the_command_line(value: Any) -> bool:
    # jsonargparse hands over partial(its own instantiator, …, the class, **arguments): the class is the last positional
    return (
        isinstance(value, functools.partial)
        and bool(value.args)
        and isinstance(value.args[-1], type)
        and not isinstance(value.func, type)
    )


def _resolve(path: str, base: type) -> Any:
    candidates = [path] if "." in path else [f"torch.nn.{path}", f"torch.optim.{path}"]
    for candidate in candidates:
        module_name, _, name = candidate.rpartition(".")
        module = sys.modules.get(module_name)
        if module is None and f"{candidate}.".startswith(_IMPORTABLE):
            try:
                module = importlib.import_module(module_name)
            except ImportError as error:
                raise ConfigurationError(f"{path!r} can't be imported: {error}.{extra_of(module_name)}") from error
        target = getattr(module, name, None)
        if isinstance(target, type):
            # building calls the class, so even inside other arguments it has to be a part of a network or its training
            if not issubclass(target, (torch.nn.Module, torch.optim.Optimizer, Metric, Configurable)):
                raise ConfigurationError(f"{path!r} is no network, optimizer, metric or technique.")
            if not issubclass(target, base):
                raise ConfigurationError(f"{path!r} is a {target.__name__}; expected a subclass of {base.__name__}.")
            return target
        if callable(target):
            if candidate in _FACTORY_FUNCTIONS or _builds_network(target) or target.__module__ == module_name == "__main__":
                return target
            raise ConfigurationError(
                f"{path!r} is a function; by name only classes and the builders of torchvision.models and timm are "
                "accepted. Pass the function itself."
            )
    raise ConfigurationError(f"There is no class {path!r} that is imported.{_near(path, base)}")


def _builds_network(target: Callable[..., Any]) -> bool:
    torchvision_models, timm = sys.modules.get("torchvision.models"), sys.modules.get("timm")
    if torchvision_models is not None:
        get_builder = torchvision_models.get_model_builder
        if any(get_builder(name) is target for name in torchvision_models.list_models()):
            return True
    name = getattr(target, "__name__", "")
    return timm is not None and timm.is_model(name) and timm.model_entrypoint(name) is target


def _near(path: str, base: type) -> str:
    pending: list[type] = [base] if base is not object else [Configurable]
    names: set[str] = set()
    while pending:
        found: list[type] = pending.pop().__subclasses__()
        names.update(cls.__name__ for cls in found if not cls.__name__.startswith("_"))
        pending.extend(found)
    hint = did_you_mean(path.rpartition(".")[2], names)
    return hint or " Import the module that defines it first."


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if (isinstance(value, (type, functools.partial)) or inspect.isfunction(value)) and has_spec(value):
        return to_spec(value)
    return value


def _name(value: Any) -> str:
    if isinstance(value, Mapping):
        return str(value.get("class_path"))
    return getattr(value, "__name__", None) or repr(value)
