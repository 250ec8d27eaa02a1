"""Brush and eraser with a size in millimetres, in a slice of any axis or in three dimensions.

A stroke is a chain of capsules: all voxels whose centre is at most half the brush's size away from
the line between two positions of the mouse. Fast strokes thus have no gaps. The voxels that the
line runs through belong to it, however small the brush.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from medseg.core.grid import FloatArray
from medseg.errors import ConfigError
from medseg_napari.editing.boxes import (
    Box,
    LabelArray,
    Mask,
    Spacing,
    box_of,
    check_axis,
    clipped,
    slabs,
    whole,
)
from medseg_napari.editing.change import Change, ChangeBuilder
from medseg_napari.editing.rules import FREE, IntensityRange, Rules

__all__ = ["capsule", "check_length", "erase", "paint", "threshold"]

_ROUNDING = 1e-6
_THINNEST_VOX = 8


def check_length(what: str, length_mm: float, *, most_mm: float = 1000.0) -> None:
    """Refuse a length that is not above 0 or not finite.

    Raises:
        ConfigError: ``edit-length``.
    """
    if not 0 < length_mm <= most_mm:
        raise ConfigError(
            what,
            expected=f"a length above 0 and up to {most_mm:g} mm",
            found=f"{length_mm:g} mm",
            remedy="choose another length",
            code="edit-length",
        )


def capsule(
    shape: Sequence[int],
    start_vox: Sequence[float],
    stop_vox: Sequence[float],
    size_mm: float,
    spacing_mm: Spacing,
    axis: int | None = None,
) -> list[tuple[Box, Mask]]:
    """The voxels that a brush covers on its way between two positions.

    A long way is cut across its longest axis, so that the boxes stay small.

    Args:
        shape: Of the labels.
        start_vox: Where it comes from, in voxels; need not be whole numbers nor inside.
        stop_vox: Where it goes to.
        size_mm: Diameter of disc or ball.
        spacing_mm: Of the voxels.
        axis: The axis across the slice to draw in, whose index is that of ``stop_vox``; None for a
            ball in three dimensions.

    Returns:
        Boxes inside the array that do not overlap, and the mask in each.

    Raises:
        ConfigError: ``edit-length`` if the size is not above 0.
        ShapeError: ``edit-axis`` if there is no such axis.
    """
    check_length("brush size", size_mm)
    start, stop = np.asarray(start_vox, dtype=float), np.asarray(stop_vox, dtype=float)
    spacing, radius_mm = np.asarray(spacing_mm, dtype=float), size_mm / 2
    reach = np.maximum(radius_mm / spacing, 0.5)
    if axis is not None:
        check_axis(axis)
        start, stop = start.copy(), stop.copy()
        start[axis] = stop[axis] = math.floor(stop[axis] + 0.5)
        reach[axis] = 0
    low = np.ceil(np.minimum(start, stop) - reach - _ROUNDING)
    high = np.floor(np.maximum(start, stop) + reach + _ROUNDING) + 1
    most = max(shape)  # the mouse may be far outside, where its place is no number of voxels
    low, high = (np.clip(end, -1, most + 1).astype(int) for end in (low, high))
    box = clipped(low.tolist(), high.tolist(), shape)
    if box is None:
        return []
    return [
        (part, _near_line(part, start, stop, radius_mm, spacing) | _on_line(part, start, stop))
        for part in _along_line(box, start, stop, reach)
    ]


def _along_line(box: Box, start: FloatArray, stop: FloatArray, reach: FloatArray) -> Iterator[Box]:
    """Boxes that hold all within ``reach`` of a line, cut across its longest axis."""
    way = stop - start
    along = int(np.argmax(np.abs(way)))
    span = box[along]
    thickness = max(_THINNEST_VOX, math.ceil(2 * reach[along]))
    if span.stop - span.start <= 2 * thickness:
        yield box
        return
    for first in range(span.start, span.stop, thickness):
        last = min(first + thickness, span.stop)
        ends = np.array([first - reach[along], last - 1 + reach[along]])
        shares = np.clip((ends - start[along]) / way[along], 0.0, 1.0)
        points = start + shares[:, None] * way
        low = np.ceil(points.min(axis=0) - reach - _ROUNDING).astype(int)
        high = np.floor(points.max(axis=0) + reach + _ROUNDING).astype(int) + 1
        low = np.maximum(low, [part.start for part in box])
        high = np.minimum(high, [part.stop for part in box])
        low[along], high[along] = first, last
        if (low < high).all():
            yield box_of(low.tolist(), high.tolist())


def _near_line(
    box: Box, start: FloatArray, stop: FloatArray, radius_mm: float, spacing_mm: FloatArray
) -> Mask:
    """Voxels whose centre is at most ``radius_mm`` from the line between two points."""
    i, p, l = (  # noqa: E741 - the axes' names
        (axis - at) * step for axis, at, step in zip(np.ogrid[box], start, spacing_mm, strict=True)
    )
    way = (stop - start) * spacing_mm
    length_mm2 = float(way @ way)
    if length_mm2 == 0:
        near: Mask = i * i + p * p + l * l <= radius_mm**2 * (1 + _ROUNDING)
        return near
    along = np.clip((i * way[0] + p * way[1] + l * way[2]) / length_mm2, 0.0, 1.0)
    distance_mm2 = np.square(i - along * way[0])
    distance_mm2 += np.square(p - along * way[1])
    distance_mm2 += np.square(l - along * way[2])
    near = np.less_equal(distance_mm2, radius_mm**2 * (1 + _ROUNDING))
    return near  # noqa: RET504 - the name has the type


def _on_line(box: Box, start: FloatArray, stop: FloatArray) -> Mask:
    """Voxels that the line runs through: one for each stretch between two of their faces.

    Only faces of voxels of the box are looked at, however far the line goes on outside of it.
    """
    way = stop - start
    cuts = [np.array([0.0, 1.0])]
    for first, last, step, span in zip(start, stop, way, box, strict=True):
        if step:
            low = max(math.floor(min(first, last)), span.start - 1)
            high = min(math.ceil(max(first, last)), span.stop - 1)
            cuts.append((np.arange(low, high + 1) + 0.5 - first) / step)
    along = np.sort(np.clip(np.concatenate(cuts), 0.0, 1.0))
    middles = (along[1:] + along[:-1]) / 2
    points = np.floor(start + middles[:, None] * way + 0.5)
    points = np.clip(points, -1, [part.stop for part in box]).astype(int)
    points -= [part.start for part in box]
    on_line: Mask = np.zeros([part.stop - part.start for part in box], dtype=bool)
    inside = ((points >= 0) & (points < on_line.shape)).all(axis=1)
    on_line[tuple(points[inside].T)] = True
    return on_line


def paint(
    labels: LabelArray,
    value: int,
    start_vox: Sequence[float],
    stop_vox: Sequence[float] | None = None,
    *,
    size_mm: float,
    spacing_mm: Spacing,
    axis: int | None = None,
    rules: Rules = FREE,
) -> Change:
    """Paint with a label from one position of the mouse to the next.

    Args:
        labels: ``(i, p, l)``; not changed.
        value: The label to paint with; 0 erases.
        start_vox: Where the brush comes from, in voxels.
        stop_vox: Where it goes to; None for a single dab.
        size_mm: Diameter of the brush.
        spacing_mm: Of the voxels.
        axis: The axis across the slice to draw in; None for a ball.
        rules: What may be changed.

    Raises:
        ConfigError: ``label-locked``, or ``edit-length`` for a size that is not above 0.
        ShapeError: ``edit-axis``, ``edit-image``.
    """
    builder = ChangeBuilder(labels, rules)
    rules.check_target(value)
    stop = start_vox if stop_vox is None else stop_vox
    for box, mask in capsule(labels.shape, start_vox, stop, size_mm, spacing_mm, axis):
        builder.put(box, mask, value)
    return builder.done("brush" if value else "eraser")


def erase(
    labels: LabelArray,
    start_vox: Sequence[float],
    stop_vox: Sequence[float] | None = None,
    *,
    size_mm: float,
    spacing_mm: Spacing,
    axis: int | None = None,
    of: int | None = None,
    rules: Rules = FREE,
) -> Change:
    """Take labels away from one position of the mouse to the next.

    Args:
        labels: ``(i, p, l)``; not changed.
        start_vox: Where the eraser comes from, in voxels.
        stop_vox: Where it goes to; None for a single dab.
        size_mm: Diameter of the eraser.
        spacing_mm: Of the voxels.
        axis: The axis across the slice to erase in; None for a ball.
        of: The only label to take away; None for all that are not locked.
        rules: What may be changed; which labels may be painted over is for ``of`` to say.

    Raises:
        ConfigError: ``edit-length``, or ``label-locked`` if ``of`` or the background is.
        ShapeError: ``edit-axis``, ``edit-image``.
    """
    if of is not None:
        rules.check_target(of)
    over = None if of is None else frozenset({of})
    return paint(
        labels,
        0,
        start_vox,
        stop_vox,
        size_mm=size_mm,
        spacing_mm=spacing_mm,
        axis=axis,
        rules=Rules(rules.locked, over, rules.within),
    )


def threshold(
    labels: LabelArray,
    value: int,
    *,
    within: IntensityRange,
    box: Box | None = None,
    rules: Rules = FREE,
) -> Change:
    """Give a label to all voxels of a range of intensities.

    To paint with a threshold under the brush, give :func:`paint` rules with the range.

    Args:
        labels: ``(i, p, l)``; not changed.
        value: The label to give.
        within: The image and the range.
        box: Where; None for the whole image.
        rules: What may be changed.

    Raises:
        ConfigError: ``label-locked``.
        ShapeError: ``edit-image``.
    """
    builder = ChangeBuilder(labels, rules)
    Rules(within=within).check_fits(labels)
    rules.check_target(value)
    for part in slabs(box or whole(labels.shape)):
        builder.put(part, within.holds(part), value)
    return builder.done("threshold")
