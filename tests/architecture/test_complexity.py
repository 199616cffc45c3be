from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn

from lightning_cnnopt import ConvNet
from lightning_cnnopt.architecture import CheckpointActivations, complexity
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.normalization import StandardizeWeights

PUBLISHED = {
    "resnet18": torchvision.models.ResNet18_Weights.IMAGENET1K_V1,
    "mobilenet_v3_small": torchvision.models.MobileNet_V3_Small_Weights.IMAGENET1K_V1,
    "vit_b_32": torchvision.models.ViT_B_32_Weights.IMAGENET1K_V1,
}


def total(rows, what):
    return sum(getattr(row, what) for row in rows)


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_cost_what_torchvision_publishes(name):
    published = PUBLISHED[name].meta
    rows = complexity(torchvision.models.get_model(name), torch.zeros(2, 3, 224, 224))
    assert total(rows, "parameters") == published["num_params"]
    assert total(rows, "macs") / 1e9 == pytest.approx(published["_ops"], abs=6e-4)


def test_layers_cost_what_their_formulas_say():
    network = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(72, 5)
    )
    network[3].bias.requires_grad_(False)
    conv, norm, flatten, linear = complexity(network, torch.zeros(3, 4, 6, 6))
    assert (conv.output, conv.parameters, conv.macs) == ((3, 8, 3, 3), 8 * 2 * 9, 9 * 8 * 2 * 9)
    assert (norm.parameters, norm.trainable, norm.macs) == (16, 16, 0)
    assert (flatten.parameters, flatten.macs, flatten.activation_bytes) == (0, 0, 0)
    assert (linear.parameters, linear.trainable, linear.macs) == (72 * 5 + 5, 72 * 5, 72 * 5)
    # each keeps its input; batch normalization also the mean and deviation of each channel
    assert conv.activation_bytes == 4 * 3 * 4 * 36
    assert norm.activation_bytes == 4 * (3 * 72 + 8 + 8)
    assert linear.activation_bytes == 4 * 3 * 72


def test_what_two_layers_keep_together_is_counted_once():
    relu_then_linear = complexity(nn.Sequential(nn.ReLU(), nn.Linear(6, 2)), torch.ones(5, 6, requires_grad=True))
    assert [row.activation_bytes for row in relu_then_linear] == [4 * 5 * 6, 0]


def test_macs_are_those_of_one_image_and_memory_that_of_the_batch():
    network = ConvNet()
    few, many = (complexity(network, torch.zeros(size, 1, 28, 28)) for size in (2, 8))
    assert total(few, "macs") == total(many, "macs") == 8_255_232
    convolutions = [[row.activation_bytes for row in rows if row.kind == "Conv2d"] for rows in (few, many)]
    assert [4 * kept for kept in convolutions[0]] == convolutions[1]


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.unused = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return torch.sigmoid(images + self.conv(images)) @ (images * self.scale)


def test_what_no_layer_computes_stands_at_the_network_and_layers_that_are_not_called_at_the_end():
    rows = complexity(Residual(), torch.zeros(3, 2, 4, 4))
    assert [row.layer for row in rows] == ["(network)", "conv", "unused"]
    assert (rows[0].parameters, rows[0].macs) == (1, 2 * 4 * 4 * 4)
    assert rows[0].activation_bytes > 0
    assert (rows[2].parameters, rows[2].macs, rows[2].output) == (12, 0, ())


def test_recomputed_blocks_keep_less_and_cost_the_same():
    network = timm.create_model("resnet18")
    images = torch.zeros(2, 3, 64, 64)
    before = complexity(network, images)
    CheckpointActivations()(network)
    after = complexity(network, images)
    assert total(after, "activation_bytes") < 0.7 * total(before, "activation_bytes")
    assert total(after, "macs") == total(before, "macs")


def test_a_layer_that_computes_its_weight_is_one_row():
    network = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 4, 3)), nn.ReLU())
    assert [(row.layer, row.kind, row.parameters) for row in complexity(network, torch.zeros(2, 2, 5, 5))] == [
        ("0", "Conv2d", 4 + 4 * 18 + 4),
        ("1", "ReLU", 0),
    ]
    standardized = ConvNet()
    StandardizeWeights()(standardized)
    assert "parametrizations" not in " ".join(row.layer for row in complexity(standardized, torch.zeros(2, 1, 28, 28)))


def test_the_network_is_left_as_it_was():
    network = ConvNet().eval()
    network.stages[0][0].norm.train()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    complexity(network, torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_images_that_do_not_fit_are_named():
    with pytest.raises(ConfigurationError, match=r"ConvNet does not take images of shape \(2, 3, 28, 28\)"):
        complexity(ConvNet(), torch.zeros(2, 3, 28, 28))
