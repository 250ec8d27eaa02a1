"""Gradients of a normalisation with activation on a CPU, in two passes over memory.

For tensors whose channels lie side by side, as :mod:`medseg.ops.kernels.numba_norm` works forward.
Both passes read the input and the gradient of the result. What went into the activation is computed
again from the input, which costs less than to read the result. The first pass takes, for each map,
the sum of the gradient behind the activation and that of its product with the centred input; from
these follow the gradients of weight and bias, and the three factors of the second pass, which
writes the gradient of the input.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from medseg.ops.kernels.compiled import Untyped, compiled
from medseg.ops.kernels.layout import advise_huge_pages, memory_format_of
from medseg.ops.kernels.numba_norm import LEAST_SHARED, chunks_of, numbers, rows_of
from medseg.ops.kernels.vectors import FEW, MANY, Vectors
from medseg.ops.kernels.workers import in_slabs

__all__ = ["group_norm_backward"]


def group_norm_backward(
    x_bcs: Tensor,
    dy_bcs: Tensor,
    moments_b2c: Tensor,
    groups: int,
    weight_c: Tensor | None,
    bias_c: Tensor | None,
    negative_slope: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`medseg.ops.norm.group_norm`.

    Args:
        x_bcs: Its input, float32 or bfloat16 on the CPU, channels-last.
        dy_bcs: Gradient of its result, of the same type; laid out anew unless it is in rows of
            channels, as a slice of the channels of a channels-last tensor is.
        moments_b2c: Mean and inverse deviation of each channel's group, float32.
        groups: As the function had it.
        weight_c: As the function had it.
        bias_c: As the function had it.
        negative_slope: As the function had it.

    Returns:
        Gradients of input, of its type and layout; of weight and of bias, float32 ``(c,)``.
    """
    x_rows, dy_rows = rows_of(x_bcs), rows_of(dy_bcs)
    assert x_rows is not None  # noqa: S101 - the caller asked before
    if dy_rows is None:
        dy_bcs = dy_bcs.contiguous(memory_format=memory_format_of(x_bcs))
        dy_rows = rows_of(dy_bcs)
        assert dy_rows is not None  # noqa: S101
    dx_bcs = advise_huge_pages(torch.empty_like(x_bcs))
    images, channels = x_rows.images, x_rows.channels
    half = True if x_bcs.dtype == torch.bfloat16 else None
    size = x_bcs.element_size()
    chunks, chunk = chunks_of(x_rows)
    walk = (chunks, chunk, x_rows.rows, channels)
    # of input, gradient, and what is written, which lies as the input does
    starts = x_bcs.data_ptr(), dy_bcs.data_ptr(), dx_bcs.data_ptr()
    images_apart = tuple(r.image_step * size for r in (x_rows, dy_rows, x_rows))
    rows_apart = tuple(r.row_step * size for r in (x_rows, dy_rows, x_rows))
    places = (starts, images_apart, rows_apart)
    number = np.float32(negative_slope)
    weight = numbers(weight_c, 1.0, channels)
    # mean, factor and bias of the forward pass; factors of the centred input, and what is added
    factors = np.empty((images, 5, channels), dtype=np.float32)
    moments = moments_b2c.numpy()
    _begin(moments, weight, numbers(bias_c, 0.0, channels), factors)
    sums = np.empty((images * chunks, 2, channels), dtype=np.float32)
    gradients = tuple(np.empty(channels, dtype=np.float32) for _ in range(2))
    if x_bcs.numel() < LEAST_SHARED:
        _differentiate(
            places, walk, groups, moments, weight, number, half, sums, factors, gradients
        )
    else:

        def sum_slab(first: int, last: int) -> None:
            _sum_chunks(places, walk, factors, sums, number, half, first, last)

        def write_slab(first: int, last: int) -> None:
            _write_chunks(places, walk, factors, number, half, first, last)

        in_slabs(sum_slab, images * chunks, x_bcs.numel())
        _join(sums, walk, groups, moments, weight, factors, gradients)
        in_slabs(write_slab, images * chunks, x_bcs.numel())
    d_weight, d_bias = (torch.from_numpy(values) for values in gradients)
    return dx_bcs, d_weight, d_bias


class _Activated:
    """Centred input and the gradient behind the activation, position by position."""

    def __init__(
        self, vectors: Vectors, builder: Untyped, factors: tuple[Untyped, ...], slope: Untyped
    ) -> None:
        self._vectors = vectors
        self._builder = builder
        self._mean, self._factor, self._bias = factors
        self._slopes = vectors.spread(slope)

    def read(self, x: Untyped, dy: Untyped) -> tuple[Untyped, Untyped]:
        """Both, of what lies at two addresses."""
        builder = self._builder
        centred = builder.fsub(self._vectors.read(x), self._mean)
        scaled = builder.fmul(centred, self._factor, flags=("contract",))
        moved = builder.fadd(scaled, self._bias, flags=("contract",))
        gradient = self._vectors.read(dy)
        positive = builder.fcmp_ordered(">", moved, self._vectors.constant(0.0))
        passed = builder.select(positive, gradient, builder.fmul(gradient, self._slopes))
        return centred, passed


def _read_factors(
    vectors: Vectors, builder: Untyped, address: Untyped, gap: Untyped, count: int
) -> tuple[Untyped, ...]:
    found = []
    for _ in range(count):
        found.append(vectors.read_single(address))
        address = builder.add(address, gap)
    return tuple(found)


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def _sum_rows(
    typing_context: Untyped,  # noqa: ARG001
    memory: Untyped,
    steps: Untyped,
    rows: Untyped,
    factors: Untyped,
    gap: Untyped,
    target: Untyped,
    slope: Untyped,
    half: Untyped,
    lanes: Untyped,
) -> Untyped:
    """Sums of the gradient behind the activation, and of it times the centred input."""
    signature = types.void(memory, steps, rows, factors, gap, target, slope, half, lanes)
    width, is_half = lanes.literal_value, not isinstance(half, types.NoneType)

    def generate(
        context: Untyped,
        builder: Untyped,
        signature: Untyped,  # noqa: ARG001
        values: Untyped,
    ) -> Untyped:
        places, stride_of, count, first, apart, end, number = values[:7]
        vectors = Vectors(builder, half=is_half, lanes=width)
        starts = [builder.extract_value(places, side) for side in range(2)]
        strides = [builder.extract_value(stride_of, side) for side in range(2)]
        forward = _read_factors(vectors, builder, first, apart, 3)
        activated = _Activated(vectors, builder, forward, number)
        totals = [cgutils.alloca_once_value(builder, vectors.constant(0.0)) for _ in range(2)]
        with cgutils.for_range(builder, count) as loop:
            x, dy = (
                builder.add(start, builder.mul(loop.index, stride))
                for start, stride in zip(starts, strides, strict=True)
            )
            centred, passed = activated.read(x, dy)
            product = builder.fmul(passed, centred, flags=("contract",))
            for total, summand in zip(totals, (passed, product), strict=True):
                more = builder.fadd(builder.load(total), summand, flags=("contract",))
                builder.store(more, total)
        for total in totals:
            vectors.write_single(builder.load(total), end)
            end = builder.add(end, apart)
        return context.get_dummy_value()

    return signature, generate


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def _write_rows(
    typing_context: Untyped,  # noqa: ARG001
    memory: Untyped,
    steps: Untyped,
    rows: Untyped,
    factors: Untyped,
    gap: Untyped,
    slope: Untyped,
    half: Untyped,
    lanes: Untyped,
) -> Untyped:
    """Gradient of the input: three products of what both passes know."""
    signature = types.void(memory, steps, rows, factors, gap, slope, half, lanes)
    width, is_half = lanes.literal_value, not isinstance(half, types.NoneType)

    def generate(
        context: Untyped,
        builder: Untyped,
        signature: Untyped,  # noqa: ARG001
        values: Untyped,
    ) -> Untyped:
        places, stride_of, count, first, apart, number = values[:6]
        vectors = Vectors(builder, half=is_half, lanes=width)
        starts = [builder.extract_value(places, side) for side in range(3)]
        strides = [builder.extract_value(stride_of, side) for side in range(3)]
        *forward, along, shift = _read_factors(vectors, builder, first, apart, 5)
        activated = _Activated(vectors, builder, tuple(forward), number)
        factor = forward[1]
        with cgutils.for_range(builder, count) as loop:
            x, dy, dx = (
                builder.add(start, builder.mul(loop.index, stride))
                for start, stride in zip(starts, strides, strict=True)
            )
            centred, passed = activated.read(x, dy)
            moved = builder.fadd(
                builder.fmul(centred, along, flags=("contract",)), shift, flags=("contract",)
            )
            scaled = builder.fmul(passed, factor, flags=("contract",))
            vectors.write(builder.fadd(scaled, moved, flags=("contract",)), dx)
        return context.get_dummy_value()

    return signature, generate


@compiled(error_model="numpy")
def _sum_chunks(
    places: Untyped,
    walk: Untyped,
    factors: Untyped,
    sums: Untyped,
    slope: Untyped,
    half: Untyped,
    first: Untyped,
    last: Untyped,
) -> None:
    starts, images_apart, rows_apart = places
    chunks, chunk, rows, channels = walk
    size = 4 if half is None else 2
    gap = 4 * channels
    for turn in range(first, last):
        image, row = turn // chunks, turn % chunks * chunk
        count = min(chunk, rows - row)
        x = starts[0] + image * images_apart[0] + row * rows_apart[0]
        dy = starts[1] + image * images_apart[1] + row * rows_apart[1]
        own, to = factors.ctypes.data + image * 5 * gap, sums.ctypes.data + turn * 2 * gap
        steps = rows_apart
        n = 0
        while n + MANY <= channels:
            at, by, end = (x + n * size, dy + n * size), own + n * 4, to + n * 4
            _sum_rows(at, steps, count, by, gap, end, slope, half, MANY)
            n += MANY
        while n + FEW <= channels:
            at, by, end = (x + n * size, dy + n * size), own + n * 4, to + n * 4
            _sum_rows(at, steps, count, by, gap, end, slope, half, FEW)
            n += FEW
        while n < channels:
            at, by, end = (x + n * size, dy + n * size), own + n * 4, to + n * 4
            _sum_rows(at, steps, count, by, gap, end, slope, half, 1)
            n += 1


@compiled(error_model="numpy")
def _write_chunks(
    places: Untyped,
    walk: Untyped,
    factors: Untyped,
    slope: Untyped,
    half: Untyped,
    first: Untyped,
    last: Untyped,
) -> None:
    starts, images_apart, rows_apart = places
    chunks, chunk, rows, channels = walk
    size = 4 if half is None else 2
    gap = 4 * channels
    for turn in range(first, last):
        image, row = turn // chunks, turn % chunks * chunk
        count = min(chunk, rows - row)
        x = starts[0] + image * images_apart[0] + row * rows_apart[0]
        dy = starts[1] + image * images_apart[1] + row * rows_apart[1]
        dx = starts[2] + image * images_apart[2] + row * rows_apart[2]
        own = factors.ctypes.data + image * 5 * gap
        n = 0
        while n + MANY <= channels:
            at, by = (x + n * size, dy + n * size, dx + n * size), own + n * 4
            _write_rows(at, rows_apart, count, by, gap, slope, half, MANY)
            n += MANY
        while n + FEW <= channels:
            at, by = (x + n * size, dy + n * size, dx + n * size), own + n * 4
            _write_rows(at, rows_apart, count, by, gap, slope, half, FEW)
            n += FEW
        while n < channels:
            at, by = (x + n * size, dy + n * size, dx + n * size), own + n * 4
            _write_rows(at, rows_apart, count, by, gap, slope, half, 1)
            n += 1


@compiled(error_model="numpy")
def _begin(moments: Untyped, weight_c: Untyped, bias_c: Untyped, factors: Untyped) -> None:
    """Mean, factor and bias of the forward pass."""
    for image in range(len(factors)):
        for c in range(len(weight_c)):
            factors[image, 0, c] = moments[image, 0, c]
            factors[image, 1, c] = weight_c[c] * np.float64(moments[image, 1, c])
            factors[image, 2, c] = bias_c[c]


@compiled(error_model="numpy")
def _join(
    sums: Untyped,
    walk: Untyped,
    groups: int,
    moments: Untyped,
    weight_c: Untyped,
    factors: Untyped,
    gradients: Untyped,
) -> None:
    """What the second pass multiplies by and adds, and the gradients of weight and bias."""
    chunks, _, rows, channels = walk
    members = channels // groups
    shared = rows * members
    totals = np.zeros((2, channels))
    plain, centred = np.empty(channels), np.empty(channels)
    for image in range(len(factors)):
        plain[:] = 0.0
        centred[:] = 0.0
        for part in range(image * chunks, (image + 1) * chunks):
            for c in range(channels):
                plain[c] += sums[part, 0, c]
                centred[c] += sums[part, 1, c]
        for group in range(groups):
            first, last = group * members, (group + 1) * members
            of_plain, of_centred = 0.0, 0.0
            for c in range(first, last):
                of_plain += weight_c[c] * plain[c]
                of_centred += weight_c[c] * centred[c]
            for c in range(first, last):
                inverse = np.float64(moments[image, 1, c])
                factors[image, 3, c] = -(inverse * inverse * inverse) * of_centred / shared
                factors[image, 4, c] = -inverse * of_plain / shared
                totals[0, c] += centred[c] * inverse
                totals[1, c] += plain[c]
    for which in range(2):
        gradients[which][:] = totals[which]


@compiled(error_model="numpy")
def _differentiate(
    places: Untyped,
    walk: Untyped,
    groups: int,
    moments: Untyped,
    weight_c: Untyped,
    slope: Untyped,
    half: Untyped,
    sums: Untyped,
    factors: Untyped,
    gradients: Untyped,
) -> None:
    """Both passes in one thread."""
    _sum_chunks(places, walk, factors, sums, slope, half, 0, len(sums))
    _join(sums, walk, groups, moments, weight_c, factors, gradients)
    _write_chunks(places, walk, factors, slope, half, 0, len(sums))
