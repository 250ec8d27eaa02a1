"""RT structure sets as label maps: ROIs matched with labels by name, overlaps settled as asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medseg.core import Grid, Label, LabelMap, LabelScheme
from medseg.errors import FormatError, GeometryError, one_of
from medseg.io.contours import BoolArray
from medseg.io.rtstruct_reading import Roi, StructureSet, read_structure_set
from medseg.io.rtstruct_voxels import roi_box
from medseg.io.segment_names import (
    STRICT,
    LabelReading,
    Overlaps,
    Unknown,
    likely_meant,
    plain_name,
    segment_label,
)

__all__ = ["read_roi_scheme", "read_rtstruct"]

_LISTED = 6


def read_roi_scheme(path: Path) -> LabelScheme:
    """The ROIs with closed contours as a label scheme, numbered from 1 in order of ROI number.

    Raises:
        FormatError: As :func:`~medseg.io.rtstruct_reading.read_structure_set`;
            ``rtstruct-roi-twice`` if two have one name.
    """
    rois = [roi for roi in read_structure_set(path).rois if roi.contours]
    names: dict[str, str] = {}
    for roi in rois:
        if plain_name(roi.name) in names:
            raise _twice(str(path), names[plain_name(roi.name)], roi.name)
        names[plain_name(roi.name)] = roi.name
    if not rois:
        raise FormatError(
            str(path),
            expected="a structure set with closed contours",
            found="none",
            remedy="give the structure set that holds the contours",
            code="rtstruct-empty",
        )
    plain = LabelScheme.plain("rois", {n: roi.name[:64] for n, roi in enumerate(rois, start=1)})
    return LabelScheme(
        "rois",
        tuple(
            Label(label.value, label.name, roi.rgb or label.rgb, None, roi.concept)
            for label, roi in zip(plain.labels, rois, strict=True)
        ),
    )


def read_rtstruct(
    path: Path,
    scheme: LabelScheme,
    grid: Grid,
    reading: LabelReading = STRICT,
    *,
    where: str = "",
) -> tuple[LabelMap, tuple[str, ...]]:
    """Rebuild a label map from the contours of an RTSTRUCT.

    ROIs are matched with labels by name; capitals, spaces and underscores do not count. Labels
    that the file lacks are absent from the map.

    Args:
        path: The RTSTRUCT.
        scheme: What its ROIs mean.
        grid: The grid of the series it was drawn on.
        reading: What is refused, left out or settled; ROIs without closed contours are left out.
        where: How messages name the file; empty for its path.

    Returns:
        The map, and notes on what was left out, lay between slices or overlapped.

    Raises:
        FormatError: As the readers above; ``rtstruct-roi-unknown``, ``rtstruct-roi-twice``,
            ``rtstruct-overlap``; ``rtstruct-hidden`` if a structure lies wholly under others.
        GeometryError: ``rtstruct-frame-differs``, ``rtstruct-off-grid``.
    """
    where = where or str(path)
    structures = read_structure_set(path, where)
    chosen, notes = _matched(structures, scheme, where, reading.unknown)
    notes = [*structures.notes, *notes]
    parts: list[_Part] = []
    for value, roi in chosen.items():
        _check_frame(roi, reading.frame_of_reference, where)
        box, inside, told = roi_box(roi, grid, where, allow_gaps=reading.allow_gaps)
        notes += told
        parts.append(_Part(value, roi.name, box, inside, int(np.count_nonzero(inside))))
    if parts and not any(part.voxels for part in parts):
        raise GeometryError(
            where,
            expected="contours around voxels of the image",
            found="none that holds the centre of one",
            remedy="give the series that the structure set was drawn on",
            code="rtstruct-off-grid",
        )
    return _painted(parts, scheme, grid, reading.overlaps, where, notes), tuple(notes)


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    value: int
    name: str
    box: tuple[slice, slice, slice]
    inside: BoolArray
    voxels: int


def _painted(
    parts: Sequence[_Part],
    scheme: LabelScheme,
    grid: Grid,
    overlaps: Overlaps,
    where: str,
    notes: list[str],
) -> LabelMap:
    names = {part.value: part.name for part in parts}
    data = np.zeros(grid.shape_ijk, dtype=np.uint8 if max(scheme.values) < 256 else np.uint16)
    ordered = sorted(
        parts,
        key=lambda part: (0 if overlaps == "order" else -part.voxels, part.value),
    )
    for part in ordered:
        view = data[part.box]
        below, counts = np.unique(view[part.inside], return_counts=True)
        for value, count in zip(below.tolist(), counts.tolist(), strict=True):
            if value == 0:
                continue
            if overlaps == "refuse":
                raise FormatError(
                    where,
                    expected="ROIs that do not overlap, so that one label fits each voxel",
                    found=f"{count} voxels in {names[value]!r} and {part.name!r}",
                    remedy="say which shall lie on top, or read one mask for each ROI",
                    code="rtstruct-overlap",
                )
            notes.append(f"{part.name} lies on top of {names[value]} in {count} voxels")
        view[part.inside] = part.value
    for part in parts:
        if part.voxels and not (data[part.box] == part.value).any():
            raise FormatError(
                where,
                expected="every ROI to keep a voxel where they overlap",
                found=f"{part.name!r} wholly under others",
                remedy="leave it or the others out, or read one mask for each ROI",
                code="rtstruct-hidden",
            )
    return LabelMap(data, grid, scheme)


def _twice(where: str, first: str, second: str) -> FormatError:
    return FormatError(
        where,
        expected="one ROI for each structure",
        found=f"{first!r} and {second!r}",
        remedy="rename or remove one of them in the program that drew them",
        code="rtstruct-roi-twice",
    )


def _matched(
    structures: StructureSet, scheme: LabelScheme, where: str, unknown: Unknown
) -> tuple[dict[int, Roi], list[str]]:
    """Label value to ROI, and notes on what was left out."""
    exact = {segment_label(label): label for label in scheme.labels}
    alike = {plain_name(segment_label(label)): label for label in scheme.labels}
    chosen: dict[int, Roi] = {}
    strangers: list[Roi] = []
    notes: list[str] = []
    for roi in structures.rois:
        label = exact.get(roi.name) or alike.get(plain_name(roi.name))
        if not roi.contours:
            notes += roi.notes or [f"{roi.name}: without contours"] * (label is not None)
        elif label is None:
            strangers.append(roi)
        elif label.value in chosen:
            raise _twice(where, chosen[label.value].name, roi.name)
        else:
            chosen[label.value] = roi
    lacking = [label.name for label in scheme.labels if label.value not in chosen]
    for roi in strangers:
        if unknown == "refuse" or any(likely_meant(roi.name, name) for name in lacking):
            raise _unknown(roi.name, [label.name for label in scheme.labels], where)
    if strangers and not chosen:
        raise _unknown(strangers[0].name, [label.name for label in scheme.labels], where)
    if strangers:
        listed = ", ".join(roi.name for roi in strangers[:_LISTED])
        more = f" and {len(strangers) - _LISTED} more" if len(strangers) > _LISTED else ""
        notes.append(f"ROIs that the labels do not list are left out: {listed}{more}")
    return chosen, notes


def _unknown(name: str, labels: Sequence[str], where: str) -> FormatError:
    return FormatError(
        where,
        expected=f"ROIs named as {one_of(name, labels)}",
        found=repr(name),
        remedy="rename the ROI, or give labels that are named as the ROIs are",
        code="rtstruct-roi-unknown",
    )


def _check_frame(roi: Roi, frame_of_reference: str | None, where: str) -> None:
    if not frame_of_reference or not roi.frame_of_reference:
        return
    if roi.frame_of_reference != frame_of_reference:
        raise GeometryError(
            f"{where}, ROI {roi.name!r}",
            expected="contours in the frame of reference of the image",
            found="another one, whose positions cannot be compared",
            remedy="give the series that the structure set was drawn on, or register them first",
            code="rtstruct-frame-differs",
        )
