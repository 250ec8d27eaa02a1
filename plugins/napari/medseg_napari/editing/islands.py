"""Pieces of a label: keep the largest, drop small ones, make labels of them; fill holes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medseg.core import Grid
from medseg.inference.pieces import (
    CORNERS,
    Mask,
    Pieces,
    find_pieces,
    largest_piece,
    planes_of_holes,
)
from medseg_napari.editing.boxes import (
    Box,
    LabelArray,
    OneLabel,
    Spacing,
    check_axis,
    label_box,
)
from medseg_napari.editing.change import Change, ChangeBuilder
from medseg_napari.editing.rules import FREE, ONLY_BACKGROUND, Rules

__all__ = ["count_pieces", "fill_holes", "grid_of", "keep_largest", "remove_small", "split"]

_ROUNDING = 1e-6


def grid_of(shape: Sequence[int], spacing_mm: Spacing) -> Grid:
    """A grid of that spacing along its axes; where it lies does not matter here."""
    return Grid((int(shape[0]), int(shape[1]), int(shape[2])), np.diag([*spacing_mm, 1.0]))


def keep_largest(
    labels: LabelArray, value: int, *, spacing_mm: Spacing, rules: Rules = FREE
) -> Change:
    """Take away all pieces of a label but the one of the most voxels.

    Pieces are connected by faces, edges or corners; among equals the one stays whose centre comes
    first along I, then P, then L.

    Args:
        labels: ``(i, p, l)``; not changed.
        value: The label.
        spacing_mm: Of the voxels.
        rules: What may be changed.

    Raises:
        ConfigError: ``label-locked`` if the label, or the background it would become, is.
        ShapeError: ``edit-image``.
    """
    builder, found = _start(labels, value, rules)
    if found is not None:
        box, pieces = found
        kept = largest_piece(pieces, grid_of(pieces.mask.shape, spacing_mm))
        _clear(builder, box, pieces, ~kept)
    return builder.done("keep largest")


def remove_small(
    labels: LabelArray, value: int, *, min_ml: float, spacing_mm: Spacing, rules: Rules = FREE
) -> Change:
    """Take away the pieces of a label that are smaller than a volume.

    Args:
        labels: ``(i, p, l)``; not changed.
        value: The label.
        min_ml: Pieces of at least that many millilitres stay.
        spacing_mm: Of the voxels.
        rules: What may be changed.

    Raises:
        ConfigError: ``label-locked`` if the label, or the background it would become, is.
        ShapeError: ``edit-image``.
    """
    builder, found = _start(labels, value, rules)
    if found is not None:
        box, pieces = found
        least = min_ml * 1000.0 / float(np.prod(spacing_mm)) * (1.0 - _ROUNDING)
        _clear(builder, box, pieces, pieces.sizes < least)
    return builder.done("remove small pieces")


def split(
    labels: LabelArray, value: int, new_values: Sequence[int], *, rules: Rules = FREE
) -> Change:
    """Give the pieces of a label, from the second largest on, labels of their own.

    Args:
        labels: ``(i, p, l)``; not changed.
        value: The label; its largest piece keeps it.
        new_values: Labels for the others, largest first; pieces beyond their number keep ``value``.
        rules: What may be changed.

    Raises:
        ConfigError: ``label-locked`` if the label or one of the new ones is.
        ShapeError: ``edit-image``.
    """
    for new in new_values:
        rules.check_target(new)
    builder, found = _start(labels, value, rules, erases=False)
    if found is not None:
        box, pieces = found
        order = np.argsort(-pieces.sizes[1:], kind="stable")[1 : len(new_values) + 1] + 1
        table = np.full(len(pieces.sizes), value, dtype=labels.dtype)
        table[order] = list(new_values)[: len(order)]
        for part, piece in _places(box, pieces):
            builder.put(part, piece > 0, table[piece])
    return builder.done("split")


def count_pieces(labels: LabelArray, value: int) -> int:
    """How many pieces, connected by faces, edges or corners, a label has."""
    box = label_box(labels, value)
    if box is None:
        return 0
    return len(find_pieces(OneLabel(labels, box, value), CORNERS).sizes) - 1


def fill_holes(
    labels: LabelArray, value: int, *, axis: int | None = None, rules: Rules = ONLY_BACKGROUND
) -> Change:
    """Give a label to what it encloses.

    In three dimensions a hole is what no path over voxel faces leads out of. In slices it is what
    no path within the slice leads out of. What touches the edge of the image is not enclosed.

    Args:
        labels: ``(i, p, l)``; not changed.
        value: The label.
        axis: The axis across the slices to fill holes in; None for three dimensions.
        rules: What may be changed; as a rule other labels in a hole stay.

    Raises:
        ConfigError: ``label-locked``.
        ShapeError: ``edit-axis``, ``edit-image``.
    """
    builder = ChangeBuilder(labels, rules)
    rules.check_target(value)
    box = label_box(labels, value)
    if box is None:
        return builder.done("fill holes")
    if axis is None:
        for planes, enclosed in planes_of_holes(OneLabel(labels, box, value)):
            builder.put(_planes_of(box, planes), enclosed, value)
        return builder.done("fill holes")
    check_axis(axis)
    for index in range(box[axis].start, box[axis].stop):
        plane = list(box)
        plane[axis] = slice(index, index + 1)
        part = (plane[0], plane[1], plane[2])
        mask = (labels[part] == value).squeeze(axis)
        enclosed = ndimage.binary_fill_holes(mask) & ~mask
        builder.put(part, np.expand_dims(enclosed, axis), value)
    return builder.done("fill holes")


def _start(
    labels: LabelArray, value: int, rules: Rules, *, erases: bool = True
) -> tuple[ChangeBuilder, tuple[Box, Pieces] | None]:
    builder = ChangeBuilder(labels, rules.also_over(value))
    rules.check_target(value)
    if erases:
        rules.check_target(0)
    box = label_box(labels, value)
    if box is None:
        return builder, None
    return builder, (box, find_pieces(OneLabel(labels, box, value), CORNERS))


def _places(box: Box, pieces: Pieces) -> Iterator[tuple[Box, npt.NDArray[np.int32]]]:
    for planes, piece in pieces.planes():
        yield _planes_of(box, planes), piece


def _planes_of(box: Box, planes: slice) -> Box:
    return slice(planes.start + box[0].start, planes.stop + box[0].start), box[1], box[2]


def _clear(builder: ChangeBuilder, box: Box, pieces: Pieces, gone: Mask) -> None:
    gone = gone.copy()
    gone[0] = False
    if gone.any():
        for part, piece in _places(box, pieces):
            builder.put(part, gone[piece], 0)
