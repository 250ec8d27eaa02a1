"""Filling what is connected: the bucket, in a slice or in three dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from medseg.inference.pieces import FACES, find_pieces
from medseg_napari.editing.boxes import (
    LabelArray,
    OneLabel,
    check_axis,
    check_inside,
    label_box,
    whole,
)
from medseg_napari.editing.change import Change, ChangeBuilder
from medseg_napari.editing.rules import FREE, Rules

__all__ = ["fill"]


def fill(
    labels: LabelArray,
    value: int,
    seed: Sequence[int],
    *,
    axis: int | None = None,
    rules: Rules = FREE,
) -> Change:
    """Give a label to the region of equal labels, connected over faces, that a voxel lies in.

    Args:
        labels: ``(i, p, l)``; not changed.
        value: The label to give; 0 takes the region away.
        seed: The voxel.
        axis: The axis across the slice to fill in; None for three dimensions.
        rules: What may be changed. They limit what is filled, not what counts as connected.

    Raises:
        ConfigError: ``label-locked``.
        ShapeError: ``edit-outside``, ``edit-axis``, ``edit-image``.
    """
    builder = ChangeBuilder(labels, rules)
    rules.check_target(value)
    check_inside(seed, labels.shape)
    at = tuple(int(place) for place in seed)
    present = int(labels[at])
    if present == value:
        return builder.done("fill")
    if axis is not None:
        check_axis(axis)
        full = list(whole(labels.shape))
        full[axis] = slice(at[axis], at[axis] + 1)
        box = (full[0], full[1], full[2])
        numbers, _ = ndimage.label(labels[box] == present, FACES)
        inside = list(at)
        inside[axis] = 0
        builder.put(box, numbers == numbers[tuple(inside)], value)
        return builder.done("fill")
    around = label_box(labels, present)
    assert around is not None, "the seed has this label"  # noqa: S101
    pieces = find_pieces(OneLabel(labels, around, present), FACES)
    seed_in_box = [place - part.start for place, part in zip(at, around, strict=True)]
    wanted = -1
    for planes, piece in pieces.planes():
        if planes.start <= seed_in_box[0] < planes.stop:
            wanted = int(piece[seed_in_box[0] - planes.start, seed_in_box[1], seed_in_box[2]])
    for planes, piece in pieces.planes():
        part = slice(planes.start + around[0].start, planes.stop + around[0].start)
        builder.put((part, around[1], around[2]), np.equal(piece, wanted), value)
    return builder.done("fill")
