"""A LightningModule that its checkpoints rebuild, whatever arguments its class takes."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import IO, Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.model_helpers import _restricted_classmethod
from typing_extensions import Self, override

from lightning_cnnopt.core import checkpoints
from lightning_cnnopt.core.errors import CheckpointError, ConfigurationError
from lightning_cnnopt.core.spec import rebuild


class Replayable(LightningModule):
    """Base of modules whose checkpoints hold all that their constructor was given.

    What counts are the arguments of the most derived class, as the caller gave them: a subclass may add arguments, take
    fewer, or hand fixed values to the constructor of its base. They are stored as builtins and tensors, and loading gives
    the constructor classes, ``functools.partial`` and techniques again, as it had them the first time.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Keep the arguments as hyperparameters, before any constructor changes them."""
        module = super().__new__(cls)
        try:
            given = _given(cls, args, kwargs)
        except TypeError:  # copying and unpickling give none, and wrong ones are for __init__ to refuse
            return module
        checkpoints.refuse_unstored(cls.__name__, given)
        module.save_hyperparameters(checkpoints.storable_arguments(given), logger=False)
        return module

    @override
    @_restricted_classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path | IO[bytes],
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = None,
        **kwargs: Any,
    ) -> Self:
        """Return the module of a checkpoint, rebuilt from its stored arguments. Objects are never unpickled by default.

        Args:
            checkpoint_path: Path, URL or open file.
            map_location: Where the tensors go, as in ``torch.load``.
            hparams_file: YAML or CSV with arguments that replace the stored ones.
            strict: Whether names of weights have to match.
            weights_only: ``False`` unpickles objects. Only for checkpoints you trust.
            **kwargs: Arguments of the constructor, in place of the stored ones.

        Raises:
            CheckpointError: If it is a checkpoint of another class, or an argument could not be stored.
        """
        checkpoint = checkpoints.read(checkpoint_path)
        checkpoints.check_class(cls, checkpoint)
        arguments: dict[str, Any] = {}
        if hparams_file is None:
            stored = dict(checkpoint.get(cls.CHECKPOINT_HYPER_PARAMS_KEY, {}))
            arguments = {name: _rebuilt(cls, name, value) for name, value in stored.items() if name not in kwargs}
        if "edits" not in kwargs:
            checkpoints.refuse_unstored(cls.__name__, {"edits": checkpoints.added_edits(checkpoint)})
        return super().load_from_checkpoint(
            checkpoint_path,
            map_location=map_location,
            hparams_file=hparams_file,
            strict=strict,
            weights_only=True if weights_only is None else weights_only,
            **{**arguments, **kwargs},
        )


def _given(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    signature = inspect.signature(cls.__init__)  # type: ignore[misc]
    bound = signature.bind(None, *args, **kwargs)
    bound.apply_defaults()
    given: dict[str, Any] = {}
    for name, parameter in list(signature.parameters.items())[1:]:
        if parameter.kind is parameter.VAR_POSITIONAL:
            if bound.arguments[name]:
                raise ConfigurationError(
                    f"{cls.__name__} takes *{name}, and what is given there has no name under which a checkpoint could hold "
                    "it; pass them by name."
                )
        elif parameter.kind is parameter.VAR_KEYWORD:
            given.update(bound.arguments[name])
        else:
            given[name] = bound.arguments[name]
    return given


def _rebuilt(cls: type, name: str, value: Any) -> Any:
    try:
        return rebuild(value)
    except ConfigurationError as error:
        raise CheckpointError(
            f"The argument {name}= of {cls.__name__} can't be rebuilt from the checkpoint: {error} Or pass {name}= to "
            "load_from_checkpoint."
        ) from error
