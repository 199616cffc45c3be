"""Computing blocks twice in place of keeping what they computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from fnmatch import fnmatchcase
from functools import partial
from itertools import accumulate
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_cnnopt.core.errors import ConfigurationError, did_you_mean
from lightning_cnnopt.core.graph import NetworkGraph
from lightning_cnnopt.core.randomness import Stream


def checkpoint_activations(network: nn.Module, modules: Sequence[str] | None = None) -> int:
    """Let blocks of a network keep their inputs alone for backpropagation, and compute again what is in between.

    Gradients, running statistics and random draws are those of the network as it was, to the bit: the second computation
    draws what the first one drew and moves no statistics. Names, types and weights stay.

    Args:
        network: Changed in place.
        modules: Shell patterns on the names of the blocks. By default every residual block; in a network without any, the
            innermost modules with convolutions, if there are several.

    Returns:
        How many blocks there are.

    Raises:
        ConfigurationError: If a pattern matches no module.

    Reference:
        Chen, Xu, Zhang & Guestrin, "Training Deep Nets with Sublinear Memory Cost", 2016.

    Example:
        >>> import torchvision
        >>> checkpoint_activations(torchvision.models.resnet18())
        8
    """
    chosen = _blocks(network) if modules is None else _matching(network, modules)
    outermost = [name for name in chosen if not any(name.startswith(f"{other}.") for other in chosen)]
    count = 0
    for name in outermost:
        block = network.get_submodule(name)
        around = [network.get_submodule(part) for part in accumulate(name.split("."), "{}.{}".format)]
        if not any(isinstance(vars(module).get("forward"), _Recomputed) for module in (*around, *block.modules())):
            # an attribute of this one object: no name, type or hook of the network changes, as it would in a wrapper
            block.forward = _Recomputed(block)
            count += 1
    return count


class _Recomputed:
    """Stands for the ``forward`` of a block. A class, so that networks with it are copied and pickled."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self.inner: Callable[..., Any] | None = vars(block).get("forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        run = self.inner if self.inner is not None else partial(type(self.block).forward, self.block)
        if not torch.is_grad_enabled() or any(isinstance(value, torch.fx.Proxy) for value in args):
            return run(*args, **kwargs)
        # a caller may go on to write into a list that it passed: torchvision's dense blocks append to it
        args = tuple(list(value) if isinstance(value, list) else value for value in args)
        if torch.compiler.is_compiling():  # the compiler itself updates state once
            return checkpoint(run, *args, use_reentrant=False, **kwargs)
        return checkpoint(run, *args, use_reentrant=False, context_fn=partial(_contexts, self.block), **kwargs)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    state = _State(block)
    return state.first(), state.second()


class _State:
    """What a block's computation depends on besides its weights and torch's own random state: buffers and our streams."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        self.buffers: list[dict[str, Tensor | None]] = []
        self.draws: list[Tensor] = []

    @contextmanager
    def first(self) -> Iterator[None]:
        self.buffers = [_copied(module._buffers) for module in self.block.modules()]
        self.draws = [generator.get_state() for generator in self._generators()]
        yield

    @contextmanager
    def second(self) -> Iterator[None]:
        modules, generators = list(self.block.modules()), self._generators()
        after = [module._buffers for module in modules], [generator.get_state() for generator in generators]
        for module, buffers in zip(modules, self.buffers, strict=True):
            module._buffers = _copied(buffers)
        for generator, draws in zip(generators, self.draws, strict=True):
            generator.set_state(draws)
        try:
            yield
        finally:
            for module, buffers in zip(modules, after[0], strict=True):
                module._buffers = buffers
            for generator, draws in zip(generators, after[1], strict=True):
                generator.set_state(draws)

    def _generators(self) -> list[torch.Generator]:
        values = [value for module in self.block.modules() for value in vars(module).values()]
        streams = [value.generator for value in values if isinstance(value, Stream)]
        return streams + [value for value in values if isinstance(value, torch.Generator)]


def _copied(buffers: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {name: None if value is None else value.detach().clone() for name, value in buffers.items()}


def _blocks(network: nn.Module) -> list[str]:
    blocks = [branch.block for branch in NetworkGraph(network).residual_branches() if branch.block]
    if not blocks:
        blocks = [
            name
            for name, module in network.named_modules()
            if name and any(isinstance(child, nn.Conv2d) for child in module.children())
        ]
        blocks = [name for name in blocks if not any(other.startswith(f"{name}.") for other in blocks)]
        if len(blocks) == 1:  # computing everything again needs the memory of everything
            return []
    return list(dict.fromkeys(blocks))


def _matching(network: nn.Module, patterns: Sequence[str]) -> list[str]:
    names = [name for name, _ in network.named_modules() if name]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigurationError(
                f"CheckpointActivations: modules={pattern!r} matches no module of {type(network).__name__}, whose parts are "
                f"{', '.join(name for name, _ in network.named_children())}.{did_you_mean(pattern, names)}"
            )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
