import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_cnnopt.core.errors import ConfigurationError
from lightning_cnnopt.normalization import GhostBatchNorm2d, ghost_batch_norm


def batch(count, dtype=torch.float32):
    return 3 + 2 * torch.randn(count, 4, 5, 5, dtype=dtype, generator=torch.Generator().manual_seed(count))


def layers(ghost_size, **options):
    ghost, plain = GhostBatchNorm2d(4, ghost_size, **options), nn.BatchNorm2d(4, **options)
    if ghost.affine:
        nn.init.normal_(ghost.weight)
        nn.init.normal_(ghost.bias)
    plain.load_state_dict(ghost.state_dict())
    return ghost, plain


DIVISIONS = [(8, 4), (8, 8), (12, 4), (10, 4), (11, 4), (7, 3), (9, 2), (6, 4), (64, 32)]


@pytest.mark.parametrize(("count", "ghost_size"), DIVISIONS)
@pytest.mark.parametrize("affine", [True, False])
def test_every_ghost_batch_is_normalized_by_itself(count, ghost_size, affine):
    layer, _ = layers(ghost_size, affine=affine)
    x = batch(count)
    parts = x.tensor_split(max(1, round(count / ghost_size)))
    expected = [F.batch_norm(part, None, None, layer.weight, layer.bias, training=True) for part in parts]
    torch.testing.assert_close(layer(x), torch.cat(expected))


@pytest.mark.parametrize(("count", "ghost_size"), DIVISIONS)
def test_ghost_batches_are_of_nearly_equal_size(count, ghost_size):
    x = batch(count)
    normalized = ghost_batch_norm(x, ghost_size)[0]
    size = count // max(1, round(count / ghost_size))
    if count % size == 0:
        means = normalized.unflatten(0, (-1, size)).mean((1, 3, 4))
        torch.testing.assert_close(means, torch.zeros_like(means), atol=1e-5, rtol=0)
    assert size >= ghost_size / 2


@pytest.mark.parametrize(("count", "ghost_size"), DIVISIONS)
def test_running_statistics_move_to_the_mean_over_ghost_batches_by_size(count, ghost_size):
    layer, _ = layers(ghost_size, momentum=0.3)
    x = batch(count)
    parts = x.tensor_split(max(1, round(count / ghost_size)))
    mean = sum(len(part) / count * part.mean((0, 2, 3)) for part in parts)
    var = sum(len(part) / count * part.var((0, 2, 3), unbiased=True) for part in parts)
    layer(x)
    torch.testing.assert_close(layer.running_mean, 0.3 * mean)
    torch.testing.assert_close(layer.running_var, 0.7 + 0.3 * var)
    assert int(layer.num_batches_tracked) == 1


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("count", [1, 3, 8, 11])
def test_a_batch_below_the_ghost_size_is_normalized_as_by_batch_norm(count, momentum):
    ghost, plain = layers(8, momentum=momentum)
    for _ in range(2):
        assert torch.equal(ghost(batch(count)), plain(batch(count)))
    assert all(torch.equal(a, b) for a, b in zip(ghost.buffers(), plain.buffers(), strict=True))


def test_without_momentum_the_statistics_are_the_average_over_batches():
    layer, _ = layers(4, momentum=None)
    batches = [batch(8), batch(12), batch(16)]
    means, variances = [], []
    for x in batches:
        _, mean, var = ghost_batch_norm(x, 4)
        means.append(mean)
        variances.append(var)
        layer(x)
    torch.testing.assert_close(layer.running_mean, torch.stack(means).mean(0))
    torch.testing.assert_close(layer.running_var, torch.stack(variances).mean(0))


@pytest.mark.parametrize("count", [1, 4, 9])
def test_in_evaluation_it_is_batch_norm_and_changes_no_state(count):
    ghost, plain = layers(2)
    ghost(batch(8))
    plain.load_state_dict(ghost.state_dict())
    before = {name: value.clone() for name, value in ghost.state_dict().items()}
    assert torch.equal(ghost.eval()(batch(count)), plain.eval()(batch(count)))
    assert all(torch.equal(value, before[name]) for name, value in ghost.state_dict().items())


def test_weights_go_to_batch_norm_and_back():
    ghost, plain = layers(4)
    assert list(ghost.state_dict()) == list(plain.state_dict())
    ghost.load_state_dict(plain.state_dict(), strict=True)


@pytest.mark.parametrize(("count", "ghost_size"), [(4, 2), (5, 2), (3, 4)])
def test_gradients_are_right_in_double_precision(count, ghost_size):
    layer = GhostBatchNorm2d(2, ghost_size).double()
    x = torch.randn(count, 2, 2, 2, dtype=torch.float64, requires_grad=True)

    def apply(x, weight, bias):
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    weight, bias = (torch.randn(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(apply, (x, weight, bias))


def test_gradients_of_a_constant_batch_are_finite():
    layer = GhostBatchNorm2d(4, 2)
    x = torch.ones(6, 4, 3, 3, requires_grad=True)
    layer(x).square().sum().backward()
    assert all(bool(tensor.grad.isfinite().all()) for tensor in (x, layer.weight, layer.bias))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("affine", [True, False])
def test_the_result_is_near_that_of_single_precision_in_any_dtype(dtype, affine):
    layer = GhostBatchNorm2d(4, 4, affine=affine)
    expected = layer(batch(10))
    other = GhostBatchNorm2d(4, 4, affine=affine).to(dtype)
    output = other(batch(10).to(dtype))
    assert output.dtype == other.running_mean.dtype == dtype
    tolerance = 0.05 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(output.float(), expected, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(other.running_var.float(), layer.running_var, atol=tolerance, rtol=tolerance)


def test_low_precision_images_meet_single_precision_statistics():
    layer = GhostBatchNorm2d(4, 4)
    assert layer(batch(8).bfloat16()).dtype == torch.bfloat16
    assert layer.running_mean.dtype == torch.float32


def test_images_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="4D"):
        GhostBatchNorm2d(4)(torch.randn(2, 4))


@pytest.mark.parametrize("ghost_size", [0, -1, "32"])
def test_a_ghost_size_out_of_range_is_refused(ghost_size):
    with pytest.raises(ConfigurationError, match="ghost_size"):
        GhostBatchNorm2d(4, ghost_size)
