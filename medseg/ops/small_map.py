"""Convolutions on maps that are smaller than the kernel."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["convolve"]


def convolve(conv: nn.Conv3d, x_bcijk: Tensor) -> Tensor:
    """Apply a convolution module; the result is that of calling it.

    On CPUs, for bfloat16 maps smaller than the kernel, the library below leaves entries of the
    weights' gradient unwritten (oneDNN as in torch 2.14; seen for 3x3x3 on an extent of 2 and 5x5x5
    on 3 and 4): now and then one is NaN. A map that is padded beforehand is never smaller.

    Args:
        conv: With numbers as padding, and zeros for padded values.
        x_bcijk: ``(b, c, i, j, k)``.
    """
    narrow = any(
        extent < kernel for extent, kernel in zip(x_bcijk.shape[2:], conv.kernel_size, strict=True)
    )
    if not narrow or x_bcijk.device.type != "cpu":
        y_bcijk: Tensor = conv(x_bcijk)
        return y_bcijk
    i, j, k = (int(width) for width in conv.padding)
    return F.conv3d(
        F.pad(x_bcijk, (k, k, j, j, i, i)),
        conv.weight,
        conv.bias,
        conv.stride,
        0,
        conv.dilation,
        conv.groups,
    )
