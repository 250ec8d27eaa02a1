"""Sampling a volume and its label map along an affine lattice, in one pass over the new voxels.

The coordinates are worked out on the way: no grid of them is ever in memory. Image and labels share
the eight neighbours of a new voxel and their weights. Compiled on first use, and kept on disk for
the next process.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.ops.kernels.compiled import compiled
from medseg.ops.kernels.workers import in_slabs

__all__ = ["affine_sample"]


def affine_sample(
    x_cijk: npt.NDArray[np.float32],
    labels_ijk: npt.NDArray[Any],
    affine: npt.NDArray[np.float64],
    shape_ijk: tuple[int, int, int],
    *,
    smooth_labels: bool,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[Any]]:
    """Interpolate linearly at the places ``affine`` gives; beyond the volume lie zeros.

    Labels are the nearest ones, or those with the largest interpolated membership: what the argmax
    of the linearly interpolated indicators would be, found among the eight neighbours and therefore
    at a cost that does not grow with the number of classes.

    Args:
        x_cijk: ``(c, i, j, k)`` C-contiguous.
        labels_ijk: ``(i, j, k)`` integers, C-contiguous, of the same extents.
        affine: ``(3, 4)``; new voxel ``(p, q, r)`` lies at ``affine @ (p, q, r, 1)`` of the old
            lattice, in voxels between centres.
        shape_ijk: Extents of the result.
        smooth_labels: Whether labels are interpolated; on a tie the smaller value wins.

    Returns:
        Image and labels with the extents ``shape_ijk``, of the types given.
    """
    y_cijk = np.empty((x_cijk.shape[0], *shape_ijk), dtype=np.float32)
    new_ijk = np.empty(shape_ijk, dtype=labels_ijk.dtype)
    matrix = np.ascontiguousarray(affine, dtype=np.float64)

    def work(first: int, last: int) -> None:
        _sample(x_cijk, labels_ijk, matrix, smooth_labels, y_cijk, new_ijk, first, last)

    in_slabs(work, shape_ijk[0], new_ijk.size)
    return y_cijk, new_ijk


@compiled()
def _sample(  # type: ignore[no-untyped-def]  # pragma: no cover - compiled  # noqa: ANN202, PLR0912, PLR0915
    x_cijk,  # noqa: ANN001
    labels_ijk,  # noqa: ANN001
    affine,  # noqa: ANN001
    smooth_labels,  # noqa: ANN001
    y_cijk,  # noqa: ANN001
    new_ijk,  # noqa: ANN001
    first,  # noqa: ANN001
    last,  # noqa: ANN001
):
    channels, ni, nj, nk = x_cijk.shape
    _, nq, nr = new_ijk.shape
    weights = np.empty(8, dtype=np.float32)
    values = np.empty(8, dtype=new_ijk.dtype)
    for p in range(first, last):
        for q in range(nq):
            a0 = affine[0, 0] * p + affine[0, 1] * q + affine[0, 3]
            b0 = affine[1, 0] * p + affine[1, 1] * q + affine[1, 3]
            c0 = affine[2, 0] * p + affine[2, 1] * q + affine[2, 3]
            for r in range(nr):
                a = a0 + affine[0, 2] * r
                b = b0 + affine[1, 2] * r
                c = c0 + affine[2, 2] * r
                i, j, k = math.floor(a), math.floor(b), math.floor(c)
                if i < -1 or j < -1 or k < -1 or i >= ni or j >= nj or k >= nk:
                    new_ijk[p, q, r] = 0
                    for channel in range(channels):
                        y_cijk[channel, p, q, r] = 0.0
                    continue
                u, v, w = np.float32(a - i), np.float32(b - j), np.float32(c - k)
                one = np.float32(1.0)
                weights[0] = (one - u) * (one - v) * (one - w)
                weights[1] = (one - u) * (one - v) * w
                weights[2] = (one - u) * v * (one - w)
                weights[3] = (one - u) * v * w
                weights[4] = u * (one - v) * (one - w)
                weights[5] = u * (one - v) * w
                weights[6] = u * v * (one - w)
                weights[7] = u * v * w
                if i >= 0 and j >= 0 and k >= 0 and i + 1 < ni and j + 1 < nj and k + 1 < nk:
                    for channel in range(channels):
                        y_cijk[channel, p, q, r] = (
                            weights[0] * x_cijk[channel, i, j, k]
                            + weights[1] * x_cijk[channel, i, j, k + 1]
                            + weights[2] * x_cijk[channel, i, j + 1, k]
                            + weights[3] * x_cijk[channel, i, j + 1, k + 1]
                            + weights[4] * x_cijk[channel, i + 1, j, k]
                            + weights[5] * x_cijk[channel, i + 1, j, k + 1]
                            + weights[6] * x_cijk[channel, i + 1, j + 1, k]
                            + weights[7] * x_cijk[channel, i + 1, j + 1, k + 1]
                        )
                    values[0] = labels_ijk[i, j, k]
                    values[1] = labels_ijk[i, j, k + 1]
                    values[2] = labels_ijk[i, j + 1, k]
                    values[3] = labels_ijk[i, j + 1, k + 1]
                    values[4] = labels_ijk[i + 1, j, k]
                    values[5] = labels_ijk[i + 1, j, k + 1]
                    values[6] = labels_ijk[i + 1, j + 1, k]
                    values[7] = labels_ijk[i + 1, j + 1, k + 1]
                else:
                    for channel in range(channels):
                        y_cijk[channel, p, q, r] = 0.0
                    for corner in range(8):
                        ci, cj, ck = i + (corner >> 2), j + ((corner >> 1) & 1), k + (corner & 1)
                        values[corner] = 0
                        if 0 <= ci < ni and 0 <= cj < nj and 0 <= ck < nk:
                            values[corner] = labels_ijk[ci, cj, ck]
                            for channel in range(channels):
                                y_cijk[channel, p, q, r] += (
                                    weights[corner] * x_cijk[channel, ci, cj, ck]
                                )
                if smooth_labels:
                    best, most = values[0], np.float32(-1.0)
                    for one_corner in range(8):
                        value = values[one_corner]
                        total = np.float32(0.0)
                        for other in range(8):
                            if values[other] == value:
                                total += weights[other]
                        # the margin keeps rounding from deciding a tie
                        if total > most + np.float32(1e-6) or (
                            total > most - np.float32(1e-6) and value < best
                        ):
                            best, most = value, total
                    new_ijk[p, q, r] = best
                else:
                    nearest = 4 * (u >= 0.5) + 2 * (v >= 0.5) + (w >= 0.5)
                    new_ijk[p, q, r] = values[nearest]
