# ruff: noqa: ANN001, ANN201, ANN202, D103, N803, PLR0912, PLR0915, PLR1714 - Triton's own language
# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""One level of a wavelet transform in Triton, an axis at a time, whatever the strides.

The ends of the signal are found by their index, in the forward direction for every mode. Of the
transpose the kernel does modes ``zero`` and ``periodization``, which are all that an inverse
transform needs. The other modes, met in backward passes, add a small matrix product over the
coefficients at the ends: a scatter would need atomic additions, whose order is not fixed.

With ``TRITON_INTERPRET=1`` set before the import it runs on CPU tensors, for tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from medseg.ops.kernels.launch import on_device, padded, span
from medseg.ops.kernels.triton_grid import lanes, places
from medseg.ops.wavelet_filters import MODES, Taps, coefficient_length, overhang

__all__ = ["analyse", "analysis_kernel", "synthesis_kernel", "synthesise"]

_BLOCK = 256
_AXES = 5
_CODES: dict[str, int] = {mode: n for n, mode in enumerate(MODES)}


def analyse(x_bcs: Tensor, low: Taps, high: Taps, mode: str, dims: Sequence[int]) -> Tensor:
    """One level along ``dims``; half types are kept in float32 between the axes.

    Args:
        x_bcs: Floating, at most five axes, any strides.
        low: Analysis filter of the approximation.
        high: Analysis filter of the detail.
        mode: Continuation beyond the ends.
        dims: Axes, at least one; the last one's letter is fastest.

    Returns:
        ``(b, 2**len(dims) * c, *spatial)``, contiguous.
    """
    out_bcs = x_bcs
    for dim in reversed(dims):
        kind = x_bcs.dtype if dim == dims[0] else _sum_type(x_bcs.dtype)
        out_bcs = _analyse_axis(out_bcs, low, high, mode, dim, kind)
    return out_bcs


def synthesise(
    bands_bcs: Tensor,
    low: Taps,
    high: Taps,
    mode: str,
    dims: Sequence[int],
    extents: Sequence[int],
) -> Tensor:
    """The transpose of :func:`analyse`.

    Args:
        bands_bcs: ``(b, 2**len(dims) * c, *spatial)``, any strides.
        low: As for :func:`analyse`.
        high: As for :func:`analyse`.
        mode: As for :func:`analyse`.
        dims: As for :func:`analyse`.
        extents: Of the result along ``dims``.

    Returns:
        ``(b, c, *spatial)``, contiguous.
    """
    out_bcs = bands_bcs
    for dim, extent in zip(dims, extents, strict=True):
        kind = bands_bcs.dtype if dim == dims[-1] else _sum_type(bands_bcs.dtype)
        out_bcs = _synthesise_axis(out_bcs, low, high, mode, dim, extent, kind)
    return out_bcs


def _analyse_axis(
    x_bcs: Tensor, low: Taps, high: Taps, mode: str, dim: int, kind: torch.dtype
) -> Tensor:
    shape = list(x_bcs.shape)
    shape[dim] = coefficient_length(x_bcs.shape[dim], len(low), mode)
    bands = x_bcs.new_empty((shape[0], 2, *shape[1:]), dtype=kind)
    approximation_bcs = bands[:, 0]
    points = approximation_bcs.numel()
    with on_device(x_bcs):
        analysis_kernel[(triton.cdiv(points, _BLOCK),)](
            x_bcs,
            bands,
            _on(x_bcs.device, _sum_type(x_bcs.dtype), low, high),
            points,
            x_bcs.shape[dim],
            bands.stride(1),
            *padded(shape, _AXES, 1)[1:],
            *padded(x_bcs.stride(), _AXES, 0),
            *padded(approximation_bcs.stride(), _AXES, 0),
            AXIS=dim + _AXES - x_bcs.ndim,
            TAPS=len(low),
            MODE=_CODES[mode],
            WIDE=max(span(x_bcs), span(bands)) >= (1 << 31) - 1,
            BLOCK=_BLOCK,
        )
    return bands.flatten(1, 2)


def _synthesise_axis(
    bands_bcs: Tensor,
    low: Taps,
    high: Taps,
    mode: str,
    dim: int,
    extent: int,
    kind: torch.dtype,
) -> Tensor:
    bands = torch.unflatten(bands_bcs, 1, (2, -1))
    approximation_bcs = bands[:, 0]
    shape = list(approximation_bcs.shape)
    count, shape[dim] = shape[dim], extent
    folds = mode not in {"zero", "periodization"}
    out_bcs = bands.new_empty(shape, dtype=_sum_type(kind) if folds else kind)
    points = out_bcs.numel()
    with on_device(bands):
        synthesis_kernel[(triton.cdiv(points, _BLOCK),)](
            bands,
            out_bcs,
            _on(bands.device, _sum_type(bands.dtype), low, high),
            points,
            count,
            bands.stride(1),
            *padded(shape, _AXES, 1)[1:],
            *padded(approximation_bcs.stride(), _AXES, 0),
            *padded(out_bcs.stride(), _AXES, 0),
            AXIS=dim + _AXES - out_bcs.ndim,
            TAPS=len(low),
            PERIODIZATION=mode == "periodization",
            WIDE=max(span(bands), span(out_bcs)) >= (1 << 31) - 1,
            BLOCK=_BLOCK,
        )
    if folds:
        _fold(bands, out_bcs, low, high, mode, dim)
    return out_bcs.to(kind)


def _fold(bands: Tensor, out_bcs: Tensor, low: Taps, high: Taps, mode: str, dim: int) -> None:
    extent = out_bcs.shape[dim]
    part = overhang(low, high, mode, extent)
    rows = bands.movedim((1, dim + 1), (-2, -1)).to(out_bcs.dtype)
    outer = torch.cat((rows[..., : part.first], rows[..., part.stop :]), dim=-1).flatten(-2)
    weights_rn = torch.as_tensor(part.ends, dtype=outer.dtype, device=outer.device)
    folded = (outer @ weights_rn).movedim(-1, dim)
    out_bcs.narrow(dim, 0, part.head).add_(folded.narrow(dim, 0, part.head))
    back = folded.narrow(dim, part.head, part.tail)
    out_bcs.narrow(dim, extent - part.tail, part.tail).add_(back)


def _sum_type(kind: torch.dtype) -> torch.dtype:
    return torch.float64 if kind == torch.float64 else torch.float32


@lru_cache(maxsize=256)
def _on(device: torch.device, kind: torch.dtype, low: Taps, high: Taps) -> Tensor:
    return torch.tensor((low, high), dtype=kind, device=device)


@triton.jit
def analysis_kernel(
    source,
    target,
    filters,
    points,
    length,
    band_step,
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
    AXIS: tl.constexpr,
    TAPS: tl.constexpr,
    MODE: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    point = lanes(WIDE, BLOCK)
    mask = point < points
    n0, n1, n2, n3, n4 = places(point, extent1, extent2, extent3, extent4)
    y = target + n0 * out0 + n1 * out1 + n2 * out2 + n3 * out3 + n4 * out4
    if AXIS == 2:
        i, step, n2 = n2, in2, n2 * 0
    elif AXIS == 3:
        i, step, n3 = n3, in3, n3 * 0
    else:
        i, step, n4 = n4, in4, n4 * 0
    x = source + n0 * in0 + n1 * in1 + n2 * in2 + n3 * in3 + n4 * in4
    kind = filters.dtype.element_ty
    smooth = tl.zeros((BLOCK,), kind)
    detail = tl.zeros((BLOCK,), kind)
    last = (length - 1) * step
    if MODE == 4 or MODE == 8:
        first_value = tl.load(x, mask).to(kind)
        last_value = tl.load(x + last, mask).to(kind)
    shift: tl.constexpr = TAPS // 2 if MODE == 5 else 1
    for j in tl.static_range(TAPS):
        m = 2 * i + shift - j
        if MODE == 0:  # zero
            inside = (m >= 0) & (m < length)
            value = tl.load(x + m * step, mask & inside, other=0.0).to(kind)
        elif MODE == 1:  # constant
            at = tl.minimum(tl.maximum(m, 0), length - 1)
            value = tl.load(x + at * step, mask).to(kind)
        elif MODE == 2:  # symmetric
            at = (m + 2 * TAPS * length) % (2 * length)
            at = tl.minimum(at, 2 * length - 1 - at)
            value = tl.load(x + at * step, mask).to(kind)
        elif MODE == 3:  # periodic
            at = (m + TAPS * length) % length
            value = tl.load(x + at * step, mask).to(kind)
        elif MODE == 4:  # smooth: the line through the last two samples; of one sample, constant
            beyond = tl.maximum(-m, m - length + 1)
            inner = tl.where(m < 0, tl.minimum(1, length - 1), tl.maximum(length - 2, 0))
            edge = tl.where(m < 0, first_value, last_value)
            at = tl.where(beyond > 0, inner, m)
            value = tl.load(x + at * step, mask).to(kind)
            value = tl.where(beyond > 0, edge + beyond.to(kind) * (edge - value), value)
        elif MODE == 5:  # periodization
            period = length + length % 2
            at = tl.minimum((m + TAPS * period) % period, length - 1)
            value = tl.load(x + at * step, mask).to(kind)
        elif MODE == 6:  # reflect
            period = 2 * length - 2
            at = (m + TAPS * period) % period
            at = tl.minimum(at, period - at)
            value = tl.load(x + at * step, mask).to(kind)
        elif MODE == 7:  # antisymmetric
            at = (m + 2 * TAPS * length) % (2 * length)
            mirrored = at >= length
            at = tl.minimum(at, 2 * length - 1 - at)
            value = tl.load(x + at * step, mask).to(kind)
            value = tl.where(mirrored, -value, value)
        else:  # antireflect: each full period adds twice the rise from end to end
            period = 2 * length - 2
            turn = (m + TAPS * period) // period - TAPS
            at = m - turn * period
            mirrored = at >= length
            at = tl.minimum(at, period - at)
            value = tl.load(x + at * step, mask).to(kind)
            value = tl.where(mirrored, 2 * last_value - value, value)
            value += 2 * turn.to(kind) * (last_value - first_value)
        smooth += tl.load(filters + j) * value
        detail += tl.load(filters + TAPS + j) * value
    tl.store(y, smooth, mask)
    tl.store(y + band_step, detail, mask)


@triton.jit
def _gathered(
    x,
    filters,
    k,
    mask,
    step,
    band_step,
    count,
    TAPS: tl.constexpr,
    PERIODIZATION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    kind = filters.dtype.element_ty
    total = tl.zeros((BLOCK,), kind)
    shift: tl.constexpr = TAPS // 2 if PERIODIZATION else 1
    # only taps of one parity meet a sample
    odd = (k + shift) % 2
    for t in tl.static_range(TAPS // 2):
        low = tl.where(odd == 1, tl.load(filters + 2 * t + 1), tl.load(filters + 2 * t))
        high = tl.where(
            odd == 1,
            tl.load(filters + TAPS + 2 * t + 1),
            tl.load(filters + TAPS + 2 * t),
        )
        # shifted by TAPS, which is even, so that what is halved is never negative
        i = (k + odd + 2 * t - shift + TAPS) // 2 - TAPS // 2
        if PERIODIZATION:
            i = (i + TAPS * count) % count
            inside = mask
        else:
            inside = mask & (i >= 0) & (i < count)
        total += low * tl.load(x + i * step, inside, other=0.0).to(kind)
        total += high * tl.load(x + band_step + i * step, inside, other=0.0).to(kind)
    return total


@triton.jit
def synthesis_kernel(
    source,
    target,
    filters,
    points,
    count,
    band_step,
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
    AXIS: tl.constexpr,
    TAPS: tl.constexpr,
    PERIODIZATION: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    point = lanes(WIDE, BLOCK)
    mask = point < points
    n0, n1, n2, n3, n4 = places(point, extent1, extent2, extent3, extent4)
    y = target + n0 * out0 + n1 * out1 + n2 * out2 + n3 * out3 + n4 * out4
    if AXIS == 2:
        k, step, length, n2 = n2, in2, extent2, n2 * 0
    elif AXIS == 3:
        k, step, length, n3 = n3, in3, extent3, n3 * 0
    else:
        k, step, length, n4 = n4, in4, extent4, n4 * 0
    x = source + n0 * in0 + n1 * in1 + n2 * in2 + n3 * in3 + n4 * in4
    total = _gathered(x, filters, k, mask, step, band_step, count, TAPS, PERIODIZATION, BLOCK)
    if PERIODIZATION:
        # an odd signal was continued by its last sample
        twice = mask & (k == length - 1) & (length % 2 == 1)
        total += _gathered(
            x, filters, k + 1, twice, step, band_step, count, TAPS, PERIODIZATION, BLOCK
        )
    tl.store(y, total, mask)
