"""Gradient of the weights of a depthwise convolution on a CPU.

For tensors whose channels lie side by side. Each row along the last axis adds its products to sums
that stay in the nearest cache, and vectors run along the channels; so both tensors are read from
memory about once, where the library reads them once for every tap.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from medseg.ops.kernels.compiled import Untyped, compiled
from medseg.ops.kernels.vectors import FEW, MANY, Vectors
from medseg.ops.kernels.workers import in_slabs

__all__ = ["weight_gradient"]

# a slab's sums are added up in float64: float32 need hold those of few rows only
_SLABS_OF_AN_IMAGE = 16
# of the usual kernel; these share each number of the gradient that is read
_TAPS = 3


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
    images, channels, *extents = x_bcijk.shape
    extent = extents[0]
    slabs = min(extent, _SLABS_OF_AN_IMAGE)
    sums = np.zeros((images * slabs, kernel, kernel, kernel, channels), dtype=np.float32)
    x_step, *x_steps = (4 * x_bcijk.stride(axis) for axis in (0, 2, 3, 4))
    dy_step, *dy_steps = (4 * dy_bcijk.stride(axis) for axis in (0, 2, 3, 4))

    def work(start: int, stop: int) -> None:
        for turn in range(start, stop):
            image, slab = divmod(turn, slabs)
            _add_planes(
                (x_bcijk.data_ptr() + image * x_step, tuple(x_steps)),
                (dy_bcijk.data_ptr() + image * dy_step, tuple(dy_steps)),
                (*extents, channels),
                kernel,
                extent * slab // slabs,
                extent * (slab + 1) // slabs,
                sums[turn].ctypes.data,
            )

    in_slabs(work, len(sums), x_bcijk.numel())
    whole = sums.sum(axis=0, dtype=np.float64).astype(np.float32)
    return torch.from_numpy(whole).permute(3, 0, 1, 2).unsqueeze(1).contiguous()


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def _add_products(
    typing_context: Untyped,  # noqa: ARG001
    memory: Untyped,
    steps: Untyped,
    count: Untyped,
    target: Untyped,
    gap: Untyped,
    lanes: Untyped,
    taps: Untyped,
) -> Untyped:
    """Add ``x[k + c] * dy[k]`` over ``count`` positions to the sums of neighbouring taps ``c``.

    The sums lie ``gap`` bytes apart; memory and steps are those of x and of dy.
    """
    signature = types.void(memory, steps, count, target, gap, lanes, taps)
    width, neighbours = lanes.literal_value, taps.literal_value

    def generate(
        context: Untyped,
        builder: Untyped,
        signature: Untyped,  # noqa: ARG001
        values: Untyped,
    ) -> Untyped:
        places, strides, length, end, apart = values[:5]
        vectors = Vectors(builder, half=False, lanes=width)
        step_x, step_dy = (builder.extract_value(strides, side) for side in range(2))
        starts = [builder.extract_value(places, 0)]
        ends = [end]
        for _ in range(neighbours - 1):
            starts.append(builder.add(starts[-1], step_x))
            ends.append(builder.add(ends[-1], apart))
        gradients = builder.extract_value(places, 1)
        totals = [
            cgutils.alloca_once_value(builder, vectors.read_single(address)) for address in ends
        ]
        with cgutils.for_range(builder, length) as loop:
            dy = vectors.read_single(builder.add(gradients, builder.mul(loop.index, step_dy)))
            moved = builder.mul(loop.index, step_x)
            for total, start in zip(totals, starts, strict=True):
                x = vectors.read_single(builder.add(start, moved))
                product = builder.fmul(x, dy, flags=("contract",))
                more = builder.fadd(builder.load(total), product, flags=("contract",))
                builder.store(more, total)
        for total, address in zip(totals, ends, strict=True):
            vectors.write_single(builder.load(total), address)
        return context.get_dummy_value()

    return signature, generate


@compiled(error_model="numpy")
def _add_row(
    at: Untyped, steps: Untyped, row: int, kernel: int, to: int, gap: int, lanes: Untyped
) -> None:
    """Add the products of one row along the last axis, for all taps along it."""
    x, dy = at
    half = kernel // 2
    begin, end = 0, 0
    if kernel == _TAPS and row > _TAPS:
        # all taps together between the ends of the row
        begin, end = half, row - half
        _add_products((x, dy + half * steps[1]), steps, end - begin, to, gap, lanes, _TAPS)
    for c in range(kernel):
        first, last = max(0, half - c), min(row, row + half - c)
        for start, stop in ((first, min(last, begin)), (max(first, end), last)):
            if stop > start:
                place = x + (start + c - half) * steps[0], dy + start * steps[1]
                _add_products(place, steps, stop - start, to + c * gap, gap, lanes, 1)


@compiled(error_model="numpy")
def _add_planes(
    x_at: Untyped, dy_at: Untyped, extents: Untyped, kernel: int, first: int, last: int, sums: int
) -> None:
    """Add the products of planes ``first <= i < last`` of the gradient and what they read.

    Addresses and the steps ``(i, j, k)`` count bytes.
    """
    x, (plane, line, step) = x_at
    dy, (dy_plane, dy_line, dy_step) = dy_at
    steps = step, dy_step
    depth, rows, row, channels = extents
    half, gap = kernel // 2, 4 * channels
    for i in range(first, last):
        for a in range(max(0, half - i), min(kernel, depth + half - i)):
            for j in range(rows):
                gradient = dy + i * dy_plane + j * dy_line
                for b in range(max(0, half - j), min(kernel, rows + half - j)):
                    source = x + (i + a - half) * plane + (j + b - half) * line
                    to = sums + (a * kernel + b) * kernel * gap
                    n = 0
                    while n + MANY <= channels:
                        at = source + 4 * n, gradient + 4 * n
                        _add_row(at, steps, row, kernel, to + 4 * n, gap, MANY)
                        n += MANY
                    while n + FEW <= channels:
                        at = source + 4 * n, gradient + 4 * n
                        _add_row(at, steps, row, kernel, to + 4 * n, gap, FEW)
                        n += FEW
                    while n < channels:
                        at = source + 4 * n, gradient + 4 * n
                        _add_row(at, steps, row, kernel, to + 4 * n, gap, 1)
                        n += 1
