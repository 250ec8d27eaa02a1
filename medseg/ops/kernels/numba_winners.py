"""Interpolate logits along the last two axes and decide, a line at a time, on a CPU.

A line of logits stays in the cache between its interpolation and the decision: the logits of the
wanted lattice are never in memory. Compiled on first use, and kept on disk for the next process.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import types

from medseg.ops.kernels.compiled import Untyped, compiled
from medseg.ops.kernels.workers import in_slabs

__all__ = ["decide"]

_f4, _i8 = types.float32, types.int64


def decide(
    logits_bcn: npt.NDArray[np.float32],
    firsts: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
    weights: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]],
    values: npt.NDArray[np.uint16],
    *,
    overlapping: bool,
    labels: npt.NDArray[np.uint16],
    entropy: npt.NDArray[np.uint8],
    probabilities: npt.NDArray[np.float32],
) -> None:
    """See :func:`medseg.ops.winners.decide_row`; an output that is not wanted has no elements.

    All arrays are C-contiguous.
    """
    size = len(firsts[0]) * len(firsts[1]) * logits_bcn.shape[2]

    def work(start: int, stop: int) -> None:
        _lines(
            logits_bcn,
            firsts[0],
            weights[0],
            firsts[1],
            weights[1],
            values,
            overlapping,
            labels,
            entropy,
            probabilities,
            start,
            stop,
        )

    in_slabs(work, len(firsts[0]), size)


@compiled(
    types.void(
        _f4[:, :, ::1],
        _i8[::1],
        _f4[:, ::1],
        _i8[::1],
        _f4[:, ::1],
        types.uint16[::1],
        types.boolean,
        types.uint16[:, ::1],
        types.uint8[:, ::1],
        _f4[:, :, ::1],
        _i8,
        _i8,
    ),
)
def _lines(  # noqa: PLR0912, PLR0915 - one pass over a line that stays in the cache
    logits: Untyped,
    firsts_b: Untyped,
    weights_b: Untyped,
    firsts_c: Untyped,
    weights_c: Untyped,
    values: Untyped,
    overlapping: bool,
    labels: Untyped,
    entropy: Untyped,
    probabilities: Untyped,
    start: int,
    stop: int,
) -> None:
    columns, classes = logits.shape[1], logits.shape[2]
    taps_b, taps_c = weights_b.shape[1], weights_c.shape[1]
    last_row, last_column = logits.shape[0] - 1, columns - 1
    wants_entropy, wants_probabilities = entropy.size > 0, probabilities.size > 0
    line = np.empty((columns, classes), dtype=np.float32)
    voxel = np.empty(classes, dtype=np.float32)
    shares = np.empty(classes, dtype=np.float32)
    one, zero = np.float32(1), np.float32(0)
    for row in range(start, stop):
        first = firsts_b[row]
        weight = weights_b[row, 0]
        source = logits[first]
        if taps_b == 1:
            for column in range(columns):
                for n in range(classes):
                    line[column, n] = source[column, n]
        else:
            for column in range(columns):
                for n in range(classes):
                    line[column, n] = source[column, n] * weight
        for tap in range(1, taps_b):
            weight = weights_b[row, tap]
            source = logits[min(first + tap, last_row)]
            for column in range(columns):
                for n in range(classes):
                    product = source[column, n] * weight
                    line[column, n] += product
        for place in range(firsts_c.shape[0]):
            first = firsts_c[place]
            if taps_c == 1:
                for n in range(classes):
                    voxel[n] = line[first, n]
            else:
                weight = weights_c[place, 0]
                for n in range(classes):
                    voxel[n] = line[first, n] * weight
                for tap in range(1, taps_c):
                    weight = weights_c[place, tap]
                    column = min(first + tap, last_column)
                    for n in range(classes):
                        product = line[column, n] * weight
                        voxel[n] += product
            if overlapping:
                chosen = np.uint16(0)
                for n in range(classes):
                    if voxel[n] > zero:
                        chosen = values[n]
                labels[row, place] = chosen
            else:
                best = 0
                for n in range(1, classes):
                    if voxel[n] > voxel[best]:
                        best = n
                labels[row, place] = values[best]
            if not (wants_entropy or wants_probabilities):
                continue
            doubt = zero
            if overlapping:
                for n in range(classes):
                    share = one / (one + np.exp(-voxel[n]))
                    shares[n] = share
                    if zero < share < one:
                        doubt -= share * np.log2(share) + (one - share) * np.log2(one - share)
                doubt /= np.float32(classes)
            else:
                top = voxel[best]
                total = zero
                for n in range(classes):
                    shares[n] = np.exp(voxel[n] - top)
                    total += shares[n]
                for n in range(classes):
                    shares[n] /= total
                    if shares[n] > zero:
                        doubt -= shares[n] * np.log(shares[n])
                doubt /= np.float32(np.log(np.float32(max(classes, 2))))
            if wants_entropy:
                entropy[row, place] = np.uint8(min(doubt, one) * np.float32(255) + np.float32(0.5))
            if wants_probabilities:
                for n in range(classes):
                    probabilities[n, row, place] = shares[n]
