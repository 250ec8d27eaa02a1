"""Group and instance normalisation: PyTorch as oracle, laws of the kernel, which form runs."""

import io
import math
from collections.abc import Callable, Iterator

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from medseg.errors import ShapeError
from medseg.ops.kernels import numba_norm, numba_norm_backward
from medseg.ops.kernels.dispatch import forced
from medseg.ops.kernels.numba_norm import normalise, rows_of
from medseg.ops.norm import GroupNorm, InstanceNorm, group_norm, instance_norm

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


def expected(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    slope: float,
    groups: int | None = None,
) -> Tensor:
    """PyTorch's own, in float64."""
    numbers = [None if values is None else values.double() for values in (weight, bias)]
    if groups is None:
        normed = F.instance_norm(x.double(), weight=numbers[0], bias=numbers[1])
    else:
        normed = F.group_norm(x.double(), groups, *numbers)
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


@pytest.fixture
def in_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """Have maps of any size normalised by one thread, or shared out among several."""
    before = torch.get_num_threads()

    def switch(threads: int) -> None:
        torch.set_num_threads(threads)
        for module in (numba_norm, numba_norm_backward):
            monkeypatch.setattr(module, "LEAST_SHARED", 1 << 62 if threads == 1 else 0)

    yield switch
    torch.set_num_threads(before)


@pytest.mark.parametrize("groups", [4, 32])
def test_several_threads_give_the_bits_of_one(
    groups: int, in_threads: Callable[[int], None]
) -> None:
    x, found = image((2, 32, 24, 24, 24)), []
    for threads in (1, 3):
        in_threads(threads)
        with torch.inference_mode(), forced("fast"):
            found.append(group_norm(x, groups, negative_slope=0.01))
    assert torch.equal(*found)


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
    normalise(x, x.shape[1], None, None, 1e-5, 1.0, joined[:, 8:24])
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


@st.composite
def maps(draw: st.DrawFn) -> tuple[int, ...]:
    """Shapes from where the kernel runs to some chunks above, in 2D and 3D."""
    rank, batch = draw(st.sampled_from([2, 3])), draw(st.integers(1, 3))
    channels = draw(st.sampled_from([2, 7, 8, 9, 31, 32, 33, 48, 72]))
    extents = [draw(st.integers(1, 9)) for _ in range(rank - 1)]
    rows = -(-8192 // (batch * channels * math.prod(extents)))
    return (batch, channels, *extents, max(2, rows) + draw(st.integers(0, 40)))


def laid_out(dy: Tensor, layout: str) -> Tensor:
    """The same gradient as the operators around may hand it over."""
    if layout == "contiguous":
        return dy.contiguous()
    last = dy.contiguous(memory_format=LAST[dy.ndim])
    if layout == "slice":
        return torch.cat((last, last, last), dim=1)[:, dy.shape[1] : 2 * dy.shape[1]]
    return last


@given(
    shape=maps(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    slope=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    weights=st.sampled_from(["both", "weight", "bias", "none"]),
    layout=st.sampled_from(["last", "contiguous", "slice"]),
    share_of_groups=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_values_and_gradients_are_those_of_pytorch_in_float64(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    slope: float,
    weights: str,
    layout: str,
    share_of_groups: float,
    seed: int,
) -> None:
    """1e-4 of the largest in float32; in bfloat16, whose last digit is 2**-8, one rounding more."""
    torch.manual_seed(seed)
    divisors = [n for n in range(1, shape[1] + 1) if shape[1] % n == 0]
    groups = divisors[round(share_of_groups * (len(divisors) - 1))]
    x = image(shape, dtype).requires_grad_()
    weight = torch.randn(shape[1], requires_grad=True) if weights in ("both", "weight") else None
    bias = torch.randn(shape[1], requires_grad=True) if weights in ("both", "bias") else None
    dy = laid_out(torch.randn(shape).to(dtype), layout)
    leaves = [values for values in (x, weight, bias) if values is not None]
    with forced("fast"):
        y = group_norm(x, groups, weight, bias, negative_slope=slope)
        found = torch.autograd.grad(y, leaves, dy)
    assert is_kernels(y)
    wanted_y = expected(x, weight, bias, slope, groups)
    # where the activation bends, the last digit decides which of its slopes counts
    with torch.no_grad():
        bend = expected(x, weight, bias, 1.0, groups).abs() < 1e-4
        mould = dy.double().masked_fill(bend, 0)
    with forced("fast"):
        again = group_norm(x, groups, weight, bias, negative_slope=slope)
        found = torch.autograd.grad(again, leaves, laid_out(mould.to(dtype), layout))
    wanted = torch.autograd.grad(wanted_y, leaves, mould)
    share = 1e-4 if dtype == torch.float32 else 2**-8
    pairs = [(y, wanted_y), *zip(found, wanted, strict=True)]
    for (one, other), narrow in zip(pairs, [True, True, False, False], strict=False):
        assert other.shape == one.shape
        largest = max(1.0, float(other.detach().abs().max()))
        bound = (share if narrow else 1e-4) * largest
        torch.testing.assert_close(one.double(), other.double(), atol=bound, rtol=0)
    assert y.dtype == found[0].dtype == dtype
    assert found[0].is_contiguous(memory_format=LAST[x.ndim])


def is_kernels(y: Tensor) -> bool:
    return "medseg_group_norm" in str(y.grad_fn)


def test_gradients_in_bfloat16_are_the_float32_ones_rounded_once() -> None:
    x, weight, bias = image((2, 40, 9, 8, 7), torch.bfloat16), torch.randn(40), torch.randn(40)
    dy = torch.randn(x.shape).bfloat16().to(memory_format=torch.channels_last_3d)
    found = []
    for kind in (torch.bfloat16, torch.float32):
        leaves = [x.to(kind).requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
        with forced("fast"):
            y = instance_norm(*leaves, negative_slope=0.01)
            found.append(torch.autograd.grad(y, leaves, dy.to(kind)))
    for low, single in zip(*found, strict=True):
        assert torch.equal(low, single.to(low.dtype))


def test_gradients_on_paper() -> None:
    """Values 1 and 3, weight 4, bias 1: results -1.5 (that is -3 halved) and 5; gradients 2 and 1.

    Behind the activation they are 1 and 1: what is the same everywhere moves no result, and the
    weight, which multiplies -1 and 1, feels nothing. With the gradients 4 and 1, behind the
    activation 2 and 1, the bias gets 3 and the weight -1 from each pair.
    """
    x = torch.tensor([1.0, 3.0]).repeat(4096).view(1, 1, 64, 128).repeat(1, 2, 1, 1)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    leaves = [x, torch.full((2,), 4.0, requires_grad=True), torch.ones(2, requires_grad=True)]
    for path in ("fast", "torch"):
        for pair, of_weight, of_bias in [((2.0, 1.0), 0, 2), ((4.0, 1.0), -1, 3)]:
            dy = torch.tensor(pair).repeat(4096).view(1, 1, 64, 128).repeat(1, 2, 1, 1)
            with forced(path):
                y = instance_norm(*leaves, eps=0.0, negative_slope=0.5)
                dx, dw, db = torch.autograd.grad(y, leaves, dy)
            torch.testing.assert_close(dw, torch.full((2,), 4096.0 * of_weight))
            torch.testing.assert_close(db, torch.full((2,), 4096.0 * of_bias))
            # two values in each map are always 1 deviation from the mean
            torch.testing.assert_close(dx, torch.zeros_like(dx), atol=1e-5, rtol=0)


@pytest.mark.parametrize("groups", [4, 32])
def test_several_threads_give_the_gradients_of_one(
    groups: int, in_threads: Callable[[int], None]
) -> None:
    x = image((2, 32, 24, 24, 24)).requires_grad_()
    weight, dy = torch.randn(32, requires_grad=True), torch.randn_like(x)
    found = []
    for threads in (1, 3):
        in_threads(threads)
        with forced("fast"):
            y = group_norm(x, groups, weight, negative_slope=0.01)
            found.append(torch.autograd.grad(y, [x, weight], dy))
    assert all(torch.equal(one, three) for one, three in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_none_spoils_the_gradient_of_its_own_map_only(
    number: float, dtype: torch.dtype
) -> None:
    x = image((2, 21, 20, 30), dtype)
    x[1, 4, 3, 2] = number
    x.requires_grad_()
    with forced("fast"):
        (dx,) = torch.autograd.grad(instance_norm(x, negative_slope=0.01).sum(), x)
    spoilt = dx.isnan().flatten(2)
    assert spoilt[1, 4].all()
    assert spoilt.sum() == 600


def test_a_map_of_one_value_has_finite_gradients() -> None:
    x = torch.full((1, 32, 8, 8, 8), 7.5).contiguous(memory_format=torch.channels_last_3d)
    x.requires_grad_()
    dy = torch.randn_like(x)
    with forced("fast"):
        y = instance_norm(x, bias_c=torch.ones(32))
        (dx,) = torch.autograd.grad(y, x, dy)
    assert is_kernels(y)
    wanted = (dy - dy.mean((2, 3, 4), keepdim=True)) / 1e-5**0.5
    torch.testing.assert_close(dx, wanted, atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize(("slope", "groups"), [(0.0, 4), (0.01, 2), (1.0, 1)])
def test_gradcheck_of_first_and_second_derivatives(slope: float, groups: int) -> None:
    torch.manual_seed(3)
    x = torch.randn(2, 4, 3, 2, dtype=torch.float64)
    x = x.to(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(4, dtype=torch.float64, requires_grad=True)

    def by_operator(x: Tensor, *weights: Tensor) -> Tensor:
        result: Tensor = torch.ops.medseg.group_norm(x, groups, *weights, 1e-5, slope)[0]
        return result

    forms: list[Callable[..., Tensor]] = [
        lambda x, *weights: group_norm(x, groups, *weights, negative_slope=slope),
        by_operator,
    ]
    for form in forms:
        assert torch.autograd.gradcheck(form, (x, weight, bias))
        assert torch.autograd.gradgradcheck(form, (x, weight, bias))


def test_the_kernels_derivative_can_be_differentiated() -> None:
    torch.manual_seed(4)
    x = image((1, 16, 8, 8, 8)).requires_grad_()
    weight, bias = torch.randn(16, requires_grad=True), torch.randn(16, requires_grad=True)
    mould = torch.randn_like(x)

    def penalty(y: Tensor) -> tuple[Tensor, ...]:
        leaves = [x, weight, bias]
        first = torch.autograd.grad((y * mould).sum(), leaves, create_graph=True)
        loss = torch.stack([d.square().sum() for d in first]).sum()
        return torch.autograd.grad(loss, leaves, materialize_grads=True)

    with forced("fast"):
        y = group_norm(x, 4, weight, bias, negative_slope=0.3)
        assert is_kernels(y)
        found = penalty(y)
    for one, other in zip(found, penalty(expected(x, weight, bias, 0.3, 4)), strict=True):
        largest = float(other.abs().max())
        torch.testing.assert_close(one, other, atol=1e-4 * largest, rtol=1e-3)


# dynamo reads .grad of every tensor and silences the warning itself, too late for "error"
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("affine", [True, False])
def test_torch_finds_nothing_wrong_with_the_operators(affine: bool) -> None:
    x = image((2, 8, 6, 5)).requires_grad_()
    weights = [torch.randn(8, requires_grad=True) for _ in range(2)] if affine else [None, None]
    torch.library.opcheck(torch.ops.medseg.group_norm.default, (x, 2, *weights, 1e-5, 0.01))
    bare = [None if values is None else values.detach() for values in weights]
    moments = torch.ops.medseg.group_norm(x.detach(), 2, *bare, 1e-5, 0.01)[1]
    torch.library.opcheck(
        torch.ops.medseg.group_norm_backward.default,
        (x.detach(), torch.randn(x.shape), moments, 2, *bare, 0.01),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_training_under_autocast_and_checkpoints_uses_the_kernel() -> None:
    norm = InstanceNorm(16, negative_slope=0.01, inplace=True)
    x = image((1, 16, 12, 12, 12), torch.bfloat16).requires_grad_()
    gradients = []
    for repeated in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = checkpoint(norm, x, use_reentrant=False) if repeated else norm(x)
        assert y.dtype == torch.bfloat16
        assert is_kernels(y)
        leaves = [x, *norm.parameters()]
        gradients.append(torch.autograd.grad(y.float().square().sum(), leaves))
    for one, other, leaf in zip(*gradients, leaves, strict=True):
        assert one.dtype == leaf.dtype
        assert torch.equal(one, other)


def test_weights_in_bfloat16_get_gradients_in_bfloat16() -> None:
    norm = InstanceNorm(16).bfloat16()
    y = norm(image((1, 16, 12, 12, 12), torch.bfloat16))
    assert is_kernels(y)
    y.sum().backward()
    assert norm.weight is not None
    assert norm.weight.grad is not None
    assert norm.weight.grad.dtype == torch.bfloat16


# torch's own use of what it has given up, at the import of its derivative rules
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
def test_training_takes_the_plain_form_where_the_kernel_does_not_fit() -> None:
    def kernels(x: Tensor, *weights: Tensor) -> bool:
        return is_kernels(instance_norm(x.requires_grad_(), *weights))

    assert kernels(image((1, 16, 16, 16, 16)))
    assert not kernels(torch.randn(1, 16, 16, 16, 16))
    assert not kernels(image((1, 16, 4, 4, 4)))
    assert not kernels(image((1, 16, 16, 16, 16), torch.float64))
    assert not kernels(image((1, 16, 16, 16, 16), torch.float16))
    with forced("torch"):
        assert not kernels(image((1, 16, 16, 16, 16)))
    x, weight = image((1, 16, 16, 16, 16)), torch.ones(16)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(weight, torch.ones(16))
        y = instance_norm(x.requires_grad_(), dual)
        tangent = torch.autograd.forward_ad.unpack_dual(y).tangent
    torch.testing.assert_close(tangent, expected(x, None, None, 1.0).float(), atol=1e-4, rtol=0)
    (gradient,) = torch.autograd.grad(instance_norm(x, weight).square().sum(), x)
    mapped = torch.func.grad(lambda t: instance_norm(t, weight).square().sum())(x.detach())
    torch.testing.assert_close(mapped, gradient, atol=1e-3, rtol=0)


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


def test_group_norm_is_pytorchs_module_with_its_activation() -> None:
    theirs, ours = nn.GroupNorm(3, 12), GroupNorm(3, 12, negative_slope=0.0)
    nn.init.normal_(theirs.weight)
    ours.load_state_dict(theirs.state_dict())
    for x in (torch.randn(2, 12, 9, 9, 9), image((2, 12, 9, 9, 9))):
        torch.testing.assert_close(ours(x), theirs(x).relu(), atol=1e-5, rtol=0)
    assert is_kernels(ours(image((2, 12, 9, 9, 9))))
    assert repr(ours).startswith("GroupNorm(3, 12, eps=1e-05, affine=True")


@pytest.mark.parametrize("groups", [0, 5])
def test_groups_that_do_not_divide_the_channels_are_refused(groups: int) -> None:
    with pytest.raises(ShapeError, match=r"a number of groups that divides 12 channels") as caught:
        group_norm(torch.randn(1, 12, 3, 3), groups)
    assert caught.value.code == "norm-groups"
