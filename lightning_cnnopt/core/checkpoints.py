"""What a checkpoint says of the module it belongs to, and whether module, data and checkpoint fit each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_cnnopt._version import __version__
from lightning_cnnopt.core.errors import CheckpointError, ConfigurationError
from lightning_cnnopt.core.modes import modes_kept
from lightning_cnnopt.core.spec import build, factory_of, has_spec, import_path, is_spec, to_spec, without_defaults
from lightning_cnnopt.core.surgery import Edit

FORMAT = 1
"""Raised when checkpoints written by this version can't be read by older ones."""

_KEY = "lightning_cnnopt"
_NOT_STORED = "not_stored"


def storable_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return constructor arguments as builtins and tensors; what has no spec is replaced by a note that it was there."""
    return {name: storable(value) for name, value in arguments.items()}


def storable(value: Any) -> Any:
    """Return one argument as builtins and tensors, or a note that it could not be stored."""
    value = without_defaults(value)  # what the command line filled in was not said, and is not stored as if it were
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, (list, tuple)) and not has_spec(value):
        return [storable(item) for item in value]
    return to_spec(value) if has_spec(value) else {_NOT_STORED: type(value).__name__}


def refuse_unstored(owner: str, arguments: dict[str, Any]) -> None:
    """Raise if an argument is the note that a checkpoint could not hold it.

    Raises:
        CheckpointError: Naming the arguments to pass to ``load_from_checkpoint``.
    """
    missing = {name: kind for name, value in arguments.items() if (kind := _note(value)) is not None}
    if missing:
        listed = ", ".join(f"{name}= (a ready-made {kind})" for name, kind in missing.items())
        raise CheckpointError(
            f"The checkpoint does not hold {listed} of {owner}; pass it to load_from_checkpoint. A class, a "
            "functools.partial or "
            "{class_path, init_args} in its place would have been stored."
        )


def sign(module: Any, checkpoint: dict[str, Any]) -> None:
    """Write class, version and added edits of ``module`` into a checkpoint, and its hyperparameters as builtins."""
    checkpoint[_KEY] = {
        "format": FORMAT,
        "version": __version__,
        "class_path": _class_path(type(module)),
        "edits": storable(module.added_edits),
    }
    key = module.CHECKPOINT_HYPER_PARAMS_KEY
    if key in checkpoint:
        # a subclass may have called save_hyperparameters(): with objects, where weights_only loading accepts builtins alone,
        # or on the command line, where Lightning stores how to parse the arguments once more
        kept = {name: value for name, value in checkpoint[key].items() if name not in ("_class_path", "_instantiator")}
        checkpoint[key] = storable_arguments(kept)
        _leave_weights_to_checkpoint(module, checkpoint[key])


def replay_edits(module: Any, checkpoint: dict[str, Any]) -> None:
    """Apply the edits that were added to a checkpoint's network and that this one lacks."""
    for stored in added_edits(checkpoint):
        if _note(stored) is None:
            module.add_edit(build(stored, Edit))  # type: ignore[type-abstract]


def added_edits(checkpoint: dict[str, Any]) -> list[Any]:
    """Return what was added to a checkpoint's network after its constructor, as specs."""
    return list(checkpoint.get(_KEY, {}).get("edits", []))


def check_class(cls: type, checkpoint: dict[str, Any]) -> None:
    """Raise if a checkpoint's class is not ``cls`` or a base of it: what that class changes would be lost.

    Classes are compared by name. The module that a class is defined in goes by other names in other programs, and by
    ``__main__`` in the script that defines it.

    Raises:
        CheckpointError: Naming both classes.
    """
    path = checkpoint.get(_KEY, {}).get("class_path")
    name = str(path).rpartition(".")[2]
    if path is not None and name not in [base.__name__ for base in cls.__mro__]:
        raise CheckpointError(
            f"The checkpoint is one of {path}, and {_class_path(cls)} is no subclass of it, so what that class changes would "
            f"be lost. Load it with {name}.load_from_checkpoint, or resume it with a {name}; for its weights alone, "
            'use load_state_dict(torch.load(path)["state_dict"]).'
        )


def check_signature(module: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Raise unless a checkpoint's format, class and weights fit ``module``.

    Raises:
        CheckpointError: For a newer format, another class, or weights of other names or shapes, naming the first ones.
    """
    signature = checkpoint.get(_KEY, {})
    if signature.get("format", FORMAT) > FORMAT:
        raise CheckpointError(
            f"The checkpoint was written by lightning-cnnopt {signature.get('version')} in format "
            f"{signature['format']}; this is "
            f"{__version__}, which reads format {FORMAT}. Upgrade to load it."
        )
    check_class(type(module), checkpoint)
    if not module.strict_loading:
        return
    difference = describe_difference(checkpoint["state_dict"], module.state_dict())
    if difference is None:
        return
    raise CheckpointError(
        f"The checkpoint is one of {signature.get('class_path', 'a module that is not of this package')} and does not fit this "
        f"{_class_path(type(module))}: {difference}. Use the config it was trained with, or load_from_checkpoint, "
        "which rebuilds the network."
    )


def describe_difference(theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> str | None:
    """Return how two sets of weights differ in names and shapes, naming the first ones; ``None`` if they do not.

    Example:
        >>> describe_difference({"a": torch.zeros(1), "b": torch.zeros(2)}, {"a": torch.zeros(3)})
        "'a' is (1,) there and (3,) here; 1 have no place here, such as 'b'"
    """
    missing, extra = [k for k in ours if k not in theirs], [k for k in theirs if k not in ours]
    shapes = [k for k in ours if k in theirs and ours[k].shape != theirs[k].shape]
    told = []
    if shapes:
        told.append(f"{shapes[0]!r} is {tuple(theirs[shapes[0]].shape)} there and {tuple(ours[shapes[0]].shape)} here")
    if missing:
        told.append(f"{len(missing)} weights are missing there, such as {missing[0]!r}")
    if extra:
        told.append(f"{len(extra)} have no place here, such as {extra[0]!r}")
    return "; ".join(told) or None


def check_data_fits(module: Any, data: Any) -> None:
    """Raise if a data module states another number of classes or channels than ``module`` has, or if ours normalizes, too.

    Raises:
        ConfigurationError: Naming both sides.
    """
    if hasattr(data, "pixel_statistics") and getattr(data, "normalize", None) is True:
        raise ConfigurationError(
            f"{type(data).__name__}(normalize=True) hands out normalized images and {type(module).__name__} "
            "normalizes them again. "
            "Leave normalize to its default with it."
        )
    for name in ("num_classes", "in_channels"):
        theirs, ours = getattr(data, name, None), getattr(module, name)
        if theirs is not None and theirs != ours:
            raise ConfigurationError(
                f"{type(data).__name__} has {name}={theirs} and {type(module).__name__} was built with "
                f"{name}={ours}. In Python, pass "
                "**data.model_args(); the command line does so by itself."
            )


def check_network_fits(module: Any) -> None:
    """Raise unless the network takes images of the stated size and gives one logit per class.

    It runs once on two black images, in evaluation mode: nothing is drawn and no statistics move.

    Raises:
        ConfigurationError: Naming network, input and what went wrong.
    """
    shape = (2, module.in_channels, *module.image_size)
    try:
        # a network that was compiled for an earlier fit would be compiled again, for two images
        with modes_kept(module), torch.no_grad(), torch.compiler.set_stance("force_eager"):
            module.eval()
            logits = module(torch.zeros(shape, dtype=torch.uint8, device=module.device))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigurationError(f"{_network(module)} does not take images of shape {shape}: {reason}") from error
    if tuple(logits.shape) != (2, module.num_classes):
        raise ConfigurationError(
            f"{_network(module)} gives outputs of shape {tuple(logits.shape)} for 2 images; expected (2, "
            f"{module.num_classes}), one logit "
            "per class."
        )


def check_criterion_fits(module: Any, mixing: object | None = None) -> None:
    """Raise unless the loss is one for the task, takes its logits and targets, and gives one number.

    It runs once on zeros, in evaluation mode, and once more on probabilities where batches are mixed. A criterion may say in
    an attribute ``tasks`` which ones it is for.

    Args:
        module: The LightningModule.
        mixing: What makes targets of probabilities, if something does.

    Raises:
        ConfigurationError: Naming criterion, targets and what went wrong.
    """
    # of labels, torch's would make one softmax over a batch's answers, or shares of one class, and train on that
    default = ("multiclass",) if isinstance(module.criterion, nn.CrossEntropyLoss) else (module.task,)
    tasks = getattr(module.criterion, "tasks", default)
    if module.task not in tasks:
        raise ConfigurationError(
            f"criterion={module.criterion!r} is a loss for the task {' or '.join(tasks)}, and the model has "
            f"task={module.task!r}."
        )
    classes = module.num_classes
    count = 2 if classes != 2 else 3  # other than classes: a criterion that broadcasts one against the other shows
    shape = (count,) if module.task == "multiclass" else (count, classes)
    logits = torch.zeros(count, classes, device=module.device)
    was_training = module.criterion.training
    module.criterion.eval()
    try:
        with torch.no_grad():
            loss = module.loss(logits, torch.zeros(shape, dtype=torch.long, device=module.device))
            if mixing is not None:
                try:
                    module.loss(logits, torch.full_like(logits, 1 / classes))
                except ConfigurationError as error:
                    raise ConfigurationError(
                        f"{mixing!r} makes targets of probabilities, and {error}. Take a criterion that has them, such as "
                        "CrossEntropyLoss, or leave mixing away."
                    ) from error
    finally:
        module.criterion.train(was_training)
    if loss.ndim:
        raise ConfigurationError(
            f"criterion={module.criterion!r} gives a loss of shape {tuple(loss.shape)} for {count} images; expected one "
            "number, as reduction='mean' gives."
        )


def _leave_weights_to_checkpoint(module: LightningModule, arguments: dict[str, Any]) -> None:
    # a network that reads published weights says how it is rebuilt where the checkpoint brings them
    network, spec = getattr(module, "network", None), arguments.get("network")
    changed: dict[str, Any] | None = getattr(network, "rebuilt_with", None)
    if changed and is_spec(spec):
        assert spec is not None
        factory = factory_of(spec, nn.Module)
        if getattr(factory, "func", factory) is type(network):
            arguments["network"] = {**spec, "init_args": {**(spec.get("init_args") or {}), **changed}}


def _network(module: Any) -> str:
    network: nn.Module = module.network
    return f"The network {type(network).__name__}"


def _note(value: Any) -> str | None:
    if isinstance(value, dict) and set(value) == {_NOT_STORED}:
        return str(value[_NOT_STORED])
    if isinstance(value, (list, tuple)):
        return next((kind for item in value if (kind := _note(item)) is not None), None)
    return None


def _class_path(cls: type) -> str:
    try:
        return import_path(cls)
    except ConfigurationError:
        return cls.__qualname__


def read(source: str | Path | IO[bytes]) -> dict[str, Any]:
    """Return the content of a checkpoint, without unpickling objects.

    Args:
        source: Path or URL, or an open file, which is left where it was.

    Raises:
        CheckpointError: If it is no checkpoint, or is damaged.
        OSError: If it can't be read.
    """
    try:
        if not isinstance(source, (str, Path)):
            start = source.tell()
            content = torch.load(source, weights_only=True, map_location="cpu")
            source.seek(start)
        elif Path(source).is_file():
            content = torch.load(source, weights_only=True, map_location="cpu", mmap=True)
        else:
            with get_filesystem(source).open(str(source), "rb") as stream:
                content = torch.load(stream, weights_only=True, map_location="cpu")
    except OSError:
        raise
    except Exception as error:  # zip, pickle and torch all have their own
        raise CheckpointError(
            f"{source} is no checkpoint, or is damaged: {(str(error) or type(error).__name__).splitlines()[0]}"
        ) from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise CheckpointError(f"{source} is no checkpoint of Lightning: it holds no state_dict.")
    return content


def model_config(checkpoint: dict[str, Any], without: set[str]) -> dict[str, Any] | None:
    """Return the model of a checkpoint as ``{class_path, init_args}``, or ``None`` if the checkpoint is not one of ours.

    Args:
        checkpoint: Its content.
        without: Arguments to leave out.

    Raises:
        CheckpointError: If it holds a part that was not stored.
    """
    signature, arguments = checkpoint.get(_KEY), checkpoint.get(LightningModule.CHECKPOINT_HYPER_PARAMS_KEY, {})
    if signature is None:
        return None
    refuse_unstored(signature["class_path"], arguments)
    return {
        "class_path": signature["class_path"],
        "init_args": {name: value for name, value in arguments.items() if name not in without},
    }
