"""Which slices to look at first: those in doubt, or those where two label maps differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medseg.core import Grid, LabelMap, LabelScheme
from medseg.core.uncertainty import BACKGROUND, distinct_peaks, rank_doubtful_slices
from medseg_napari._words import ml_in_words
from medseg_napari.viewing.comparison import Comparison, Side

__all__ = ["COUNT", "DoubtWalk", "RankedSlice", "by_difference", "by_doubt", "spot_of"]

COUNT = 30
"""Slices in the list, at the most."""

_APART_MM = 5.0
_SPOT_MM = 5.0


@dataclass(frozen=True, slots=True)
class RankedSlice:
    """One slice worth a look.

    Args:
        axis: Across which it lies, of the axes that are shown.
        index: Its index, from 0.
        words: Why, for people.
    """

    axis: int
    index: int
    words: str


def by_doubt(
    doubt: npt.NDArray[np.uint8], grid: Grid, labels: Side | None, axis: int, count: int = COUNT
) -> tuple[RankedSlice, ...]:
    """Slices by the sum of the doubt in and round what is labelled, the most doubtful first.

    See :func:`medseg.core.uncertainty.rank_doubtful_slices`. Without labels all doubt counts.

    Args:
        doubt: ``(i, p, l)`` uint8 along the axes that are shown.
        grid: Of these axes.
        labels: On the same grid, or None.
        axis: Across which slices lie.
        count: Length of the list at the most.

    Raises:
        ShapeError: If doubt and labels do not lie on ``grid``.
    """
    if labels is None:
        nothing = np.zeros(doubt.shape, dtype=np.uint8)
        segmented = LabelMap(nothing, grid, LabelScheme.plain("none", {1: "label 1"}))
    else:
        segmented = LabelMap(labels.data, grid, labels.whole_scheme())
    found = rank_doubtful_slices(doubt, segmented, axis=axis, count=count)
    return tuple(
        RankedSlice(
            axis,
            one.index,
            f"doubt {one.mean_entropy:.2f}"
            + ("" if one.label == BACKGROUND else f", most in {one.label}"),
        )
        for one in found
    )


def by_difference(comparison: Comparison, axis: int, count: int = COUNT) -> tuple[RankedSlice, ...]:
    """Slices by how many voxels differ between two label maps, the most first.

    Slices within 5 mm of one already listed are passed over, so that the list names distinct
    places.
    """
    grid = comparison.first.grid
    differing = comparison.differing(axis)
    apart = max(1, round(_APART_MM / grid.spacing_mm[axis]))
    voxel_ml = grid.voxel_volume_mm3 / 1000.0
    return tuple(
        RankedSlice(axis, index, f"{ml_in_words(differing[index] * voxel_ml)} ml differ")
        for index in distinct_peaks(differing.astype(np.float64), apart, count, least_share=0.0)
    )


def spot_of(plane: npt.NDArray[Any], spacing_mm: Sequence[float]) -> tuple[int, int] | None:
    """The middle of the 5 mm of a slice that hold most; None for a slice of zeros.

    Args:
        plane: ``(a, b)``: doubt, or where two maps differ.
        spacing_mm: Of both axes.
    """
    if not plane.any():
        return None
    size = [max(1, round(_SPOT_MM / step)) for step in spacing_mm]
    mean = ndimage.uniform_filter(plane.astype(np.float32), size, mode="constant")
    row, column = np.unravel_index(int(mean.argmax()), mean.shape)
    return int(row), int(column)


class DoubtWalk:
    """A walk through the ranked slices, from the most doubtful one down and back."""

    def __init__(self) -> None:
        self.slices: tuple[RankedSlice, ...] = ()
        self.place: int | None = None

    def begin(self, slices: Sequence[RankedSlice]) -> None:
        """Take a new list; nothing of it has been looked at."""
        self.slices = tuple(slices)
        self.place = None

    def step(self, by: int) -> RankedSlice | None:
        """The next slice (1) or the one before (-1); it stays at the ends, None without a list."""
        if not self.slices:
            return None
        before = self.place
        place = (0 if by > 0 else len(self.slices) - 1) if before is None else before + by
        return self.at(min(max(place, 0), len(self.slices) - 1))

    def at(self, place: int) -> RankedSlice:
        """Go to a place in the list."""
        self.place = place
        return self.slices[place]
