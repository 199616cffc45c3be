"""Saying in a config which weights have been trained."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import accumulate

from torch import nn
from typing_extensions import override

from lightning_cnnopt.core.errors import ConfigurationError, did_you_mean
from lightning_cnnopt.core.pretrained import mark_pretrained
from lightning_cnnopt.core.surgery import Edit


class MarkPretrained(Edit):
    """Says of a network, or of parts of it, whether the weights have been trained, so that no initializer draws them anew.

    What :func:`~lightning_cnnopt.core.mark_pretrained` is in Python. It changes nothing else. Layers that later edits put in
    are new and unmarked.

    Args:
        pretrained: Whether the weights are trained; ``False`` lets an initializer draw those of a network that was given
            ready-made or made with weights.
        modules: Shell patterns on the names of modules; a module's name stands for all that is in it. All of the network by
            default.
        but: Patterns of what the opposite is said of, such as ``["fc"]`` for a head to be drawn.

    Raises:
        ConfigurationError: If a pattern matches no module.

    Example:
        >>> from lightning_cnnopt.initialization import XavierUniform
        >>> network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 3))
        >>> MarkPretrained(but=["1"])(network)
        2
        >>> XavierUniform()(network)
        ['1']
    """

    looks_for = "layers with weights"

    def __init__(self, pretrained: bool = True, modules: Sequence[str] = ("*",), but: Sequence[str] = ()) -> None:
        for name, patterns in (("modules", modules), ("but", but)):
            if isinstance(patterns, str):
                raise ConfigurationError(f"MarkPretrained: {name}={patterns!r} is one string; expected a list of patterns.")
        if not modules:
            raise ConfigurationError("MarkPretrained: modules=[] names nothing; give a pattern.")
        self.pretrained = pretrained
        self.modules = list(modules)
        self.but = list(but)

    @override
    def apply(self, network: nn.Module) -> int:
        """Mark the modules and return how many of them hold weights."""
        names = [name for name, _ in network.named_modules()]
        for argument, patterns in (("modules", self.modules), ("but", self.but)):
            for pattern in patterns:
                if not any(fnmatchcase(name, pattern) for name in names):
                    raise ConfigurationError(
                        f"MarkPretrained: {argument}={pattern!r} matches no module of {type(network).__name__}, whose parts "
                        f"are {', '.join(name for name, _ in network.named_children())}.{did_you_mean(pattern, names)}"
                    )
        count = 0
        for name, module in network.named_modules():
            if _is_within(name, self.modules):
                mark_pretrained(module, self.pretrained != _is_within(name, self.but), within=False)
                count += next(module.parameters(recurse=False), None) is not None
        return count


def _is_within(name: str, patterns: Sequence[str]) -> bool:
    # the network itself has no name; what it holds directly is named with all of it
    around = accumulate(name.split("."), "{}.{}".format) if name else [""]
    return any(fnmatchcase(part, pattern) for part in around for pattern in patterns)
