"""Contours to voxels and back, in one plane, in voxel units.

Positions are ``(x, y)`` with voxel centres at whole numbers. What a contour means follows DICOM
PS3.3 C.8.8.6: a voxel belongs to it if its centre lies inside (even-odd rule, so that a keyhole's
channel, which is run through twice, encloses nothing) or on its path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from medseg.core.grid import FloatArray

__all__ = ["Region", "combine", "fill_polygon", "points_in_polygon", "trace_mask"]

BoolArray = npt.NDArray[np.bool_]

_POINTS_AT_A_TIME = 1 << 22


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """The voxels of one contour.

    Args:
        inside: Where the centre is inside by the even-odd rule; what is on the path may be either.
        path: Where the centre is on the path.
        is_xor: Whether it is combined by exclusion (CLOSEDPLANAR_XOR).
    """

    inside: BoolArray
    path: BoolArray
    is_xor: bool = False

    @property
    def all(self) -> BoolArray:
        """Inside and path."""
        result: BoolArray = self.inside | self.path
        return result


def fill_polygon(
    polygon: FloatArray, shape: tuple[int, int], tolerance: tuple[float, float]
) -> tuple[BoolArray, BoolArray]:
    """Voxels inside a closed polygon and voxels on its path.

    Args:
        polygon: ``(n, 2)`` vertices; the last is joined to the first. They may lie outside.
        shape: Number of voxels along x and y.
        tolerance: How near to the path, along x and y in voxels, a centre lies on it.

    Returns:
        Two arrays of that shape. Edges that are run through an even number of times, the channel
        of a keyhole, are no path.
    """
    edges = _edges(polygon)
    inside = np.zeros(shape, dtype=bool)
    path = np.zeros(shape, dtype=bool)
    if edges.shape[0] == 0:
        return inside, path
    # along x, the centres from a crossing on change sides: sums of crossings that are odd
    x, y = _crossings(edges[:, :, ::-1], shape[1])
    toggles = np.zeros((shape[0] + 1, shape[1]), dtype=np.int32)
    np.add.at(toggles, (np.clip(np.ceil(x), 0, shape[0]).astype(np.int64), y), 1)
    inside = (np.cumsum(toggles[:-1], axis=0) & 1).astype(bool)
    _mark_path(path, edges, tolerance)
    _mark_path(path.T, edges[:, :, ::-1], tolerance[::-1])
    return inside, path


def points_in_polygon(
    points: FloatArray, polygon: FloatArray, tolerance: float
) -> tuple[BoolArray, BoolArray]:
    """Like :func:`fill_polygon` for points anywhere, in any unit of length.

    Args:
        points: ``(m, 2)``.
        polygon: ``(n, 2)`` vertices.
        tolerance: How near to the path a point lies on it.

    Returns:
        Two arrays ``(m,)``: inside, on the path.
    """
    inside = np.zeros(len(points), dtype=bool)
    path = np.zeros(len(points), dtype=bool)
    edges = _edges(polygon)
    if edges.shape[0] == 0:
        return inside, path
    near = (points >= polygon.min(axis=0) - tolerance).all(axis=1)
    near &= (points <= polygon.max(axis=0) + tolerance).all(axis=1)
    chosen = np.flatnonzero(near)
    count = max(1, _POINTS_AT_A_TIME // len(edges))
    for start in range(0, len(chosen), count):
        some = chosen[start : start + count]
        inside[some], path[some] = _against_edges(points[some], edges, tolerance)
    return inside, path


def _against_edges(
    points: FloatArray, edges: FloatArray, tolerance: float
) -> tuple[BoolArray, BoolArray]:
    begin, end = edges[:, 0], edges[:, 1]
    along = end - begin
    offset = points[:, None, :] - begin[None]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        crossing = begin[:, 0] + offset[:, :, 1] * (along[:, 0] / along[:, 1])
    upward = (points[:, None, 1] >= begin[:, 1]) != (points[:, None, 1] >= end[:, 1])
    inside = (np.count_nonzero(upward & (crossing < points[:, None, 0]), axis=1) & 1).astype(bool)
    lengths = np.maximum((along**2).sum(axis=1), np.finfo(np.float64).tiny)
    share = np.clip((offset * along).sum(axis=2) / lengths, 0.0, 1.0)
    gap = offset - share[:, :, None] * along
    path = ((gap**2).sum(axis=2) <= tolerance**2).any(axis=1)
    return inside, path


def combine(regions: Sequence[Region]) -> tuple[BoolArray, int]:
    """What the contours of one plane enclose together.

    Contours to be excluded (CLOSEDPLANAR_XOR) are combined so. Of others one that lies in another
    is a hole, one in the hole an island, and so on; contours side by side, and those that overlap
    in part, are joined. The path of every contour belongs to the structure.

    Args:
        regions: At least one, all of one shape.

    Returns:
        The voxels, and how many pairs of contours overlap in part without lying in each other.
    """
    if len(regions) == 1:
        return regions[0].all, 0
    whole = np.zeros(regions[0].inside.shape, dtype=bool)
    plain = [region for region in regions if not region.is_xor]
    for region in regions:
        if region.is_xor:
            whole ^= region.inside
    sizes = [int(np.count_nonzero(region.all)) for region in plain]
    order = sorted(range(len(plain)), key=lambda index: -sizes[index])
    boxes = [_box(region.all) for region in plain]
    partly = 0
    for place, index in enumerate(order):
        depth = 0
        for other in order[:place]:
            if not _meet(boxes[index], boxes[other]):
                continue
            box = boxes[index]
            common = int(np.count_nonzero(plain[index].all[box] & plain[other].all[box]))
            depth += common == sizes[index]
            partly += 0 < common < sizes[index] and bool(
                (plain[index].inside[box] & plain[other].inside[box]).any()
            )
        if depth % 2:
            whole &= ~plain[index].inside
        else:
            whole |= plain[index].inside
    for region in regions:
        whole |= region.path
    return whole, partly


def _box(mask: BoolArray) -> tuple[slice, ...]:
    if not mask.any():
        return tuple(slice(0, 0) for _ in mask.shape)
    return tuple(
        slice(int(hits[0]), int(hits[-1]) + 1)
        for axis in range(mask.ndim)
        for hits in [np.flatnonzero(mask.any(axis=tuple(set(range(mask.ndim)) - {axis})))]
    )


def _meet(first: tuple[slice, ...], second: tuple[slice, ...]) -> bool:
    return all(
        one.start < two.stop and two.start < one.stop
        for one, two in zip(first, second, strict=True)
    )


def _edges(polygon: FloatArray) -> FloatArray:
    """``(m, 2, 2)`` edges with ends in a fixed order, without those run through in pairs."""
    ends: FloatArray = np.stack([polygon, np.roll(polygon, -1, axis=0)], axis=1)
    turned = (ends[:, 0, 0] > ends[:, 1, 0]) | (
        (ends[:, 0, 0] == ends[:, 1, 0]) & (ends[:, 0, 1] > ends[:, 1, 1])
    )
    ends[turned] = ends[turned][:, ::-1]
    ends = ends[(ends[:, 0] != ends[:, 1]).any(axis=1)]
    if len(ends):
        rows, counts = np.unique(ends.reshape(-1, 4), axis=0, return_counts=True)
        ends = rows[counts % 2 == 1].reshape(-1, 2, 2)
    return ends


def _crossings(edges_uv: FloatArray, count: int) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Where edges meet the lines ``u = 0, 1, ..., count - 1``: v of each crossing, and its line.

    The upper end of an edge does not count, so that a vertex on a line is met once.
    """
    low = np.minimum(edges_uv[:, 0, 0], edges_uv[:, 1, 0])
    high = np.maximum(edges_uv[:, 0, 0], edges_uv[:, 1, 0])
    first = np.clip(np.ceil(low), 0, count).astype(np.int64)
    after = np.clip(np.ceil(high), 0, count).astype(np.int64)
    return _met(edges_uv, first, after)


def _met(
    edges_uv: FloatArray, first: npt.NDArray[np.int64], after: npt.NDArray[np.int64]
) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    lengths = np.maximum(after - first, 0)
    which = np.repeat(np.arange(len(edges_uv)), lengths)
    steps = np.arange(len(which)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    line = first[which] + steps
    begin, along = edges_uv[which, 0], edges_uv[which, 1] - edges_uv[which, 0]
    with np.errstate(over="ignore"):  # an edge may be as short as numbers can be
        share = np.clip((line - begin[:, 0]) / along[:, 0], 0.0, 1.0)
    return begin[:, 1] + share * along[:, 1], line


def _mark_path(path: BoolArray, edges: FloatArray, tolerance: tuple[float, float]) -> None:
    """Mark centres on edges that run more along the first axis than along the second."""
    run = np.abs(edges[:, 1] - edges[:, 0])
    flat = edges[run[:, 0] >= run[:, 1]]
    low, high = flat[:, :, 0].min(axis=1), flat[:, :, 0].max(axis=1)
    first = np.clip(np.ceil(low - tolerance[0]), 0, path.shape[0]).astype(np.int64)
    after = np.clip(np.floor(high + tolerance[0]) + 1, 0, path.shape[0]).astype(np.int64)
    cross, line = _met(flat, first, after)
    centre = np.rint(cross)
    on = (np.abs(cross - centre) <= tolerance[1]) & (centre >= 0) & (centre < path.shape[1])
    path[line[on], centre[on].astype(np.int64)] = True


def trace_mask(mask: BoolArray) -> list[FloatArray]:
    """Contours around the structure in one plane, holes joined to them by keyholes.

    Marching squares (contourpy) run half-way between the centres of the structure and of the
    background, so that no centre is nearer to a contour than 0.35 voxels and :func:`fill_polygon`
    gives exactly the mask again. Smoothing it before would lie a little nearer to a round surface
    but take volume from small structures.

    Args:
        mask: ``(x, y)``.

    Returns:
        One polygon ``(n, 2)`` for each part of the structure, its last vertex joined to the first.
        A hole is reached through a channel without width, by the shortest way between vertices.
    """
    from contourpy import FillType, contour_generator  # noqa: PLC0415 - only for writing

    height = np.pad(mask, 1).astype(np.float64)
    across, down = (np.arange(extent) - 1.0 for extent in height.shape)
    generator = contour_generator(across, down, height.T, fill_type=FillType.OuterOffset)
    points, offsets = cast("tuple[list[FloatArray], list[Any]]", generator.filled(0.5, np.inf))
    polygons = []
    for vertices, starts in zip(points, offsets, strict=True):
        # each ring repeats its first vertex
        rings = [vertices[begin : end - 1] for begin, end in pairwise(starts.tolist())]
        joined, ends = _keyhole(rings[0], rings[1:])
        polygons.append(joined[_turns(joined) | ends])
    return polygons


def _turns(ring: FloatArray) -> BoolArray:
    """Vertices that are not on a straight run; they are halves, so that this is exact."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    result: BoolArray = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return result


def _keyhole(outer: FloatArray, holes: Sequence[FloatArray]) -> tuple[FloatArray, BoolArray]:
    """Join the nearest hole to what is joined already, until none is left.

    Returns:
        The vertices, and which of them are ends of a channel.
    """
    from scipy.spatial import cKDTree  # noqa: PLC0415

    joined, added = outer, outer
    ends = np.zeros(len(outer), dtype=bool)
    waiting: list[tuple[FloatArray, float, int, FloatArray]] = [
        (hole, np.inf, 0, hole[0]) for hole in holes
    ]
    while waiting:
        tree = cKDTree(added)
        for place, (hole, best, _, _) in enumerate(waiting):
            gaps, nearest = tree.query(hole)
            vertex = int(np.argmin(gaps))
            if gaps[vertex] < best:
                waiting[place] = (hole, float(gaps[vertex]), vertex, added[nearest[vertex]])
        chosen = min(range(len(waiting)), key=lambda place: waiting[place][1])
        hole, _, vertex, at = waiting.pop(chosen)
        added = np.roll(hole, -vertex, axis=0)
        place = int(np.flatnonzero((joined == at).all(axis=1))[0])
        joined = np.concatenate([joined[: place + 1], added, added[:1], joined[place:]])
        inner = np.zeros(len(added) + 1, dtype=bool)
        inner[[0, -1]] = True
        ends = np.concatenate([ends[: place + 1], inner, ends[place:]])
        ends[[place, place + len(inner) + 1]] = True
    return joined, ends
