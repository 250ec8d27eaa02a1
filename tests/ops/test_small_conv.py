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


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("conv", "extents"),
    [
        (nn.Conv3d(3, 4, 3, stride=(1, 2, 1), padding=1), (6, 8, 10)),
        (nn.Conv3d(3, 4, 1), (6, 8, 10)),
        (nn.Conv3d(3, 4, 1, padding=1), (20, 24, 30)),
    ],
    ids=["3", "1", "1, padded"],
)
def test_gradients_are_those_of_the_convolution_and_the_layout_is_kept(conv, extents, layout):
    small = SmallConv3d.of(conv)
    assert small.weight is conv.weight
    x = torch.randn(1, 3, *extents).contiguous(memory_format=layout).requires_grad_()
    y = small(x)
    assert y.shape[0] == 1
    assert y.is_contiguous(memory_format=layout)
    dy = torch.randn_like(y)
    wanted = F.conv3d(
        x.double(), conv.weight.double(), conv.bias.double(), conv.stride, conv.padding
    )
    leaves = (x, conv.weight, conv.bias)
    torch.testing.assert_close(y, wanted.float())
    for found, expected in zip(
        torch.autograd.grad(y, leaves, dy),
        torch.autograd.grad(wanted, leaves, dy.double()),
        strict=True,
    ):
        torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ours", [True, False])
def test_no_step_of_a_small_image_takes_the_slow_path_of_torch(ours):
    conv = nn.Conv3d(4, 5, 3, padding=1)
    network = nn.Sequential(conv)
    if ours:
        SmallConv3d.take_over(network)
    assert network[0] is conv
    x = torch.randn(1, 4, 6, 8, 10, requires_grad=True)
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
