"""Resampling a label map in one pass, at a cost that does not grow with the number of labels.

Most new voxels have neighbours of one label alone, which is theirs. Elsewhere the few labels among
the neighbours collect their weights, and the largest sum wins. Compiled on first use, and kept on
disk for the next process.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from medseg.ops.kernels.compiled import compiled
from medseg.ops.kernels.workers import in_slabs

__all__ = ["resample_labels"]

MARGIN = 1e-6
"""Sums that differ by less are a tie: rounding must not decide."""


def resample_labels(
    labels_ijk: npt.NDArray[np.int32],
    firsts: Sequence[npt.NDArray[np.int64]],
    weights: Sequence[npt.NDArray[np.float32]],
) -> npt.NDArray[np.int32]:
    """Interpolate each label's membership and take the largest; on a tie the smaller label.

    Args:
        labels_ijk: C-contiguous.
        firsts: Per axis ``(new,)``, the first neighbour of each new voxel.
        weights: Per axis ``(new, width)``; neighbours beyond the end weigh 0.
    """
    i, j, k = (len(one) for one in firsts)
    new_ijk = np.empty((i, j, k), dtype=np.int32)

    def work(first: int, last: int) -> None:
        _vote(labels_ijk, *firsts, *weights, new_ijk, first, last)

    in_slabs(work, i, new_ijk.size)
    return new_ijk


@compiled()
def _vote(  # type: ignore[no-untyped-def]  # pragma: no cover - compiled  # noqa: ANN202, PLR0912
    labels,  # noqa: ANN001
    firsts_i,  # noqa: ANN001
    firsts_j,  # noqa: ANN001
    firsts_k,  # noqa: ANN001
    weights_i,  # noqa: ANN001
    weights_j,  # noqa: ANN001
    weights_k,  # noqa: ANN001
    new_ijk,  # noqa: ANN001
    first,  # noqa: ANN001
    last,  # noqa: ANN001
):
    ni, nj, nk = labels.shape
    most = weights_i.shape[1] * weights_j.shape[1] * weights_k.shape[1]
    values = np.empty(most, dtype=np.int32)
    sums = np.empty(most, dtype=np.float32)
    for p in range(first, last):
        i0, i1 = firsts_i[p], min(firsts_i[p] + weights_i.shape[1], ni)
        for q in range(new_ijk.shape[1]):
            j0, j1 = firsts_j[q], min(firsts_j[q] + weights_j.shape[1], nj)
            for r in range(new_ijk.shape[2]):
                k0, k1 = firsts_k[r], min(firsts_k[r] + weights_k.shape[1], nk)
                value = labels[i0, j0, k0]
                mixed = 0
                for i in range(i0, i1):
                    for j in range(j0, j1):
                        for k in range(k0, k1):
                            mixed |= labels[i, j, k] ^ value
                if mixed == 0:
                    new_ijk[p, q, r] = value
                    continue
                count = 0
                for i in range(i0, i1):
                    for j in range(j0, j1):
                        plane = weights_i[p, i - i0] * weights_j[q, j - j0]
                        for k in range(k0, k1):
                            value = labels[i, j, k]
                            place = 0
                            while place < count and values[place] != value:
                                place += 1
                            if place == count:
                                values[place], sums[place] = value, np.float32(0.0)
                                count += 1
                            sums[place] += plane * weights_k[r, k - k0]
                top = np.float32(-1.0)
                for place in range(count):
                    top = max(top, sums[place])
                best = np.int32(2**31 - 1)
                for place in range(count):
                    if sums[place] >= top - np.float32(MARGIN) and values[place] < best:
                        best = values[place]
                new_ijk[p, q, r] = best
