"""Convolutions on maps smaller than their kernel: the same numbers, and every gradient written."""

import pytest
import torch
from torch import nn

from medseg.ops.depthwise import DepthwiseConv3d
from medseg.ops.small_map import convolve


@pytest.mark.parametrize("extents", [(1, 1, 1), (2, 2, 2), (4, 4, 3), (6, 2, 5), (7, 6, 5)])
@pytest.mark.parametrize(
    ("kernel", "stride", "groups"), [(3, 1, 1), (5, 1, 1), (3, 2, 1), (3, 1, 4)]
)
def test_values_and_gradients_are_those_of_the_module(extents, kernel, stride, groups) -> None:
    torch.manual_seed(0)
    conv = nn.Conv3d(4, 8, kernel, stride, padding=kernel // 2, groups=groups).double()
    x = torch.randn(2, 4, *extents, dtype=torch.float64, requires_grad=True)
    expected = conv(x)
    found = convolve(conv, x)
    torch.testing.assert_close(found, expected)
    weights = [x, conv.weight, conv.bias]
    along = torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad(found, weights, along),
        torch.autograd.grad(expected, weights, along),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(("kernel", "extent"), [(3, 1), (3, 2), (5, 3), (5, 4)])
@pytest.mark.parametrize("groups", [1, 16])
def test_bfloat16_gradients_do_not_depend_on_what_memory_held(kernel, extent, groups) -> None:
    torch.manual_seed(0)
    conv: nn.Conv3d = (
        nn.Conv3d(16, 16, kernel, padding=kernel // 2)
        if groups == 1
        else DepthwiseConv3d(16, kernel)
    )
    x = torch.randn(2, 16, extent, extent, extent).to(memory_format=torch.channels_last_3d)
    first: torch.Tensor | None = None
    for round_ in range(8):
        # memory that is handed out again holds NaN
        rubbish = [torch.full((1000 * (round_ + 7 * n + 1),), torch.nan) for n in range(12)]
        del rubbish
        conv.weight.grad = None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = convolve(conv, x) if groups == 1 else conv(x)
        y.float().square().sum().backward()
        assert conv.weight.grad is not None
        first = conv.weight.grad.clone() if first is None else first
        torch.testing.assert_close(conv.weight.grad, first, rtol=0, atol=0)
