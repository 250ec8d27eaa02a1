"""Haar level in Triton: every element is read once and written once, whatever the strides.

With ``TRITON_INTERPRET=1`` set before the import it runs on CPU tensors, for tests.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: ANN001, ANN201, ANN202 - the arguments of a kernel are pointers and numbers

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from medseg.ops.kernels.blocks import Direction, block_output, block_plan
from medseg.ops.kernels.launch import on_device, padded, span
from medseg.ops.kernels.triton_grid import lanes, places

__all__ = ["haar_kernel", "transform"]

_BLOCK = 256
_GRID_AXES = 5


def transform(x_bcs: Tensor, axes: Sequence[int], direction: Direction) -> Tensor:
    """One Haar level of ``x_bcs``; half precision is summed in float32.

    Args:
        x_bcs: Floating, at most five axes, any strides.
        axes: See :func:`~medseg.ops.kernels.blocks.block_plan`; at most three.
        direction: As there.
    """
    y_bcs = block_output(x_bcs, axes, direction)
    plan = block_plan(x_bcs, y_bcs, axes, direction, bands_first=True)
    points = math.prod(plan.extents)
    wide = max(span(x_bcs), span(y_bcs)) >= 1 << 30
    with on_device(x_bcs):
        haar_kernel[(triton.cdiv(points, _BLOCK),)](
            x_bcs,
            y_bcs,
            points,
            *padded(plan.extents, _GRID_AXES, 1)[1:],
            *padded(plan.steps_in, _GRID_AXES, 0),
            *padded(plan.steps_out, _GRID_AXES, 0),
            *padded(plan.bits_in, 3, 0),
            *padded(plan.bits_out, 3, 0),
            AXES=len(axes),
            SCALE=0.5 ** (len(axes) / 2),
            SUM=tl.float64 if x_bcs.dtype == torch.float64 else tl.float32,
            WIDE=wide,
            BLOCK=_BLOCK,
        )
    return y_bcs


@triton.jit
def _pair(a, b):
    return a + b, a - b


@triton.jit
def _quad(a, b, c, d):
    a, b = _pair(a, b)
    c, d = _pair(c, d)
    a, c = _pair(a, c)
    b, d = _pair(b, d)
    return a, b, c, d


@triton.jit
def haar_kernel(
    source,
    target,
    points,
    extent1,
    extent2,
    extent3,
    extent4,
    in0,
    in1,
    in2,
    in3,
    in4,
    out0,
    out1,
    out2,
    out3,
    out4,
    bit_in0,
    bit_in1,
    bit_in2,
    bit_out0,
    bit_out1,
    bit_out2,
    AXES: tl.constexpr,  # noqa: N803 - Triton's own way to tell constants
    SCALE: tl.constexpr,  # noqa: N803
    SUM: tl.constexpr,  # noqa: N803
    WIDE: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """Blocks of ``2**AXES`` numbers through butterflies; one block of the grid per lane."""
    point = lanes(WIDE, BLOCK)
    mask = point < points
    n0, n1, n2, n3, n4 = places(point, extent1, extent2, extent3, extent4)
    x = source + n0 * in0 + n1 * in1 + n2 * in2 + n3 * in3 + n4 * in4
    y = target + n0 * out0 + n1 * out1 + n2 * out2 + n3 * out3 + n4 * out4
    scale = tl.full((), SCALE, SUM)
    # the padded bits come first: the last axis is always bit 2
    a = tl.load(x, mask).to(SUM)
    b = tl.load(x + bit_in2, mask).to(SUM)
    if AXES == 1:
        a, b = _pair(a, b)
    else:
        c = tl.load(x + bit_in1, mask).to(SUM)
        d = tl.load(x + bit_in1 + bit_in2, mask).to(SUM)
        a, b, c, d = _quad(a, b, c, d)
        if AXES == 3:
            x += bit_in0
            e = tl.load(x, mask).to(SUM)
            f = tl.load(x + bit_in2, mask).to(SUM)
            g = tl.load(x + bit_in1, mask).to(SUM)
            h = tl.load(x + bit_in1 + bit_in2, mask).to(SUM)
            e, f, g, h = _quad(e, f, g, h)
            a, e = _pair(a, e)
            b, f = _pair(b, f)
            c, g = _pair(c, g)
            d, h = _pair(d, h)
            upper = y + bit_out0
            tl.store(upper, e * scale, mask)
            tl.store(upper + bit_out2, f * scale, mask)
            tl.store(upper + bit_out1, g * scale, mask)
            tl.store(upper + bit_out1 + bit_out2, h * scale, mask)
        tl.store(y + bit_out1, c * scale, mask)
        tl.store(y + bit_out1 + bit_out2, d * scale, mask)
    tl.store(y, a * scale, mask)
    tl.store(y + bit_out2, b * scale, mask)
