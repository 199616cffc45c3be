from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from lightning_cnnopt import ConvNet, Digits, ImageClassifier, TensorData
from lightning_cnnopt.architecture import SpeedNet
from lightning_cnnopt.core import mark_pretrained
from lightning_cnnopt.core.errors import ConfigurationError, DataError
from lightning_cnnopt.initialization import (
    Chain,
    Dirac,
    InitializeWeights,
    Kaiming,
    PatchWhitening,
    PriorBias,
    XavierUniform,
    ZeroGamma,
    prior_bias_,
    whiten_patches_,
)
from tests.lightning_tools import Foreign, plain_loader, quiet_trainer

# the identity


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_dirac_hands_its_input_on_and_leaves_the_filters_beyond(groups, kernel):
    layer = nn.Conv2d(6, 12, kernel, padding=kernel // 2, groups=groups)
    before = layer.weight.detach().clone()
    assert Dirac()(nn.Sequential(layer)) == ["0"]
    images = torch.rand(2, 6, 7, 7)
    own, out = 6 // groups, 12 // groups
    maps = layer(images).view(2, groups, out, 7, 7)[:, :, :own].reshape(2, 6, 7, 7)
    torch.testing.assert_close(maps, images)
    kept = before.view(groups, out, *before.shape[1:])[:, own:]
    assert torch.equal(layer.weight.view(groups, out, *before.shape[1:])[:, own:], kept)


def test_dirac_with_fewer_filters_hands_on_as_many_channels_as_it_has():
    layer = nn.Conv2d(5, 2, 3, padding=1)
    Dirac()(nn.Sequential(layer))
    images = torch.rand(1, 5, 4, 4)
    torch.testing.assert_close(layer(images), images[:, :2])


def test_dirac_leaves_linear_layers_alone():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    before = net[2].weight.detach().clone()
    Dirac()(net)
    assert torch.equal(net[2].weight, before)


# branches that start as nothing


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (torchvision.models.resnet18, 8),
        (torchvision.models.resnet50, 16),
        (lambda: timm.create_model("resnet18"), 8),
        (lambda: timm.create_model("seresnet18"), 8),
    ],
    ids=["resnet18", "resnet50", "timm resnet18", "timm seresnet18"],
)
def test_with_zero_gamma_every_block_is_its_shortcut_and_the_scale_has_a_gradient(make, count):
    net = make().train()
    touched = ZeroGamma()(net)
    assert len(touched) == count
    net.zero_grad()
    blocks = [m for m in net.modules() if hasattr(m, "downsample")]
    seen = []
    for block in blocks:
        block.register_forward_hook(lambda m, args, output: seen.append((m, args[0], output)))
    net(torch.randn(2, 3, 64, 64)).square().sum().backward()
    for block, before, after in seen:
        shortcut = before if block.downsample is None else block.downsample(before)
        torch.testing.assert_close(after, F.relu(shortcut), rtol=1e-4, atol=1e-4)
    for name in touched:
        assert net.get_submodule(name).weight.grad.abs().sum() > 0


def test_a_branch_whose_last_norm_stands_before_an_activation_is_left_alone():
    class PreActivation(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            return x + self.conv(F.relu(self.norm(x)))

    with pytest.warns(UserWarning, match=r"ZeroGamma\(\) initialized nothing: Sequential has no residual branch"):
        assert ZeroGamma()(nn.Sequential(PreActivation())) == []


def test_zero_gamma_leaves_pretrained_norms_alone():
    net = torchvision.models.resnet18()
    mark_pretrained(net.layer1)
    assert len(ZeroGamma()(net)) == 6
    assert float(net.layer1[0].bn2.weight.min()) == 1.0


# whitening


def real_images():
    return Digits().train_set.images.float() / 255


@pytest.mark.parametrize("stride", [1, 2])
def test_the_outputs_of_whitened_filters_are_uncorrelated_of_mean_zero_and_variance_one(stride):
    layer, images = nn.Conv2d(1, 18, 3, stride=stride), real_images()
    whiten_patches_(layer, images, eps=0.0)
    with torch.no_grad():
        maps = F.conv2d(images, layer.weight, layer.bias).transpose(0, 1).flatten(1).double()
    torch.testing.assert_close(torch.cov(maps[:9]), torch.eye(9).double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(maps.mean(1), torch.zeros(18).double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(layer.weight[9:], -layer.weight[:9])


def test_eps_bounds_what_hardly_varies():
    layer = nn.Conv2d(1, 4, 2)
    images = torch.rand(8, 1, 1, 1).expand(8, 1, 4, 4) + 1e-6 * torch.randn(8, 1, 4, 4)
    whiten_patches_(layer, images, eps=1e-2)
    assert float(layer.weight.flatten(1).norm(dim=1).max()) <= 10 + 1e-4


def test_patch_whitening_sets_the_first_layer_that_is_computed_and_no_other():
    class LastFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.head, self.stem = nn.Linear(8, 2), nn.Conv2d(1, 8, 2)

        def forward(self, x):
            return self.head(self.stem(x).mean((2, 3)))

    net = LastFirst()
    before = net.head.weight.detach().clone()
    assert PatchWhitening()(net, real_images()) == ["stem"]
    assert torch.equal(net.head.weight, before)


def test_speed_net_is_whitened_in_a_fit_on_what_it_is_really_fed():
    data = Digits(batch_size=256)
    model = ImageClassifier(SpeedNetOnDigits, **data.model_args(), initializer=[Kaiming(), Dirac(), PatchWhitening(eps=0.0)])
    before = SpeedNetOnDigits().stem.whiten.weight.detach().clone()
    quiet_trainer(max_steps=1, limit_val_batches=0).fit(model, data)
    whiten = model.network.stem.whiten
    assert not torch.equal(whiten.weight, before)
    with torch.no_grad():
        maps = F.conv2d(model.preprocessing(data.train_set.images), whiten.weight).transpose(0, 1).flatten(1)
    torch.testing.assert_close(torch.cov(maps[:4]), torch.eye(4), rtol=0, atol=0.05)


class SpeedNetOnDigits(SpeedNet):
    def __init__(self):
        super().__init__(10, 1, (8, 8), widths=(8, 16))


def test_whitening_is_refused_or_said_where_it_cant_be():
    with pytest.raises(DataError, match="9 values; give more images"):
        whiten_patches_(nn.Conv2d(1, 4, 3), torch.rand(1, 1, 4, 4))
    with pytest.raises(ConfigurationError, match="can't whiten images of 3 channels"):
        whiten_patches_(nn.Conv2d(1, 4, 3), torch.rand(9, 3, 8, 8))
    with pytest.raises(ConfigurationError, match="needs data"):
        PatchWhitening()(nn.Sequential(nn.Conv2d(1, 4, 3)))
    with pytest.warns(UserWarning, match="has no 2d convolution of groups=1 that takes the images"):
        PatchWhitening()(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), real_images())


# the frequencies of the classes


def test_a_prior_bias_predicts_the_frequencies():
    layer = nn.Linear(3, 4)
    prior_bias_(layer, [10, 20, 30, 40])
    torch.testing.assert_close(layer.bias.softmax(0), torch.tensor([0.1, 0.2, 0.3, 0.4]))
    prior_bias_(layer, [10, 20, 30, 40], total=80)
    torch.testing.assert_close(layer.bias.sigmoid(), torch.tensor([10, 20, 30, 40]) / 80)


@pytest.mark.parametrize("face", ["argument", "callback"])
def test_the_counts_come_from_the_data(face):
    targets = torch.tensor([0] * 30 + [1] * 10)
    data = TensorData(train_images=torch.rand(40, 8, 8), train_targets=targets, val_size=0)
    start = [XavierUniform(), PriorBias()]
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    mark_pretrained(network, False)
    optimizer = torch.optim.SGD
    model = ImageClassifier(network, **data.model_args(), optimizer=lambda groups: optimizer(groups, lr=0.0))
    callbacks = [InitializeWeights(start)] if face == "callback" else []
    if face == "argument":
        model = ImageClassifier(
            network, **data.model_args(), optimizer=lambda groups: optimizer(groups, lr=0.0), initializer=start
        )
    quiet_trainer(*callbacks, max_steps=1).fit(model, data)
    torch.testing.assert_close(network[1].bias.softmax(0), torch.tensor([0.75, 0.25]))


def test_a_prior_bias_without_counts_or_without_a_layer_for_them_says_so():
    with pytest.raises(ConfigurationError, match="frequencies of the classes are unknown; pass counts="):
        quiet_trainer(InitializeWeights(PriorBias())).fit(Foreign(), plain_loader())
    with pytest.warns(UserWarning, match="has no last layer with a bias for each of 5 classes"):
        PriorBias([1, 2, 3, 4, 5])(nn.Sequential(nn.Linear(3, 4)))
    with pytest.raises(DataError, match="would be infinite"):
        prior_bias_(nn.Linear(3, 2), [0, 4])
    with pytest.raises(DataError, match="would be infinite"):
        prior_bias_(nn.Linear(3, 2), [4, 2], total=4)


# several


def test_a_chain_goes_on_from_what_the_ones_before_left():
    net = ConvNet(10, 1, (8, 8))
    generator = torch.Generator().manual_seed(0)
    Chain([Kaiming(), Dirac()])(net, generator=generator)
    other = ConvNet(10, 1, (8, 8))
    Kaiming()(other, generator=torch.Generator().manual_seed(0))
    Dirac()(other)
    for name, value in other.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name


def test_a_list_is_stored_and_loaded(tmp_path):
    data = Digits()
    model = ImageClassifier(ConvNet, **data.model_args(), initializer=[Kaiming(), PriorBias()])
    trainer = quiet_trainer(max_steps=1, limit_val_batches=0)
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "model.ckpt")
    assert loaded.initializer == Chain([Kaiming(), PriorBias()])


def test_an_empty_list_is_refused():
    with pytest.raises(ConfigurationError, match=r"Chain: initializers=\[\] starts nothing"):
        ImageClassifier(initializer=[])
