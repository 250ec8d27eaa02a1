"""One level of a wavelet transform and its transpose, as operators that torch knows.

``medseg::dwt`` applies ``W(low, high, mode)``, a matrix per axis with the rows that
:mod:`medseg.ops.wavelet_filters` defines, and ``medseg::idwt`` its transpose. Each is the
derivative of the other, so that gradients exist to any order.

They run as Triton kernels on a GPU and as sums over slices elsewhere. Exports to ONNX, the
transforms of ``torch.func`` and small tensors get one matrix product per axis instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medseg.ops.kernels.dispatch import Kernel, run, wants_plain
from medseg.ops.kernels.layout import advise_huge_pages
from medseg.ops.wavelet_filters import Split, Taps, coefficient_length, matrix, split

__all__ = ["level_forward", "level_transposed"]

_ANALYSIS = (
    Kernel("wavelet (Triton)", "medseg.ops.kernels.triton_wavelet", "analyse", device="cuda"),
)
_SYNTHESIS = (
    Kernel(
        "inverse wavelet (Triton)",
        "medseg.ops.kernels.triton_wavelet",
        "synthesise",
        device="cuda",
    ),
)

# samples that are worked on at once, per thread: they and their bands fit the cache
_BLOCK = 1 << 19

# samples of as many channels as are taken through all axes together
_SAMPLES = 1 << 21

# up to so many samples a matrix per axis costs less than starting a sum for every tap
_FEW = 1 << 14
_SHORT_AXIS = 64

# with fewer samples side by side than this, even and odd ones are first sorted apart
_SHORT_RUN = 8


def level_forward(x_bcs: Tensor, low: Taps, high: Taps, mode: str, dims: Sequence[int]) -> Tensor:
    """One level along ``dims``.

    Args:
        x_bcs: ``(b, c, *spatial)``, floating; half types are computed in float32.
        low: Filter of the approximation, of even length.
        high: Filter of the detail, as long.
        mode: Continuation beyond the ends.
        dims: Different spatial axes, counted from the front, at least one.

    Returns:
        ``(b, 2**len(dims) * c, *spatial)``, contiguous; last axis of ``dims`` fastest.
    """
    if wants_plain(x_bcs):
        return _analysis_matrices(x_bcs, low, high, mode, dims)
    bands_bcs: Tensor = torch.ops.medseg.dwt(x_bcs, low, high, mode, dims)
    return bands_bcs


def level_transposed(
    bands_bcs: Tensor,
    low: Taps,
    high: Taps,
    mode: str,
    dims: Sequence[int],
    extents: Sequence[int],
) -> Tensor:
    """The transpose of :func:`level_forward` with the same filters, mode and axes.

    Args:
        bands_bcs: ``(b, 2**len(dims) * c, *spatial)``, floating.
        low: As there.
        high: As there.
        mode: As there.
        dims: As there.
        extents: Of the result along ``dims``; they must give coefficients of these lengths.

    Returns:
        ``(b, c, *spatial)``, contiguous.
    """
    if wants_plain(bands_bcs):
        return _synthesis_matrices(bands_bcs, low, high, mode, dims, extents)
    x_bcs: Tensor = torch.ops.medseg.idwt(bands_bcs, low, high, mode, dims, extents)
    return x_bcs


# torch.library.custom_op would import the compiler at the first call: a second for nothing
torch.library.define(
    "medseg::dwt",
    "(Tensor x_bcs, float[] low, float[] high, str mode, SymInt[] dims) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.define(
    "medseg::idwt",
    "(Tensor bands_bcs, float[] low, float[] high, str mode, SymInt[] dims, SymInt[] extents) "
    "-> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.impl("medseg::dwt", "default")
def _dwt(
    x_bcs: Tensor, low: Sequence[float], high: Sequence[float], mode: str, dims: Sequence[int]
) -> Tensor:
    # autocast would round the few matrix products of the ends
    with torch.autocast(x_bcs.device.type, enabled=False):
        return run(_ANALYSIS, _analyse, x_bcs, tuple(low), tuple(high), mode, dims)


@torch.library.register_fake("medseg::dwt")  # type: ignore[untyped-decorator]
def _(
    x_bcs: Tensor,
    low: Sequence[float],
    high: Sequence[float],  # noqa: ARG001
    mode: str,
    dims: Sequence[int],
) -> Tensor:
    shape = list(x_bcs.shape)
    shape[1] *= 2 ** len(dims)
    for dim in dims:
        shape[dim] = coefficient_length(shape[dim], len(low), mode)
    return x_bcs.new_empty(shape)


@torch.library.impl("medseg::idwt", "default")
def _idwt(
    bands_bcs: Tensor,
    low: Sequence[float],
    high: Sequence[float],
    mode: str,
    dims: Sequence[int],
    extents: Sequence[int],
) -> Tensor:
    with torch.autocast(bands_bcs.device.type, enabled=False):
        return run(_SYNTHESIS, _synthesise, bands_bcs, tuple(low), tuple(high), mode, dims, extents)


@torch.library.register_fake("medseg::idwt")  # type: ignore[untyped-decorator]
def _(
    bands_bcs: Tensor,
    low: Sequence[float],  # noqa: ARG001
    high: Sequence[float],  # noqa: ARG001
    mode: str,  # noqa: ARG001
    dims: Sequence[int],
    extents: Sequence[int],
) -> Tensor:
    shape = list(bands_bcs.shape)
    shape[1] //= 2 ** len(dims)
    for dim, extent in zip(dims, extents, strict=True):
        shape[dim] = extent
    return bands_bcs.new_empty(shape)


def _remember_dwt(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401, ARG001
    x_bcs, *ctx.arguments = inputs
    ctx.extents = [x_bcs.shape[dim] for dim in ctx.arguments[-1]]


def _dwt_backward(ctx: Any, grad_bcs: Tensor) -> tuple[Tensor, None, None, None, None]:  # noqa: ANN401
    return torch.ops.medseg.idwt(grad_bcs, *ctx.arguments, ctx.extents), None, None, None, None


def _remember_idwt(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401, ARG001
    ctx.arguments = inputs[1:-1]


def _idwt_backward(ctx: Any, grad_bcs: Tensor) -> tuple[Tensor, None, None, None, None, None]:  # noqa: ANN401
    return torch.ops.medseg.dwt(grad_bcs, *ctx.arguments), None, None, None, None, None


torch.library.register_autograd("medseg::dwt", _dwt_backward, setup_context=_remember_dwt)
torch.library.register_autograd("medseg::idwt", _idwt_backward, setup_context=_remember_idwt)


def _wide(x_bcs: Tensor) -> Tensor:
    return x_bcs.float() if x_bcs.dtype in {torch.float16, torch.bfloat16} else x_bcs


# plain torch: the taps run over slices of a block -------------------------------------------------


def _analyse(x_bcs: Tensor, low: Taps, high: Taps, mode: str, dims: Sequence[int]) -> Tensor:
    if x_bcs.numel() <= _FEW and max(x_bcs.shape[dim] for dim in dims) <= _SHORT_AXIS:
        bands_bcs = _analysis_matrices(_wide(x_bcs).contiguous(), low, high, mode, dims)
        return bands_bcs.to(x_bcs.dtype).contiguous()
    shape = list(x_bcs.shape)
    for dim in dims:
        shape[dim] = coefficient_length(shape[dim], len(low), mode)
    kind, x_bcs = x_bcs.dtype, _wide(x_bcs).contiguous()
    out_bwcs = advise_huge_pages(x_bcs.new_empty((shape[0], 2 ** len(dims), *shape[1:])))
    # all axes of a few channels before the next ones: what lies between them stays small
    for b, c in _samples(x_bcs):
        part_wbcs = x_bcs[None, b, c]
        for n, dim in enumerate(reversed(dims)):
            wide = list(part_wbcs.shape)
            wide[dim + 1] = shape[dim]
            if n == len(dims) - 1:
                target = torch.unflatten(out_bwcs[b, :, c].movedim(1, 0), 0, (2, wide[0]))
            else:
                target = part_wbcs.new_empty((2, *wide))
            _analyse_axis(part_wbcs, target, low, high, mode, dim + 1)
            part_wbcs = target.flatten(0, 1)
    return out_bwcs.flatten(1, 2).to(kind)


def _synthesise(
    bands_bcs: Tensor,
    low: Taps,
    high: Taps,
    mode: str,
    dims: Sequence[int],
    extents: Sequence[int],
) -> Tensor:
    if bands_bcs.numel() <= _FEW and max(extents) <= _SHORT_AXIS:
        x_bcs = _synthesis_matrices(_wide(bands_bcs).contiguous(), low, high, mode, dims, extents)
        return x_bcs.to(bands_bcs.dtype).contiguous()
    shape = list(bands_bcs.shape)
    shape[1] //= 2 ** len(dims)
    for dim, extent in zip(dims, extents, strict=True):
        shape[dim] = extent
    kind, bands_bcs = bands_bcs.dtype, _wide(bands_bcs).contiguous()
    out_bcs = advise_huge_pages(bands_bcs.new_empty(shape))
    bands_bwcs = torch.unflatten(bands_bcs, 1, (2 ** len(dims), shape[1]))
    for b, c in _samples(out_bcs):
        part_wbcs = bands_bwcs[b, :, c].movedim(1, 0)
        for n, dim in enumerate(dims):
            source = torch.unflatten(part_wbcs, 0, (2, len(part_wbcs) // 2))
            narrow = list(source.shape[1:])
            narrow[dim + 1] = shape[dim]
            is_last = n == len(dims) - 1
            part_wbcs = out_bcs[None, b, c] if is_last else source.new_empty(narrow)
            _synthesise_axis(source, part_wbcs, low, high, mode, dim + 1)
    return out_bcs.to(kind)


def _analyse_axis(
    x_wbcs: Tensor, bands: Tensor, low: Taps, high: Taps, mode: str, dim: int
) -> None:
    x_wbpnq, bands = _rows_along(x_wbcs, 2, dim), _rows_along(bands, 3, dim + 1)
    part = split(low, high, mode, x_wbpnq.shape[3])
    for at in _blocks(x_wbpnq.shape):
        _analyse_block(x_wbpnq[at], bands[(slice(None), *at)], low, high, part)


def _synthesise_axis(
    bands: Tensor, out_wbcs: Tensor, low: Taps, high: Taps, mode: str, dim: int
) -> None:
    bands, out_wbpnq = _rows_along(bands, 3, dim + 1), _rows_along(out_wbcs, 2, dim)
    part = split(low, high, mode, out_wbpnq.shape[3])
    for at in _blocks(out_wbpnq.shape):
        _synthesise_block(bands[(slice(None), *at)], out_wbpnq[at], low, high, part)


def _analyse_block(x_wbpnq: Tensor, bands: Tensor, low: Taps, high: Taps, part: Split) -> None:
    inner = part.stop - part.first
    if inner:
        phases = _pairs(x_wbpnq, part.start, inner + len(low) // 2 - 1).movedim(4, 0)
        if x_wbpnq.shape[4] < _SHORT_RUN:
            phases = phases.contiguous()
        for band, taps in zip(bands.narrow(4, part.first, inner), (low, high), strict=True):
            torch.mul(phases[0].narrow(3, 0, inner), taps[-1], out=band)
            for n, tap in enumerate(reversed(taps)):
                if n and tap:
                    band.add_(phases[n % 2].narrow(3, n // 2, inner), alpha=tap)
    if part.ends.size:
        tail = x_wbpnq.narrow(3, x_wbpnq.shape[3] - part.tail, part.tail)
        used = torch.cat((x_wbpnq.narrow(3, 0, part.head), tail), dim=3)
        ends = torch.unflatten(_times(part.ends, used), 3, (2, -1)).movedim(3, 0)
        bands[:, :, :, :, : part.first] = ends[:, :, :, :, : part.first]
        bands[:, :, :, :, part.stop :] = ends[:, :, :, :, part.first :]


def _synthesise_block(bands: Tensor, out_wbpnq: Tensor, low: Taps, high: Taps, part: Split) -> None:
    inner = part.stop - part.first
    out_wbpnq.zero_()
    if inner:
        pairs = _pairs(out_wbpnq, part.start, inner + len(low) // 2 - 1)
        phases = pairs.movedim(4, 0)
        sorted_apart = out_wbpnq.shape[4] < _SHORT_RUN
        if sorted_apart:
            phases = torch.zeros_like(phases, memory_format=torch.contiguous_format)
        for band, taps in zip(bands.narrow(4, part.first, inner), (low, high), strict=True):
            for n, tap in enumerate(reversed(taps)):
                if tap:
                    phases[n % 2].narrow(3, n // 2, inner).add_(band, alpha=tap)
        if sorted_apart:
            pairs.copy_(phases.movedim(0, 4))
    if part.ends.size:
        front, back = bands[:, :, :, :, : part.first], bands[:, :, :, :, part.stop :]
        outer = torch.cat((front, back), dim=4).movedim(0, 3).flatten(3, 4)
        ends = _times(part.ends.T, outer)
        out_wbpnq.narrow(3, 0, part.head).add_(ends.narrow(3, 0, part.head))
        last = out_wbpnq.narrow(3, out_wbpnq.shape[3] - part.tail, part.tail)
        last.add_(ends.narrow(3, part.head, part.tail))


def _pairs(x_wbpnq: Tensor, start: int, count: int) -> Tensor:
    return torch.unflatten(x_wbpnq.narrow(3, start, 2 * count), 3, (count, 2))


def _times(weights: npt.NDArray[np.float64], x_wbpnq: Tensor) -> Tensor:
    weights_rn = torch.as_tensor(weights, dtype=x_wbpnq.dtype, device=x_wbpnq.device)
    if x_wbpnq.shape[4] < _SHORT_RUN:
        # one product instead of many products with a few columns
        return (x_wbpnq.movedim(3, -1) @ weights_rn.T).movedim(-1, 3)
    return weights_rn @ x_wbpnq


def _rows_along(x: Tensor, lead: int, dim: int) -> Tensor:
    # the first axes stay, the others become (planes, extent, run)
    shape = x.shape
    planes, run = math.prod(shape[lead:dim]), math.prod(shape[dim + 1 :])
    return x.view(*shape[:lead], planes, shape[dim], run)


def _samples(x_bcs: Tensor) -> Iterator[tuple[slice, slice]]:
    batch, channels = x_bcs.shape[:2]
    room = max(1, _SAMPLES // max(1, math.prod(x_bcs.shape[2:])))
    c = min(room, channels)
    b = max(1, room // max(1, channels))
    for first_b, first_c in product(range(0, batch, b), range(0, channels, max(1, c))):
        yield slice(first_b, first_b + b), slice(first_c, first_c + c)


def _blocks(shape: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    room = max(1, _BLOCK * torch.get_num_threads() // max(1, shape[3]))
    cuts: list[list[slice]] = []
    for extent in (shape[4], shape[2], shape[1], shape[0]):
        size = max(1, min(room, extent))
        cuts.append([slice(n, n + size) for n in range(0, extent, size)])
        room = max(1, room // size)
    for q, p, b, w in product(*cuts):
        yield w, b, p, slice(None), q


# plain torch as one matrix per axis: for exports, torch.func and small tensors --------------------


def _analysis_matrices(
    x_bcs: Tensor, low: Taps, high: Taps, mode: str, dims: Sequence[int]
) -> Tensor:
    for dim in reversed(dims):
        weights_rn = _like(matrix(low, high, mode, int(x_bcs.shape[dim])), x_bcs)
        bands = torch.unflatten(x_bcs.movedim(dim, -1) @ weights_rn.T, -1, (2, -1))
        x_bcs = bands.movedim((-2, -1), (1, dim + 1)).flatten(1, 2)
    return x_bcs


def _synthesis_matrices(
    bands_bcs: Tensor,
    low: Taps,
    high: Taps,
    mode: str,
    dims: Sequence[int],
    extents: Sequence[int],
) -> Tensor:
    for dim, extent in zip(dims, extents, strict=True):
        weights_rn = _like(matrix(low, high, mode, int(extent)), bands_bcs)
        split_bcs = torch.unflatten(bands_bcs, 1, (2, -1))
        bands = split_bcs.movedim((1, dim + 1), (-2, -1)).flatten(-2)
        bands_bcs = (bands @ weights_rn).movedim(-1, dim)
    return bands_bcs


def _like(weights: npt.NDArray[np.float64], x: Tensor) -> Tensor:
    return torch.as_tensor(weights).to(dtype=x.dtype, device=x.device)
