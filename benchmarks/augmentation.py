"""P4: pipelines with parameters per sample, and each operation alone, against the libraries there are.

Pipelines go from images in memory to normalized batches; torchvision and albumentations, which work sample by sample, do so
in a ``DataLoader``, kornia and this project on whole batches. Operations alone run on one batch in this process, each library
on the form of images that it takes: bytes (torchvision, albumentations) or floats (kornia).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

from benchmarks.frame.rows import FASTER, Benchmark, Function, Goal, Row
from benchmarks.peers import PEERS, Loaded, Samples, arrays, images, seconds_a_thousand

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_PIPELINES = ("standard", "rich", "TrivialAugment")
_OPERATIONS = (
    "flip",
    "pad-crop",
    "rotation",
    "affine",
    "perspective",
    "resized crop",
    "brightness",
    "contrast",
    "saturation",
    "hue",
    "jitter",
    "grey",
    "inversion",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
    "sharpness",
    "blur",
    "noise",
    "erasing",
)


@cache
def _ours(size: int) -> dict[str, Any]:
    from lightning_cnnopt import augmentation as a

    rich = [a.Affine(15, 0.1, (0.9, 1.1)), a.HorizontalFlip(), a.ColourJitter(0.4, 0.4, 0.4, 0.1), a.Erasing()]
    return {
        "standard": [a.PaddedCrop(size // 8), a.HorizontalFlip()],
        "rich": rich,
        "TrivialAugment": [a.TrivialAugmentWide(interpolation="nearest")],
        "flip": a.HorizontalFlip(),
        "pad-crop": a.PaddedCrop(size // 8),
        "rotation": a.Rotation(15),
        "affine": a.Affine(15, 0.1, (0.9, 1.1), 5),
        "perspective": a.Perspective(0.3, p=1.0),
        "resized crop": a.ResizedCrop(),
        "brightness": a.Brightness(0.4),
        "contrast": a.Contrast(0.4),
        "saturation": a.Saturation(0.4),
        "hue": a.Hue(0.1),
        "jitter": a.ColourJitter(0.4, 0.4, 0.4, 0.1),
        "grey": a.Greyscale(1.0),
        "inversion": a.Inversion(1.0),
        "posterize": a.Posterize((4, 4), p=1.0),
        "solarize": a.Solarize((0.5, 0.5), p=1.0),
        "autocontrast": a.AutoContrast(1.0),
        "equalize": a.Equalize(1.0),
        "sharpness": a.Sharpness(0.5),
        "blur": a.GaussianBlur(3, p=1.0),
        "noise": a.GaussianNoise((0.1, 0.1), p=1.0),
        "erasing": a.Erasing(1.0),
    }


@cache
def _torchvision(size: int) -> dict[str, Any]:
    import torch
    from torchvision.transforms import v2

    bilinear = v2.InterpolationMode.BILINEAR
    end = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(_MEAN, _STD)]
    affine = v2.RandomAffine(15, (0.1, 0.1), (0.9, 1.1), interpolation=bilinear)
    jitter = v2.ColorJitter(0.4, 0.4, 0.4, 0.1)
    return {
        "standard": v2.Compose([v2.RandomCrop(size, padding=size // 8), v2.RandomHorizontalFlip(), *end]),
        "rich": v2.Compose([affine, v2.RandomHorizontalFlip(), jitter, v2.RandomErasing(), *end]),
        "TrivialAugment": v2.Compose([v2.TrivialAugmentWide(), *end]),
        "flip": v2.RandomHorizontalFlip(),
        "pad-crop": v2.RandomCrop(size, padding=size // 8),
        "rotation": v2.RandomRotation(15, interpolation=bilinear),
        "affine": v2.RandomAffine(15, (0.1, 0.1), (0.9, 1.1), 5, interpolation=bilinear),
        "perspective": v2.RandomPerspective(0.3, p=1.0),
        "resized crop": v2.RandomResizedCrop(size),
        "brightness": v2.ColorJitter(brightness=0.4),
        "contrast": v2.ColorJitter(contrast=0.4),
        "saturation": v2.ColorJitter(saturation=0.4),
        "hue": v2.ColorJitter(hue=0.1),
        "jitter": jitter,
        "grey": v2.RandomGrayscale(1.0),
        "inversion": v2.RandomInvert(1.0),
        "posterize": v2.RandomPosterize(4, 1.0),
        "solarize": v2.RandomSolarize(128, 1.0),
        "autocontrast": v2.RandomAutocontrast(1.0),
        "equalize": v2.RandomEqualize(1.0),
        "sharpness": v2.RandomAdjustSharpness(1.5, 1.0),
        "blur": v2.GaussianBlur(3),
        "noise": v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.GaussianNoise(sigma=0.1)]),
        "erasing": v2.RandomErasing(1.0),
    }


@cache
def _kornia(size: int) -> dict[str, Any]:
    import kornia.augmentation as k
    from kornia.augmentation.auto import TrivialAugment

    end = k.Normalize(_MEAN, _STD)
    affine = k.RandomAffine(15, (0.1, 0.1), (0.9, 1.1), p=1.0)
    jitter = k.ColorJitter(0.4, 0.4, 0.4, 0.1, p=1.0)
    crop = k.RandomCrop((size, size), padding=size // 8)
    return {
        "standard": k.AugmentationSequential(crop, k.RandomHorizontalFlip(), end, data_keys=["input"]),
        "rich": k.AugmentationSequential(affine, k.RandomHorizontalFlip(), jitter, k.RandomErasing(), end, data_keys=["input"]),
        "TrivialAugment": k.AugmentationSequential(TrivialAugment(), end, data_keys=["input"]),
        "flip": k.RandomHorizontalFlip(),
        "pad-crop": crop,
        "rotation": k.RandomRotation(15, p=1.0),
        "affine": k.RandomAffine(15, (0.1, 0.1), (0.9, 1.1), 5, p=1.0),
        "perspective": k.RandomPerspective(0.3, p=1.0),
        "resized crop": k.RandomResizedCrop((size, size)),
        "brightness": k.RandomBrightness((0.6, 1.4), p=1.0),
        "contrast": k.RandomContrast((0.6, 1.4), p=1.0),
        "saturation": k.RandomSaturation((0.6, 1.4), p=1.0),
        "hue": k.RandomHue((-0.1, 0.1), p=1.0),
        "jitter": jitter,
        "grey": k.RandomGrayscale(p=1.0),
        "inversion": k.RandomInvert(p=1.0),
        "posterize": k.RandomPosterize(4, p=1.0),
        "solarize": k.RandomSolarize(0.0, 0.0, p=1.0),
        "autocontrast": k.RandomAutoContrast(p=1.0),
        "equalize": k.RandomEqualize(p=1.0),
        "sharpness": k.RandomSharpness(0.5, p=1.0),
        "blur": k.RandomGaussianBlur((3, 3), (0.1, 2.0), p=1.0),
        "noise": k.RandomGaussianNoise(std=0.1, p=1.0),
        "erasing": k.RandomErasing(p=1.0),
    }


@cache
def _albumentations(size: int) -> dict[str, Any]:
    import albumentations as al
    from albumentations.pytorch import ToTensorV2

    end = [al.Normalize(_MEAN, _STD), ToTensorV2()]
    shift = {"x": (-0.1, 0.1), "y": (-0.1, 0.1)}
    crop = [al.PadIfNeeded(size + size // 4, size + size // 4, border_mode=0), al.RandomCrop(size, size)]
    affine = al.Affine(rotate=(-15, 15), translate_percent=shift, scale=(0.9, 1.1), p=1.0)
    jitter = al.ColorJitter((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (-0.1, 0.1), p=1.0)
    alone = {
        "flip": al.HorizontalFlip(p=0.5),
        "rotation": al.Rotate(15, p=1.0),
        "affine": al.Affine(
            rotate=(-15, 15), translate_percent=shift, scale=(0.9, 1.1), shear={"x": (-5, 5), "y": (0, 0)}, p=1.0
        ),
        "perspective": al.Perspective((0.0, 0.15), p=1.0),
        "resized crop": al.RandomResizedCrop((size, size)),
        "brightness": al.ColorJitter((0.6, 1.4), (1, 1), (1, 1), (0, 0), p=1.0),
        "contrast": al.ColorJitter((1, 1), (0.6, 1.4), (1, 1), (0, 0), p=1.0),
        "saturation": al.ColorJitter((1, 1), (1, 1), (0.6, 1.4), (0, 0), p=1.0),
        "hue": al.ColorJitter((1, 1), (1, 1), (1, 1), (-0.1, 0.1), p=1.0),
        "jitter": jitter,
        "grey": al.ToGray(p=1.0),
        "inversion": al.InvertImg(p=1.0),
        "posterize": al.Posterize(4, p=1.0),
        "solarize": al.Solarize((0.5, 0.5), p=1.0),
        "autocontrast": al.AutoContrast(p=1.0),
        "equalize": al.Equalize(p=1.0),
        "sharpness": al.Sharpen(p=1.0),
        "blur": al.GaussianBlur(3, (0.1, 2.0), p=1.0),
        "noise": al.GaussNoise((0.1, 0.1), p=1.0),
        "erasing": al.Erasing(p=1.0),
    }
    return {
        "standard": al.Compose([*crop, al.HorizontalFlip(p=0.5), *end]),
        "rich": al.Compose([affine, al.HorizontalFlip(p=0.5), jitter, al.Erasing(p=0.5), *end]),
        **{name: al.Compose([transform]) for name, transform in alone.items()},
        "pad-crop": al.Compose(crop),
    }


_MAKE: dict[str, Callable[[int], dict[str, Any]]] = {
    "torchvision": _torchvision,
    "kornia": _kornia,
    "albumentations": _albumentations,
}
_LACKS = {("albumentations", "TrivialAugment"): "albumentations has no such policy"}
_DIFFERS = {
    ("kornia", "TrivialAugment"): "kornia, of 12 operations one for all of a batch, as its documentation says",
    ("kornia", "brightness"): "kornia, which adds a level",
    ("kornia", "contrast"): "kornia, which multiplies levels, without the mean",
}


def _our_pipeline(name: str, size: int, batch_size: int, count: int, pair: int) -> Mapping[str, float]:
    import torch

    from lightning_cnnopt import ResidentLoader
    from lightning_cnnopt.architecture import Preprocessing
    from lightning_cnnopt.augmentation import Augment

    loader = ResidentLoader(images(count, size), torch.zeros(count), batch_size, shuffle=True, seed=pair)
    augment, preprocessing = Augment(_ours(size)[name], seed=pair), Preprocessing(3, _MEAN, _STD)

    def epoch() -> int:
        for batch, _ in loader:
            preprocessing(augment(batch))
        return count

    return seconds_a_thousand(epoch)


def _kornia_pipeline(name: str, size: int, batch_size: int, count: int, pair: int) -> Mapping[str, float]:
    import torch

    data, pipeline = images(count, size), _kornia(size)[name]

    def epoch() -> int:
        for index in torch.randperm(count).split(batch_size):
            pipeline(data[index].float().div_(255))
        return count

    return seconds_a_thousand(epoch)


@cache
def _loaded(peer: str, name: str, size: int, batch_size: int, count: int) -> Loaded:
    transform = _MAKE[peer](size)[name]
    if peer == "torchvision":
        return Loaded(Samples(images(count, size), transform), batch_size)
    return Loaded(Samples(arrays(count, size), lambda sample: transform(image=sample)["image"]), batch_size)


def _loaded_pipeline(peer: str, name: str, size: int, batch_size: int, count: int, pair: int) -> Mapping[str, float]:
    return _loaded(peer, name, size, batch_size, count).run()


def _our_operation(name: str, size: int, count: int, pair: int) -> Mapping[str, float]:
    import torch

    batch, transform, generator = images(count, size), _ours(size)[name], torch.Generator().manual_seed(pair)
    return seconds_a_thousand(lambda: len(transform(batch, generator)))


def _their_operation(peer: str, name: str, size: int, count: int, pair: int) -> Mapping[str, float]:
    import torch

    transform = _MAKE[peer](size)[name]
    if peer == "kornia":
        batch = images(count, size).float() / 255
        return seconds_a_thousand(lambda: len(transform(batch)))
    if peer == "torchvision":
        data = images(count, size)
        return seconds_a_thousand(lambda: len(torch.stack([transform(image) for image in data])))
    samples = arrays(count, size)
    return seconds_a_thousand(lambda: len([transform(image=image) for image in samples]))


def _rows() -> tuple[Row, ...]:
    rows = []
    for size, batch_size, count, bound in ((32, 512, 8192, 3.0), (224, 64, 512, 1.0)):
        for name in _PIPELINES:
            for peer, module in PEERS.items():
                theirs: Callable[[int], Mapping[str, float]] = partial(_loaded_pipeline, peer, name, size, batch_size, count)
                if peer == "kornia":
                    theirs = partial(_kornia_pipeline, name, size, batch_size, count)
                rows.append(
                    Row(
                        f"{name}, {size}x{size}, {peer}",
                        Function(f"{name} at {size}", partial(_our_pipeline, name, size, batch_size, count)),
                        Function(_DIFFERS.get((peer, name), peer), theirs, needs=(module,), lacks=_LACKS.get((peer, name), "")),
                        Goal(FASTER, bound),
                    )
                )
    for name in _OPERATIONS:
        for peer, module in PEERS.items():
            rows.append(
                Row(
                    f"{name}, {peer}",
                    Function(f"{name} at 32", partial(_our_operation, name, 32, 512)),
                    Function(_DIFFERS.get((peer, name), peer), partial(_their_operation, peer, name, 32, 512), needs=(module,)),
                    Goal(FASTER, 1.0),
                )
            )
    return tuple(rows)


BENCHMARK = Benchmark(
    id="P4",
    what="augmentation with parameters per sample, from uint8 in memory; seconds a thousand images",
    against="torchvision v2, kornia and albumentations",
    goal="pipelines: 3 times as fast at 32x32, as fast at 224x224; operations alone at 32x32: none slower",
    rows=_rows(),
    packages=("torchvision", *(peer for peer in PEERS if peer != "torchvision")),
)
