"""Convolutions of small single images on a CPU, which torch leaves to a slow path."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor, nn

from medseg.ops.autocast import autocasts

__all__ = ["SmallConv3d"]

_FEW_NUMBERS = 20480
"""Where torch 2.14 begins to hand float32 convolutions of one image to oneDNN: the product of the
first four extents (``use_mkldnn`` in ATen's Convolution.cpp)."""


class SmallConv3d(nn.Conv3d):
    """A convolution that goes to oneDNN also where torch would not send it.

    For one float32 image whose batch, channels and first two extents multiply to no more than 20480
    torch 2.14 unfolds the image and multiplies matrices, which takes several times as long, and
    gives a contiguous map whatever the layout of the image. Here the layout is kept. Where
    gradients are wanted the image goes in with an empty one beside it: a batch of two is oneDNN's,
    forward and back, and zeros add nothing to any gradient. (In one thread torch keeps kernels of
    one voxel to itself even so.) Everything else, and everything under autocast, compilers and
    traces, goes the usual way.
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
                two = torch.cat([input, torch.zeros_like(input)])
                pair: Tensor = super()._conv_forward(two, weight, bias)
                return pair[:1]
            y_bcijk: Tensor = torch.ops.aten.mkldnn_convolution(
                input, weight, bias, self.padding, self.stride, self.dilation, self.groups
            )
            return y_bcijk
        answer: Tensor = super()._conv_forward(input, weight, bias)
        return answer

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
