from __future__ import annotations

import functools

import pytest
import torch
import torchvision
from torch import nn
from torch._dynamo.testing import CompileCounter

from lightning_cnnopt import ConvNet, ImageClassifier
from lightning_cnnopt.architecture import EditNetwork, SqueezeExcite
from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.parallel import ChannelsLast, CompileNetwork, to_channels_last
from tests.contracts import harness
from tests.lightning_tools import Foreign, plain_loader, quiet_trainer


def is_channels_last(tensor):
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


@pytest.mark.parametrize("images", [torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32).to(memory_format=torch.channels_last)])
def test_every_feature_map_is_channels_last_and_the_output_is_the_same(images):
    network, maps = torchvision.models.resnet18(num_classes=5).eval(), []
    with torch.no_grad():
        expected = network(images)
        assert to_channels_last(network) == 17  # kernels of one pixel lie both ways already
        for module in network.modules():
            if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.ReLU)):
                module.register_forward_hook(lambda m, a, output: maps.append(output))
        found = network(images)
    # a feature map of one pixel lies both ways at once
    assert all(is_channels_last(output) for output in maps if output.shape[-1] > 1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_layout_survives_ema_ddp_checkpoints_and_layers_that_edits_add(tmp_path):
    callbacks = [EditNetwork(SqueezeExcite(reduction=4)), ChannelsLast()]
    run, model = harness.fit(callbacks[1], extra=callbacks[:1])
    run.save_checkpoint(tmp_path / "model.ckpt")
    assert is_channels_last(model.network.blocks[0].conv1.weight)
    loaded = ImageClassifier.load_from_checkpoint(tmp_path / "model.ckpt")
    assert not is_channels_last(loaded.network.blocks[0].conv1.weight)
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name])


def test_a_network_without_convolutions_is_named():
    with pytest.warns(UserWarning, match=r"ChannelsLast\(.*changed nothing: Sequential has no 2d convolution"):
        quiet_trainer(ChannelsLast()).fit(Foreign(), plain_loader())


def compiled(counter, **arguments):
    model = harness.make_model(network=functools.partial(ConvNet, widths=(4,), depth=1, dense=()))
    callback = CompileNetwork(**arguments)
    callback.backend = counter
    return model, harness.trainer([callback], max_steps=-1, max_epochs=2)


def test_the_network_is_compiled_once_and_keeps_the_keys_of_its_state():
    counter = CompileCounter()
    model, trainer = compiled(counter)
    keys = list(model.state_dict())
    trainer.fit(model, datamodule=harness.make_data(drop_last=True))
    assert counter.frame_count == 2  # training, and validation, which needs no gradient
    for _ in range(2):
        trainer.validate(model, datamodule=harness.make_data(), verbose=False)
    assert counter.frame_count == 3  # in inference mode
    assert list(model.state_dict()) == keys


def test_a_foreign_modules_network_is_compiled_where_its_steps_call_it():
    counter, module = CompileCounter(), harness.Foreign()
    callback = CompileNetwork("eager")
    callback.backend = counter
    harness.fit(callback, module=module)
    assert counter.frame_count >= 1
    assert module._compiled_call_impl is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "inducter"}, r"backend='inducter' is unknown.*Did you mean 'inductor'"),
        ({"mode": "fast"}, r"mode='fast' is unknown"),
        ({"backend": "eager", "mode": "default"}, r"mode='default' is one of inductor's, and the backend is 'eager'"),
    ],
)
def test_arguments_that_cant_be_right_are_refused_by_name(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        CompileNetwork(**arguments)


@pytest.mark.slow
def test_with_inductor_a_run_of_any_batch_size_resumes_to_the_same_bits(tmp_path):
    path = str(tmp_path / "half.ckpt")
    arguments = {"max_steps": 8, "val_check_interval": 3}
    whole, _ = harness.fit(CompileNetwork(dynamic=True), **arguments)
    harness.fit(CompileNetwork(dynamic=True), extra=[harness.Keep(4, path)], **arguments)
    torch.compiler.reset()  # as in a new process
    resumed, _ = harness.fit(CompileNetwork(dynamic=True), ckpt_path=path, seed=99, **arguments)
    assert not harness.differences(harness.state_of(whole), harness.state_of(resumed))
    plain, _ = harness.fit(**arguments)
    assert harness.state_of(plain)["state_dict"].keys() == harness.state_of(whole)["state_dict"].keys()
