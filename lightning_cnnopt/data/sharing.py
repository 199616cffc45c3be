"""One copy of a set for all processes of a machine."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_cnnopt.core.errors import DataError
from lightning_cnnopt.core.randomness import gather, rank, world_size
from lightning_cnnopt.data.image_set import ImageSet

_File: TypeAlias = tuple[str, list[tuple[torch.dtype, tuple[int, ...]]]]
"""Its path, and type and shape of each tensor in it."""


def load_once(load: Callable[[], ImageSet | None]) -> ImageSet | None:
    """Return what ``load`` does, called by one process of each machine; the others map what it has written to a file.

    The file is in the temporary folder (``TMPDIR``) and is deleted as soon as all have mapped it, so that nothing is left
    behind; its pages live on in memory, once for all, until the last process ends. Where that folder has no room for it, or
    another process can't see it, processes load by themselves, and a warning says so. Outside of distributed training this is
    ``load()``.

    Every rank has to call it. What it returns must not be written to.
    """
    if world_size() == 1:
        return load()
    leader = gather(platform.node()).index(platform.node())
    loaded: ImageSet | None = None
    written: _File | None = None
    problem = failure = ""
    raised: Exception | None = None
    if leader == rank():
        try:
            loaded = load()
        except Exception as error:  # the others wait for this process, and would wait for ever
            raised, failure = error, str(error) or type(error).__name__
        if loaded is not None:
            try:
                written = _write(loaded)
            except OSError as error:
                problem = f"{tempfile.gettempdir()}: {error.strerror or error}"
    told = gather((written, loaded is not None, problem, failure))
    if raised is not None:
        raise raised
    for _, _, _, failure in told:
        if failure:
            raise DataError(failure)
    written, exists, problem, _ = told[leader]
    if not exists:
        return None
    shared = None if written is None else _map(*written)
    failed = [here for here, found in enumerate(gather(shared is not None)) if not found]  # and nobody is about to open it
    if leader == rank() and written is not None:
        os.unlink(written[0])
        if not failed:
            loaded = None
            _give_back()
    if failed:
        rank_zero_warn(
            f"Processes {failed} of this training could not share one copy of the data "
            f"({problem or 'they do not see the file'}) and load their own. TMPDIR names another folder for it."
        )
    if shared is not None:
        return shared
    return loaded if loaded is not None else load()


def _write(data: ImageSet) -> _File:
    """Write images, then targets, to a new file; return it with their types and shapes."""
    tensors = [data.images.contiguous(), data.targets.contiguous()]
    handle, name = tempfile.mkstemp(prefix="cnnopt-", suffix=".set")
    try:
        with os.fdopen(handle, "wb") as file:
            for tensor in tensors:
                file.write(b"\0" * _padding(file.tell()))
                file.write(tensor.numpy().data)
    except BaseException:
        os.unlink(name)
        raise
    return name, [(tensor.dtype, tuple(tensor.shape)) for tensor in tensors]


def _map(name: str, kinds: list[tuple[torch.dtype, tuple[int, ...]]]) -> ImageSet | None:
    if not Path(name).is_file():
        return None
    size = os.path.getsize(name)
    # private, so that a process that writes to its images by mistake does not change those of the others
    whole = torch.from_file(name, shared=False, size=size, dtype=torch.uint8)
    tensors: list[Tensor] = []
    begin = 0
    for dtype, shape in kinds:
        begin += _padding(begin)
        end = begin + math.prod(shape) * dtype.itemsize
        tensors.append(whole[begin:end].view(dtype).view(shape))
        begin = end
    return ImageSet(*tensors)


def _give_back() -> None:
    """Give freed memory back to the system. glibc keeps blocks below 32 MB, such as those of a set that comes in parts."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _padding(place: int) -> int:
    return -place % 16
