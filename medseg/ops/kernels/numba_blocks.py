"""Haar level and sub-pixel shuffle on a CPU: numba drives, LLVM vectors do the work.

Every element is read once and written once. The body of the loop is handed to LLVM as vector
instructions: left to itself, the vectoriser sees up to sixteen streams that might overlap and falls
back to single numbers. Compiled on first use, and kept on disk for the next process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from medseg.ops.kernels.blocks import BlockPlan, Direction, block_output, block_plan
from medseg.ops.kernels.compiled import Untyped, compiled
from medseg.ops.kernels.layout import advise_huge_pages
from medseg.ops.kernels.workers import in_slabs

__all__ = ["shuffle", "transform"]

_OUTER = 4
# how neighbouring blocks lie in the tensor read and in the tensor written
_ANYHOW, _IN_ROWS, _PAIRS_READ, _PAIRS_WRITTEN = 0, 1, 2, 3
# blocks at a time
_MANY, _FEW = 16, 4


def transform(x_bcs: Tensor, axes: Sequence[int], direction: Direction) -> Tensor:
    """One Haar level of ``x_bcs``.

    Args:
        x_bcs: float32 or float64 on the CPU, at most five axes, any strides.
        axes: See :func:`~medseg.ops.kernels.blocks.block_plan`.
        direction: As there.
    """
    y_bcs = advise_huge_pages(block_output(x_bcs, axes, direction))
    plan = block_plan(x_bcs, y_bcs, axes, direction, bands_first=True)
    _follow(plan, x_bcs, y_bcs, mixes=True)
    return y_bcs


def shuffle(x_bcs: Tensor, factors: Sequence[int], direction: Direction) -> Tensor:
    """Space to depth (forward) or depth to space (inverse) of ``x_bcs``.

    Args:
        x_bcs: float32 or float64 on the CPU, at most five axes, any strides.
        factors: 1 or 2 per spatial axis.
        direction: ``forward`` halves the axes.
    """
    axes = [axis for axis, factor in enumerate(factors, start=2) if factor == 2]
    y_bcs = advise_huge_pages(block_output(x_bcs, axes, direction))
    plan = block_plan(x_bcs, y_bcs, axes, direction, bands_first=False)
    _follow(plan, x_bcs, y_bcs, mixes=False)
    return y_bcs


@dataclass(frozen=True, slots=True)
class _Walk:
    """A plan as :func:`_rows` takes it; the axes of the grid padded to a fixed number."""

    steps: tuple[tuple[int, ...], tuple[int, ...]]
    bits: tuple[tuple[int, ...], tuple[int, ...]]
    counts: tuple[int, ...]
    length: int
    kind: int


@lru_cache(maxsize=1024)
def _walk(plan: BlockPlan) -> _Walk:
    *outer, length = plan.extents
    *outer_in, step_in = plan.steps_in
    *outer_out, step_out = plan.steps_out
    bits_in, bits_out = plan.bits_in, plan.bits_out
    kind = _ANYHOW
    if step_in == step_out == 1:
        kind = _IN_ROWS
    elif (step_in, step_out) == (2, 1) and 1 in bits_in:
        kind = _PAIRS_READ
    elif (step_in, step_out) == (1, 2) and 1 in bits_out:
        kind = _PAIRS_WRITTEN
    if kind in (_PAIRS_READ, _PAIRS_WRITTEN):
        # the axis whose pairs lie side by side comes last; the order is free
        place = (bits_in if kind == _PAIRS_READ else bits_out).index(1)
        bits_in = (*bits_in[:place], *bits_in[place + 1 :], bits_in[place])
        bits_out = (*bits_out[:place], *bits_out[place + 1 :], bits_out[place])
    return _Walk(
        steps=((*_padded(outer_in, 0), step_in), (*_padded(outer_out, 0), step_out)),
        bits=(bits_in, bits_out),
        counts=_padded(outer, 1),
        length=length,
        kind=kind,
    )


def _follow(plan: BlockPlan, x_bcs: Tensor, y_bcs: Tensor, *, mixes: bool) -> None:
    walk = _walk(plan)
    steps, bits, counts, length, kind = walk.steps, walk.bits, walk.counts, walk.length, walk.kind
    scale = 0.5 ** (len(plan.bits_in) / 2)
    number = np.float32(scale) if x_bcs.dtype == torch.float32 else np.float64(scale)
    memory = x_bcs.data_ptr(), y_bcs.data_ptr()
    # told by its type, so that either way is compiled by itself
    mixing = True if mixes else None

    def slab(first: int, last: int) -> None:
        _rows(memory, steps, bits, counts, length, number, mixing, kind, first, last)

    in_slabs(slab, counts[0] * counts[1] * counts[2], x_bcs.numel())


def _padded(values: list[int], filler: int) -> tuple[int, ...]:
    # the first three are shared out among threads, so they are filled first
    *head, last = values if len(values) > 1 else [*values, *([filler] * (2 - len(values)))]
    return (*head, *([filler] * (_OUTER - 1 - len(head))), last)


@intrinsic(prefer_literal=True)  # type: ignore[untyped-decorator]
def _block(
    typing_context: Untyped,  # noqa: ARG001
    memory: Untyped,
    offsets: Untyped,
    bits: Untyped,
    scale: Untyped,
    mixing: Untyped,
    kind: Untyped,
    width: Untyped,
) -> Untyped:
    """``width`` neighbouring blocks: ``2**n`` vectors in, butterflies if any, ``2**n`` out.

    Runs while numba compiles: the arguments are types, the result is code. Arguments in pairs are
    for the tensor read and the tensor written.
    """
    signature = types.void(memory, offsets, bits, scale, mixing, kind, width)
    axes, lanes, how = len(bits[0]), width.literal_value, kind.literal_value
    mixes = not isinstance(mixing, types.NoneType)

    def generate(
        context: Untyped, builder: Untyped, signature: Untyped, values: Untyped
    ) -> Untyped:
        number = context.get_value_type(signature.args[3])
        each = context.get_abi_sizeof(number)

        def addresses(side: int, count: int) -> list[Untyped]:
            found = [builder.extract_value(values[1], side)]
            for place in range(count):
                step = builder.extract_value(values[2], (side, place))
                found = [at for low in found for at in (low, builder.add(low, step))]
            base, size = builder.extract_value(values[0], side), ir.Constant(ir.IntType(64), each)
            return [builder.add(base, builder.mul(at, size)) for at in found]

        def pointer(address: Untyped, length: int) -> Untyped:
            return builder.inttoptr(address, ir.VectorType(number, length).as_pointer())

        def chosen(first: Untyped, second: Untyped, order: Sequence[int]) -> Untyped:
            mask = ir.Constant(ir.VectorType(ir.IntType(32), len(order)), list(order))
            return builder.shuffle_vector(first, second, mask)

        in_pairs, out_pairs = how == _PAIRS_READ, how == _PAIRS_WRITTEN
        vectors: list[Untyped] = []
        for address in addresses(0, axes - in_pairs):
            loaded = builder.load(pointer(address, lanes << in_pairs), align=each)
            if in_pairs:
                vectors += [
                    chosen(loaded, loaded, range(0, 2 * lanes, 2)),
                    chosen(loaded, loaded, range(1, 2 * lanes, 2)),
                ]
            else:
                vectors.append(loaded)
        if mixes:
            for bit in (1 << place for place in range(axes)):
                for low in (n for n in range(1 << axes) if not n & bit):
                    a, b = vectors[low], vectors[low | bit]
                    vectors[low], vectors[low | bit] = builder.fadd(a, b), builder.fsub(a, b)
            nothing = ir.Constant(ir.VectorType(number, lanes), ir.Undefined)
            single = builder.insert_element(nothing, values[3], ir.Constant(ir.IntType(32), 0))
            factor = chosen(single, single, [0] * lanes)
            vectors = [builder.fmul(vector, factor) for vector in vectors]
        if out_pairs:
            woven = [lane for n in range(lanes) for lane in (n, lanes + n)]
            vectors = [
                chosen(low, high, woven)
                for low, high in zip(vectors[::2], vectors[1::2], strict=True)
            ]
        for address, vector in zip(addresses(1, axes - out_pairs), vectors, strict=True):
            builder.store(vector, pointer(address, lanes << out_pairs), align=each)
        return context.get_dummy_value()

    return signature, generate


@compiled(error_model="numpy")
def _rows(
    memory: Untyped,
    steps: Untyped,
    bits: Untyped,
    counts: Untyped,
    length: Untyped,
    scale: Untyped,
    mixing: Untyped,
    kind: Untyped,
    first: Untyped,
    last: Untyped,
) -> None:
    ins, outs = steps
    for row in range(first, last):
        n2 = row % counts[2]
        n1 = row // counts[2] % counts[1]
        n0 = row // counts[2] // counts[1]
        for n3 in range(counts[3]):
            i = n0 * ins[0] + n1 * ins[1] + n2 * ins[2] + n3 * ins[3]
            o = n0 * outs[0] + n1 * outs[1] + n2 * outs[2] + n3 * outs[3]
            n = 0
            if kind == _IN_ROWS:
                while n + _MANY <= length:
                    _block(memory, (i + n, o + n), bits, scale, mixing, _IN_ROWS, _MANY)
                    n += _MANY
                while n + _FEW <= length:
                    _block(memory, (i + n, o + n), bits, scale, mixing, _IN_ROWS, _FEW)
                    n += _FEW
            elif kind == _PAIRS_READ:
                while n + _MANY <= length:
                    _block(memory, (i + 2 * n, o + n), bits, scale, mixing, _PAIRS_READ, _MANY)
                    n += _MANY
                while n + _FEW <= length:
                    _block(memory, (i + 2 * n, o + n), bits, scale, mixing, _PAIRS_READ, _FEW)
                    n += _FEW
            elif kind == _PAIRS_WRITTEN:
                while n + _MANY <= length:
                    _block(memory, (i + n, o + 2 * n), bits, scale, mixing, _PAIRS_WRITTEN, _MANY)
                    n += _MANY
                while n + _FEW <= length:
                    _block(memory, (i + n, o + 2 * n), bits, scale, mixing, _PAIRS_WRITTEN, _FEW)
                    n += _FEW
            while n < length:
                _block(memory, (i + n * ins[4], o + n * outs[4]), bits, scale, mixing, _ANYHOW, 1)
                n += 1
