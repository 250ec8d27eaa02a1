"""Add a window's weighted logits to rows of sums, in one pass, on a CPU.

Compiled on first use, and kept on disk for the next process.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numba import types
from torch import Tensor

from medseg.ops.kernels.compiled import Untyped, compiled
from medseg.ops.kernels.workers import in_slabs

__all__ = ["add_weighted", "finish", "takes"]

_f4, _i8 = types.float32, types.int64


def takes(answer: Tensor, sums: Tensor) -> bool:
    """Whether :func:`add_weighted` can do it: on the CPU, float32 or bfloat16 into float32."""
    return (
        answer.device.type == sums.device.type == "cpu"
        and sums.dtype == torch.float32
        and answer.dtype in (torch.float32, torch.bfloat16)
    )


def add_weighted(
    sums: Sequence[Tensor],
    totals: Sequence[Tensor],
    answer_abcn: Tensor,
    weights_abc: Tensor,
    corner: tuple[int, int],
) -> None:
    """See :func:`medseg.ops.sums.add_weighted`."""
    if answer_abcn.dtype == torch.bfloat16:
        answer = answer_abcn.view(torch.int16).numpy().view(np.uint16)
        add = _add_bfloat16
    else:
        answer = answer_abcn.numpy()
        add = _add_float32
    weights = weights_abc.numpy()
    rows = [(one.numpy(), two.numpy()) for one, two in zip(sums, totals, strict=True)]

    def work(start: int, stop: int) -> None:
        for row in range(start, stop):
            add(*rows[row], answer[row], weights[row], *corner)

    in_slabs(work, len(rows), answer_abcn.numel())


def finish(sums_bcn: Tensor, totals_bc: Tensor, unseen_n: Tensor) -> bool:
    """See :func:`medseg.ops.sums.finish`."""
    sums, totals, unseen = sums_bcn.numpy(), totals_bc.numpy(), unseen_n.numpy()
    finite: list[bool] = []

    def work(start: int, stop: int) -> None:
        finite.append(bool(_finish(sums, totals, unseen, start, stop)))

    in_slabs(work, len(sums), sums.size)
    return all(finite)


def _adding(answer_type: Untyped) -> Untyped:
    arrays = types.Array(answer_type, 3, "A"), types.Array(_f4, 2, "A")
    return types.void(_f4[:, :, ::1], _f4[:, ::1], *arrays, _i8, _i8)


@compiled(_adding(_f4))
def _add_float32(
    sums: Untyped, totals: Untyped, answer: Untyped, weights: Untyped, first_b: int, first_c: int
) -> None:
    for b in range(answer.shape[0]):
        for c in range(answer.shape[1]):
            weight = weights[b, c]
            totals[first_b + b, first_c + c] += weight
            for n in range(answer.shape[2]):
                product = answer[b, c, n] * weight
                sums[first_b + b, first_c + c, n] += product


@compiled(_adding(types.uint16))
def _add_bfloat16(
    sums: Untyped, totals: Untyped, answer: Untyped, weights: Untyped, first_b: int, first_c: int
) -> None:
    bits = np.empty(1, dtype=np.uint32)
    value = bits.view(np.float32)
    for b in range(answer.shape[0]):
        for c in range(answer.shape[1]):
            weight = weights[b, c]
            totals[first_b + b, first_c + c] += weight
            for n in range(answer.shape[2]):
                # bfloat16 is the upper half of float32
                bits[0] = np.uint32(answer[b, c, n]) << np.uint32(16)
                product = value[0] * weight
                sums[first_b + b, first_c + c, n] += product


@compiled(types.boolean(_f4[:, :, ::1], _f4[:, ::1], _f4[::1], _i8, _i8))
def _finish(sums: Untyped, totals: Untyped, unseen: Untyped, start: int, stop: int) -> bool:
    finite = True
    for b in range(start, stop):
        for c in range(sums.shape[1]):
            total = totals[b, c]
            if total == np.float32(0):
                for n in range(sums.shape[2]):
                    sums[b, c, n] = unseen[n]
            else:
                for n in range(sums.shape[2]):
                    value = sums[b, c, n] / total
                    sums[b, c, n] = value
                    # the difference of infinity or NaN to itself is NaN
                    if value - value != np.float32(0):
                        finite = False
    return finite
