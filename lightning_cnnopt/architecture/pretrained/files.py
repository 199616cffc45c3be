"""Reading weights from files, and fitting them to a network."""

from __future__ import annotations

import hashlib
import http.client
import os
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import torch
from torch import Tensor, nn

from lightning_cnnopt.architecture.functional import adapt_input_filters
from lightning_cnnopt.core.checkpoints import describe_difference
from lightning_cnnopt.core.errors import CheckpointError

_WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel, DDP and torch.compile put in front of every name
_NAMED_OBJECT = re.compile(r"GLOBAL (\S+) was not an allowed global")  # of torch, where weights_only meets an object


def read_weights(source: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the weights in a file: a state dict, or a dictionary with one under ``state_dict`` or ``model``.

    Args:
        source: Path or URL of a file that ``torch.save`` wrote, or of a ``.safetensors`` one. What was downloaded once is
            taken from the folder of ``torch.hub`` from then on.

    Raises:
        CheckpointError: If the file is missing, can't be fetched, holds no weights, or objects that only its own program reads.
    """
    path = _local(str(source))
    if not path.is_file():
        raise CheckpointError(f"file={str(source)!r} does not exist.")
    try:
        content = _load_safetensors(path) if path.suffix == ".safetensors" else _load_torch(path)
    except CheckpointError:
        raise
    except Exception as error:  # zip, pickle, torch and safetensors all have their own
        named = _NAMED_OBJECT.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if named is not None:
            raise CheckpointError(
                f"file={str(source)!r} holds a {named[1]} beside or in place of weights by name, and reading it would run "
                "code. Save the weights alone, with the program that wrote it: torch.save(model.state_dict(), path)."
            ) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        copy = f" It was fetched to {path}; delete that to fetch it again." if _is_web(str(source)) else ""
        raise CheckpointError(f"file={str(source)!r} holds no weights, or is damaged: {reason.rstrip('.')}.{copy}") from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        keys = ", ".join(map(repr, list(content)[:3])) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(f"file={str(source)!r} holds no weights by name; it has {keys}.")
    weights = dict(content)
    while prefix := next((p for p in _WRAPPERS if all(name.startswith(p) for name in weights)), None):
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def fit_weights(network: nn.Module, weights: Mapping[str, Tensor], head: Sequence[str], stem: Sequence[str], told: str) -> bool:
    """Load weights into a network that may have another head and another number of input channels.

    Args:
        network: Changed in place, all of it or, if an error is raised, nothing.
        weights: By name.
        head: Names of the layers that give the logits. Where theirs is of another shape or missing, the network's stays new.
        stem: Names of the first convolutions, whose filters are adapted to the network's input channels.
        told: What the weights and the network are, for the error: ``"file='x.pth' and resnet18"``.

    Returns:
        Whether the head was loaded, too.

    Raises:
        CheckpointError: If any other weight is missing, left over, of another shape, or not finite, naming the first ones.
    """
    ours, theirs = network.state_dict(), dict(weights)
    for layer in stem:
        name = f"{layer}.weight"
        if name in theirs and name in ours and theirs[name].ndim == 4 and theirs[name].shape[1] != ours[name].shape[1]:
            theirs[name] = adapt_input_filters(theirs[name], ours[name].shape[1])
    names = [f"{layer}.{name}" for layer in head for name in ("weight", "bias")]
    keeps = all(name in theirs and theirs[name].shape == ours[name].shape for name in names if name in ours)
    for name in names:
        if not keeps or name not in ours:
            theirs.pop(name, None)
    expected = {name: value for name, value in ours.items() if keeps or name not in names}
    for name, value in expected.items():  # a counter that files from before torch 0.4.1 lack
        if name.endswith("num_batches_tracked"):
            theirs.setdefault(name, value)
    difference = describe_difference(theirs, expected)
    if difference is not None:
        raise CheckpointError(f"{told} do not belong together: {difference}.")
    broken = [name for name, value in theirs.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise CheckpointError(f"{told}: {len(broken)} weights of the file are not finite, such as {broken[0]!r}.")
    ours.update(theirs)  # keeps the versions of the network's layers, which some of them ask for
    network.load_state_dict(ours)
    return keeps


def _local(source: str) -> Path:
    parsed = urlparse(source)
    if parsed.scheme == "file":
        return Path(url2pathname(parsed.path))
    if not _is_web(source):
        if "://" in source:
            raise CheckpointError(
                f"file={source!r} is an address of another kind; expected a path, http://, https:// or file://."
            )
        return Path(source).expanduser()
    # torch.hub would name the copy by its last part alone, and take one address's model.pth for another's
    name = f"{hashlib.sha256(source.encode()).hexdigest()[:12]}_{Path(parsed.path).name}"
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(source, str(path), progress=False)
        except (OSError, http.client.HTTPException) as error:
            raise CheckpointError(f"file={source!r} can't be fetched: {error}.") from error
    return path


def _is_web(source: str) -> bool:
    return urlparse(source).scheme in ("http", "https")


def _load_torch(path: Path) -> object:
    return torch.load(path, map_location="cpu", weights_only=True)


def _load_safetensors(path: Path) -> object:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise CheckpointError(f"file={str(path)!r} needs the package safetensors: pip install safetensors.") from error
    return load_file(path)
