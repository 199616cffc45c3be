"""Classification networks of torchvision by name."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from lightning_cnnopt.architecture.pretrained.base import Argument, Crop, InputSize, PublishedNetwork, call_builder
from lightning_cnnopt.architecture.pretrained.files import fit_weights, read_weights
from lightning_cnnopt.architecture.pretrained.record import WeightsRecord
from lightning_cnnopt.core.errors import CheckpointError, ConfigurationError, did_you_mean
from lightning_cnnopt.core.graph import WEIGHTED_LAYERS

_WITH_AUXILIARY_HEADS = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
# torchvision's files for DenseNet have names that torch forbids today, and its builder renames them as it reads them
_DENSENET_NAME = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$")


class TorchvisionNetwork(PublishedNetwork):
    """A classification network of torchvision by name, with a new head and any number of input channels.

    Published weights are fetched once and kept by ``torch.hub``. The head is theirs where the number of classes is theirs,
    and new otherwise; the first convolution is adapted to ``in_channels``, see
    :func:`~lightning_cnnopt.architecture.adapt_input_filters`. A checkpoint stores the name and not where the weights came
    from: it rebuilds the network without them.

    Args:
        name: Of the network, as in ``torchvision.models.list_models(module=torchvision.models)``.
        weights: Published weights by name: ``"DEFAULT"``, ``"IMAGENET1K_V1"``, …. ``None`` for a random start.
        file: Path or URL to read the weights from: a copy of the published ones if ``weights`` names them, one's own
            otherwise.
        num_classes: Number of logits.
        in_channels: Channels of an image.
        image_size: Height and width of an image.
        input_size: What images are resized to on the device: a side or height and width, or ``"weights"`` for what the
            weights were trained on. By default they stay as they are.
        crop: Share of the sides that evaluation keeps of an image's centre, resized in its proportions: a number, or
            ``"weights"`` for what theirs were evaluated with. By default evaluation sees the whole image, as training does.
        arguments: Further arguments of torchvision's builder.
        load: Whether to read the weights. A checkpoint sets it to false, since it holds them.

    Shapes:
        (N, in_channels, H, W) → (N, num_classes)

    Raises:
        ConfigurationError: If a name is unknown or an argument can't be right.
        CheckpointError: If weights can't be fetched or read, or are those of another network.

    Example:
        >>> network = TorchvisionNetwork("resnet18", num_classes=5, in_channels=1, image_size=(64, 64))
        >>> network(torch.zeros(2, 1, 64, 64)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        name: str,
        weights: str | None = None,
        file: str | None = None,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: tuple[int, int] = (224, 224),
        input_size: InputSize = None,
        crop: Crop = None,
        arguments: Mapping[str, Argument] | None = None,
        load: bool = True,
    ) -> None:
        super().__init__()
        self._check(num_classes, in_channels, image_size, input_size, crop)
        names = torchvision.models.list_models(module=torchvision.models)
        if name not in names:
            raise ConfigurationError(
                f"TorchvisionNetwork: name={name!r} is no classification network of torchvision.{did_you_mean(name, names)}"
            )
        published = None if weights is None else _published(name, weights)
        record = None if published is None else _record(published)
        given = dict(arguments or {})
        if name in _WITH_AUXILIARY_HEADS:
            given = {"aux_logits": False, "init_weights": not load, **given}
            if given["aux_logits"]:
                raise ConfigurationError(f"TorchvisionNetwork: {name} with aux_logits returns several outputs; leave it off.")
            if published is not None:
                given.setdefault("transform_input", True)  # as torchvision builds it for weights that came from elsewhere
            if given.get("transform_input") and in_channels != 3:
                raise ConfigurationError(
                    f"TorchvisionNetwork: {name} rescales its input for these weights, which only 3 channels fit; "
                    f"got in_channels={in_channels}."
                )
        builder = torchvision.models.get_model_builder(name)
        body = call_builder(f"TorchvisionNetwork {name}", builder, given, num_classes=num_classes)
        stem, head = _first_convolution(body), _last_layer(body)
        loads = load and (published is not None or file is not None)
        _set_input_channels(body, stem, in_channels)
        rebuilt_with: dict[str, Argument] = {"load": False}
        if published is not None:
            rebuilt_with["weights"] = published.name
        self._finish(body, record, image_size, input_size, crop, rebuilt_with)
        if loads:
            told = f"file={file!r}" if file is not None else f"weights={weights!r}"
            keeps_head = fit_weights(body, _read(name, published, file), [head], [stem], f"{told} and {name}")
            self._weights_are_read(name, keeps_head, [head], record, num_classes)


def _published(name: str, weights: str) -> WeightsEnum:
    known = torchvision.models.get_model_weights(name)
    enum, _, member = weights.rpartition(".")
    if enum not in ("", known.__name__) or member not in known.__members__:
        file = " To read a file, give file=." if "/" in weights or "." in weights else ""
        raise ConfigurationError(
            f"TorchvisionNetwork: weights={weights!r} are none of {name}, which has {', '.join(known.__members__)}."
            f"{did_you_mean(member, known.__members__)}{file}"
        )
    return known[member]


def _record(weights: WeightsEnum) -> WeightsRecord:
    transforms = weights.transforms()
    height, width = (*transforms.crop_size, *transforms.crop_size)[:2]
    names = weights.meta["categories"]
    return WeightsRecord(
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        size=(height, width),
        crop=height / transforms.resize_size[0],
        interpolation=transforms.interpolation.value,
        class_names=tuple(names) if names else None,
    )


def _read(name: str, published: WeightsEnum | None, file: str | None) -> dict[str, Tensor]:
    if file is not None:
        state = read_weights(file)
    else:
        assert published is not None
        try:
            state = dict(published.get_state_dict(progress=False, check_hash=True))
        except OSError as error:
            raise CheckpointError(
                f"The weights {published} can't be fetched from {published.url}: {error}. Give file=, a copy of them."
            ) from error
    dropped = _WITH_AUXILIARY_HEADS.get(name, ())
    state = {key: value for key, value in state.items() if not key.startswith(dropped)}
    return {_DENSENET_NAME.sub(r"\1\2", key): value for key, value in state.items()}


def _first_convolution(network: nn.Module) -> str:
    return next(name for name, module in network.named_modules() if isinstance(module, nn.Conv2d))


def _last_layer(network: nn.Module) -> str:
    return [name for name, module in network.named_modules() if isinstance(module, WEIGHTED_LAYERS)][-1]


def _set_input_channels(network: nn.Module, stem: str, channels: int) -> None:
    old = network.get_submodule(stem)
    assert isinstance(old, nn.Conv2d)
    if channels == old.in_channels:
        return
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        old.dilation,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    with torch.no_grad():
        # the variance of what comes out stays for independent channels, whatever law the network drew its filters from
        nn.init.normal_(new.weight, std=float(old.weight.std()) * (old.in_channels / channels) ** 0.5)
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    network.set_submodule(stem, new)
