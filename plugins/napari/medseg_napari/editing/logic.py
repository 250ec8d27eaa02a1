"""Labels combined with others: union, intersection, difference, copy; slices copied."""

from __future__ import annotations

from typing import Literal

import numpy as np

from medseg.errors import ConfigError, ShapeError, one_of
from medseg_napari.editing.boxes import (
    Box,
    LabelArray,
    Mask,
    check_axis,
    slabs,
    whole,
)
from medseg_napari.editing.change import Change, ChangeBuilder
from medseg_napari.editing.rules import FREE, Rules

__all__ = ["OPERATIONS", "combine", "copy_slice", "erase_label", "merge", "replace"]

Operation = Literal["union", "intersect", "subtract", "copy"]

OPERATIONS: tuple[Operation, ...] = ("union", "intersect", "subtract", "copy")


def combine(
    labels: LabelArray,
    value: int,
    operation: Operation,
    other: int,
    *,
    other_labels: LabelArray | None = None,
    rules: Rules = FREE,
) -> Change:
    """Combine a label with another one, of the same array or of a second one.

    ``union``: voxels of the other label get this one. ``subtract``: they lose it. ``intersect``:
    only they keep it. ``copy``: they get it, and all others lose it. In one array each voxel has
    one label only: ``union`` then takes the other label's voxels, and the last three are of use
    with a second array, such as the output of a model.

    Args:
        labels: ``(i, p, l)``; not changed.
        value: The label to be changed.
        operation: One of ``union``, ``intersect``, ``subtract``, ``copy``.
        other: The other label.
        other_labels: Where the other label lies, on the same grid; None for ``labels``.
        rules: What may be changed.

    Raises:
        ConfigError: ``edit-operation`` for another operation; ``label-locked``.
        ShapeError: ``edit-labels`` if the second array has another shape; ``edit-image``.
    """
    if operation not in OPERATIONS:
        raise ConfigError(
            "operation between labels",
            expected=one_of(operation, OPERATIONS),
            found=repr(operation),
            remedy="choose one of them",
            code="edit-operation",
        )
    source = labels if other_labels is None else other_labels
    _check_same_grid(source, labels)
    about = (value,) if other_labels is not None else (value, other)
    builder = ChangeBuilder(labels, rules.also_over(*about))
    rules.check_target(value)
    for part in slabs(whole(labels.shape)):
        own: Mask = labels[part] == value
        theirs: Mask = source[part] == other
        if operation in ("union", "copy"):
            _put_if_any(builder, part, theirs & ~own, value)
        if operation in ("intersect", "copy"):
            _put_if_any(builder, part, own & ~theirs, 0)
        if operation == "subtract":
            _put_if_any(builder, part, own & theirs, 0)
    return builder.done(operation)


def merge(labels: LabelArray, value: int, into: int, *, rules: Rules = FREE) -> Change:
    """Give all voxels of a label to another one.

    Args:
        labels: ``(i, p, l)``; not changed.
        value: The label that is given up.
        into: The label that its voxels get.
        rules: What may be changed; the label itself always, unless it is locked.

    Raises:
        ConfigError: ``label-locked`` if one of the two is.
        ShapeError: ``edit-image``.
    """
    rules.check_target(value)
    builder = ChangeBuilder(labels, rules.also_over(value))
    rules.check_target(into)
    for part in slabs(whole(labels.shape)):
        _put_if_any(builder, part, labels[part] == value, into)
    return builder.done("merge")


def erase_label(labels: LabelArray, value: int, *, rules: Rules = FREE) -> Change:
    """Take a label away everywhere.

    Args:
        labels: ``(i, p, l)``; not changed.
        value: The label.
        rules: What may be changed.

    Raises:
        ConfigError: ``label-locked`` if the label, or the background it becomes, is.
        ShapeError: ``edit-image``.
    """
    return merge(labels, value, 0, rules=rules).named("erase label")


def replace(labels: LabelArray, other_labels: LabelArray, *, rules: Rules = FREE) -> Change:
    """Take over all of a second array of labels.

    Args:
        labels: ``(i, p, l)``; not changed.
        other_labels: What they become, on the same grid.
        rules: What may be changed.

    Raises:
        ConfigError: ``edit-labels-range`` if the second array holds values that the type of the
            first does not.
        ShapeError: ``edit-labels`` if it has another shape; ``edit-image``.
    """
    _check_same_grid(other_labels, labels)
    builder = ChangeBuilder(labels, rules)
    highest = int(np.iinfo(labels.dtype).max)
    for part in slabs(whole(labels.shape)):
        content = other_labels[part]
        if content.dtype != labels.dtype and (content.min() < 0 or content.max() > highest):
            raise ConfigError(
                "labels to take over",
                expected=f"values from 0 to {highest}, which {labels.dtype} holds",
                found=f"values from {content.min()} to {content.max()}",
                remedy="convert the layer to uint16",
                code="edit-labels-range",
            )
        builder.put(part, None, content.astype(labels.dtype, copy=False))
    return builder.done("replace")


def copy_slice(
    labels: LabelArray,
    axis: int,
    source: int,
    target: int,
    *,
    value: int | None = None,
    rules: Rules = FREE,
) -> Change:
    """Copy what is drawn in one slice to another one.

    Args:
        labels: ``(i, p, l)``; not changed.
        axis: The axis across the slices.
        source: Number of the slice to copy from.
        target: Number of the slice to copy to, such as the next one.
        value: The label to copy, whose voxels in the target slice are replaced; None for all
            labels, which replace all that is drawn there.
        rules: What may be changed.

    Raises:
        ConfigError: ``label-locked``.
        ShapeError: ``edit-axis``; ``edit-outside`` if there is no such slice; ``edit-image``.
    """
    check_axis(axis)
    for index in (source, target):
        if not 0 <= index < labels.shape[axis]:
            raise ShapeError(
                "slice to copy",
                expected=f"a slice from 0 to {labels.shape[axis] - 1}",
                found=str(index),
                remedy="choose slices of the image",
                code="edit-outside",
            )
    here, there = (_slice_box(labels, axis, index) for index in (source, target))
    content, present = labels[here], labels[there]
    if value is None:
        builder = ChangeBuilder(labels, rules)
        builder.put(there, None, content.copy())
    else:
        rules.check_target(value)
        builder = ChangeBuilder(labels, rules.also_over(value))
        drawn: Mask = content == value
        wanted = np.where(drawn, value, 0).astype(labels.dtype)
        builder.put(there, drawn | (present == value), wanted)
    return builder.done("copy slice")


def _check_same_grid(other: LabelArray, labels: LabelArray) -> None:
    if other.shape != labels.shape:
        raise ShapeError(
            "second labels",
            expected=f"labels of shape {labels.shape}",
            found=f"shape {other.shape}",
            remedy="choose labels on the same grid",
            code="edit-labels",
        )


def _put_if_any(builder: ChangeBuilder, part: Box, mask: Mask, value: int) -> None:
    if mask.any():
        builder.put(part, mask, value)


def _slice_box(labels: LabelArray, axis: int, index: int) -> Box:
    box = list(whole(labels.shape))
    box[axis] = slice(index, index + 1)
    return box[0], box[1], box[2]
