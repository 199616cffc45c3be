"""Networks of timm by name."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lightning_cnnopt.architecture.pretrained.base import Argument, Crop, InputSize, PublishedNetwork, call_builder
from lightning_cnnopt.architecture.pretrained.files import fit_weights, read_weights
from lightning_cnnopt.architecture.pretrained.record import WeightsRecord
from lightning_cnnopt.core.errors import CheckpointError, ConfigurationError, did_you_mean


class TimmNetwork(PublishedNetwork):
    """A network of timm by name, with a new head and any number of input channels.

    It needs the package timm: ``pip install "lightning-cnnopt[timm]"``. Published weights are fetched, kept and adapted by
    timm. The head is theirs where the number of classes is theirs, and new otherwise. A checkpoint stores the name and not
    where the weights came from: it rebuilds the network without them.

    Args:
        name: Of the network, as in ``timm.list_models()``; behind a dot may stand the name of published weights.
        pretrained: Whether it starts from published weights; or their name, such as ``"a1_in1k"``.
        file: Path or URL to read the weights from: a copy of the published ones with ``pretrained``, one's own without.
        num_classes: Number of logits.
        in_channels: Channels of an image.
        image_size: Height and width of an image.
        input_size: What images are resized to on the device: a side or height and width, or ``"weights"`` for what the
            weights were trained on. By default they stay as they are.
        crop: Share of the sides that evaluation keeps of an image's centre, resized in its proportions: a number, or
            ``"weights"`` for what theirs were evaluated with. By default evaluation sees the whole image, as training does.
        arguments: Further arguments of ``timm.create_model``, such as ``drop_path_rate``.
        load: Whether to read the weights. A checkpoint sets it to false, since it holds them.

    Shapes:
        (N, in_channels, H, W) → (N, num_classes)

    Raises:
        ConfigurationError: If timm is not installed, a name is unknown or an argument can't be right.
        CheckpointError: If weights can't be fetched or read, or are those of another network.

    Example:
        >>> import torch
        >>> network = TimmNetwork("resnet18", num_classes=5, in_channels=1, image_size=(64, 64))
        >>> network(torch.zeros(2, 1, 64, 64)).shape
        torch.Size([2, 5])
    """

    def __init__(
        self,
        name: str,
        pretrained: bool | str = False,
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
        try:
            import timm
        except ImportError as error:
            raise ConfigurationError('TimmNetwork needs the package timm: pip install "lightning-cnnopt[timm]".') from error
        architecture, _, tag = name.partition(".")
        if not timm.is_model(architecture):
            raise ConfigurationError(
                f"TimmNetwork: name={name!r} is no network of timm.{did_you_mean(architecture, timm.list_models())}"
            )
        config = _config(architecture, tag, pretrained) if pretrained or tag else None
        record = _record(config) if config is not None and pretrained else None
        given = dict(arguments or {})
        if config is not None and config.get("fixed_input_size"):
            height, width = self._size(image_size, input_size, record)
            given.setdefault("img_size", height if height == width else (height, width))  # type: ignore[arg-type]
        fetches = load and bool(pretrained) and file is None
        full = f"{architecture}.{config['tag']}" if config is not None and config["tag"] else architecture
        try:
            body = call_builder(
                f"TimmNetwork {full}",
                timm.create_model,
                given,
                model_name=full,
                pretrained=fetches,
                num_classes=num_classes,
                in_chans=in_channels,
            )
        except ConfigurationError:
            raise
        except Exception as error:  # urllib, huggingface_hub and its client all have their own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise CheckpointError(f"The weights {full} can't be fetched: {reason} Give file=, a copy of them.") from error
        rebuilt_with: dict[str, Argument] = {"load": False}
        if record is not None and config is not None:
            rebuilt_with |= {"name": architecture, "pretrained": config["tag"]}
        self._finish(body, record, image_size, input_size, crop, rebuilt_with)
        own: dict[str, Any] = getattr(body, "pretrained_cfg", {})
        head, stem = _names(own.get("classifier")), _names(own.get("first_conv"))
        if load and file is not None:
            keeps_head = fit_weights(body, _read(body, file), head, stem, f"file={file!r} and {full}")
            self._weights_are_read(full, keeps_head, head, record, num_classes)
        elif fetches and config is not None:
            self._weights_are_read(full, num_classes == config["num_classes"], head, record, num_classes)


def _config(architecture: str, tag: str, pretrained: bool | str) -> dict[str, Any]:
    import timm

    if isinstance(pretrained, str):
        if tag and pretrained != tag:
            raise ConfigurationError(f"TimmNetwork: name ends in .{tag} and pretrained={pretrained!r}; give one of the two.")
        tag = pretrained
    full = f"{architecture}.{tag}" if tag else architecture
    try:
        config = timm.models.get_pretrained_cfg(full, allow_unregistered=False)
    except RuntimeError as error:
        known = [other.partition(".")[2] for other in timm.list_models(f"{architecture}.*", pretrained=True)]
        raise ConfigurationError(
            f"TimmNetwork: {architecture} has no weights {tag!r}; timm has {', '.join(known) or 'none'}."
            f"{did_you_mean(tag, known)}"
        ) from error
    if pretrained and not timm.models.is_model_pretrained(full):
        raise ConfigurationError(f"TimmNetwork: timm has no weights for {full}; leave pretrained out, or give file= alone.")
    assert config is not None
    return dict(config.to_dict())


def _record(config: dict[str, Any]) -> WeightsRecord:
    from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_data_config

    resolved = resolve_data_config(pretrained_cfg=config)
    names = config.get("label_descriptions") or config.get("label_names")
    subset = infer_imagenet_subset(config)
    if not names and subset is not None:
        names = ImageNetInfo(subset).label_descriptions()
    return WeightsRecord(
        mean=tuple(resolved["mean"]),
        std=tuple(resolved["std"]),
        size=(resolved["input_size"][1], resolved["input_size"][2]),
        crop=resolved["crop_pct"],
        interpolation=resolved["interpolation"],
        class_names=tuple(names.values() if isinstance(names, dict) else names) if names else None,
    )


def _read(body: nn.Module, file: str) -> dict[str, Tensor]:
    state = read_weights(file)
    convert = getattr(sys.modules[type(body).__module__], "checkpoint_filter_fn", None)
    if convert is not None and not set(state) <= set(body.state_dict()):
        state = dict(convert(state, body))  # timm's own, for files of the network's first authors
    return state


def _names(names: str | tuple[str, ...] | None) -> list[str]:
    return [names] if isinstance(names, str) else list(names or ())
