"""Gradient of the weights of a depthwise convolution on a CPU.

For tensors whose channels lie side by side. Each row along the last axis adds its products to sums
that stay in the nearest cache, and vectors run along the channels; so both tensors are read from
memory about once, where the library reads them once for every tap.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from medseg.ops.kernels.compiled import Untyped, compiled
from medseg.ops.kernels.workers import in_slabs

__all__ = ["weight_gradient"]

# a slab's sums are added up in float64: float32 need hold those of few rows only
_SLABS_OF_AN_IMAGE = 16


def weight_gradient(x_bcijk: Tensor, dy_bcijk: Tensor, kernel: int) -> Tensor:
    """The gradient of the weights of a convolution of stride 1 with one group per channel.

    Args:
        x_bcijk: Its input, float32 on the CPU, channels-last.
        dy_bcijk: Gradient of its result, of the same shape and type; laid out anew unless it is
            channels-last too.
        kernel: Odd extent on all axes; the lattice is kept, with zeros beyond it.

    Returns:
        float32 ``(c, 1, kernel, kernel, kernel)``.
    """
    dy_bcijk = dy_bcijk.to(memory_format=torch.channels_last_3d)
    x, dy = (values.permute(0, 2, 3, 4, 1).detach().numpy() for values in (x_bcijk, dy_bcijk))
    images, extent, channels = x.shape[0], x.shape[1], x.shape[4]
    slabs = min(extent, _SLABS_OF_AN_IMAGE)
    sums = np.zeros((images * slabs, kernel, kernel, kernel, channels), dtype=np.float32)

    def work(start: int, stop: int) -> None:
        for turn in range(start, stop):
            image, slab = divmod(turn, slabs)
            first, last = extent * slab // slabs, extent * (slab + 1) // slabs
            _add_planes(x[image], dy[image], first, last, sums[turn])

    in_slabs(work, len(sums), x.size)
    whole = sums.sum(axis=0, dtype=np.float64).astype(np.float32)
    return torch.from_numpy(whole).permute(3, 0, 1, 2).unsqueeze(1).contiguous()


@compiled(error_model="numpy", fastmath={"contract", "nsz"})
def _add_planes(x: Untyped, dy: Untyped, first: int, last: int, sums: Untyped) -> None:
    """Add the products of planes ``first <= i < last`` of the gradient and what they read."""
    kernel, channels = sums.shape[0], sums.shape[3]
    half = kernel // 2
    rows, row = dy.shape[1], dy.shape[2]
    for i in range(first, last):
        for a in range(max(0, half - i), min(kernel, x.shape[0] + half - i)):
            for j in range(rows):
                for b in range(max(0, half - j), min(kernel, rows + half - j)):
                    source, gradient = x[i + a - half, j + b - half], dy[i, j]
                    for c in range(kernel):
                        total = sums[a, b, c]
                        for k in range(max(0, half - c), min(row, row + half - c)):
                            for n in range(channels):
                                total[n] += source[k + c - half, n] * gradient[k, n]
