"""Depthwise 3x3x3-like convolution with a backward pass that is fast on CPUs."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.ops.kernels.dispatch import Kernel, run, wants_plain
from medseg.ops.kernels.layout import memory_format_of

__all__ = ["DepthwiseConv3d"]

_KERNELS = (
    Kernel(
        "weights' gradient of a depthwise convolution (numba)",
        "medseg.ops.kernels.numba_depthwise",
        "weight_gradient",
        device="cpu",
        dtypes=frozenset({torch.float32}),
    ),
)


class DepthwiseConv3d(nn.Conv3d):
    """``nn.Conv3d`` with one group per channel, stride 1, no bias and the lattice kept.

    The gradient of the input of such a convolution is the same convolution with the kernel turned
    round. On CPUs the library's forward kernel does that several times faster than its general
    backward kernel, so in float32 and float64 on a CPU the gradient is taken that way; and that of
    the weights, in float32 and channels-last, by a kernel of ours. Elsewhere, and under autocast,
    this is ``nn.Conv3d``.

    Args:
        channels: In and out.
        kernel: Odd extent, the same on all axes.
    """

    def __init__(self, channels: int, kernel: int = 3) -> None:
        super().__init__(
            channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False
        )

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name is nn.Conv3d's
        """``(b, channels, i, j, k)`` to the same."""
        plain = (
            input.device.type != "cpu"
            or torch.is_autocast_enabled("cpu")
            or input.dtype not in (torch.float32, torch.float64)
            or not torch.is_grad_enabled()
        )
        if plain:
            if input.device.type == "cpu" and min(input.shape[2:]) < self.kernel_size[0]:
                # see small_map.py: bfloat16 gradients would hold unwritten entries
                half = self.kernel_size[0] // 2
                return F.conv3d(F.pad(input, (half,) * 6), self.weight, groups=self.groups)
            return super().forward(input)
        return cast(Tensor, _Depthwise.apply(input, self.weight))


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - autograd's own object, filled at will
        x_bcijk: Tensor,
        weight: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x_bcijk, weight)
        return F.conv3d(x_bcijk, weight, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401 - autograd's own object, filled at will
        dy_bcijk: Tensor,
    ) -> tuple[Tensor | None, Tensor | None]:
        x_bcijk, weight = ctx.saved_tensors
        half, channels = weight.shape[-1] // 2, len(weight)
        dx_bcijk: Tensor | None = None
        d_weight: Tensor | None = None
        if ctx.needs_input_grad[0]:
            dx_bcijk = F.conv3d(dy_bcijk, weight.flip(2, 3, 4), padding=half, groups=channels)
        if ctx.needs_input_grad[1]:
            # a derivative that is to be differentiated needs operations that have one
            fits = (
                not torch.is_grad_enabled()
                and memory_format_of(x_bcijk) == torch.channels_last_3d
                and not any(wants_plain(values) for values in (x_bcijk, dy_bcijk))
            )
            size = weight.shape[-1]
            d_weight = (
                run(_KERNELS, _weight_gradient, x_bcijk, dy_bcijk, size)
                if fits
                else _weight_gradient(x_bcijk, dy_bcijk, size)
            )
        return dx_bcijk, d_weight


def _weight_gradient(x_bcijk: Tensor, dy_bcijk: Tensor, kernel: int) -> Tensor:
    channels = x_bcijk.shape[1]
    found: Tensor = torch.ops.aten.convolution_backward(
        dy_bcijk,
        x_bcijk,
        x_bcijk.new_empty(channels, 1, kernel, kernel, kernel),
        None,
        [1, 1, 1],
        [kernel // 2] * 3,
        [1, 1, 1],
        False,
        [0, 0, 0],
        channels,
        [False, True, False],
    )[1]
    return found
