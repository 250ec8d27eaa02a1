"""Convolutions of small single images on a CPU, which torch leaves to a slow path."""

from __future__ import annotations

import math
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseg.ops.autocast import autocasts
from medseg.ops.kernels.dispatch import wants_plain

__all__ = ["SmallConv3d"]

_FEW_NUMBERS = 20480
"""Where torch 2.14 begins to hand float32 convolutions of one image to oneDNN: the product of the
first four extents (``use_mkldnn`` in ATen's Convolution.cpp)."""


class SmallConv3d(nn.Conv3d):
    """A convolution that goes to oneDNN also where torch would not send it.

    For one float32 image whose batch, channels and first two extents multiply to no more than 20480
    torch 2.14 unfolds the image and multiplies matrices, which takes several times as long, and
    gives a contiguous map whatever the layout of the image. Here the layout is kept. Where
    gradients are wanted, a kernel of one voxel is a product of matrices without any unfolding, if
    the image is channels-last. A convolution that keeps the lattice takes its derivatives from
    oneDNN too, see :class:`_SameConvolution`. Any other image goes in with an empty one beside it:
    a batch of two is oneDNN's, forward and back, and zeros add nothing to any gradient. Everything
    else, and everything under autocast, compilers and traces, goes the usual way.
    """

    @classmethod
    def of(cls, conv: nn.Module) -> Self:
        """The same convolution, for which :meth:`fits` holds; the weights are shared."""
        made = cls.__new__(cls)
        made.__dict__.update(conv.__dict__)
        return made

    @classmethod
    def take_over(cls, network: nn.Module) -> None:
        """Let all convolutions of a network for which :meth:`fits` holds be of this class.

        The modules stay the same objects, with their weights and names.
        """
        for module in network.modules():
            if cls.fits(module):
                module.__class__ = cls

    @staticmethod
    def fits(conv: nn.Module) -> bool:
        """Whether :meth:`of` can stand for a module."""
        return (
            type(conv) is nn.Conv3d
            and conv.groups == 1
            and conv.padding_mode == "zeros"
            and not isinstance(conv.padding, str)
            and not conv._forward_hooks
            and not conv._forward_pre_hooks
        )

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: A002 - torch's name
        if self._slow(input, weight):
            if torch.is_grad_enabled():
                # an image of one channel is both, and its strides tell how the result will lie
                channels_last = input.is_contiguous(memory_format=torch.channels_last_3d)
                if channels_last and input.shape[1] > 1 and self._multiplies():
                    y_bijkc = F.linear(input.permute(0, 2, 3, 4, 1), weight.flatten(1), bias)
                    return y_bijkc.permute(0, 4, 1, 2, 3)
                if channels_last and self._keeps_lattice() and not wants_plain(input):
                    return cast(Tensor, _SameConvolution.apply(input, weight, bias))
                two = torch.cat([input, torch.zeros_like(input)])
                pair: Tensor = super()._conv_forward(two, weight, bias)
                return pair[:1]
            y_bcijk: Tensor = torch.ops.aten.mkldnn_convolution(
                input, weight, bias, self.padding, self.stride, self.dilation, self.groups
            )
            return y_bcijk
        answer: Tensor = super()._conv_forward(input, weight, bias)
        return answer

    def _multiplies(self) -> bool:
        return set(self.kernel_size) == set(self.stride) == {1} and set(self.padding) == {0}

    def _keeps_lattice(self) -> bool:
        return (
            set(self.stride) == set(self.dilation) == {1}
            and all(size % 2 for size in self.kernel_size)
            and tuple(self.padding) == tuple(size // 2 for size in self.kernel_size)
        )

    @staticmethod
    def _slow(x_bcijk: Tensor, weight: Tensor) -> bool:
        return (
            x_bcijk.ndim == 5
            and x_bcijk.shape[0] == 1
            and x_bcijk.numel() > 0
            and math.prod(x_bcijk.shape[:4]) <= _FEW_NUMBERS
            and x_bcijk.dtype == weight.dtype == torch.float32
            and x_bcijk.device.type == weight.device.type == "cpu"
            and not autocasts("cpu")
            and not torch.compiler.is_compiling()
            and not torch._C._is_tracing()
            and torch._C._get_mkldnn_enabled()
            and torch._C._has_mkldnn
        )


class _SameConvolution(torch.autograd.Function):
    """Stride 1, odd kernel, padded by half of it; one channels-last float32 image on a CPU.

    The gradient of the image is the convolution of the result's with the kernel turned round. That
    of the weights is the sum of those of two halves of the image, which are a batch of two; each
    half of the image reaches into the other as far as the kernel does.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - autograd's own object, filled at will
        x_bcijk: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x_bcijk, weight)
        ctx.has_bias = bias is not None
        return _onednn(x_bcijk, weight, bias)

    @staticmethod
    def backward(
        ctx: Any,  # noqa: ANN401 - autograd's own object, filled at will
        dy_bcijk: Tensor,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x_bcijk, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        dx_bcijk: Tensor | None = None
        d_weight: Tensor | None = None
        if torch.is_grad_enabled():
            # a derivative that is to be differentiated needs operations that have one
            dx_bcijk, d_weight = _derivatives(x_bcijk, dy_bcijk, weight, _half(weight))
        else:
            dy_bcijk = dy_bcijk.contiguous(memory_format=torch.channels_last_3d)
            if wanted[0]:
                turned = weight.flip(2, 3, 4).transpose(0, 1)
                turned = turned.contiguous(memory_format=torch.channels_last_3d)
                dx_bcijk = _onednn(dy_bcijk, turned, None)
            if wanted[1]:
                d_weight = _in_halves(x_bcijk, dy_bcijk, weight)
        d_bias = dy_bcijk.sum((0, 2, 3, 4)) if ctx.has_bias and wanted[2] else None
        return dx_bcijk if wanted[0] else None, d_weight if wanted[1] else None, d_bias


def _half(weight: Tensor) -> list[int]:
    return [size // 2 for size in weight.shape[2:]]


def _onednn(x_bcijk: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    ones = [1, 1, 1]
    y_bcijk: Tensor = torch.ops.aten.mkldnn_convolution(
        x_bcijk, weight, bias, _half(weight), ones, ones, 1
    )
    return y_bcijk


def _derivatives(
    x_bcijk: Tensor, dy_bcijk: Tensor, weight: Tensor, padding: list[int], *, of_x: bool = True
) -> tuple[Tensor, Tensor]:
    """Gradients of the image, unless ``of_x`` says no, and of the weights."""
    ones, mask = [1, 1, 1], [of_x, True, False]
    dx_bcijk, d_weight, _ = torch.ops.aten.convolution_backward(
        dy_bcijk, x_bcijk, weight, None, ones, padding, ones, False, [0, 0, 0], 1, mask
    )
    return dx_bcijk, d_weight


def _in_halves(x_bcijk: Tensor, dy_bcijk: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the weights."""
    beyond, *padding = _half(weight)
    extent = x_bcijk.shape[2]
    half = -(-extent // 2)
    if extent % 2:
        dy_bcijk = F.pad(dy_bcijk, (0, 0, 0, 0, 0, 1))
    # zeros before the first half, and after the second
    padded = F.pad(x_bcijk, (0, 0, 0, 0, beyond, beyond + extent % 2))
    starts = (padded[:, :, : half + 2 * beyond], padded[:, :, half:])
    x_halves = torch.cat(starts).contiguous(memory_format=torch.channels_last_3d)
    dy_halves = torch.cat((dy_bcijk[:, :, :half], dy_bcijk[:, :, half:]))
    dy_halves = dy_halves.contiguous(memory_format=torch.channels_last_3d)
    return _derivatives(x_halves, dy_halves, weight, [0, *padding], of_x=False)[1]
