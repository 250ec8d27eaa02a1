"""Two label maps against each other, slice by slice, so that an edit costs its own slices alone.

Labels belong together by their names; where one of the two names is plain (``label 3``, as for a
NIfTI file that has none) by their values. The segments of a DICOM SEG are numbered anew when it is
written: values alone would compare the liver with the spleen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.core import Grid, Label, LabelMap, LabelScheme
from medseg.metrics.case import check_one_grid, measure_case
from medseg.metrics.kernels import count_pairs
from medseg.metrics.settings import EvaluationSettings
from medseg.metrics.structures import label_structures
from medseg_napari._layers import whole_values

__all__ = [
    "DIFFERENT",
    "ONLY_FIRST",
    "ONLY_SECOND",
    "Agreement",
    "ComparedLabel",
    "Comparison",
    "Side",
    "match_labels",
]

ONLY_FIRST, ONLY_SECOND, DIFFERENT = 1, 2, 3
"""Voxels of the difference: labelled in one map alone, or in both but not with the same label."""

_TOLERANCE_MM = 0.01
_AT_ONCE = 8
_HIGHEST = 65535

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Side:
    """One of the two label maps.

    Args:
        name: For people.
        data: ``(i, p, l)`` integers of any type, along the axes that are shown; not copied.
        grid: Of these axes.
        scheme: Names and colours, where known.
    """

    name: str
    data: Array
    grid: Grid
    scheme: LabelScheme | None = None

    def whole_scheme(self) -> LabelScheme:
        """The scheme with plain names for values that it does not list."""
        known = () if self.scheme is None else self.scheme.labels
        values = {label.value for label in known}
        names = {label.name for label in known}
        more = tuple(
            Label(value, _free(f"label {value}", names), (255, 255, 255))
            for value in whole_values(self.data)
            if value and value not in values
        )
        labels = (*known, *more) or (Label(1, "label 1", (255, 255, 255)),)
        return LabelScheme("compared", tuple(sorted(labels, key=lambda one: one.value)))


@dataclass(frozen=True, slots=True)
class ComparedLabel:
    """One structure.

    Args:
        name: For people.
        rgb: Its colour, 0 to 255.
        first: Its value in the first map; None where that does not know it.
        second: Likewise.
    """

    name: str
    rgb: tuple[int, int, int]
    first: int | None
    second: int | None


@dataclass(frozen=True, slots=True)
class Agreement:
    """How much two maps agree on one structure.

    Args:
        label: The structure.
        first_ml: Volume in the first map.
        second_ml: In the second.
        dice: 0 to 1; NaN where neither has it.
    """

    label: ComparedLabel
    first_ml: float
    second_ml: float
    dice: float

    @property
    def difference_ml(self) -> float:
        """First minus second."""
        return self.first_ml - self.second_ml


def match_labels(first: LabelScheme, second: LabelScheme) -> tuple[ComparedLabel, ...]:
    """Which labels of two schemes are the same structure, in the order of the first."""
    left = {label.value: label for label in second.labels}
    by_name = {label.name.casefold(): label for label in second.labels}
    names = {label.name.casefold() for label in first.labels}
    found = []
    for label in first.labels:
        other = by_name.get(label.name.casefold())
        if other is None:
            same = left.get(label.value)
            named_elsewhere = same is not None and same.name.casefold() in names
            if same is not None and not named_elsewhere and (_is_plain(label) or _is_plain(same)):
                other = same
        if other is not None and left.pop(other.value, None) is None:
            other = None  # taken by an earlier label
        name = label.name if other is None or not _is_plain(label) else other.name
        found.append(
            ComparedLabel(name, label.rgb, label.value, None if other is None else other.value)
        )
    found += [ComparedLabel(label.name, label.rgb, None, label.value) for label in left.values()]
    return tuple(found)


class Comparison:
    """Agreement of two label maps and where they differ.

    Everything is counted by slices of the first axis. :meth:`update` reads some slices again; where
    a label has come up that neither scheme knew, :attr:`is_outdated` says so, and a new comparison
    is due.

    Args:
        first: What is judged, or the newer one.
        second: The reference, or the older one.

    Raises:
        GeometryError: ``grid-shape-differs`` or ``grids-differ`` if they lie on different grids.
    """

    def __init__(self, first: Side, second: Side) -> None:
        check_one_grid(first.grid, second.grid, _TOLERANCE_MM)
        self.first, self.second = first, second
        self.labels = match_labels(first.whole_scheme(), second.whole_scheme())
        self.is_outdated = False
        self._stranger = len(self.labels) + 1
        self._luts = (
            self._lut([label.first for label in self.labels]),
            self._lut([label.second for label in self.labels]),
        )
        self._rows = np.arange(self._stranger + 1, dtype=np.int32)
        slices, height, width = first.data.shape
        self._counts = np.zeros((slices, 3, self._stranger + 1), dtype=np.int64)
        self._along_1 = np.zeros((slices, height), dtype=np.int32)
        self._along_2 = np.zeros((slices, width), dtype=np.int32)
        self.difference: npt.NDArray[np.uint8] = np.zeros(first.data.shape, dtype=np.uint8)

    def _lut(self, values: Sequence[int | None]) -> Array:
        """Value to row; 0 for background, the last row for what is in no scheme."""
        narrow = np.uint8 if self._stranger <= 255 else np.uint16
        lut = np.full(_HIGHEST + 1, self._stranger, dtype=narrow)
        lut[0] = 0
        for row, value in enumerate(values, start=1):
            if value is not None:
                lut[value] = row
        return lut

    @property
    def slices(self) -> int:
        """Slices of the first axis."""
        return int(self.first.data.shape[0])

    def update(self, indices: Iterable[int] | None = None) -> Iterator[tuple[int, int]]:
        """Read slices again; the maps may be edited meanwhile.

        Args:
            indices: Of the first axis; None for all.

        Yields:
            Slices that are done, and all there are to do.
        """
        wanted = range(self.slices) if indices is None else sorted(set(indices))
        for done, index in enumerate(wanted, start=1):
            self._read(index)
            if done % _AT_ONCE == 0 or done == len(wanted):
                yield done, len(wanted)

    def _numbered(self, number: int, index: int) -> Array:
        """A slice of the first (0) or second (1) map by rows of :attr:`labels`."""
        plane = np.asarray((self.first, self.second)[number].data[index])
        if plane.dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
            plane = np.clip(plane, -1, _HIGHEST).astype(np.int64)  # the last one is in no scheme
            plane[plane < 0] = _HIGHEST
        return np.ascontiguousarray(self._luts[number][plane])

    def _read(self, index: int) -> None:
        first, second = self._numbered(0, index), self._numbered(1, index)
        pairs, _ = count_pairs(first[None], second[None], self._rows, self._rows.size)
        counts = self._counts[index]
        counts[0], counts[1] = pairs.sum(axis=1), pairs.sum(axis=0)
        counts[2] = pairs.diagonal()
        if counts[:2, -1].any():
            self.is_outdated = True
        apart = first != second
        difference = self.difference[index]
        if self._along_1[index].any():
            difference[...] = 0  # pages that were never written to take no memory
        if apart.any():
            difference[apart] = DIFFERENT
            difference[apart & (second == 0)] = ONLY_FIRST
            difference[apart & (first == 0)] = ONLY_SECOND
        self._along_1[index] = np.count_nonzero(apart, axis=1)
        self._along_2[index] = np.count_nonzero(apart, axis=0)

    def agreements(self) -> tuple[Agreement, ...]:
        """The structures that either map has or names."""
        voxel_ml = self.first.grid.voxel_volume_mm3 / 1000.0
        totals = self._counts.sum(axis=0)
        return tuple(
            Agreement(label, float(ours) * voxel_ml, float(theirs) * voxel_ml, _dice(*figures))
            for label, figures in zip(self.labels, totals.T[1:-1].tolist(), strict=True)
            for ours, theirs, _ in [figures]
        )

    def differing(self, axis: int) -> npt.NDArray[np.int64]:
        """Voxels that differ in each slice across an axis."""
        if axis == 0:
            return np.asarray(self._along_1.sum(axis=1), dtype=np.int64)
        along = self._along_1 if axis == 1 else self._along_2
        return np.asarray(along.sum(axis=0, dtype=np.int64))

    def hd95_mm(self) -> dict[ComparedLabel, float]:
        """The 95th percentile of the Hausdorff distance, see :mod:`medseg.metrics.surface`.

        Both maps are copied for it, numbered alike.

        Returns:
            For the structures that both maps have.
        """
        present = [one.label for one in self.agreements() if one.first_ml and one.second_ml]
        if not present:
            return {}
        rows = {str(self.labels.index(label) + 1): label for label in present}
        scheme = LabelScheme.plain("compared", {row: str(row) for row in range(1, self._stranger)})
        maps = []
        for number, side in enumerate((self.first, self.second)):
            numbered = np.stack([self._numbered(number, index) for index in range(self.slices)])
            numbered[numbered == self._stranger] = 0
            maps.append(LabelMap(numbered, side.grid, scheme))
        settings = EvaluationSettings(lesions=False, grid_tolerance_mm=_TOLERANCE_MM)
        wanted = [one for one in label_structures(scheme) if one.name in rows]
        scores = measure_case(maps[0], maps[1], wanted, settings)
        return {rows[one.structure]: one.values["hd95_mm"] for one in scores}


def _dice(first: int, second: int, both: int) -> float:
    return 2 * both / (first + second) if first + second else math.nan


def _is_plain(label: Label) -> bool:
    return label.name.casefold() in (f"label {label.value}", f"segment {label.value}")


def _free(name: str, taken: set[str]) -> str:
    return name if name not in taken else f"{name} (not listed)"
