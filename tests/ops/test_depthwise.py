"""Depthwise convolution: equal to torch's general one, forward and backward."""

import pytest
import torch
import torch.nn.functional as F

from medseg.ops.depthwise import DepthwiseConv3d


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
