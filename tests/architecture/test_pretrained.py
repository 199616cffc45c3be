import argparse
import http.client
import http.server
import pickle
import sys
import threading
import urllib.error
import warnings
from functools import partial
from pathlib import Path

import pytest
import safetensors.torch
import timm
import timm.models._manipulate
import torch
import torchvision
from torch import nn
from torchvision.transforms.v2 import functional as tv

from lightning_cnnopt import ImageClassifier, TensorData
from lightning_cnnopt.architecture import SmallResNet, TimmNetwork, TorchvisionNetwork, WeightsRecord, adapt_input_filters
from lightning_cnnopt.architecture.pretrained.files import read_weights
from lightning_cnnopt.core.errors import CheckpointError, ConfigurationError
from lightning_cnnopt.initialization import Kaiming, XavierUniform
from tests.lightning_tools import quiet_trainer

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def published(folder):
    """A resnet18 of torchvision as it was published: 1000 classes, 3 channels."""
    torch.manual_seed(11)
    net = torchvision.models.resnet18().eval()
    torch.save(net.state_dict(), folder / "resnet18.pth")
    return net


@pytest.fixture
def path(published, folder):
    return str(folder / "resnet18.pth")


@pytest.fixture(scope="module")
def timm_published(folder):
    torch.manual_seed(12)
    net = timm.create_model("resnet18").eval()
    safetensors.torch.save_file(net.state_dict(), folder / "timm.safetensors")
    return net


@pytest.fixture
def timm_path(timm_published, folder):
    return str(folder / "timm.safetensors")


# filters


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_filters_are_adapted_as_timm_does(channels, dtype):
    filters = torch.randn(8, 3, 5, 5).to(dtype)
    expected = timm.models._manipulate.adapt_input_conv(channels, filters.clone())
    torch.testing.assert_close(adapt_input_filters(filters, channels), expected)


def test_a_grey_image_gives_what_it_gave_as_three_channels(published, path):
    net = TorchvisionNetwork("resnet18", file=path, num_classes=1000, in_channels=1).eval()
    torch.testing.assert_close(net(IMAGES[:, :1]), published(IMAGES[:, :1].expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


# torchvision


def test_with_the_same_classes_and_channels_it_computes_torchvisions(published, path):
    net = TorchvisionNetwork("resnet18", file=path, num_classes=1000).eval()
    assert torch.equal(net(IMAGES), published(IMAGES))


def test_with_other_classes_the_head_alone_is_new(published, path):
    net = TorchvisionNetwork("resnet18", file=path, num_classes=5)
    theirs = published.state_dict()
    different = {name for name, value in net.body.state_dict().items() if value.shape != theirs[name].shape}
    assert different == {"fc.weight", "fc.bias"}
    assert all(torch.equal(value, theirs[name]) for name, value in net.body.state_dict().items() if name not in different)
    assert net(IMAGES).shape == (2, 5)


@pytest.mark.parametrize(("classes", "drawn"), [(5, ["body.fc"]), (1000, [])])
@pytest.mark.parametrize("source", ["torchvision", "timm", "fetched by timm"])
def test_an_initializer_draws_a_new_head_alone(source, classes, drawn, path, timm_published, timm_path, monkeypatch):
    state = timm_published.state_dict
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", lambda *args, **kwargs: dict(state()))
    make = {
        "torchvision": partial(TorchvisionNetwork, file=path),
        "timm": partial(TimmNetwork, file=timm_path),
        "fetched by timm": partial(TimmNetwork, pretrained="a1_in1k"),
    }[source]
    net = make("resnet18", num_classes=classes, in_channels=1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert Kaiming()(net) == drawn
    changed = [name for name, value in net.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == [f"{layer}.{name}" for layer in drawn for name in ("weight", "bias")]


def test_published_weights_stay_through_the_fit_of_an_image_classifier(published, path):
    images = torch.randint(0, 256, (12, 1, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    data = TensorData(train_images=images, train_targets=torch.arange(12) % 3, val_size=0, batch_size=4)
    network = partial(TorchvisionNetwork, name="resnet18", file=path)
    still = partial(torch.optim.SGD, lr=0.0)
    model = ImageClassifier(network, **data.model_args(), initializer=XavierUniform(1e-6), optimizer=still)
    quiet_trainer(max_steps=1).fit(model, data)
    assert float(model.network.body.fc.weight.detach().abs().max()) < 1e-6
    theirs = published.state_dict()
    for name, value in model.network.body.named_parameters():
        assert name.startswith(("fc.", "conv1.")) or torch.equal(value, theirs[name]), name
    torch.testing.assert_close(model.network.body.conv1.weight.detach(), theirs["conv1.weight"].sum(1, keepdim=True))


FAMILIES = [
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "mnasnet0_5", "mobilenet_v2"),
    *("mobilenet_v3_small", "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1"),
]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_takes_any_channels_and_classes_and_its_own_weights(name, tmp_path):
    size = (96, 96)
    net = TorchvisionNetwork(name, num_classes=4, in_channels=2, image_size=size).eval()
    assert net(torch.zeros(2, 2, *size)).shape == (2, 4)
    file = str(tmp_path / "own.pth")
    torch.save(net.body.state_dict(), file)
    same = TorchvisionNetwork(name, file=file, num_classes=4, in_channels=2, image_size=size).eval()
    x = torch.randn(1, 2, *size)
    assert torch.equal(same(x), net(x))
    other = TorchvisionNetwork(name, file=file, num_classes=7, in_channels=4, image_size=size).eval()
    assert other(torch.zeros(2, 4, *size)).shape == (2, 7)
    shapes = {key for key, value in other.body.state_dict().items() if value.shape != net.body.state_dict()[key].shape}
    assert {key.rpartition(".")[0] for key in shapes} == {_first(other.body), _last(other.body)}


def _first(net):
    return next(name for name, module in net.named_modules() if isinstance(module, nn.Conv2d))


def _last(net):
    return [name for name, module in net.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))][-1]


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_a_random_start_keeps_the_scale_of_the_first_activations(channels):
    torch.manual_seed(0)
    few, three = (TorchvisionNetwork("resnet18", in_channels=c).body.conv1 for c in (channels, 3))
    ratio = few(torch.randn(2, channels, 64, 64)).std() / three(torch.randn(2, 3, 64, 64)).std()
    assert float(ratio.detach()) == pytest.approx(1, abs=0.1)


def test_files_of_densenet_with_the_names_of_its_first_version_load(tmp_path):
    net = torchvision.models.densenet121().eval()
    old = {}
    for key, value in net.state_dict().items():
        for part in ("norm", "conv"):
            for number in "12":
                key = key.replace(f".{part}{number}.", f".{part}.{number}.") if "denselayer" in key else key
        if not key.endswith("num_batches_tracked"):
            old[key] = value
    torch.save(old, tmp_path / "densenet.pth")
    ours = TorchvisionNetwork("densenet121", file=str(tmp_path / "densenet.pth"), num_classes=1000).eval()
    assert torch.equal(ours(IMAGES), net(IMAGES))


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_heads_are_left_out_and_the_rescaled_input_stays(name, tmp_path):
    full = torchvision.models.get_model(name, init_weights=False, transform_input=True).eval()
    torch.save(full.state_dict(), tmp_path / "full.pth")
    arguments = {"weights": "DEFAULT", "file": str(tmp_path / "full.pth"), "image_size": (96, 96)}
    net = TorchvisionNetwork(name, num_classes=1000, **arguments)
    x = torch.randn(2, 3, 96, 96)
    assert torch.equal(net.eval()(x), full(x))
    assert net.train()(x).shape == (2, 1000)
    with pytest.raises(ConfigurationError, match=r"only 3 channels fit.*in_channels=1"):
        TorchvisionNetwork(name, in_channels=1, **arguments)


def test_weights_by_name_come_from_their_address_and_are_checked(published, monkeypatch):
    asked = []

    def fetch(url, *args, **kwargs):
        asked.append((url, kwargs.get("check_hash")))
        return published.state_dict()

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fetch)
    net = TorchvisionNetwork("resnet18", weights="IMAGENET1K_V1", num_classes=1000).eval()
    assert asked == [(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url, True)]
    assert torch.equal(net(IMAGES), published(IMAGES))
    assert net.class_names == torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"]


def test_weights_that_cannot_be_fetched_say_from_where_and_what_to_do(monkeypatch):
    def fail(url, *args, **kwargs):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fail)
    with pytest.raises(CheckpointError, match=r"download.pytorch.org/models/resnet18-.*no route.*file="):
        TorchvisionNetwork("resnet18", weights="DEFAULT")


# files


def test_a_file_address_and_a_path_are_the_same(published, path):
    by_address = read_weights(Path(path).as_uri())
    assert all(torch.equal(value, by_address[name]) for name, value in read_weights(path).items())


def test_a_web_address_is_fetched_once_and_not_mixed_up_with_another(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    for name, value in (("a", 1.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        torch.save({"weight": torch.tensor(value)}, tmp_path / name / "model.pth")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        addresses = [f"http://127.0.0.1:{server.server_port}/{name}/model.pth" for name in "ab"]
        assert [read_weights(address)["weight"].item() for address in addresses] == [1.0, 2.0]
        with pytest.raises(CheckpointError, match=r"missing.pth' can't be fetched: .*404"):
            read_weights(addresses[0].replace("model", "missing"))
        server.shutdown()
    assert [read_weights(address)["weight"].item() for address in addresses] == [1.0, 2.0]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"state_dict": {f"module._orig_mod.{name}": value for name, value in state.items()}},
        lambda state: {f"_orig_mod.module.{name}": value for name, value in state.items()},
    ],
)
def test_what_trainers_wrap_weights_in_is_taken_off(wrap, published, tmp_path):
    torch.save(wrap(published.state_dict()), tmp_path / "wrapped.pth")
    net = TorchvisionNetwork("resnet18", file=str(tmp_path / "wrapped.pth"), num_classes=1000).eval()
    assert torch.equal(net(IMAGES), published(IMAGES))


def test_files_that_hold_no_weights_are_named(published, path, tmp_path):
    (tmp_path / "cut.pth").write_bytes(Path(path).read_bytes()[:10_000])
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    (tmp_path / "text.pth").write_text("weights")
    torch.save({"epoch": 3}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({}, tmp_path / "empty.pth")
    torch.save(published, tmp_path / "module.pth")
    for name in ("cut.pth", "cut.safetensors", "text.pth"):
        with pytest.raises(CheckpointError, match=f"{name}' holds no weights, or is damaged"):
            read_weights(tmp_path / name)
    for name, holds in (("other.pth", "'epoch'"), ("list.pth", "list"), ("empty.pth", "it has")):
        with pytest.raises(CheckpointError, match=f"{name}' holds no weights by name.*{holds}"):
            read_weights(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"gone.pth' does not exist"):
        read_weights(tmp_path / "gone.pth")


def test_objects_beside_the_weights_are_named_with_what_to_do(published, tmp_path):
    torch.save(published, tmp_path / "module.pth")
    torch.save({"state_dict": published.state_dict(), "args": argparse.Namespace(lr=0.1)}, tmp_path / "timm.pth")
    for name, kind in (("module.pth", "torchvision.models.resnet.ResNet"), ("timm.pth", "argparse.Namespace")):
        with pytest.raises(CheckpointError, match=f"{name}' holds a {kind} beside .* Save the weights alone"):
            read_weights(tmp_path / name)


def test_a_copy_that_is_damaged_is_named_so_that_it_can_be_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, path, **_: Path(path).write_bytes(b"half"))
    with pytest.raises(CheckpointError, match=r"It was fetched to .*_x.pth; delete that to fetch it again") as caught:
        read_weights("https://example.org/x.pth")
    assert str(next((tmp_path / "checkpoints").iterdir())) in str(caught.value)


@pytest.mark.parametrize("error", [http.client.IncompleteRead(b""), urllib.error.URLError("gone"), TimeoutError("late")])
def test_a_connection_that_breaks_is_no_traceback(error, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(CheckpointError, match=r"x.pth' can't be fetched"):
        read_weights("https://example.org/x.pth")


def test_an_address_that_nobody_fetches_is_no_path():
    with pytest.raises(CheckpointError, match=r"file='s3://bucket/x\.pth' is an address of another kind"):
        read_weights("s3://bucket/x.pth")


@pytest.mark.parametrize("make", [TorchvisionNetwork, TimmNetwork])
def test_weights_of_another_network_are_refused_with_the_first_keys_and_shapes(make, tmp_path):
    package = torchvision.models.resnet50 if make is TorchvisionNetwork else partial(timm.create_model, "resnet50")
    file = str(tmp_path / "other.pth")
    torch.save(package(num_classes=5).state_dict(), file)
    with pytest.raises(
        CheckpointError,
        match=r"other.pth' and resnet18.* do not belong together: 'layer1.0.conv1.weight' is \(64, 64, 1, 1\) there and "
        r"\(64, 64, 3, 3\) here; .*have no place here, such as 'layer1.0.conv3.weight'",
    ):
        make("resnet18", file=file, num_classes=5)
    torch.save(SmallResNet(depth=8).state_dict(), file)
    with pytest.raises(CheckpointError, match=r"weights are missing there, such as 'conv1.weight'.*such as 'stem.conv.weight'"):
        make("resnet18", file=file, num_classes=5)


def test_weights_that_are_not_finite_are_refused(published, tmp_path):
    # torchvision's VGG16_Weights.IMAGENET1K_FEATURES has such a classifier
    state = {**published.state_dict(), "layer1.0.conv1.weight": torch.full((64, 64, 3, 3), float("nan"))}
    torch.save(state, tmp_path / "nan.pth")
    with pytest.raises(CheckpointError, match=r"not finite, such as 'layer1.0.conv1.weight'"):
        TorchvisionNetwork("resnet18", file=str(tmp_path / "nan.pth"))


def test_a_file_without_a_head_leaves_the_head_new(published, tmp_path):
    headless = {name: value for name, value in published.state_dict().items() if not name.startswith("fc.")}
    torch.save(headless, tmp_path / "headless.pth")
    net = TorchvisionNetwork("resnet18", file=str(tmp_path / "headless.pth"), num_classes=1000)
    assert torch.equal(net.body.conv1.weight, published.conv1.weight)
    assert net.class_names is None


# what comes with the weights


def test_the_record_of_torchvision_is_that_of_its_transforms(path):
    net = TorchvisionNetwork("resnet50", weights="IMAGENET1K_V2", load=False)
    theirs = torchvision.models.ResNet50_Weights.IMAGENET1K_V2
    transforms = theirs.transforms()
    record = net.weights_record
    assert (list(record.mean), list(record.std)) == (transforms.mean, transforms.std)
    assert record.size == (transforms.crop_size[0],) * 2
    assert record.size[0] / record.crop == transforms.resize_size[0]
    assert record.interpolation == transforms.interpolation.value
    assert list(record.class_names) == theirs.meta["categories"]


def test_the_record_of_timm_is_its_data_config():
    record = TimmNetwork("resnet18", pretrained="a1_in1k", load=False).weights_record
    theirs = timm.data.resolve_data_config(pretrained_cfg=timm.models.get_pretrained_cfg("resnet18.a1_in1k").to_dict())
    assert (record.mean, record.std, record.crop) == (theirs["mean"], theirs["std"], theirs["crop_pct"])
    assert (record.size, record.interpolation) == (theirs["input_size"][1:], theirs["interpolation"])
    assert record.class_names[:2] == ("tench, Tinca tinca", "goldfish, Carassius auratus")


@pytest.mark.parametrize("make", [TorchvisionNetwork, TimmNetwork])
def test_ones_own_file_has_no_record(make, tmp_path):
    torch.save(make("resnet18").body.state_dict(), tmp_path / "own.pth")
    assert make("resnet18", file=str(tmp_path / "own.pth")).weights_record is None
    assert make("resnet18").weights_record is None
    with pytest.raises(ConfigurationError, match="input_size='weights'"):
        make("resnet18", file=str(tmp_path / "own.pth"), input_size="weights")
    with pytest.raises(ConfigurationError, match="crop='weights' needs published weights by name"):
        make("resnet18", crop="weights")


def test_statistics_follow_the_channels():
    record = WeightsRecord((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (8, 8), 1.0, "bilinear")
    assert record.statistics(3) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert record.statistics(5)[0] == [0.1, 0.2, 0.3, 0.1, 0.2]
    assert record.statistics(1) == (pytest.approx([0.2]), pytest.approx([0.5]))


@pytest.mark.parametrize(("input_size", "size"), [(96, (96, 96)), ((64, 80), (64, 80)), ("weights", (224, 224))])
def test_images_are_resized_as_torchvision_does(input_size, size, path):
    net = TorchvisionNetwork("resnet18", "IMAGENET1K_V1", path, image_size=(50, 40), input_size=input_size).eval()
    x = torch.randn(1, 3, 50, 40)
    resized = tv.resize(x, list(size), interpolation=tv.InterpolationMode.BILINEAR, antialias=True)
    torch.testing.assert_close(net.resize(x), resized)
    torch.testing.assert_close(net(x), net.body(resized))


def test_timms_interpolation_is_bicubic_where_its_record_says_so(timm_path):
    net = TimmNetwork("resnet18", "a1_in1k", timm_path, image_size=(50, 40), input_size=96)
    x = torch.randn(1, 3, 50, 40)
    resized = tv.resize(x, [96, 96], interpolation=tv.InterpolationMode.BICUBIC, antialias=True)
    torch.testing.assert_close(net.resize(x), resized)


@pytest.mark.parametrize("image_size", [(300, 400), (400, 300), (32, 32), (250, 250)])
@pytest.mark.parametrize(("name", "weights"), [("resnet18", "IMAGENET1K_V1"), ("resnet50", "IMAGENET1K_V2")])
def test_evaluation_with_the_crop_of_the_weights_is_that_of_torchvision(name, weights, image_size):
    net = TorchvisionNetwork(name, weights, image_size=image_size, input_size="weights", crop="weights", load=False).eval()
    images = torch.rand(2, 3, *image_size)
    theirs = torchvision.models.get_weight(f"{type(net.body).__name__}{name[6:]}_Weights.{weights}").transforms()(images)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in net.weights_record.statistics(3))
    torch.testing.assert_close(net.resize((images - mean) / std), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("crop", ["weights", 0.9, 1.0])
def test_evaluation_with_a_crop_is_that_of_timm(crop):
    net = TimmNetwork("resnet18", "a1_in1k", image_size=(70, 60), input_size=48, crop=crop, load=False).eval()
    record = net.weights_record
    transform = timm.data.create_transform(
        (3, 48, 48), interpolation=record.interpolation, mean=record.mean, std=record.std, crop_pct=net.resize.crop
    )
    image = torch.rand(3, 70, 60)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in record.statistics(3))
    torch.testing.assert_close(net.resize((image - mean) / std)[0], transform(image), rtol=1e-3, atol=1e-3)


def test_training_sees_the_whole_image_whatever_evaluation_keeps():
    net = TorchvisionNetwork("resnet18", image_size=(40, 30), input_size=20, crop=0.5)
    x = torch.randn(1, 3, 40, 30)
    whole = tv.resize(x, [20, 20], interpolation=tv.InterpolationMode.BILINEAR, antialias=True)
    torch.testing.assert_close(net.train().resize(x), whole)
    window = tv.resize(x, [53, 40], interpolation=tv.InterpolationMode.BILINEAR, antialias=True)
    torch.testing.assert_close(net.eval().resize(x), tv.center_crop(window, [20, 20]))


def test_without_a_crop_evaluation_sees_what_training_does():
    net = TorchvisionNetwork("resnet18", "IMAGENET1K_V1", image_size=(40, 40), input_size="weights", load=False)
    x = torch.randn(1, 3, 40, 40)
    assert torch.equal(net.train().resize(x), net.eval().resize(x))
    unresized = TorchvisionNetwork("resnet18", "IMAGENET1K_V1", image_size=(40, 40), load=False)
    assert unresized.resize(x) is x


def test_a_crop_alone_keeps_the_size():
    net = TorchvisionNetwork("resnet18", image_size=(40, 40), crop=0.5).eval()
    x = torch.randn(1, 3, 40, 40)
    assert net.train().resize(x) is x
    assert net.eval().resize(x).shape == x.shape
    assert not torch.equal(net.resize(x), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_resizing_keeps_the_dtype(dtype):
    net = TorchvisionNetwork("resnet18", image_size=(20, 20), input_size=40).to(dtype)
    assert net.resize(torch.zeros(1, 3, 20, 20, dtype=dtype)).dtype == dtype


# timm


@pytest.mark.parametrize(("classes", "channels"), [(1000, 3), (5, 1), (5, 4)])
def test_weights_of_timm_from_a_file_are_those_that_timm_would_load(classes, channels, timm_published, timm_path):
    ours = TimmNetwork("resnet18", True, timm_path, classes, channels)
    theirs = timm.create_model(
        "resnet18", pretrained=True, pretrained_cfg_overlay={"file": timm_path}, num_classes=classes, in_chans=channels
    )
    for name, value in theirs.state_dict().items():
        if not name.startswith("fc.") or classes == 1000:
            torch.testing.assert_close(ours.body.state_dict()[name], value, msg=name)


def test_weights_of_timm_by_name_are_fetched_by_timm(timm_published, monkeypatch):
    asked = []

    def fetch(*args, **kwargs):
        asked.append(args[0])
        return dict(timm_published.state_dict())

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", fetch)
    net = TimmNetwork("resnet18.a2_in1k", True, num_classes=1000).eval()
    assert asked == ["timm/resnet18.a2_in1k"]
    assert torch.equal(net(IMAGES), timm_published(IMAGES))
    assert net.class_names[0] == "tench, Tinca tinca"
    assert TimmNetwork("resnet18", "a2_in1k", num_classes=5).class_names is None


def test_weights_of_timm_that_cannot_be_fetched_say_what_to_do(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no route to the hub")

    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", fail)
    with pytest.raises(CheckpointError, match=r"resnet18.a1_in1k can't be fetched: no route to the hub.*file="):
        TimmNetwork("resnet18", True)


def test_files_of_a_networks_first_authors_are_read_by_timms_own_filter(timm_published, tmp_path, monkeypatch):
    def convert(state, model):
        return {name.removeprefix("backbone."): value for name, value in state.items()}

    module = sys.modules[type(timm_published).__module__]
    monkeypatch.setattr(module, "checkpoint_filter_fn", convert, raising=False)
    torch.save({f"backbone.{name}": value for name, value in timm_published.state_dict().items()}, tmp_path / "first.pth")
    net = TimmNetwork("resnet18", file=str(tmp_path / "first.pth"), num_classes=1000).eval()
    assert torch.equal(net(IMAGES), timm_published(IMAGES))


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "efficientnet_b0", "convnext_atto", "regnetx_002", "densenet121"])
def test_networks_of_timm_take_any_channels_and_classes(name):
    net = TimmNetwork(name, num_classes=4, in_channels=2, image_size=(64, 64)).eval()
    assert net(torch.zeros(1, 2, 64, 64)).shape == (1, 4)


def test_a_network_of_fixed_size_is_built_for_the_images():
    net = TimmNetwork("vit_tiny_patch16_224", pretrained="augreg_in21k_ft_in1k", load=False, image_size=(64, 64)).eval()
    assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 10)


def test_arguments_reach_the_builders():
    assert TimmNetwork("resnet18", arguments={"drop_rate": 0.3}).body.drop_rate == 0.3
    assert TorchvisionNetwork("mobilenet_v2", arguments={"dropout": 0.4}).body.classifier[0].p == 0.4


def test_without_timm_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigurationError, match=r'pip install "lightning-cnnopt\[timm\]"'):
        TimmNetwork("resnet18")


# both


@pytest.mark.parametrize("make", [TorchvisionNetwork, TimmNetwork])
def test_a_network_pickles_and_knows_how_a_checkpoint_rebuilds_it(make):
    net = make("resnet18").eval()
    assert torch.equal(pickle.loads(pickle.dumps(net))(IMAGES), net(IMAGES))
    assert net.rebuilt_with == {"load": False}


def test_what_was_left_to_a_default_is_stored_by_name(path, timm_path):
    net = TorchvisionNetwork("resnet18", "DEFAULT", path)
    assert net.rebuilt_with == {"load": False, "weights": "IMAGENET1K_V1"}
    net = TimmNetwork("resnet18", True, timm_path)
    assert net.rebuilt_with == {"load": False, "name": "resnet18", "pretrained": "a1_in1k"}
    again = TimmNetwork(**net.rebuilt_with)
    assert again.weights_record == net.weights_record


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (TorchvisionNetwork, {"name": "resnet81"}, "name='resnet81'.*'resnet18'"),
        (TorchvisionNetwork, {"name": "fcn_resnet50"}, "no classification network"),
        (TorchvisionNetwork, {"name": "resnet18", "weights": "IMAGENET1K_V3"}, "'IMAGENET1K_V3'.*DEFAULT"),
        (TorchvisionNetwork, {"name": "resnet18", "weights": "ResNet50_Weights.IMAGENET1K_V1"}, "none of resnet18"),
        (TorchvisionNetwork, {"name": "resnet18", "weights": "a/b.pth"}, "give file="),
        (TorchvisionNetwork, {"name": "resnet18", "arguments": {"widht": 2}}, "widht"),
        (TorchvisionNetwork, {"name": "resnet18", "arguments": {"num_classes": 2}}, "gives by itself"),
        (TorchvisionNetwork, {"name": "googlenet", "arguments": {"aux_logits": True}}, "aux_logits"),
        (TimmNetwork, {"name": "resnet81"}, "name='resnet81'.*'resnet18'"),
        (TimmNetwork, {"name": "resnet18", "pretrained": "a9_in1k"}, "no weights 'a9_in1k'.*a1_in1k"),
        (TimmNetwork, {"name": "resnet18.a1_in1k", "pretrained": "a2_in1k"}, "one of the two"),
        (TimmNetwork, {"name": "resnet18.a9_in1k"}, "no weights 'a9_in1k'"),
        (TimmNetwork, {"name": "resnet18", "arguments": {"widht": 2}}, "widht"),
        (TimmNetwork, {"name": "resnet18", "arguments": {"in_chans": 2}}, "gives by itself"),
        *((make, {"name": "resnet18", "num_classes": 0}, "num_classes=0") for make in (TorchvisionNetwork, TimmNetwork)),
        *((make, {"name": "resnet18", "in_channels": 0}, "in_channels=0") for make in (TorchvisionNetwork, TimmNetwork)),
        *((make, {"name": "resnet18", "input_size": 0}, "input_size=0") for make in (TorchvisionNetwork, TimmNetwork)),
        (TorchvisionNetwork, {"name": "resnet18", "crop": "weight"}, "crop='weight' is unknown.*Did you mean 'weights'"),
        (TimmNetwork, {"name": "resnet18", "input_size": "big"}, "input_size='big' is unknown"),
        *((make, {"name": "resnet18", "crop": 1.5}, "crop=1.5") for make in (TorchvisionNetwork, TimmNetwork)),
        *((make, {"name": "resnet18", "image_size": (8, 0)}, "image_size=0") for make in (TorchvisionNetwork, TimmNetwork)),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else None,
)
def test_wrong_arguments_are_named(make, arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        make(**arguments)
