"""Weighted sums of logits, row by row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["add_weighted", "finish"]


def add_weighted(
    sums: Sequence[Tensor],
    totals: Sequence[Tensor],
    answer_abcn: Tensor,
    weights_abc: Tensor,
    corner: tuple[int, int],
) -> None:
    """Add logits times weights to sums, and the weights to their totals, in place.

    The product is rounded to float32 before it is added, whatever is added beside it.

    Args:
        sums: One ``(B, C, n)`` tensor per row ``a``, float32 or float16, contiguous.
        totals: One ``(B, C)`` float32 tensor per row, beside its sums.
        answer_abcn: ``(a, b, c, n)`` floating, of any strides, on any device.
        weights_abc: ``(a, b, c)`` float32 on the CPU.
        corner: Where the answer begins in B and C.
    """
    if answer_abcn.device.type == sums[0].device.type == "cpu":
        from medseg.ops.kernels import numba_sums  # noqa: PLC0415 - imports numba

        if all(numba_sums.takes(answer_abcn, row) for row in sums):
            numba_sums.add_weighted(sums, totals, answer_abcn, weights_abc, corner)
            return
    place = sums[0].device
    weights_abc = weights_abc.to(answer_abcn.device)
    part_abcn = answer_abcn.to(torch.float32, copy=True).mul_(weights_abc[..., None]).to(place)
    weights_abc = weights_abc.to(place)
    (b, c), (deep, wide) = corner, answer_abcn.shape[1:3]
    where = (slice(b, b + deep), slice(c, c + wide))
    for row, part_bcn in enumerate(part_abcn):
        sums[row][where].add_(part_bcn)
        totals[row][where].add_(weights_abc[row])


def finish(sums_bcn: Tensor, totals_bc: Tensor, unseen_n: Tensor) -> bool:
    """Divide sums by their totals, in place.

    Args:
        sums_bcn: ``(b, c, n)`` float32, contiguous.
        totals_bc: ``(b, c)`` float32, on the same device.
        unseen_n: ``(n,)`` float32: what a place gets whose total is 0.

    Returns:
        Whether all that came of it is finite.
    """
    if sums_bcn.device.type == "cpu":
        from medseg.ops.kernels import numba_sums  # noqa: PLC0415 - imports numba

        return numba_sums.finish(sums_bcn, totals_bc, unseen_n)
    unseen = totals_bc == 0
    sums_bcn.div_(totals_bc.masked_fill(unseen, 1.0)[..., None])
    sums_bcn[unseen] = unseen_n.to(sums_bcn.device)
    return bool(torch.isfinite(sums_bcn).all())
