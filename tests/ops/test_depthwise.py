"""Depthwise convolution: equal to torch's general one, forward and backward."""

import hypothesis.strategies as st
import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from hypothesis import given, settings

from medseg.ops.depthwise import DepthwiseConv3d
from medseg.ops.kernels import dispatch, numba_depthwise
from medseg.ops.kernels.dispatch import forced
from medseg.ops.kernels.numba_depthwise import weight_gradient


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_values_and_gradients_are_those_of_a_grouped_convolution(
    kernel: int, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    conv = DepthwiseConv3d(6, kernel).double()
    x = torch.randn(2, 6, 5, 4, 7, dtype=torch.float64).to(memory_format=layout).requires_grad_()
    dy = torch.randn(2, 6, 5, 4, 7, dtype=torch.float64)
    ours = conv(x)
    theirs = F.conv3d(x, conv.weight, padding=kernel // 2, groups=6)
    assert torch.equal(ours, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (x, conv.weight), dy),
        torch.autograd.grad(theirs, (x, conv.weight), dy),
        rtol=1e-12,
        atol=1e-12,
    )


@given(
    # vectors of the kernel are of 32, 8 and 1 channels
    channels=st.integers(1, 20) | st.integers(32, 43),
    extents=st.tuples(*[st.integers(1, 9)] * 3),
    kernel=st.sampled_from([1, 3, 5]),
    layout=st.sampled_from([torch.contiguous_format, torch.channels_last_3d]),
)
@settings(max_examples=40, deadline=None)
def test_the_kernels_gradient_of_the_weights_is_that_of_float64(
    channels: int, extents: tuple[int, int, int], kernel: int, layout: torch.memory_format
) -> None:
    """Channels-last, where the kernel runs, whatever the layout of the gradient; maps smaller
    than the kernel are among them."""
    x = torch.randn(2, channels, *extents).to(memory_format=torch.channels_last_3d)
    dy = torch.randn(2, channels, *extents).to(memory_format=layout)
    conv = DepthwiseConv3d(channels, kernel)
    with forced("fast"):
        (found,) = torch.autograd.grad(conv(x), conv.weight, dy)
    weight = conv.weight.detach().double().requires_grad_()
    y = F.conv3d(x.double(), weight, padding=kernel // 2, groups=channels)
    (wanted,) = torch.autograd.grad(y, weight, dy.double())
    torch.testing.assert_close(found.double(), wanted, atol=1e-4, rtol=1e-5)


def test_the_kernel_runs_for_channels_last_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(x: torch.Tensor, dy: torch.Tensor, kernel: int) -> torch.Tensor:
        calls.append(x.shape)
        return weight_gradient(x, dy, kernel)

    monkeypatch.setattr(numba_depthwise, "weight_gradient", counted)
    dispatch._loaded.cache_clear()
    conv = DepthwiseConv3d(4)
    for x in (torch.randn(1, 4, 5, 6, 7), torch.randn(1, 4, 5, 6, 8)):
        last = x.shape[-1] == 8
        shown = x.to(memory_format=torch.channels_last_3d) if last else x
        conv(shown).sum().backward()
    dispatch._loaded.cache_clear()
    assert calls == [(1, 4, 5, 6, 8)]


def test_first_and_second_derivatives_pass_the_numerical_check() -> None:
    conv = DepthwiseConv3d(2).double()
    x = torch.randn(1, 2, 3, 2, 3, dtype=torch.float64, requires_grad=True)

    def with_weight(x_bcijk: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(conv, {"weight": weight}, (x_bcijk,))

    inputs = (x, conv.weight.detach().requires_grad_())
    assert torch.autograd.gradcheck(with_weight, inputs)
    assert torch.autograd.gradgradcheck(with_weight, inputs)


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    conv = DepthwiseConv3d(2)
    conv(torch.randn(1, 2, 3, 3, 3)).sum().backward()
    assert conv.weight.grad is not None
    x = torch.randn(1, 2, 3, 3, 3, requires_grad=True)
    conv.requires_grad_(requires_grad=False)
    (dx,) = torch.autograd.grad(conv(x).sum(), x)
    assert dx.shape == x.shape


def test_under_autocast_it_computes_in_the_low_type() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert DepthwiseConv3d(2)(torch.randn(1, 2, 3, 3, 3)).dtype == torch.bfloat16


def test_under_autocast_it_is_the_general_convolution() -> None:
    torch.manual_seed(0)
    conv = DepthwiseConv3d(4)
    x = torch.randn(1, 4, 5, 6, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        ours = conv(x)
        theirs = F.conv3d(x, conv.weight, padding=1, groups=4)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, theirs)
    dy = torch.ones_like(ours)
    found = torch.autograd.grad(ours, (x, conv.weight), dy)
    expected = torch.autograd.grad(theirs, (x, conv.weight), dy)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# dynamo reads .grad of every tensor and silences the warning itself, too late for "error"
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_it_compiles_in_one_graph_with_the_same_gradients() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    conv = DepthwiseConv3d(4).double()
    x = torch.randn(1, 4, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    found = []
    for apply in (conv, torch.compile(conv, backend="aot_eager", fullgraph=True)):
        y = apply(x)
        found.append((y.detach(), *torch.autograd.grad(y.square().sum(), (x, conv.weight))))
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)
    torch._dynamo.reset()


def test_on_the_meta_device_extents_and_gradients_have_their_shapes() -> None:
    with torch.device("meta"):
        conv = DepthwiseConv3d(4)
        y = conv(torch.zeros(2, 4, 3, 4, 5))
    y.sum().backward()
    assert y.shape == (2, 4, 3, 4, 5)
    assert conv.weight.grad.shape == (4, 1, 3, 3, 3)
