"""Kinds of dropout that change a network's structure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from lightning_cnnopt.core.errors import ConfigurationError, check_range
from lightning_cnnopt.core.surgery import Edit
from lightning_cnnopt.dropout.functional import Place, add_drop_connect, add_dropout, add_stochastic_depth, check_where
from lightning_cnnopt.dropout.layers import FittingDropBlock2d, check_block_size

MapPlace = Literal["convolutions", "existing"]
"""Where what drops parts of a map can go by a rule: in front of the head there are no maps."""


class Dropout(Edit):
    """Drops single units, torch's ``nn.Dropout``; see :func:`add_dropout`.

    Args:
        p: Probability of dropping a unit, 1 minus the keep probability. 0.5, the paper's for dense layers.
        where: ``"head"``, in front of the last layer with weights; ``"convolutions"``; ``"existing"``, which changes the rate
            of what is there; or shell patterns on the names of modules, behind which it goes.

    Example:
        >>> import torchvision
        >>> Dropout(0.2)(torchvision.models.resnet18())
        1
    """

    looks_for = "places for dropout"

    def __init__(self, p: float = 0.5, where: Place | Sequence[str] = "head") -> None:
        check_range("Dropout", "p", p, 0, 1, high_open=True)
        check_where("Dropout", where, ("head", "convolutions", "existing"))
        self.p = p
        self.where = where if isinstance(where, str) else list(where)

    def apply(self, network: nn.Module) -> int:
        """Put the layers in, or change them, and return how many there are."""
        return add_dropout(network, nn.Dropout(self.p), self.where)


class SpatialDropout(Edit):
    """Drops whole channels of maps, torch's ``nn.Dropout2d``; see :func:`add_dropout`.

    Neighbouring pixels say nearly the same, so dropping single ones takes little away.

    Args:
        p: Probability of dropping a channel. 0.1; with a layer behind every convolution, rates add up.
        where: ``"convolutions"``, behind each with its normalization and activation; ``"existing"``; or shell patterns on the
            names of modules, behind which it goes.

    Reference:
        Tompson et al., "Efficient Object Localization Using Convolutional Networks", 2015.

    Example:
        >>> import torchvision
        >>> SpatialDropout(0.1, ["layer4"])(torchvision.models.resnet18())
        1
    """

    looks_for = "places for dropout of channels"

    def __init__(self, p: float = 0.1, where: MapPlace | Sequence[str] = "convolutions") -> None:
        check_range("SpatialDropout", "p", p, 0, 1, high_open=True)
        check_where("SpatialDropout", where, ("convolutions", "existing"))
        self.p = p
        self.where = where if isinstance(where, str) else list(where)

    def apply(self, network: nn.Module) -> int:
        """Put the layers in, or change them, and return how many there are."""
        return add_dropout(network, nn.Dropout2d(self.p), self.where, "spatial_dropout")


class DropBlock(Edit):
    """Drops square blocks of maps, torchvision's ``DropBlock2d``; see :func:`add_dropout`.

    With b the block's size, blocks begin at random with the rate γ = p · HW / (b² (H − b + 1)(W − b + 1)), so that about p of a
    map is dropped, and the rest is multiplied so that it makes up for that.

    Args:
        p: Probability of dropping an element; an upper bound, since blocks overlap. 0.1, the paper's keep probability of 0.9.
        block_size: Odd side of a block, in elements of the map. 7, the paper's for ImageNet; smaller maps get smaller blocks.
        where: ``"convolutions"``, behind each with its normalization and activation; ``"existing"``; or shell patterns on the
            names of modules, behind which it goes. The paper takes the last two groups of a ResNet.

    Reference:
        Ghiasi, Lin & Le, "DropBlock: A regularization method for convolutional networks", 2018.

    Example:
        >>> import torchvision
        >>> DropBlock(0.1, 7, ["layer[34].?"])(torchvision.models.resnet18())
        4
    """

    looks_for = "places for DropBlock"

    def __init__(self, p: float = 0.1, block_size: int = 7, where: MapPlace | Sequence[str] = "convolutions") -> None:
        check_range("DropBlock", "p", p, 0, 1, high_open=True)
        check_block_size("DropBlock", block_size)
        check_where("DropBlock", where, ("convolutions", "existing"))
        self.p = p
        self.block_size = block_size
        self.where = where if isinstance(where, str) else list(where)

    def apply(self, network: nn.Module) -> int:
        """Put the layers in, or change them, and return how many there are."""
        return add_dropout(network, FittingDropBlock2d(self.p, self.block_size), self.where, "drop_block")


class DropConnect(Edit):
    """Drops weights, anew in every pass; see :func:`add_drop_connect`.

    Args:
        p: Probability of dropping a weight. 0.5, the paper's.
        layers: Shell patterns on the names of modules or of their classes; of what they match, the plain ``nn.Linear`` and
            ``nn.Conv2d`` are changed. By default the dense layers.

    Example:
        >>> import torchvision
        >>> DropConnect(0.5)(torchvision.models.vgg11(num_classes=2))
        3
    """

    looks_for = "plain nn.Linear or nn.Conv2d of these names"

    def __init__(self, p: float = 0.5, layers: Sequence[str] = ("Linear",)) -> None:
        check_range("DropConnect", "p", p, 0, 1, high_open=True)
        if isinstance(layers, str) or not layers:
            raise ConfigurationError(f"DropConnect: layers={layers!r} must be a list of patterns.")
        self.p = p
        self.layers = list(layers)

    def apply(self, network: nn.Module) -> int:
        """Change the layers and return how many there are."""
        return add_drop_connect(network, self.p, self.layers)


class StochasticDepth(Edit):
    """Drops residual branches, each with a rate that grows linearly with depth; see :func:`add_stochastic_depth`.

    Args:
        p: Probability of dropping the last branch; branch l of L is dropped with p · l / L. 0.1; the paper's 0.5 is for
            networks of a hundred layers.

    Example:
        >>> import torchvision
        >>> StochasticDepth(0.2)(torchvision.models.resnet18())
        8
    """

    looks_for = "residual branches"

    def __init__(self, p: float = 0.1) -> None:
        check_range("StochasticDepth", "p", p, 0, 1, high_open=True)
        self.p = p

    def apply(self, network: nn.Module) -> int:
        """Add the layers and return how many branches there are."""
        return add_stochastic_depth(network, self.p)
