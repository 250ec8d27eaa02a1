"""Fill between slices: what lies between two drawn slices, from their contours.

Draw a structure in every fifth slice or so, of any axis; the slices in between are found by
morphological contour interpolation (Albu, Beugeling and Laurendeau, "A morphology-based approach
for interslice interpolation of anatomical slices from volumetric images", IEEE TBME 55(8), 2008) as
ITK has it. Shapes that are one piece in one slice and two in the next, or that lie apart, are
aligned before they are blended. Slices that are drawn stay as they are.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from medseg.io.contour_interpolation import interpolate_between
from medseg_napari.editing.boxes import (
    Box,
    LabelArray,
    OneLabel,
    check_axis,
    label_box,
    mask_box,
)
from medseg_napari.editing.change import Change, ChangeBuilder
from medseg_napari.editing.rules import ONLY_BACKGROUND, Rules

__all__ = ["drawn_slices", "fill_between"]


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
        if bool((labels[_slice_of(box, axis, index, index + 1)] == value).any())
    ]


def fill_between(
    labels: LabelArray,
    value: int,
    *,
    axis: int,
    rules: Rules = ONLY_BACKGROUND,
) -> Change:
    """Fill the slices between those that hold a label.

    Args:
        labels: ``(i, p, l)``; not changed.
        value: The label.
        axis: The axis across the slices.
        rules: What may be changed; as a rule background alone, so that other labels are respected.

    Raises:
        ConfigError: ``label-locked``.
        ShapeError: ``edit-axis``, ``edit-image``.
    """
    builder = ChangeBuilder(labels, rules)
    rules.check_target(value)
    drawn = drawn_slices(labels, value, axis)
    box = label_box(labels, value)
    if box is None:
        return builder.done("fill between slices")
    for first, last in pairwise(drawn):
        if last - first < 2:
            continue
        span = _slice_of(box, axis, first, last + 1)
        mask = OneLabel(labels, span, value)[:]
        inner = mask_box(mask)
        assert inner is not None, "both ends are drawn"  # noqa: S101
        filled = np.zeros_like(mask)
        filled[inner] = interpolate_between(mask[inner], axis)
        between = list(span)
        between[axis] = slice(first + 1, last)
        part = [slice(None)] * 3
        part[axis] = slice(1, last - first)
        builder.put((between[0], between[1], between[2]), filled[tuple(part)], value)
    return builder.done("fill between slices")


def _slice_of(box: Box, axis: int, first: int, stop: int) -> Box:
    part = list(box)
    part[axis] = slice(first, stop)
    return part[0], part[1], part[2]
