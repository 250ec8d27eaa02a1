"""Convolutions of small single images: the same numbers, in the layout of the image."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from medseg.ops.small_conv import SmallConv3d


@pytest.fixture
def two_threads():
    """In one thread torch has a way of its own for kernels of one voxel."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


LAYOUTS = [torch.channels_last_3d, torch.contiguous_format]


@given(
    batch=st.integers(1, 2),
    channels=st.tuples(st.integers(1, 20), st.integers(1, 9)),
    extents=st.tuples(*[st.integers(3, 12)] * 3),
    kernel=st.sampled_from([1, 3, (1, 3, 3), 5]),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    layout=st.sampled_from(LAYOUTS),
)
def test_it_gives_what_the_convolution_gives(
    batch, channels, extents, kernel, stride, dilation, bias, layout
):
    torch.manual_seed(0)
    padding = 4
    conv = nn.Conv3d(*channels, kernel, stride, padding, dilation, bias=bias).eval()
    x = torch.randn(batch, channels[0], *extents).contiguous(memory_format=layout)
    with torch.no_grad():
        wanted = F.conv3d(
            x.double(), conv.weight.double(),
            None if conv.bias is None else conv.bias.double(), stride, padding, dilation,
        )  # fmt: skip
        found = SmallConv3d.of(conv)(x)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_small_single_image_keeps_its_layout(layout):
    conv = nn.Conv3d(8, 8, 3, padding=1)
    conv.weight.data = conv.weight.data.contiguous(memory_format=layout)
    x = torch.randn(1, 8, 10, 12, 14).contiguous(memory_format=layout)
    with torch.inference_mode():
        assert SmallConv3d.of(conv)(x).is_contiguous(memory_format=layout)


CONVOLUTIONS = {
    "strided": nn.Conv3d(3, 4, 3, stride=(1, 2, 1), padding=1),
    "1": nn.Conv3d(3, 4, 1),
    "1, padded": nn.Conv3d(3, 4, 1, padding=1),
    "3": nn.Conv3d(3, 4, 3, padding=1),
    "5": nn.Conv3d(3, 4, 5, padding=2),
    "1 x 3 x 5": nn.Conv3d(3, 4, (1, 3, 5), padding=(0, 1, 2)),
    "3, padded by more": nn.Conv3d(3, 4, 3, padding=2),
    "3, dilated": nn.Conv3d(3, 4, 3, padding=1, dilation=2),
}


def in_float64(conv, x):
    return F.conv3d(
        x.double(),
        conv.weight.double(),
        None if conv.bias is None else conv.bias.double(),
        conv.stride,
        conv.padding,
        conv.dilation,
    )


def assert_all_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        # what nearly cancels is as far off as the largest sums
        largest = max(1.0, float(other.abs().max()))
        torch.testing.assert_close(one, other.to(one.dtype), rtol=1e-4, atol=1e-5 * largest)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("extents", [(6, 8, 10), (7, 5, 6), (20, 24, 30)])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_gradients_are_those_of_the_convolution_and_the_layout_is_kept(name, extents, layout):
    conv = CONVOLUTIONS[name]
    small = SmallConv3d.of(conv)
    assert small.weight is conv.weight
    x = torch.randn(1, 3, *extents).contiguous(memory_format=layout).requires_grad_()
    y = small(x)
    assert y.shape[0] == 1
    assert y.is_contiguous(memory_format=layout)
    dy = torch.randn_like(y)
    wanted = in_float64(conv, x)
    leaves = (x, conv.weight, conv.bias)
    torch.testing.assert_close(y, wanted.float(), rtol=1e-4, atol=1e-5)
    assert_all_close(
        torch.autograd.grad(y, leaves, dy), torch.autograd.grad(wanted, leaves, dy.double())
    )


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("wanted", [("x",), ("weight",), ("bias",), ("weight", "bias")])
@pytest.mark.parametrize("name", ["1", "3", "5"])
def test_only_the_gradients_that_are_wanted(name, wanted):
    conv = CONVOLUTIONS[name]
    x = torch.randn(1, 3, 7, 8, 9).contiguous(memory_format=torch.channels_last_3d)
    leaves = {"x": x, "weight": conv.weight.detach(), "bias": conv.bias.detach()}
    for leaf in wanted:
        leaves[leaf] = leaves[leaf].clone().requires_grad_()
    copy = nn.Conv3d(3, 4, conv.kernel_size, padding=conv.padding)
    small = SmallConv3d.of(copy)
    y = torch.func.functional_call(
        small, {"weight": leaves["weight"], "bias": leaves["bias"]}, (leaves["x"],)
    )
    dy = torch.randn_like(y)
    expected = F.conv3d(leaves["x"], leaves["weight"], leaves["bias"], padding=conv.padding)
    chosen = [leaves[leaf] for leaf in wanted]
    assert_all_close(torch.autograd.grad(y, chosen, dy), torch.autograd.grad(expected, chosen, dy))


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("name", ["1", "3", "5"])
def test_the_derivative_can_be_differentiated(name):
    conv = CONVOLUTIONS[name]
    x = torch.randn(1, 3, 5, 6, 4).contiguous(memory_format=torch.channels_last_3d)
    leaves = (x.requires_grad_(), conv.weight)

    def second(y):
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(values.square().sum() for values in first), leaves)

    for found, expected in zip(
        second(SmallConv3d.of(conv)(x)), second(in_float64(conv, x)), strict=True
    ):
        largest = float(expected.abs().max())
        torch.testing.assert_close(found, expected.float(), rtol=1e-3, atol=1e-4 * largest)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel", [1, 3])
def test_an_image_of_one_channel_gives_maps_in_the_layout_it_was_laid_out_in(kernel, layout):
    conv = nn.Conv3d(1, 4, kernel, padding=kernel // 2)
    conv.weight.data = conv.weight.data.contiguous(memory_format=layout)
    x = torch.randn(1, 1, 6, 8, 10).to(memory_format=layout)
    y = SmallConv3d.of(conv)(x)
    assert y.is_contiguous(memory_format=layout)
    leaves = (conv.weight, conv.bias)
    dy = torch.randn_like(y)
    assert_all_close(
        torch.autograd.grad(y, leaves, dy),
        torch.autograd.grad(in_float64(conv, x), leaves, dy.double()),
    )


@pytest.mark.usefixtures("two_threads")
def test_without_bias():
    conv = nn.Conv3d(3, 4, 3, padding=1, bias=False)
    x = torch.randn(1, 3, 6, 8, 10).contiguous(memory_format=torch.channels_last_3d)
    found = torch.autograd.grad(SmallConv3d.of(conv)(x).square().sum(), [conv.weight])
    assert_all_close(found, torch.autograd.grad(in_float64(conv, x).square().sum(), [conv.weight]))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ours", [True, False])
def test_no_step_of_a_small_image_takes_the_slow_path_of_torch(ours, layout):
    conv = nn.Conv3d(4, 5, 3, padding=1)
    network = nn.Sequential(conv)
    if ours:
        SmallConv3d.take_over(network)
    assert network[0] is conv
    x = torch.randn(1, 4, 6, 8, 10).contiguous(memory_format=layout).requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        network(x).sum().backward()
    names = {event.key for event in seen.key_averages()}
    assert any("slow_conv3d" in name for name in names) != ours
    assert any("mkldnn_convolution" in name for name in names) == ours


def test_autocast_and_other_types_go_the_usual_way():
    conv = nn.Conv3d(3, 4, 3, padding=1).eval()
    x = torch.randn(1, 3, 6, 6, 6)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert SmallConv3d.of(conv)(x).dtype == torch.bfloat16
    with torch.inference_mode():
        assert SmallConv3d.of(conv.double())(x.double()).dtype == torch.float64


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv3d(4, 4, 3, groups=4),
        nn.Conv3d(4, 4, 3, padding="same"),
        nn.Conv3d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3),
        nn.ConvTranspose3d(4, 4, 2),
    ],
    ids=["grouped", "same", "reflect", "2D", "transposed"],
)
def test_what_it_does_not_stand_for(conv):
    assert not SmallConv3d.fits(conv)
