"""Surfaces of masks and exact distances between them, compiled with numba.

Compiled on first use and kept on disk for the next process; all release the interpreter lock.
"""

from __future__ import annotations

import numpy as np

from medseg.ops.kernels.compiled import Untyped, compiled

__all__ = ["count_pairs", "edge_voxels", "squared_distances", "surface_cells"]

_BEYOND = np.iinfo(np.int64).max


@compiled()
def surface_cells(padded: Untyped) -> Untyped:
    """Cells that the surface of a mask passes through.

    Args:
        padded: ``(i + 2, j + 2, k + 2)`` uint8, C-contiguous: 1 inside, the outermost layer 0.

    Returns:
        ``(n, 3)`` int32 index of each cell's first corner in ``padded``, last axis fastest, and
        ``(n,)`` uint8 codes as :func:`medseg.metrics.surfels.surfel_areas` defines them.
    """
    cells_i, cells_j, cells_k = padded.shape[0] - 1, padded.shape[1] - 1, padded.shape[2] - 1
    cells = np.empty((1024, 3), dtype=np.int32)
    codes = np.empty(1024, dtype=np.uint8)
    found = 0
    for i in range(cells_i):
        for j in range(cells_j):
            if found + cells_k > codes.size:
                room = 2 * codes.size + cells_k
                cells, codes = _moved_rows(cells, found, room), _moved_bytes(codes, found, room)
            code = 0
            for k in range(cells_k):
                # corners with the lower k are those that had the higher one in the cell before
                code = (
                    (code >> 1 & 0b01010101)
                    | padded[i, j, k + 1] << 1
                    | padded[i, j + 1, k + 1] << 3
                    | padded[i + 1, j, k + 1] << 5
                    | padded[i + 1, j + 1, k + 1] << 7
                )
                if code != 0 and code != 255:  # noqa: PLR1714 - numba
                    cells[found, 0], cells[found, 1], cells[found, 2] = i, j, k
                    codes[found] = code
                    found += 1
    return _moved_rows(cells, found, found), _moved_bytes(codes, found, found)


# numba compiles a loop over elements in a fraction of the time that an assignment to a slice takes
@compiled()
def _moved_rows(rows: Untyped, number: Untyped, room: Untyped) -> Untyped:
    """The first rows of ``(n, 3)`` int32, in an array with room for so many."""
    moved = np.empty((room, 3), dtype=np.int32)
    for n in range(number):
        for axis in range(3):
            moved[n, axis] = rows[n, axis]
    return moved


@compiled()
def _moved_bytes(values: Untyped, number: Untyped, room: Untyped) -> Untyped:
    moved = np.empty(room, dtype=np.uint8)
    for n in range(number):
        moved[n] = values[n]
    return moved


@compiled()
def edge_voxels(padded: Untyped) -> Untyped:
    """Voxels of a mask with a face neighbour outside it.

    Args:
        padded: As for :func:`surface_cells`.

    Returns:
        ``(n, 3)`` int32 indices in ``padded``, last axis fastest.
    """
    voxels = np.empty((1024, 3), dtype=np.int32)
    found = 0
    for i in range(1, padded.shape[0] - 1):
        for j in range(1, padded.shape[1] - 1):
            if found + padded.shape[2] > voxels.shape[0]:
                voxels = _moved_rows(voxels, found, 2 * voxels.shape[0] + padded.shape[2])
            for k in range(1, padded.shape[2] - 1):
                if padded[i, j, k] and not (
                    padded[i - 1, j, k]
                    & padded[i + 1, j, k]
                    & padded[i, j - 1, k]
                    & padded[i, j + 1, k]
                    & padded[i, j, k - 1]
                    & padded[i, j, k + 1]
                ):
                    voxels[found, 0], voxels[found, 1], voxels[found, 2] = i, j, k
                    found += 1
    return _moved_rows(voxels, found, found)


@compiled()
def squared_distances(
    queries: Untyped,
    sites: Untyped,
    extent_j: Untyped,
    first_k: Untyped,
    stop_k: Untyped,
    steps_mm: Untyped,
) -> Untyped:
    """Squared distance from every query to the nearest site, both points of one lattice.

    The separable transform of Felzenszwalb and Huttenlocher (2012), with three changes: a plane's
    lines without a site take no part; the first axis is not transformed but searched from each
    query outwards, since only the queries are asked for; and queries come in slabs of the last
    axis, which share nothing, so that slabs bound the memory and can run side by side.

    Args:
        queries: ``(n, 3)`` int32 lattice points, ``first_k <= k < stop_k``.
        sites: ``(m, 3)`` int32, at least one, last axis fastest; any ``k``.
        extent_j: Points of the lattice along J, counted from 0; along I it reaches as far as
            queries and sites.
        first_k: First plane of the slab along K.
        stop_k: One past its last.
        steps_mm: ``(3,)`` float64 spacing; the axes are perpendicular.

    Returns:
        ``(n,)`` float64, square millimetres.
    """
    first_i = sites[0, 0]
    planes = sites[-1, 0] - first_i + 1
    near = np.empty((planes, extent_j, stop_k - first_k))
    filled = np.zeros(planes, dtype=np.bool_)
    lines = np.empty(extent_j, dtype=np.int64)
    along_k = np.empty((stop_k - first_k, extent_j))
    apex = np.empty(extent_j, dtype=np.int64)
    start = np.empty(extent_j + 1)
    at = 0
    while at < sites.shape[0]:
        plane = sites[at, 0]
        number = 0
        while at < sites.shape[0] and sites[at, 0] == plane:
            line = sites[at, 1]
            end = at + 1
            while end < sites.shape[0] and sites[end, 0] == plane and sites[end, 1] == line:
                end += 1
            lines[number] = line
            for k in range(first_k, stop_k):
                while at + 1 < end and abs(sites[at + 1, 2] - k) <= abs(sites[at, 2] - k):
                    at += 1
                along_k[k - first_k, number] = ((sites[at, 2] - k) * steps_mm[2]) ** 2
            at = end
            number += 1
        _lower_envelopes(along_k, lines, number, steps_mm[1], apex, start, near[plane - first_i])
        filled[plane - first_i] = True
    return _searched(queries, near, filled, first_i, first_k, steps_mm[0])


@compiled()
def _lower_envelopes(
    along_k: Untyped,
    lines: Untyped,
    number: Untyped,
    step: Untyped,
    apex: Untyped,
    start: Untyped,
    out: Untyped,
) -> None:
    """For every k the least of ``along_k[k, n] + (j - lines[n])^2 step^2`` at every j."""
    extent_j, extent_k = out.shape
    square = step * step
    for k in range(extent_k):
        apex[0] = 0
        start[0] = -np.inf
        last = 0
        for n in range(1, number):
            while True:
                m = apex[last]
                # where the parabola of n begins to be below that of m
                apart = lines[n] - lines[m]
                cut = 0.5 * (lines[n] + lines[m]) + (along_k[k, n] - along_k[k, m]) / (
                    2.0 * square * apart
                )
                if cut > start[last]:
                    break
                last -= 1
            last += 1
            apex[last] = n
            start[last] = cut
        start[last + 1] = np.inf
        piece = 0
        for j in range(extent_j):
            while start[piece + 1] < j:
                piece += 1
            n = apex[piece]
            away = (j - lines[n]) * step
            out[j, k] = away * away + along_k[k, n]


@compiled()
def _searched(
    queries: Untyped,
    near: Untyped,
    filled: Untyped,
    first_i: Untyped,
    first_k: Untyped,
    step: Untyped,
) -> Untyped:
    found = np.empty(queries.shape[0])
    planes = near.shape[0]
    for q in range(queries.shape[0]):
        i, j, k = queries[q, 0] - first_i, queries[q, 1], queries[q, 2] - first_k
        best = np.inf
        away = 0 if 0 <= i < planes else (-i if i < 0 else i - planes + 1)
        while True:
            apart = (away * step) ** 2
            if apart >= best or (i - away < 0 and i + away >= planes):
                break
            if i - away >= 0 and i - away < planes and filled[i - away]:
                best = min(best, apart + near[i - away, j, k])
            if i + away >= 0 and i + away < planes and filled[i + away]:
                best = min(best, apart + near[i + away, j, k])
            away += 1
        found[q] = best
    return found


@compiled()
def _widen(box: Untyped, i: Untyped, j: Untyped, k: Untyped) -> None:
    box[0, 0], box[0, 1] = min(box[0, 0], i), max(box[0, 1], i)
    box[1, 0], box[1, 1] = min(box[1, 0], j), max(box[1, 1], j)
    box[2, 0], box[2, 1] = min(box[2, 0], k), max(box[2, 1], k)


@compiled()
def count_pairs(prediction: Untyped, reference: Untyped, rows: Untyped, number: Untyped) -> Untyped:
    """How often each pair of labels meets, and the box of every label, in one pass.

    Args:
        prediction: ``(i, j, k)`` unsigned integers, C-contiguous.
        reference: The same for the truth.
        rows: Label value to its row, 0 for background; where the reference's row is below 0 the
            voxel is left out.
        number: Rows, background among them.

    Returns:
        ``(number, number)`` int64 counts by row of the prediction and of the reference, and
        ``(2, number, 3, 2)`` int64 first and last index per axis of the prediction's and the
        reference's labels (first above last where there is none).
    """
    counts = np.zeros((number, number), dtype=np.int64)
    boxes = np.empty((2, number, 3, 2), dtype=np.int64)
    for side in range(2):
        for row in range(number):
            for axis in range(3):
                boxes[side, row, axis, 0] = _BEYOND
                boxes[side, row, axis, 1] = -1
    for i in range(prediction.shape[0]):
        for j in range(prediction.shape[1]):
            for k in range(prediction.shape[2]):
                p, r = rows[prediction[i, j, k]], rows[reference[i, j, k]]
                if p == 0 and r == 0:
                    continue
                if r < 0:
                    continue
                # an ignored value in the prediction is no structure
                p = max(p, 0)
                counts[p, r] += 1
                if p > 0:
                    _widen(boxes[0, p], i, j, k)
                if r > 0:
                    _widen(boxes[1, r], i, j, k)
    return counts, boxes
