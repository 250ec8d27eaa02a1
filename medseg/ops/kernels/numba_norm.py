"""Normalisation of every channel of every image on a CPU, with the activation in the same pass.

For tensors whose channels lie side by side. One pass takes the sums, a second one writes; vectors
run along the channels, so that sums stay in registers while the positions go by. Numbers in
bfloat16 are widened as they are read and rounded to the nearest (even) as they are written; in
between everything is float32, and what chunks of a few hundred positions gave is joined in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from medseg.ops.kernels.compiled import Untyped, compiled
from medseg.ops.kernels.layout import advise_huge_pages
from medseg.ops.kernels.workers import in_slabs

__all__ = ["instance_norm", "normalise", "rows_of"]

# channels at a time; the widest vector is several registers, whose sums do not wait for each other
_MANY, _FEW = 32, 8
# numbers that are read together: they stay in the nearest cache, and float32 can hold their sums
_CHUNK = 8192
_LEAST_ROWS = 16


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


def instance_norm(
    x_bcs: Tensor,
    weight_c: Tensor | None,
    bias_c: Tensor | None,
    eps: float,
    negative_slope: float,
    inplace: bool,
) -> Tensor:
    """The kernel of :func:`medseg.ops.norm.instance_norm`, with its arguments.

    Args:
        x_bcs: float32 or bfloat16 on the CPU, channels-last.
        weight_c: As there.
        bias_c: As there.
        eps: As there.
        negative_slope: As there.
        inplace: Whether the result goes into ``x_bcs``.
    """
    y_bcs = x_bcs if inplace else advise_huge_pages(torch.empty_like(x_bcs))
    return normalise(x_bcs, weight_c, bias_c, eps, negative_slope, y_bcs)


def normalise(
    x_bcs: Tensor,
    weight_c: Tensor | None,
    bias_c: Tensor | None,
    eps: float,
    slope: float,
    y_bcs: Tensor,
) -> Tensor:
    """Write the normalised, activated ``x_bcs`` into ``y_bcs``.

    Args:
        x_bcs: float32 or bfloat16 on the CPU, for which :func:`rows_of` gives rows.
        weight_c: Factor of each channel, or None for one.
        bias_c: Added to each channel, or None for nothing.
        eps: Added to the variance.
        slope: Factor of negative results; 1 is no activation.
        y_bcs: As ``x_bcs``, of the same number type; may be the same tensor, or a slice of the
            channels of another.

    Returns:
        ``y_bcs``.
    """
    x_rows, y_rows = rows_of(x_bcs), rows_of(y_bcs)
    assert x_rows is not None  # noqa: S101 - the caller asked before
    assert y_rows is not None  # noqa: S101
    images, rows, channels = x_rows.images, x_rows.rows, x_rows.channels
    half = True if x_bcs.dtype == torch.bfloat16 else None
    size = x_bcs.element_size()
    chunk = max(_LEAST_ROWS, _CHUNK // channels)
    chunks = -(-rows // chunk)
    sums = np.empty((images * chunks, 3, channels), dtype=np.float32)
    x_at = x_bcs.data_ptr(), x_rows.image_step * size, x_rows.row_step * size
    y_at = y_bcs.data_ptr(), y_rows.image_step * size, y_rows.row_step * size
    walk = (chunks, chunk, rows, channels)

    def sum_slab(first: int, last: int) -> None:
        _sum_chunks(x_at, walk, sums.ctypes.data, half, first, last)

    in_slabs(sum_slab, images * chunks, x_bcs.numel())
    factors = _factors(sums.reshape(images, chunks, 3, channels), walk, weight_c, bias_c, eps)
    number = np.float32(slope)

    def write_slab(first: int, last: int) -> None:
        _write_chunks(x_at, y_at, walk, factors.ctypes.data, number, half, first, last)

    in_slabs(write_slab, images * chunks, x_bcs.numel())
    return y_bcs


def _factors(
    sums: npt.NDArray[np.float32],
    walk: tuple[int, int, int, int],
    weight_c: Tensor | None,
    bias_c: Tensor | None,
    eps: float,
) -> npt.NDArray[np.float32]:
    """Mean, factor and bias ``(images, 3, channels)`` of what each chunk summed.

    The deviations from a pivot within chunks, and of the chunks' means from the whole mean (Chan,
    Golub and LeVeque, 1979), so that a large mean costs no digits of the variance.
    """
    chunks, chunk, rows, channels = walk
    counts = np.full((chunks, 1), chunk, dtype=np.float64)
    counts[-1] = rows - chunk * (chunks - 1)
    pivots, firsts, squares = (sums[:, :, n].astype(np.float64) for n in range(3))
    factors = np.empty((len(sums), 3, channels), dtype=np.float32)
    # a map with infinities becomes NaN, as it should, without a word
    with np.errstate(all="ignore"):
        means = firsts / counts
        inner = squares - firsts * means
        means += pivots
        mean = (counts * means).sum(axis=1) / rows
        outer = counts * (means - mean[:, None]) ** 2
        variance = np.maximum((inner + outer).sum(axis=1) / rows, 0)
        factors[:, 0] = mean
        factors[:, 1] = _numbers(weight_c, 1.0) / np.sqrt(variance + eps)
    factors[:, 2] = _numbers(bias_c, 0.0)
    return factors


def _numbers(values_c: Tensor | None, absent: float) -> npt.NDArray[np.float64] | float:
    if values_c is None:
        return absent
    numbers: npt.NDArray[np.float64] = values_c.detach().double().numpy()
    return numbers


class _Vectors:
    """``lanes`` neighbouring channels as vectors of float32, whatever their type in memory."""

    def __init__(self, builder: Untyped, *, half: bool, lanes: int) -> None:
        self._builder = builder
        self._half = half
        self._lanes = lanes
        self.single = ir.VectorType(ir.FloatType(), lanes)
        self._whole = ir.VectorType(ir.IntType(32), lanes)
        self._short = ir.VectorType(ir.IntType(16), lanes)

    def constant(self, number: float) -> Untyped:
        return ir.Constant(self.single, [number] * self._lanes)

    def spread(self, number: Untyped) -> Untyped:
        """The same number in every lane."""
        nothing = ir.Constant(self.single, ir.Undefined)
        first = ir.Constant(ir.IntType(32), 0)
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self._lanes), [0] * self._lanes)
        single = self._builder.insert_element(nothing, number, first)
        return self._builder.shuffle_vector(single, single, zeros)

    def read_single(self, address: Untyped) -> Untyped:
        pointer = self._builder.inttoptr(address, self.single.as_pointer())
        return self._builder.load(pointer, align=4)

    def write_single(self, vector: Untyped, address: Untyped) -> None:
        pointer = self._builder.inttoptr(address, self.single.as_pointer())
        self._builder.store(vector, pointer, align=4)

    def read(self, address: Untyped) -> Untyped:
        if not self._half:
            return self.read_single(address)
        builder = self._builder
        bits = builder.load(builder.inttoptr(address, self._short.as_pointer()), align=2)
        high = builder.shl(builder.zext(bits, self._whole), self._bits(16))
        return builder.bitcast(high, self.single)

    def write(self, vector: Untyped, address: Untyped) -> None:
        if not self._half:
            self.write_single(vector, address)
            return
        builder = self._builder
        bits = builder.bitcast(vector, self._whole)
        odd = builder.and_(builder.lshr(bits, self._bits(16)), self._bits(1))
        rounded = builder.add(bits, builder.add(odd, self._bits(0x7FFF)))
        # a number that is none must not be rounded into infinity or zero
        kept = builder.or_(bits, self._bits(0x400000))
        lost = builder.fcmp_unordered("uno", vector, vector)
        chosen = builder.lshr(builder.select(lost, kept, rounded), self._bits(16))
        pointer = builder.inttoptr(address, self._short.as_pointer())
        builder.store(builder.trunc(chosen, self._short), pointer, align=2)

    def _bits(self, number: int) -> Untyped:
        return ir.Constant(self._whole, [number] * self._lanes)


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
        vectors = _Vectors(builder, half=is_half, lanes=width)
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
        vectors = _Vectors(builder, half=is_half, lanes=width)
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
        target = sums + turn * 3 * gap
        n = 0
        while n + _MANY <= channels:
            _sum_rows(source + n * size, row_step, count, target + n * 4, gap, half, _MANY)
            n += _MANY
        while n + _FEW <= channels:
            _sum_rows(source + n * size, row_step, count, target + n * 4, gap, half, _FEW)
            n += _FEW
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
        own = factors + image * 3 * gap
        n = 0
        while n + _MANY <= channels:
            at, by = (x + n * size, y + n * size), own + n * 4
            _write_rows(at, steps, count, by, gap, slope, half, _MANY)
            n += _MANY
        while n + _FEW <= channels:
            at, by = (x + n * size, y + n * size), own + n * 4
            _write_rows(at, steps, count, by, gap, slope, half, _FEW)
            n += _FEW
        while n < channels:
            at, by = (x + n * size, y + n * size), own + n * 4
            _write_rows(at, steps, count, by, gap, slope, half, 1)
            n += 1
