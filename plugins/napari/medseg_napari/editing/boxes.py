"""Boxes of voxels, and looking at a large array part by part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.errors import ShapeError

__all__ = [
    "Box",
    "Index",
    "LabelArray",
    "Mask",
    "OneLabel",
    "Spacing",
    "box_of",
    "check_axis",
    "check_inside",
    "clipped",
    "label_box",
    "mask_box",
    "slabs",
    "whole",
    "widened",
]

Box = tuple[slice, slice, slice]
"""Half-open ranges along I, P, L with explicit ends."""

Index = tuple[int, int, int]
Spacing = tuple[float, float, float]
LabelArray = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

PART_VOXELS = 1 << 22
"""How many voxels are looked at together."""


def box_of(start: Sequence[int], stop: Sequence[int]) -> Box:
    """The box from ``start`` up to, not including, ``stop``."""
    first, second, third = (slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))
    return first, second, third


def whole(shape: Sequence[int]) -> Box:
    """The box that holds a whole array."""
    return box_of((0, 0, 0), shape)


def clipped(start: Sequence[int], stop: Sequence[int], shape: Sequence[int]) -> Box | None:
    """The part of a box that lies inside an array; None if nothing does."""
    first = [max(int(a), 0) for a in start]
    last = [min(int(b), int(extent)) for b, extent in zip(stop, shape, strict=True)]
    if any(a >= b for a, b in zip(first, last, strict=True)):
        return None
    return box_of(first, last)


def widened(box: Box, reach: Sequence[int], shape: Sequence[int]) -> Box:
    """A box with ``reach`` more voxels on both sides of each axis, as far as the array goes."""
    start = [max(part.start - more, 0) for part, more in zip(box, reach, strict=True)]
    stop = [
        min(part.stop + more, int(extent))
        for part, more, extent in zip(box, reach, shape, strict=True)
    ]
    return box_of(start, stop)


def slabs(box: Box, most_voxels: int | None = None) -> Iterator[Box]:
    """The box in parts along its first axis, each of about ``most_voxels`` or one plane."""
    plane = (box[1].stop - box[1].start) * (box[2].stop - box[2].start)
    thickness = max(1, (most_voxels or PART_VOXELS) // max(plane, 1))
    for first in range(box[0].start, box[0].stop, thickness):
        yield slice(first, min(first + thickness, box[0].stop)), box[1], box[2]


def mask_box(mask: Mask) -> Box | None:
    """The smallest box around what is true; None if nothing is."""
    spans = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        along = np.flatnonzero(mask.any(axis=others))
        if not along.size:
            return None
        spans.append((int(along[0]), int(along[-1]) + 1))
    return box_of([a for a, _ in spans], [b for _, b in spans])


def label_box(labels: LabelArray, value: int) -> Box | None:
    """The smallest box around one label, found part by part; None if it is absent."""
    start, stop = [*labels.shape], [0, 0, 0]
    for part in slabs(whole(labels.shape)):
        found = mask_box(labels[part] == value)
        if found is None:
            continue
        for axis, (span, place) in enumerate(zip(found, part, strict=True)):
            start[axis] = min(start[axis], span.start + place.start)
            stop[axis] = max(stop[axis], span.stop + place.start)
    return box_of(start, stop) if stop[0] else None


@dataclass(frozen=True, slots=True, eq=False)
class OneLabel:
    """The mask of one label in a box of a label array, made plane by plane when it is sliced.

    Args:
        labels: The whole array.
        box: The part that is meant; indices count from its start.
        value: The label.
    """

    labels: LabelArray
    box: Box
    value: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents of the box."""
        return tuple(part.stop - part.start for part in self.box)

    def __getitem__(self, planes: Any, /) -> Any:  # noqa: ANN401 - as arrays have it
        """Planes along the first axis, as a boolean array."""
        part: Mask = self.labels[self.box][planes] == self.value
        return part


def check_axis(axis: int) -> None:
    """Refuse anything but one of the three axes.

    Raises:
        ShapeError: ``edit-axis``.
    """
    if axis not in (0, 1, 2):
        raise ShapeError(
            "axis of the slices",
            expected="0, 1 or 2 for slices along I, P or L",
            found=str(axis),
            remedy="choose one of the three axes of the labels",
            code="edit-axis",
        )


def check_inside(point: Sequence[int], shape: Sequence[int]) -> None:
    """Refuse a voxel outside the array.

    Raises:
        ShapeError: ``edit-outside``.
    """
    if len(point) != len(shape) or not all(
        0 <= at < extent for at, extent in zip(point, shape, strict=True)
    ):
        raise ShapeError(
            "place of the edit",
            expected=f"a voxel of the image, whose shape is {tuple(shape)}",
            found=f"voxel {tuple(int(at) for at in point)}",
            remedy="click inside the image",
            code="edit-outside",
        )
