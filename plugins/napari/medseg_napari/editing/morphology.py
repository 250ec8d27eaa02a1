"""Grow, shrink, close and smooth labels by millimetres.

Distances run between voxel centres, along the voxel axes with their spacing; in slices only where
an axis is given. Nothing is known beyond the edge of the image: labels that reach it are not worn
away there, and nothing grows in from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from medseg.inference import ball as balls
from medseg.inference.ball import Ball
from medseg_napari.editing.boxes import (
    Box,
    LabelArray,
    Mask,
    OneLabel,
    Spacing,
    box_of,
    check_axis,
    label_box,
    slabs,
    widened,
)
from medseg_napari.editing.brush import check_length
from medseg_napari.editing.change import Change, ChangeBuilder
from medseg_napari.editing.islands import grid_of
from medseg_napari.editing.rules import FREE, ONLY_BACKGROUND, Rules

__all__ = ["close", "grow", "shrink", "smooth"]

_FAR_MM = 1e6
_MOST_MM = 100.0
_TRUNCATE = 3.0  # of the Gaussian, in standard deviations


def grow(
    labels: LabelArray,
    value: int,
    *,
    by_mm: float,
    spacing_mm: Spacing,
    axis: int | None = None,
    rules: Rules = ONLY_BACKGROUND,
) -> Change:
    """Give a label to all voxels that are at most ``by_mm`` away from one that has it.

    Args:
        labels: ``(i, p, l)``; not changed.
        value: The label.
        by_mm: How far, up to 100 mm.
        spacing_mm: Of the voxels.
        axis: The axis across the slices to grow in; None for three dimensions.
        rules: What may be changed; as a rule background alone, so that other labels are respected.

    Raises:
        ConfigError: ``label-locked``, ``edit-length``.
        ShapeError: ``edit-axis``, ``edit-image``.
    """
    builder = ChangeBuilder(labels, rules)
    rules.check_target(value)
    ball = _ball(labels, by_mm, spacing_mm, axis)
    box = label_box(labels, value)
    if box is not None:
        box = widened(box, ball.reach, labels.shape)
        for planes, grown in balls.planes_grown(OneLabel(labels, box, value), ball):
            builder.put(_planes_of(box, planes), grown, value)
    return builder.done("grow")


def shrink(
    labels: LabelArray,
    value: int,
    *,
    by_mm: float,
    spacing_mm: Spacing,
    axis: int | None = None,
    rules: Rules = FREE,
) -> Change:
    """Take a label away from all voxels that are at most ``by_mm`` away from one without it.

    Args:
        labels: ``(i, p, l)``; not changed.
        value: The label.
        by_mm: How far, up to 100 mm.
        spacing_mm: Of the voxels.
        axis: The axis across the slices to shrink in; None for three dimensions.
        rules: What may be changed.

    Raises:
        ConfigError: ``label-locked`` if the label, or the background it becomes, is;
            ``edit-length``.
        ShapeError: ``edit-axis``, ``edit-image``.
    """
    builder = ChangeBuilder(labels, rules.also_over(value))
    rules.check_target(value)
    rules.check_target(0)
    ball = _ball(labels, by_mm, spacing_mm, axis)
    box = label_box(labels, value)
    if box is not None:
        box = widened(box, ball.reach, labels.shape)
        for planes, reached in balls.planes_grown(_Others(labels, box, value), ball):
            part = _planes_of(box, planes)
            builder.put(part, reached & (labels[part] == value), 0)
    return builder.done("shrink")


def close(
    labels: LabelArray,
    value: int,
    *,
    by_mm: float,
    spacing_mm: Spacing,
    axis: int | None = None,
    rules: Rules = ONLY_BACKGROUND,
) -> Change:
    """Close gaps and dents that a ball of that radius does not fit into.

    Args:
        labels: ``(i, p, l)``; not changed.
        value: The label.
        by_mm: Radius of the ball, up to 100 mm.
        spacing_mm: Of the voxels.
        axis: The axis across the slices to close gaps in; None for three dimensions.
        rules: What may be changed; as a rule background alone.

    Raises:
        ConfigError: ``label-locked``, ``edit-length``.
        ShapeError: ``edit-axis``, ``edit-image``.
    """
    builder = ChangeBuilder(labels, rules)
    rules.check_target(value)
    check_length("closing", by_mm, most_mm=_MOST_MM)
    spacing = _in_slices(spacing_mm, axis)
    box = label_box(labels, value)
    if box is not None:
        mask = OneLabel(labels, box, value)
        grid = grid_of(mask.shape, spacing)
        for planes, closed in balls.planes_closed(mask, grid, by_mm):
            builder.put(_planes_of(box, planes), closed, value)
    return builder.done("close")


def smooth(
    labels: LabelArray,
    values: int | Sequence[int],
    *,
    sigma_mm: float,
    spacing_mm: Spacing,
    axis: int | None = None,
    rules: Rules = ONLY_BACKGROUND,
) -> Change:
    """Smooth the surfaces of labels by a Gaussian.

    The mask of each label is blurred, and every voxel gets the label of the highest value, or
    background where all other labels together have a higher one. Labels that are smoothed together
    keep touching each other.

    Args:
        labels: ``(i, p, l)``; not changed.
        values: One label or several.
        sigma_mm: Standard deviation of the Gaussian, up to 100 mm; it is cut at three of them.
        spacing_mm: Of the voxels.
        axis: The axis across the slices to smooth in; None for three dimensions.
        rules: What may be changed; as a rule background and the labels themselves.

    Raises:
        ConfigError: ``label-locked``, ``edit-length``.
        ShapeError: ``edit-axis``, ``edit-image``.
    """
    chosen = [values] if isinstance(values, int) else list(dict.fromkeys(values))
    builder = ChangeBuilder(labels, rules.also_over(*chosen))
    for value in chosen:
        rules.check_target(value)
    check_length("smoothing", sigma_mm, most_mm=_MOST_MM)
    sigma_vox = sigma_mm / np.asarray(_in_slices(spacing_mm, axis))
    halo = [int(_TRUNCATE * sigma + 0.5) for sigma in sigma_vox]
    boxes = [box for value in chosen if (box := label_box(labels, value)) is not None]
    if not boxes:
        return builder.done("smooth")
    around = widened(_hull(boxes), halo, labels.shape)
    for part in slabs(around):
        source = widened(part, (halo[0], 0, 0), labels.shape)
        core = slice(part[0].start - source[0].start, part[0].stop - source[0].start)
        here = labels[part]
        best = np.full(here.shape, -1.0, dtype=np.float32)
        total = np.zeros(here.shape, dtype=np.float32)
        winner = np.zeros(here.shape, dtype=labels.dtype)
        among = np.zeros(here.shape, dtype=bool)
        for value in chosen:
            blurred = ndimage.gaussian_filter(
                (labels[source] == value).astype(np.float32),
                sigma_vox,
                mode="nearest",
                truncate=_TRUNCATE,
            )[core]
            total += blurred
            better = blurred > best
            winner[better] = value
            best[better] = blurred[better]
            among |= here == value
        stays = best >= 1.0 - total
        winner[~stays] = 0
        builder.put(part, stays | among, winner)
    return builder.done("smooth")


@dataclass(frozen=True, slots=True, eq=False)
class _Others:
    """The mask of all voxels of a box that do not have a label."""

    labels: LabelArray
    box: Box
    value: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(part.stop - part.start for part in self.box)

    def __getitem__(self, planes: Any, /) -> Any:  # noqa: ANN401 - as arrays have it
        part: Mask = self.labels[self.box][planes] != self.value
        return part


def _in_slices(spacing_mm: Spacing, axis: int | None) -> Spacing:
    """The spacing, with neighbouring slices out of reach where an edit is to stay in its slice."""
    if axis is None:
        return spacing_mm
    check_axis(axis)
    spacing = list(spacing_mm)
    spacing[axis] = _FAR_MM
    return spacing[0], spacing[1], spacing[2]


def _ball(labels: LabelArray, by_mm: float, spacing_mm: Spacing, axis: int | None) -> Ball:
    check_length("margin", by_mm, most_mm=_MOST_MM)
    return Ball.of(grid_of(labels.shape, _in_slices(spacing_mm, axis)), by_mm)


def _planes_of(box: Box, planes: slice) -> Box:
    return slice(planes.start + box[0].start, planes.stop + box[0].start), box[1], box[2]


def _hull(boxes: Sequence[Box]) -> Box:
    return box_of(
        [min(box[axis].start for box in boxes) for axis in range(3)],
        [max(box[axis].stop for box in boxes) for axis in range(3)],
    )
