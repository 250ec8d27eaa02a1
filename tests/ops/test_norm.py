"""Instance normalisation: PyTorch's as oracle, laws of the fused kernel, where which form runs."""

import io

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from medseg.ops.kernels.dispatch import forced
from medseg.ops.kernels.numba_norm import normalise, rows_of
from medseg.ops.norm import InstanceNorm, instance_norm

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
# channels on either side of the vectors of 8 and 32; extents that leave a part of a chunk
SHAPES = [
    (1, 32, 16, 24, 24),
    (2, 9, 9, 11, 13),
    (1, 41, 7, 6, 11),
    (3, 8, 40, 33),
    (1, 2, 130, 70),
    (1, 320, 4, 5, 3),
    (2, 64, 1, 1, 90),
]


def expected(x: Tensor, weight: Tensor | None, bias: Tensor | None, slope: float) -> Tensor:
    """PyTorch's own, in float64."""
    numbers = [None if values is None else values.double() for values in (weight, bias)]
    normed = F.instance_norm(x.double(), weight=numbers[0], bias=numbers[1])
    return F.leaky_relu(normed, slope)


def image(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(shape) * 3 + torch.randn(1, shape[1], *[1] * (len(shape) - 2)) * 5
    return x.to(dtype).to(memory_format=LAST[x.ndim])


def wrote_over_its_input(x: Tensor) -> bool:
    """Only the kernel does so."""
    with torch.inference_mode():
        return instance_norm(x, inplace=True).data_ptr() == x.data_ptr()


@pytest.mark.parametrize("slope", [1.0, 0.01, 0.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_computes_what_pytorch_does_in_float64(shape: tuple[int, ...], slope: float) -> None:
    x, weight, bias = image(shape), torch.randn(shape[1]), torch.randn(shape[1])
    with torch.inference_mode(), forced("fast"):
        y = instance_norm(x, weight, bias, negative_slope=slope)
        bare = instance_norm(x, negative_slope=slope)
    wanted = expected(x, weight, bias, slope)
    torch.testing.assert_close(y.double(), wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(bare.double(), expected(x, None, None, slope), atol=1e-4, rtol=0)
    assert y.is_contiguous(memory_format=LAST[x.ndim])


@pytest.mark.parametrize("shape", SHAPES)
def test_bfloat16_is_the_float32_result_rounded_once(shape: tuple[int, ...]) -> None:
    x, weight, bias = image(shape, torch.bfloat16), torch.randn(shape[1]), torch.randn(shape[1])
    with torch.inference_mode(), forced("fast"):
        y = instance_norm(x, weight, bias, negative_slope=0.01)
        single = instance_norm(x.float(), weight, bias, negative_slope=0.01)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, single.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_none_spoils_its_own_map_only(number: float, dtype: torch.dtype) -> None:
    x = image((2, 21, 20, 30), dtype)
    x[1, 4, 3, 2] = number
    with torch.inference_mode(), forced("fast"):
        y = instance_norm(x, negative_slope=0.01)
    spoilt = y.isnan().flatten(2)
    assert spoilt[1, 4].all()
    assert spoilt.sum() == 600


def test_a_mean_far_above_the_deviation_costs_few_digits() -> None:
    """PyTorch's kernel for this layout loses them all: it takes the mean of the squares."""
    x = (1e4 + torch.randn(1, 32, 24, 24, 24)).contiguous(memory_format=torch.channels_last_3d)
    # one voxel is an outlier of a chunk, and the first one at that
    x[..., 0, 0, 0] = -1e4
    with torch.inference_mode(), forced("fast"):
        y = instance_norm(x)
    torch.testing.assert_close(y.double(), expected(x, None, None, 1.0), atol=2e-3, rtol=1e-3)


def test_a_map_of_one_value_gives_the_bias() -> None:
    x = torch.full((2, 32, 8, 8, 8), 7.5).contiguous(memory_format=torch.channels_last_3d)
    bias = torch.linspace(-1, 1, 32)
    with torch.inference_mode():
        y = instance_norm(x, torch.ones(32), bias)
        assert torch.equal(y, bias.view(1, -1, 1, 1, 1).expand_as(y))
        voxel = instance_norm(x[..., :1, :1, :1], None, bias)[0, :, 0, 0, 0]
        torch.testing.assert_close(voxel, bias, atol=1e-3, rtol=0)


def test_one_case_on_paper() -> None:
    """Values 1 and 3: mean 2, deviation 1; weight 4, bias 1: -3 and 5; halved below zero."""
    x = torch.tensor([1.0, 3.0]).repeat(4096).view(1, 1, 64, 128).repeat(1, 2, 1, 1)
    x = x.contiguous(memory_format=torch.channels_last)
    for path in ("fast", "torch"):
        with torch.inference_mode(), forced(path):
            y = instance_norm(
                x, torch.tensor([4.0, 4.0]), torch.ones(2), eps=0.0, negative_slope=0.5
            )
        torch.testing.assert_close(y[0, 1, 0, :2], torch.tensor([-1.5, 5.0]))


def test_several_threads_give_the_bits_of_one() -> None:
    x, before = image((2, 32, 24, 24, 24)), torch.get_num_threads()
    with torch.inference_mode(), forced("fast"):
        one = instance_norm(x, negative_slope=0.01)
        torch.set_num_threads(3)
        three = instance_norm(x, negative_slope=0.01)
    torch.set_num_threads(before)
    assert torch.equal(one, three)


def test_it_writes_over_its_input_only_where_it_may() -> None:
    x = image((1, 16, 16, 16, 16))
    kept = x.clone()
    with torch.inference_mode():
        y = instance_norm(x)
        assert torch.equal(x, kept)
        assert y.data_ptr() != x.data_ptr()
        assert torch.equal(instance_norm(x, inplace=True), y)
        assert torch.equal(x, y)


def test_a_slice_of_the_channels_of_another_tensor_can_be_written() -> None:
    x = image((2, 16, 8, 8, 9))
    joined = torch.full((2, 40, 8, 8, 9), -7.0).contiguous(memory_format=torch.channels_last_3d)
    normalise(x, None, None, 1e-5, 1.0, joined[:, 8:24])
    wanted = expected(x, None, None, 1.0).float()
    torch.testing.assert_close(joined[:, 8:24], wanted, atol=1e-4, rtol=0)
    assert (joined[:, :8] == -7).all()
    assert (joined[:, 24:] == -7).all()
    found = rows_of(joined[:, 8:24])
    assert found is not None
    assert (found.rows, found.row_step, found.channels) == (576, 40, 16)


def test_what_is_not_in_rows_of_channels_is_told_apart() -> None:
    x = torch.randn(2, 6, 4, 6)
    assert rows_of(x) is None
    last = x.contiguous(memory_format=torch.channels_last)
    assert rows_of(last) is not None
    assert rows_of(last[:, :, :, ::2]) is not None
    assert rows_of(last[:, :, :, 1:]) is None
    assert rows_of(last[:0]) is None
    assert rows_of(last[:, ::2]) is None


def test_gradients_are_those_of_pytorch() -> None:
    x = image((2, 8, 12, 12, 12)).requires_grad_()
    module = InstanceNorm(8, negative_slope=0.01, inplace=True)
    nn.init.normal_(module.weight)
    mould = torch.randn_like(x)
    found = torch.autograd.grad((module(x) * mould).sum(), [x, module.weight, module.bias])
    wanted = torch.autograd.grad(
        (expected(x, module.weight, module.bias, 0.01) * mould).sum(),
        [x, module.weight, module.bias],
    )
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-2, rtol=1e-3)


def test_contiguous_small_and_wide_tensors_take_the_plain_form() -> None:
    assert wrote_over_its_input(image((1, 16, 16, 16, 16)))
    assert not wrote_over_its_input(torch.randn(1, 16, 16, 16, 16))
    assert not wrote_over_its_input(image((1, 16, 4, 4, 4)))
    assert not wrote_over_its_input(image((1, 16, 16, 16, 16), torch.float64))
    assert not wrote_over_its_input(image((1, 16, 16, 16, 16), torch.float16))
    flat = torch.randn(2, 5, 30)
    torch.testing.assert_close(instance_norm(flat), F.instance_norm(flat))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_number_type_alone(dtype: torch.dtype) -> None:
    x = torch.randn(1, 8, 6, 6, 6).to(dtype)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert instance_norm(x, torch.ones(8), torch.zeros(8)).dtype == dtype


def test_it_compiles_exports_and_traces() -> None:
    module = InstanceNorm(16, negative_slope=0.01).eval().requires_grad_(requires_grad=False)
    x = image((1, 16, 12, 12, 12))
    wanted = expected(x, None, None, 0.01).float()
    program = torch.export.export(module, (x,))
    torch.testing.assert_close(program.module()(x), wanted, atol=1e-4, rtol=0)
    names = {str(node.target) for node in program.graph.nodes}
    assert "aten.group_norm.default" in names
    with torch.no_grad(), FakeTensorMode() as fakes:
        stand_in = fakes.from_tensor(x)
        assert instance_norm(stand_in).shape == x.shape
    with torch.no_grad():
        mapped = torch.func.vmap(module)(x[None])
    torch.testing.assert_close(mapped[0], wanted, atol=1e-4, rtol=0)


def test_its_weights_have_the_names_of_pytorch() -> None:
    theirs, ours = nn.InstanceNorm3d(6, affine=True), InstanceNorm(6)
    nn.init.normal_(theirs.weight)
    file = io.BytesIO()
    torch.save(theirs.state_dict(), file)
    file.seek(0)
    ours.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(2, 6, 5, 5, 5)
    torch.testing.assert_close(ours(x), theirs(x))
    assert list(InstanceNorm(6, affine=False).parameters()) == []
    assert "negative_slope=1.0" in repr(ours)
