"""Scribbles: rough strokes that say what belongs to a structure and what does not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from medseg.errors import ConfigError
from medseg_napari.editing.boxes import (
    Box,
    Index,
    LabelArray,
    Mask,
    Spacing,
    box_of,
    mask_box,
    slabs,
    whole,
)
from medseg_napari.editing.boxes import widened as widen
from medseg_napari.editing.brush import capsule

__all__ = ["INSIDE", "OUTSIDE", "Scribbles"]

INSIDE = 1
OUTSIDE = 2


@dataclass(slots=True, eq=False)
class Scribbles:
    """Marks inside and outside of a structure, kept stroke by stroke.

    Args:
        shape: Of the labels they are made on.
        spacing_mm: Of the voxels.
    """

    shape: Index
    spacing_mm: Spacing
    _strokes: list[tuple[Box, Mask, int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._strokes)

    def __iter__(self) -> Iterator[tuple[Box, Mask, int]]:
        """Box, mask and mark (:data:`INSIDE` or :data:`OUTSIDE`) of each part of a stroke."""
        return iter(self._strokes)

    def add(
        self,
        mark: int,
        start_vox: Sequence[float],
        stop_vox: Sequence[float] | None = None,
        *,
        size_mm: float,
        axis: int | None = None,
    ) -> None:
        """Add a part of a stroke, from one position of the mouse to the next.

        Later marks hide earlier ones.

        Raises:
            ConfigError: ``edit-length``.
            ShapeError: ``edit-axis``.
        """
        stop = start_vox if stop_vox is None else stop_vox
        for box, mask in capsule(self.shape, start_vox, stop, size_mm, self.spacing_mm, axis):
            self._strokes.append((box, mask, mark))

    def add_layer(self, marks: LabelArray) -> None:
        """Add marks drawn in a layer of their own: 1 is inside, 2 outside, 0 no mark."""
        for part in slabs(whole(self.shape)):
            for mark in (INSIDE, OUTSIDE):
                mask: Mask = marks[part] == mark
                inner = mask_box(mask)
                if inner is not None:  # the box counts: see around()
                    start = [a.start + b.start for a, b in zip(part, inner, strict=True)]
                    stop = [a.start + b.stop for a, b in zip(part, inner, strict=True)]
                    self._strokes.append((box_of(start, stop), mask[inner].copy(), mark))

    def clear(self) -> None:
        """Forget all marks."""
        self._strokes.clear()

    def around(self, margin_mm: float) -> Box:
        """The box around all marks with a margin, as far as the image goes.

        Raises:
            ConfigError: ``scribbles-missing`` if there are no marks inside.
        """
        if not any(mark == INSIDE for _, _, mark in self._strokes):
            raise ConfigError(
                "scribbles",
                expected="at least one stroke inside the structure",
                found="none",
                remedy="draw a stroke inside the structure first",
                code="scribbles-missing",
            )
        box = box_of(
            [min(box[axis].start for box, _, _ in self._strokes) for axis in range(3)],
            [max(box[axis].stop for box, _, _ in self._strokes) for axis in range(3)],
        )
        reach = [math.ceil(margin_mm / step) for step in self.spacing_mm]
        return widen(box, reach, self.shape)

    def drawn(self, box: Box) -> npt.NDArray[np.uint8]:
        """The marks in a box: 0, :data:`INSIDE` or :data:`OUTSIDE`."""
        marks = np.zeros([part.stop - part.start for part in box], dtype=np.uint8)
        for place, mask, mark in self._strokes:
            low = [max(a.start, b.start) for a, b in zip(place, box, strict=True)]
            high = [min(a.stop, b.stop) for a, b in zip(place, box, strict=True)]
            if any(a >= b for a, b in zip(low, high, strict=True)):
                continue
            target = tuple(
                slice(a - part.start, b - part.start)
                for a, b, part in zip(low, high, box, strict=True)
            )
            source = tuple(
                slice(a - part.start, b - part.start)
                for a, b, part in zip(low, high, place, strict=True)
            )
            marks[target][mask[source]] = mark
        return marks
