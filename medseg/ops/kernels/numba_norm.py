"""Normalisation of groups of channels on a CPU, with the activation in the same pass.

For tensors whose channels lie side by side. One pass takes the sums, a second one writes; vectors
run along the channels, so that sums stay in registers while the positions go by. Whatever is in
memory, everything is float32 in between, and what chunks of a few hundred positions gave is joined
in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from medseg.ops.kernels.compiled import Untyped, compiled
from medseg.ops.kernels.layout import advise_huge_pages
from medseg.ops.kernels.vectors import FEW, MANY, Vectors
from medseg.ops.kernels.workers import in_slabs

__all__ = [
    "LEAST_SHARED",
    "chunks_of",
    "group_norm",
    "group_norm_with_moments",
    "normalise",
    "numbers",
    "rows_of",
]

# numbers that are read together: they stay in the nearest cache, and float32 can hold their sums
_CHUNK = 8192
_LEAST_ROWS = 16
# fewer numbers are done by one thread before another one is awake
LEAST_SHARED = 1 << 20


@dataclass(frozen=True, slots=True)
class Rows:
    """A tensor as rows of channels, one row per position; steps count elements.

    Args:
        images: Extent of the batch axis.
        image_step: From one image to the next.
        rows: Positions of one image.
        row_step: From one position to the next.
        channels: Numbers side by side in a row.
    """

    images: int
    image_step: int
    rows: int
    row_step: int
    channels: int


def rows_of(x_bcs: Tensor) -> Rows | None:
    """How a tensor divides into rows of channels, or None if it does not.

    A channels-last tensor does, and so does a slice of its channels.

    Args:
        x_bcs: ``(b, c, *spatial)``.
    """
    images, channels, *extents = x_bcs.shape
    image_step, channel_step, *steps = x_bcs.stride()
    if channel_step != 1 or not x_bcs.numel():
        return None
    row_step, rows = None, 1
    for extent, step in zip(reversed(extents), reversed(steps), strict=True):
        if extent == 1:
            continue
        if row_step is None:
            row_step = step
        elif step != row_step * rows:
            return None
        rows *= extent
    if row_step is None:
        row_step = channels
    return Rows(images, image_step, rows, row_step, channels) if row_step >= channels else None


def group_norm(
    x_bcs: Tensor,
    groups: int,
    weight_c: Tensor | None,
    bias_c: Tensor | None,
    eps: float,
    negative_slope: float,
    inplace: bool,
) -> Tensor:
    """The kernel of :func:`medseg.ops.norm.group_norm`, with its arguments.

    Args:
        x_bcs: float32 or bfloat16 on the CPU, channels-last.
        groups: As there.
        weight_c: As there.
        bias_c: As there.
        eps: As there.
        negative_slope: As there.
        inplace: Whether the result goes into ``x_bcs``.
    """
    y_bcs = x_bcs if inplace else advise_huge_pages(torch.empty_like(x_bcs))
    return normalise(x_bcs, groups, weight_c, bias_c, eps, negative_slope, y_bcs)


def group_norm_with_moments(
    x_bcs: Tensor,
    groups: int,
    weight_c: Tensor | None,
    bias_c: Tensor | None,
    eps: float,
    negative_slope: float,
) -> tuple[Tensor, Tensor]:
    """What the backward pass needs besides.

    Args:
        x_bcs: float32 or bfloat16 on the CPU, channels-last.
        groups: As :func:`medseg.ops.norm.group_norm` has it.
        weight_c: As there.
        bias_c: As there.
        eps: As there.
        negative_slope: As there.

    Returns:
        The result, and float32 ``(b, 2, c)``: mean and inverse deviation of each channel's group.
    """
    y_bcs = advise_huge_pages(torch.empty_like(x_bcs))
    moments_b2c = torch.empty(len(x_bcs), 2, x_bcs.shape[1], dtype=torch.float32)
    normalise(x_bcs, groups, weight_c, bias_c, eps, negative_slope, y_bcs, moments_b2c)
    return y_bcs, moments_b2c


def normalise(
    x_bcs: Tensor,
    groups: int,
    weight_c: Tensor | None,
    bias_c: Tensor | None,
    eps: float,
    slope: float,
    y_bcs: Tensor,
    moments_b2c: Tensor | None = None,
) -> Tensor:
    """Write the normalised, activated ``x_bcs`` into ``y_bcs``.

    Args:
        x_bcs: float32 or bfloat16 on the CPU, for which :func:`rows_of` gives rows.
        groups: Number of groups of channels, which share mean and variance.
        weight_c: Factor of each channel, or None for one.
        bias_c: Added to each channel, or None for nothing.
        eps: Added to the variance.
        slope: Factor of negative results; 1 is no activation.
        y_bcs: As ``x_bcs``, of the same number type; may be the same tensor, or a slice of the
            channels of another.
        moments_b2c: Where mean and inverse deviation of each channel's group go, float32, if
            anywhere.

    Returns:
        ``y_bcs``.
    """
    x_rows, y_rows = rows_of(x_bcs), rows_of(y_bcs)
    assert x_rows is not None  # noqa: S101 - the caller asked before
    assert y_rows is not None  # noqa: S101
    images, channels = x_rows.images, x_rows.channels
    half = True if x_bcs.dtype == torch.bfloat16 else None
    size = x_bcs.element_size()
    chunks, chunk = chunks_of(x_rows)
    x_at = x_bcs.data_ptr(), x_rows.image_step * size, x_rows.row_step * size
    y_at = y_bcs.data_ptr(), y_rows.image_step * size, y_rows.row_step * size
    walk = (chunks, chunk, x_rows.rows, channels)
    if moments_b2c is None:
        moments_b2c = torch.empty(images, 2, channels, dtype=torch.float32)
    moments = moments_b2c.numpy()
    sums = np.empty((images * chunks, 3, channels), dtype=np.float32)
    factors = np.empty((images, 3, channels), dtype=np.float32)
    weights = numbers(weight_c, 1.0, channels), numbers(bias_c, 0.0, channels)
    number = np.float32(slope)
    if x_bcs.numel() < LEAST_SHARED:
        _normalise(x_at, y_at, walk, groups, weights, eps, number, half, sums, factors, moments)
        return y_bcs

    def sum_slab(first: int, last: int) -> None:
        _sum_chunks(x_at, walk, sums, half, first, last)

    def write_slab(first: int, last: int) -> None:
        _write_chunks(x_at, y_at, walk, factors, number, half, first, last)

    in_slabs(sum_slab, images * chunks, x_bcs.numel())
    _join(sums, walk, groups, weights, eps, factors, moments)
    in_slabs(write_slab, images * chunks, x_bcs.numel())
    return y_bcs


def chunks_of(rows: Rows) -> tuple[int, int]:
    """Number of chunks of an image, and positions in each but the last."""
    chunk = max(_LEAST_ROWS, _CHUNK // rows.channels)
    return -(-rows.rows // chunk), chunk


def numbers(values_c: Tensor | None, absent: float, channels: int) -> npt.NDArray[np.float64]:
    """Weights as float64, or what stands for them.

    Args:
        values_c: On the CPU, of any type; or None.
        absent: What all are for None.
        channels: Their number.
    """
    if values_c is None:
        return np.full(channels, absent)
    array: npt.NDArray[np.float64] = values_c.detach().double().numpy()
    return array


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def _sum_rows(
    typing_context: Untyped,  # noqa: ARG001
    source: Untyped,
    step: Untyped,
    rows: Untyped,
    target: Untyped,
    gap: Untyped,
    half: Untyped,
    lanes: Untyped,
) -> Untyped:
    """First row, sums of the deviations from it, and of their squares, ``gap`` bytes apart."""
    signature = types.void(source, step, rows, target, gap, half, lanes)
    width, is_half = lanes.literal_value, not isinstance(half, types.NoneType)

    def generate(
        context: Untyped,
        builder: Untyped,
        signature: Untyped,  # noqa: ARG001
        values: Untyped,
    ) -> Untyped:
        start, stride, count, end, apart = values[:5]
        vectors = Vectors(builder, half=is_half, lanes=width)
        pivot = vectors.read(start)
        totals = [cgutils.alloca_once_value(builder, vectors.constant(0.0)) for _ in range(2)]
        with cgutils.for_range(builder, count) as loop:
            numbers = vectors.read(builder.add(start, builder.mul(loop.index, stride)))
            away = builder.fsub(numbers, pivot)
            squares = builder.fmul(away, away, flags=("contract",))
            for total, summand in zip(totals, (away, squares), strict=True):
                more = builder.fadd(builder.load(total), summand, flags=("contract",))
                builder.store(more, total)
        for vector in (pivot, *(builder.load(total) for total in totals)):
            vectors.write_single(vector, end)
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
    """``(x - mean) * factor + bias`` and the activation; memory and steps for read and written."""
    signature = types.void(memory, steps, rows, factors, gap, slope, half, lanes)
    width, is_half = lanes.literal_value, not isinstance(half, types.NoneType)

    def generate(
        context: Untyped,
        builder: Untyped,
        signature: Untyped,  # noqa: ARG001
        values: Untyped,
    ) -> Untyped:
        pair, stride_pair, count, first, apart, number = values[:6]
        vectors = Vectors(builder, half=is_half, lanes=width)
        starts = [builder.extract_value(pair, side) for side in range(2)]
        strides = [builder.extract_value(stride_pair, side) for side in range(2)]
        parts = []
        for _ in range(3):
            parts.append(vectors.read_single(first))
            first = builder.add(first, apart)
        mean, factor, bias = parts
        slopes = vectors.spread(number)
        with cgutils.for_range(builder, count) as loop:
            source, target = (
                builder.add(start, builder.mul(loop.index, stride))
                for start, stride in zip(starts, strides, strict=True)
            )
            centred = builder.fsub(vectors.read(source), mean)
            scaled = builder.fmul(centred, factor, flags=("contract",))
            moved = builder.fadd(scaled, bias, flags=("contract",))
            negative = builder.fcmp_ordered("<", moved, vectors.constant(0.0))
            vectors.write(builder.select(negative, builder.fmul(moved, slopes), moved), target)
        return context.get_dummy_value()

    return signature, generate


@compiled(error_model="numpy")
def _sum_chunks(
    x_at: Untyped, walk: Untyped, sums: Untyped, half: Untyped, first: Untyped, last: Untyped
) -> None:
    start, image_step, row_step = x_at
    chunks, chunk, rows, channels = walk
    size = 4 if half is None else 2
    gap = 4 * channels
    for turn in range(first, last):
        row = turn % chunks * chunk
        count = min(chunk, rows - row)
        source = start + turn // chunks * image_step + row * row_step
        target = sums.ctypes.data + turn * 3 * gap
        n = 0
        while n + MANY <= channels:
            _sum_rows(source + n * size, row_step, count, target + n * 4, gap, half, MANY)
            n += MANY
        while n + FEW <= channels:
            _sum_rows(source + n * size, row_step, count, target + n * 4, gap, half, FEW)
            n += FEW
        while n < channels:
            _sum_rows(source + n * size, row_step, count, target + n * 4, gap, half, 1)
            n += 1


@compiled(error_model="numpy")
def _write_chunks(
    x_at: Untyped,
    y_at: Untyped,
    walk: Untyped,
    factors: Untyped,
    slope: Untyped,
    half: Untyped,
    first: Untyped,
    last: Untyped,
) -> None:
    chunks, chunk, rows, channels = walk
    size = 4 if half is None else 2
    gap = 4 * channels
    steps = x_at[2], y_at[2]
    for turn in range(first, last):
        image, row = turn // chunks, turn % chunks * chunk
        count = min(chunk, rows - row)
        x = x_at[0] + image * x_at[1] + row * x_at[2]
        y = y_at[0] + image * y_at[1] + row * y_at[2]
        own = factors.ctypes.data + image * 3 * gap
        n = 0
        while n + MANY <= channels:
            at, by = (x + n * size, y + n * size), own + n * 4
            _write_rows(at, steps, count, by, gap, slope, half, MANY)
            n += MANY
        while n + FEW <= channels:
            at, by = (x + n * size, y + n * size), own + n * 4
            _write_rows(at, steps, count, by, gap, slope, half, FEW)
            n += FEW
        while n < channels:
            at, by = (x + n * size, y + n * size), own + n * 4
            _write_rows(at, steps, count, by, gap, slope, half, 1)
            n += 1


@compiled(error_model="numpy")
def _join(
    sums: Untyped,
    walk: Untyped,
    groups: int,
    weights: Untyped,
    eps: float,
    factors: Untyped,
    moments: Untyped,
) -> None:
    """Moments of the groups, and with the weights the factors, from what each chunk summed.

    The deviations from a pivot within chunks, and of the chunks' means from the whole mean (Chan,
    Golub and LeVeque, 1979), so that a large mean costs no digits of the variance.
    """
    chunks, chunk, rows, channels = walk
    weight_c, bias_c = weights
    members = channels // groups
    whole = rows * members
    for image in range(len(factors)):
        own = sums[image * chunks : (image + 1) * chunks]
        for group in range(groups):
            first, last = group * members, (group + 1) * members
            total = 0.0
            for part in range(chunks):
                count = min(chunk, rows - part * chunk)
                for c in range(first, last):
                    total += np.float64(own[part, 1, c]) + count * np.float64(own[part, 0, c])
            mean = total / whole
            total = 0.0
            for part in range(chunks):
                count = min(chunk, rows - part * chunk)
                for c in range(first, last):
                    away = np.float64(own[part, 1, c]) / count
                    apart = np.float64(own[part, 0, c]) + away - mean
                    total += np.float64(own[part, 2, c]) - count * away * away
                    total += count * apart * apart
            variance = total / whole
            # not max(): what is no number stays so
            if variance < 0:
                variance = 0.0
            inverse = 1 / np.sqrt(variance + eps)
            for c in range(first, last):
                moments[image, 0, c] = factors[image, 0, c] = mean
                moments[image, 1, c] = inverse
                factors[image, 1, c] = weight_c[c] * inverse
                factors[image, 2, c] = bias_c[c]


@compiled(error_model="numpy")
def _normalise(
    x_at: Untyped,
    y_at: Untyped,
    walk: Untyped,
    groups: int,
    weights: Untyped,
    eps: float,
    slope: Untyped,
    half: Untyped,
    sums: Untyped,
    factors: Untyped,
    moments: Untyped,
) -> None:
    """Everything in one thread."""
    _sum_chunks(x_at, walk, sums, half, 0, len(sums))
    _join(sums, walk, groups, weights, eps, factors, moments)
    _write_chunks(x_at, y_at, walk, factors, slope, half, 0, len(sums))
