"""Fill between slices: what lies between two drawn slices, from their shapes.

Draw a structure in every fifth slice or so, of any axis; the slices in between are found by
shape-based interpolation (Raya and Udupa, "Shape-based interpolation of multidimensional objects",
IEEE TMI 9(1), 1990): the signed distances to the two outlines are blended, and a voxel belongs to a
slice in between where the blend is not negative. Between convex shapes lie convex shapes, since
distances to convex outlines are concave.

What we changed: shapes are first taken apart into pieces. Two pieces that overlap each other alone,
or overlap nothing and lie nearest to each other, are moved along the line between their centres, so
that a vessel that runs askew stays as thick as it is. Pieces that part or join are blended where
they are. A piece without a counterpart tapers off to nothing in the other slice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medseg_napari.editing.boxes import (
    Box,
    LabelArray,
    Mask,
    Spacing,
    check_axis,
    label_box,
)
from medseg_napari.editing.change import Change, ChangeBuilder
from medseg_napari.editing.rules import ONLY_BACKGROUND, Rules

__all__ = ["drawn_slices", "fill_between", "shape_between"]

Floats = npt.NDArray[np.float64]

_TOUCHING = np.ones((3, 3), dtype=bool)
_ROUNDING_MM = 1e-6


def drawn_slices(labels: LabelArray, value: int, axis: int) -> list[int]:
    """Numbers of the slices across an axis that hold a label, in rising order.

    Raises:
        ShapeError: ``edit-axis``.
    """
    check_axis(axis)
    box = label_box(labels, value)
    if box is None:
        return []
    return [
        index
        for index in range(box[axis].start, box[axis].stop)
        if bool((labels[_slice_of(box, axis, index)] == value).any())
    ]


def fill_between(
    labels: LabelArray,
    value: int,
    *,
    axis: int,
    spacing_mm: Spacing,
    rules: Rules = ONLY_BACKGROUND,
) -> Change:
    """Fill the slices between those that hold a label; these stay as they are.

    Args:
        labels: ``(i, p, l)``; not changed.
        value: The label.
        axis: The axis across the slices.
        spacing_mm: Of the voxels.
        rules: What may be changed; as a rule background alone, so that other labels are respected.

    Raises:
        ConfigError: ``label-locked``.
        ShapeError: ``edit-axis``, ``edit-image``.
    """
    builder = ChangeBuilder(labels, rules)
    rules.check_target(value)
    drawn = drawn_slices(labels, value, axis)
    box = label_box(labels, value)
    in_plane_mm = tuple(mm for other, mm in enumerate(spacing_mm) if other != axis)
    for first, last in pairwise(drawn):
        if last - first < 2 or box is None:
            continue
        ends = [
            (labels[_slice_of(box, axis, index)] == value).squeeze(axis) for index in (first, last)
        ]
        parts = list(_parts(ends[0], ends[1], (in_plane_mm[0], in_plane_mm[1])))
        for index in range(first + 1, last):
            share = (index - first) / (last - first)
            shape = np.zeros_like(ends[0])
            for part in parts:
                shape |= part.at(share)
            builder.put(_slice_of(box, axis, index), np.expand_dims(shape, axis), value)
    return builder.done("fill between slices")


def shape_between(first: Mask, last: Mask, share: float, spacing_mm: tuple[float, float]) -> Mask:
    """The shape in a slice between two.

    Args:
        first: Shape in the first slice.
        last: Shape in the last slice, of the same extents.
        share: How far the slice is from the first to the last, from 0 to 1.
        spacing_mm: Of the pixels.
    """
    shape: Mask = np.zeros_like(first)
    for part in _parts(first, last, spacing_mm):
        shape |= part.at(share)
    return shape


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Pieces of one slice and those of the other that belong to them.

    Args:
        first: Signed distance in mm to the outline in the first slice, positive inside; None if
            there is nothing.
        last: The same in the last slice.
        way: From the first centre to the last one, in pixels.
        margin: How many pixels further than the slice the distances go on each side, so that they
            can be moved.
    """

    first: Floats | None
    last: Floats | None
    way: Floats
    margin: tuple[int, int]

    def at(self, share: float) -> Mask:
        """The shape at a share of the way."""
        if self.first is None or self.last is None:
            only, gone = (self.first, share) if self.first is not None else (self.last, 1 - share)
            assert only is not None, "one end has a shape"  # noqa: S101
            # it ends at the very last share, where only its innermost point would be left
            return self._inner(only >= gone * (only.max() + _ROUNDING_MM))
        blend = (1 - share) * _moved(self.first, share * self.way)
        blend += share * _moved(self.last, (share - 1) * self.way)
        return self._inner(blend >= -_ROUNDING_MM)

    def _inner(self, shape: Mask) -> Mask:
        rows, columns = self.margin
        return shape[rows : shape.shape[0] - rows, columns : shape.shape[1] - columns]


def _parts(first: Mask, last: Mask, spacing_mm: tuple[float, float]) -> Iterator[_Part]:
    """Find what belongs to what."""
    one, ones = ndimage.label(first, _TOUCHING)
    two, twos = ndimage.label(last, _TOUCHING)
    both = (one > 0) & (two > 0)
    touching = np.zeros((ones + 1, twos + 1), dtype=bool)
    touching[one[both], two[both]] = True
    alone = [n for n in range(1, ones + 1) if not touching[n].any()]
    strangers = [n for n in range(1, twos + 1) if not touching[:, n].any()]
    for members, others in _groups(touching):
        keeps_place = len(members) > 1 or len(others) > 1
        yield _part(np.isin(one, members), np.isin(two, others), spacing_mm, keeps_place)
    for member, other in _nearest(one, alone, two, strangers, spacing_mm):
        alone.remove(member)
        strangers.remove(other)
        yield _part(one == member, two == other, spacing_mm, False)
    nowhere = np.zeros(2)
    for member in alone:
        yield _Part(_signed_distance(one == member, spacing_mm, (1, 1)), None, nowhere, (1, 1))
    for other in strangers:
        yield _Part(None, _signed_distance(two == other, spacing_mm, (1, 1)), nowhere, (1, 1))


def _part(first: Mask, last: Mask, spacing_mm: tuple[float, float], keeps_place: bool) -> _Part:
    way = np.zeros(2)
    if not keeps_place:
        way = np.argwhere(last).mean(axis=0) - np.argwhere(first).mean(axis=0)
    rows, columns = (math.ceil(abs(step)) + 1 for step in way.tolist())
    distances = [_signed_distance(mask, spacing_mm, (rows, columns)) for mask in (first, last)]
    return _Part(distances[0], distances[1], way, (rows, columns))


def _groups(touching: Mask) -> Iterator[tuple[list[int], list[int]]]:
    """Pieces that are connected by overlaps, by their numbers in both slices."""
    left = {int(member) for member in np.flatnonzero(touching.any(axis=1))}
    while left:
        members, others = {left.pop()}, set[int]()
        while True:
            reached = {int(n) for n in np.flatnonzero(touching[list(members)].any(axis=0))}
            back = {int(n) for n in np.flatnonzero(touching[:, list(reached)].any(axis=1))}
            if reached == others and back == members:
                break
            members, others = back | members, reached
        left -= members
        yield sorted(members), sorted(others)


def _nearest(
    one: npt.NDArray[np.int32],
    alone: list[int],
    two: npt.NDArray[np.int32],
    strangers: list[int],
    spacing_mm: tuple[float, float],
) -> list[tuple[int, int]]:
    """Pairs of pieces without overlap, the nearest centres first."""
    if not alone or not strangers:
        return []
    centres = [
        np.asarray(ndimage.center_of_mass(numbers > 0, numbers, which)) * spacing_mm
        for numbers, which in ((one, alone), (two, strangers))
    ]
    distance_mm = np.linalg.norm(centres[0][:, None] - centres[1][None], axis=-1)
    pairs: list[tuple[int, int]] = []
    for flat in np.argsort(distance_mm, axis=None, kind="stable"):
        row, column = np.unravel_index(flat, distance_mm.shape)
        pair = alone[int(row)], strangers[int(column)]
        if all(pair[0] != a and pair[1] != b for a, b in pairs):
            pairs.append(pair)
    return pairs


def _signed_distance(
    mask: Mask, spacing_mm: tuple[float, float], margin: tuple[int, int]
) -> Floats:
    """Distance to the outline in mm, positive inside; the outline runs half a pixel from centres.

    The slice goes on as background for some pixels beyond its edges.
    """
    half_mm = min(spacing_mm) / 2
    padded = np.pad(mask, [(more, more) for more in margin])
    inside = ndimage.distance_transform_edt(padded, sampling=spacing_mm)
    outside = ndimage.distance_transform_edt(~padded, sampling=spacing_mm)
    signed: Floats = np.where(padded, inside - half_mm, half_mm - outside)
    return signed


def _moved(distance: Floats, way: Floats) -> Floats:
    """The distances moved by some pixels, within their margin."""
    if not way.any():
        return distance
    moved: Floats = ndimage.shift(distance, way, order=1, mode="nearest")
    return moved


def _slice_of(box: Box, axis: int, index: int) -> Box:
    part = list(box)
    part[axis] = slice(index, index + 1)
    return part[0], part[1], part[2]
