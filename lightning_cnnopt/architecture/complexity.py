"""What each layer of a network costs: parameters, multiply-accumulates, memory for backpropagation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.core.modes import modes_kept

_PARAMETRIZATIONS = ".parametrizations."


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


# torch's counter knows attention on CUDA alone
_ALSO_COUNTED = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs. A row of :func:`complexity`."""

    layer: str
    """Dotted name; of the network itself, for what it computes outside its layers, ``"(network)"``."""
    kind: str
    """Its class."""
    output: tuple[int, ...]
    """Shape of its output, the batch included; empty where it is not called as a module or does not return tensors."""
    parameters: int
    """Parameters of its own, those of its children not counted."""
    trainable: int
    """Those of them that are trained."""
    macs: int
    """Multiply-accumulates for one image."""
    activation_bytes: int
    """Bytes that autograd keeps for the whole batch, from its computation until the backward pass."""


def complexity(network: nn.Module, images: Tensor) -> list[LayerCost]:
    """Return what each layer of a network costs in a training step, in the order of computation.

    Multiply-accumulates are those of convolutions, matrix products and attention, half of what torch's ``FlopCounterMode``
    counts; elementwise work, normalization and pooling count as none. The memory is what autograd saves in the forward pass,
    each storage once, at the layer that saves it first; weights and buffers are not counted, the images are.
    What belongs to no layer (an addition, an activation called as a function) stands at the module around it.

    The network runs once, in training mode, and is left as it was: mode, running statistics and random state included.

    Args:
        network: Any module that takes images and returns tensors.
        images: (N, C, H, W), as the network takes them.

    Returns:
        A row for each module that has parameters of its own, computes or keeps something, or has no children.

    Raises:
        ConfigurationError: If the network does not take such images.

    Example:
        >>> rows = complexity(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU()), torch.zeros(2, 3, 6, 6))
        >>> [(row.kind, row.parameters, row.macs, row.activation_bytes) for row in rows]
        [('Conv2d', 216, 3456, 864), ('ReLU', 0, 0, 1024)]
    """
    watch = _Watch(network)
    with left_as_it_was(network), watched(network, watch.enter, watch.leave), watch:
        network.train()
        with torch.enable_grad():
            run_on(network, images)
    return watch.rows(len(images))


class _Watch:
    """Adds up what the innermost module at work computes and keeps."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.order: list[str] = []
        self.outputs: dict[str, tuple[int, ...]] = {}
        self.flops: dict[str, int] = {}
        self.bytes: dict[str, int] = {}
        self._stack: list[str] = []
        self._counted = 0
        self._counter = FlopCounterMode(display=False, custom_mapping=_ALSO_COUNTED)
        self._saving = saved_tensors_hooks(self._save, lambda tensor: tensor)
        self._known = {
            tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers()) if tensor.numel()
        }
        self._kept: list[Tensor] = []  # so that no storage is given to another tensor, and counted as the same

    def __enter__(self) -> None:
        self._counter.__enter__()
        self._saving.__enter__()

    def __exit__(self, *exception: Any) -> None:
        self._saving.__exit__(*exception)
        self._counter.__exit__(*exception)

    def enter(self, name: str) -> None:
        self._settle()
        self._stack.append(name)
        if name not in self.order:
            self.order.append(name)

    def leave(self, name: str, output: Any) -> None:
        self._settle()
        self._stack.pop()
        first = output[0] if isinstance(output, (tuple, list)) and output else output
        self.outputs[name] = tuple(first.shape) if isinstance(first, Tensor) else ()

    def _settle(self) -> None:
        total = self._counter.get_total_flops()
        if self._stack:
            self.flops[self._stack[-1]] = self.flops.get(self._stack[-1], 0) + total - self._counted
        self._counted = total

    def _save(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if self._stack and storage.data_ptr() not in self._known:
            self._known.add(storage.data_ptr())
            self._kept.append(tensor.detach())
            self.bytes[self._stack[-1]] = self.bytes.get(self._stack[-1], 0) + storage.nbytes()
        return tensor

    def rows(self, batch_size: int) -> list[LayerCost]:
        modules = dict(self.network.named_modules())
        order = self.order + [name for name in modules if name not in self.order]
        costs: dict[str, list[int]] = {}
        seen: set[int] = set()
        for name in order:
            own = [p for p in modules[name].parameters(recurse=False) if id(p) not in seen]
            seen |= {id(parameter) for parameter in own}
            # a parametrization is how a layer keeps its weight, and no layer
            cost = costs.setdefault(name.partition(_PARAMETRIZATIONS)[0].removesuffix(".parametrizations"), [0, 0, 0, 0])
            values = (
                sum(p.numel() for p in own),
                sum(p.numel() for p in own if p.requires_grad),
                self.flops.get(name, 0),
                self.bytes.get(name, 0),
            )
            cost[:] = [old + new for old, new in zip(cost, values, strict=True)]
        return [
            LayerCost(
                name or "(network)",
                type(modules[name]).__name__.removeprefix("Parametrized"),
                self.outputs.get(name, ()),
                parameters,
                trainable,
                flops // 2 // batch_size,
                kept,
            )
            for name, (parameters, trainable, flops, kept) in costs.items()
            if parameters or flops or kept or _is_a_layer(modules[name])
        ]


def _is_a_layer(module: nn.Module) -> bool:
    return not isinstance(module, nn.Identity) and next(module.children(), None) is None


@contextmanager
def watched(network: nn.Module, enter: Callable[[str], None], leave: Callable[[str, Any], None]) -> Iterator[None]:
    """Call ``enter`` with the name of each module when its forward pass begins, ``leave`` with name and output at its end."""
    handles = []
    for name, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(lambda _, args, name=name: enter(name), prepend=True))
        handles.append(module.register_forward_hook(lambda _, args, output, name=name: leave(name, output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def left_as_it_was(network: nn.Module) -> Iterator[None]:
    """Put back the mode of each module, the buffers, and torch's random state. Nothing runs compiled: no hook would see it."""
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    cuda = list({buffer.device for buffer in (*network.parameters(), *network.buffers()) if buffer.is_cuda})
    with modes_kept(network), torch.random.fork_rng(devices=cuda), torch.compiler.set_stance("force_eager"):
        try:
            yield
        finally:
            with torch.no_grad():
                for name, buffer in network.named_buffers():
                    buffer.copy_(buffers[name])


def run_on(network: nn.Module, images: Tensor) -> Any:
    """Run a network on images.

    Raises:
        ConfigurationError: If it does not take them, with its own words.
    """
    try:
        return network(images)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ConfigurationError(
            f"{type(network).__name__} does not take images of shape {tuple(images.shape)} and type {images.dtype}: "
            f"{str(error).splitlines()[0]}"
        ) from error
