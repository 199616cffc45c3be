"""One case for every exported technique; :mod:`test_contracts` fails for a technique that has none."""

from __future__ import annotations

import importlib
import inspect
from functools import partial

from lightning.pytorch.callbacks import Callback
from torch import nn

from lightning_cnnopt import callbacks as all_callbacks
from lightning_cnnopt.activation import SwapActivation, WatchActivations
from lightning_cnnopt.analysis import ProfileNetwork, RunReport, WritePredictions
from lightning_cnnopt.architecture import BlurPool, CheckpointActivations, EditNetwork, Freeze, SmallImageStem, SqueezeExcite
from lightning_cnnopt.augmentation import (
    Affine,
    AlternatingFlip,
    AugmentBatches,
    AugMix,
    AutoContrast,
    AverageViews,
    Brightness,
    ColourJitter,
    ColOut,
    Contrast,
    CutMix,
    Equalize,
    Erasing,
    GaussianBlur,
    GaussianNoise,
    Greyscale,
    HorizontalFlip,
    Hue,
    Inversion,
    MixUp,
    MixUpOrCutMix,
    PaddedCrop,
    Perspective,
    Posterize,
    RandAugment,
    RandomWindow,
    ResizedCrop,
    Rotation,
    Saturation,
    ScheduleImageSize,
    Sharpness,
    Shear,
    Solarize,
    Transform,
    Translation,
    TrivialAugmentWide,
    VerticalFlip,
    Zoom,
)
from lightning_cnnopt.core import ResumeRandomState, StopOnDivergence
from lightning_cnnopt.core.schedule import Schedule
from lightning_cnnopt.core.spec import Configurable
from lightning_cnnopt.dropout import DropBlock, DropConnect, Dropout, ScheduleDropout, SpatialDropout, StochasticDepth
from lightning_cnnopt.imbalance import BindClassCounts, ClassWeights, CosineHead
from lightning_cnnopt.initialization import (
    LSUV,
    Chain,
    DeltaOrthogonal,
    Dirac,
    Initializer,
    InitializeWeights,
    Kaiming,
    MarkPretrained,
    Normal,
    PatchWhitening,
    PriorBias,
    RandomOrthogonal,
    TruncatedNormal,
    Uniform,
    XavierNormal,
    XavierUniform,
    ZeroGamma,
)
from lightning_cnnopt.learning_rate import (
    Constant,
    Cosine,
    CosineRestarts,
    CounterCycle,
    Cyclic,
    Exponential,
    InverseTime,
    LayerWiseRates,
    MultiStep,
    OneCycle,
    Plateau,
    Polynomial,
    ScheduleLearningRate,
    ScheduleMomentum,
    ScheduleWeightDecay,
    Sequence,
    Step,
    Trapezoid,
    Warmup,
)
from lightning_cnnopt.normalization import (
    FoldBatchNorm,
    FreezeStatistics,
    GhostBatchNorm2d,
    PreciseBN,
    StandardizeWeights,
    SwapNormalization,
)
from lightning_cnnopt.optimizers import EMA, SwitchOptimizerMode
from lightning_cnnopt.parallel import ChannelsLast, CompileNetwork, ScaleRateWithBatchSize, SeveralSteps
from lightning_cnnopt.regularization import (
    L1,
    L2,
    ActivityL1,
    ActivityL2,
    ConstrainWeights,
    DecayWeights,
    ElasticNet,
    GroupLasso,
    MaxNorm,
    Orthogonal,
    PenalizeActivations,
    PenalizeWeights,
    Penalty,
    ProximalL1,
    UnitNorm,
)

CASES = {
    "SqueezeExcite": partial(SqueezeExcite, reduction=4),
    "SmallImageStem": SmallImageStem,
    "BlurPool": BlurPool,
    "CheckpointActivations": CheckpointActivations,
    "Freeze": partial(Freeze, ["*conv1", "*bn1"]),
    "SwapActivation": partial(SwapActivation, nn.GELU),
    "SwapNormalization": partial(SwapNormalization, partial(GhostBatchNorm2d, ghost_size=4)),
    "StandardizeWeights": StandardizeWeights,
    "Dropout": partial(Dropout, 0.5),
    "SpatialDropout": partial(SpatialDropout, 0.2),
    "DropBlock": partial(DropBlock, 0.2, 3),
    "DropConnect": partial(DropConnect, 0.2, ["Linear", "Conv2d"]),
    "StochasticDepth": partial(StochasticDepth, 0.5),
    "MarkPretrained": partial(MarkPretrained, modules=["*conv1", "*bn1"]),
    "CosineHead": CosineHead,
    "XavierUniform": XavierUniform,
    "XavierNormal": XavierNormal,
    "Kaiming": Kaiming,
    "LSUV": LSUV,
    "Uniform": Uniform,
    "Normal": Normal,
    "TruncatedNormal": TruncatedNormal,
    "RandomOrthogonal": RandomOrthogonal,
    "DeltaOrthogonal": DeltaOrthogonal,
    "Dirac": Dirac,
    "ZeroGamma": ZeroGamma,
    "PatchWhitening": PatchWhitening,
    "PriorBias": partial(PriorBias, [1, 2, 3, 4]),
    "Chain": partial(Chain, [Kaiming(), ZeroGamma()]),
    "L1": partial(L1, 0.01),
    "L2": partial(L2, 0.01),
    "ElasticNet": partial(ElasticNet, 0.01, 0.25),
    "GroupLasso": partial(GroupLasso, 0.01),
    "Orthogonal": partial(Orthogonal, 0.01),
    "ActivityL1": partial(ActivityL1, 0.1),
    "ActivityL2": partial(ActivityL2, 0.1, ["*conv2"]),
    "MaxNorm": partial(MaxNorm, 0.5),
    "UnitNorm": UnitNorm,
    "ProximalL1": partial(ProximalL1, 0.1),
    "Constant": Constant,
    "Cosine": Cosine,
    "Polynomial": partial(Polynomial, 2.0, 0.1),
    "Exponential": partial(Exponential, 0.5, "2st"),
    "InverseTime": partial(InverseTime, 1.0, "2st"),
    "Step": partial(Step, 0.25, 0.5),
    "MultiStep": partial(MultiStep, ["1st", 0.5], 0.5),
    "CosineRestarts": partial(CosineRestarts, "2st", 2.0),
    "OneCycle": partial(OneCycle, 0.5),
    "CounterCycle": partial(CounterCycle, 0.5, "2st"),
    "Cyclic": partial(Cyclic, "1st", "2st", 0.1, "exp_range"),
    "Trapezoid": partial(Trapezoid, "1st", "2st", 0.1),
    "Warmup": partial(Warmup, Cosine(), "2st", 0.1),
    "Sequence": partial(Sequence, [Step("1st", 0.5), Cosine()], ["2st"]),
    "Plateau": partial(Plateau, "val_loss", patience=0, gamma=0.5, threshold=10.0),
    "AlternatingFlip": AlternatingFlip,
    "HorizontalFlip": HorizontalFlip,
    "VerticalFlip": VerticalFlip,
    "Rotation": partial(Rotation, 20.0),
    "PaddedCrop": partial(PaddedCrop, 2),
    "Translation": partial(Translation, 0.25),
    "RandomWindow": partial(RandomWindow, 7),
    "Zoom": partial(Zoom, (0.8, 1.2)),
    "Shear": partial(Shear, 20.0),
    "Affine": partial(Affine, 10.0, 0.1),
    "Perspective": partial(Perspective, 0.5, p=0.9),
    "ResizedCrop": partial(ResizedCrop, scale=(0.3, 1.0)),
    "Brightness": Brightness,
    "Contrast": Contrast,
    "Saturation": Saturation,
    "Greyscale": Greyscale,
    "Inversion": Inversion,
    "Hue": Hue,
    "ColourJitter": partial(ColourJitter, 0.4, 0.4, 0.4, 0.1),
    "Posterize": partial(Posterize, (1, 4)),
    "Solarize": Solarize,
    "AutoContrast": AutoContrast,
    "Equalize": Equalize,
    "Sharpness": Sharpness,
    "GaussianBlur": GaussianBlur,
    "GaussianNoise": GaussianNoise,
    "Erasing": Erasing,
    "ColOut": partial(ColOut, 0.2, 0.2),
    "TrivialAugmentWide": TrivialAugmentWide,
    "RandAugment": RandAugment,
    "AugMix": AugMix,
    "MixUp": partial(MixUp, 0.5),
    "CutMix": partial(CutMix, 1.0, "batch"),
    "MixUpOrCutMix": partial(MixUpOrCutMix, 0.5, per="batch", p=0.9),
    "EditNetwork": partial(EditNetwork, SqueezeExcite(reduction=4)),
    "InitializeWeights": partial(InitializeWeights, XavierNormal()),
    "PenalizeWeights": partial(PenalizeWeights, L1(0.01)),
    "ConstrainWeights": partial(ConstrainWeights, MaxNorm(0.5)),
    "DecayWeights": partial(DecayWeights, 0.1),
    "PenalizeActivations": partial(PenalizeActivations, ActivityL1(0.1)),
    "WatchActivations": WatchActivations,
    "PreciseBN": partial(PreciseBN, 16),
    "FreezeStatistics": FreezeStatistics,
    "FoldBatchNorm": FoldBatchNorm,
    "ScheduleDropout": partial(ScheduleDropout, Polynomial(), start=0.1, end=0.6),
    "LayerWiseRates": partial(LayerWiseRates, 0.5),
    "ScheduleLearningRate": partial(ScheduleLearningRate, Step("2st", 0.5)),
    "ScheduleMomentum": partial(ScheduleMomentum, CounterCycle(0.5, "2st")),
    "ScheduleWeightDecay": partial(ScheduleWeightDecay, Cosine(), start=0.1, end=0.5),
    "AugmentBatches": partial(AugmentBatches, [HorizontalFlip(), PaddedCrop(1)], mixing=MixUp(0.5), num_classes=4),
    "AverageViews": partial(AverageViews, [{}, {"horizontal_flip": True, "down": 1}], only_below=0.5),
    "ScheduleImageSize": partial(ScheduleImageSize, Polynomial(), 0.5, 0.25),
    "ScaleRateWithBatchSize": partial(ScaleRateWithBatchSize, 4, warmup="2st"),
    "ChannelsLast": ChannelsLast,
    "CompileNetwork": partial(CompileNetwork, "eager"),
    "SeveralSteps": partial(SeveralSteps, 3),
    "EMA": partial(EMA, 0.9),
    "SwitchOptimizerMode": SwitchOptimizerMode,
    "ClassWeights": partial(ClassWeights, counts=[1, 2, 3, 4], start="2st"),
    "BindClassCounts": partial(BindClassCounts, [1, 2, 3, 4]),
    "ResumeRandomState": ResumeRandomState,
    "StopOnDivergence": StopOnDivergence,
    "ProfileNetwork": partial(ProfileNetwork, (1, 8, 8), 2, 1, directory="profile"),
    "RunReport": partial(RunReport, "report"),
    "WritePredictions": partial(WritePredictions, "predictions.csv"),
}
"""A fresh instance by the name of its class."""

WITHOUT_EFFECT_ON_TRAINING = {
    "AverageViews",
    "Saturation",  # of grey images, which those of the contracts are
    "Greyscale",
    "Hue",
    "Equalize",  # of images of fewer than 256 pixels
    "BindClassCounts",
    "CheckpointActivations",
    "Constant",
    "CompileNetwork",
    "FoldBatchNorm",
    "MarkPretrained",  # of initializers
    "ResumeRandomState",
    "StopOnDivergence",
    "ProfileNetwork",
    "SwitchOptimizerMode",  # of optimizers that have modes; torch's have none
    "RunReport",
    "SeveralSteps",
    "WatchActivations",
    "WritePredictions",
}
"""Techniques whose effect is on something else than the weights; each has a test of its own effect."""


def exported_techniques():
    """Return the names of all exported techniques, read off the rooms."""
    found = set(all_callbacks.__all__)
    for room in all_callbacks.ROOMS:
        module = importlib.import_module(f"lightning_cnnopt.{room}")
        for name in module.__all__:
            value = getattr(module, name)
            if isinstance(value, type) and issubclass(value, (Configurable, Callback)) and not inspect.isabstract(value):
                found.add(name)
    return sorted(found)


_EXAMPLES = {"ColourJitter", "Kaiming", "L1", "LSUV", "PaddedCrop", "Plateau", "Rotation", "TrivialAugmentWide", "Warmup"}

ALIKE = {
    name
    for name, make in CASES.items()
    if isinstance(make(), (Transform, Initializer, Penalty, Schedule)) and name not in _EXAMPLES
}
"""Techniques that a run treats to the letter as it treats an example of their kind: contracts about the run are slow tests."""
