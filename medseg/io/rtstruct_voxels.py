"""Structures of an RTSTRUCT on the voxels of a grid: one mask each, or one label map.

Contours may lie across any axis of the grid, or obliquely to all of them. Where planes of contours
and slices do not coincide a slice takes the contours of the plane nearest to it, at most half a
step away (of a plane half-way, the slice of the lower index). Nothing is interpolated.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from medseg.core import Grid, Label, LabelMap, LabelScheme
from medseg.core.grid import FloatArray
from medseg.errors import FormatError, GeometryError, one_of
from medseg.io.contours import BoolArray, Region, combine, fill_polygon, points_in_polygon
from medseg.io.dicom_seg_reading import segment_label
from medseg.io.rtstruct_reading import Roi, StructureSet, read_structure_set

__all__ = [
    "Overlaps",
    "Unknown",
    "plain_name",
    "read_roi_scheme",
    "read_rtstruct",
    "roi_box",
    "roi_mask",
]

Overlaps = Literal["refuse", "smaller", "order"]
"""Voxels of several ROIs: refused; of the ROI with fewer voxels; of the label with the higher
value."""

Unknown = Literal["refuse", "leave"]
"""ROIs that the scheme does not list: refused; or left out, unless it is likely that one is meant
by a label that the file lacks."""

_PATH_MM = 0.001
_PARALLEL_STEPS = 0.1
_ON_PLANE_STEPS = 0.05
_FLAT_MM = 0.1
_HALF = 0.5 + 1e-6
_NEAR_NAME = 0.8
_LISTED = 6


def roi_mask(
    roi: Roi, grid: Grid, where: str = "structure set", *, allow_gaps: bool = False
) -> tuple[BoolArray, list[str]]:
    """The voxels of one ROI.

    Args:
        roi: Of :func:`~medseg.io.rtstruct_reading.read_structure_set`.
        grid: Where its voxels are wanted, as a rule that of the series it was drawn on.
        where: How messages name the structure set.
        allow_gaps: Whether contours may leave out most of the slices between them, which stay
            empty; else that is refused, as a mask of separate sheets is rarely meant.

    Returns:
        ``(i, j, k)`` bool, and notes on what was left out or did not lie on a slice.

    Raises:
        FormatError: ``rtstruct-planes`` if contours are not flat or lie in several orientations,
            ``rtstruct-gaps`` if most steps between its contours leave slices out.
    """
    box, inside, notes = roi_box(roi, grid, where, allow_gaps=allow_gaps)
    mask = np.zeros(grid.shape_ijk, dtype=bool)
    mask[box] = inside
    return mask, notes


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
    *,
    frame_of_reference: str | None = None,
    overlaps: Overlaps = "refuse",
    unknown: Unknown = "refuse",
    allow_gaps: bool = False,
    where: str = "",
) -> tuple[LabelMap, tuple[str, ...]]:
    """Rebuild a label map from the contours of an RTSTRUCT.

    ROIs are matched with labels by name; capitals, spaces and underscores do not count. Labels
    that the file lacks are absent from the map.

    Args:
        path: The RTSTRUCT.
        scheme: What its ROIs mean.
        grid: The grid of the series it was drawn on.
        frame_of_reference: UID of that series' frame of reference; None where it is not known.
        overlaps: What becomes of voxels in several ROIs.
        unknown: What becomes of ROIs with closed contours that the scheme does not list.
        allow_gaps: As in :func:`roi_mask`.
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
    chosen, notes = _matched(structures, scheme, where, unknown)
    notes = [*structures.notes, *notes]
    parts: list[_Part] = []
    for value, roi in chosen.items():
        _check_frame(roi, frame_of_reference, where)
        box, inside, told = roi_box(roi, grid, where, allow_gaps=allow_gaps)
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
    return _painted(parts, scheme, grid, overlaps, where, notes), tuple(notes)


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


def plain_name(name: str) -> str:
    """A name without what does not count when ROIs are matched: capitals, spaces, underscores."""
    return "".join(name.replace("_", " ").casefold().split())


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
        near = difflib.get_close_matches(
            plain_name(roi.name), map(plain_name, lacking), n=1, cutoff=_NEAR_NAME
        )
        if unknown == "refuse" or near:
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


def roi_box(
    roi: Roi, grid: Grid, where: str = "structure set", *, allow_gaps: bool = False
) -> tuple[tuple[slice, slice, slice], BoolArray, list[str]]:
    """Like :func:`roi_mask`, for the part of the grid around the contours alone.

    Returns:
        The part as slices of I, J and K, the voxels in it, and notes.
    """
    notes = list(roi.notes)
    where = f"{where}, ROI {roi.name!r}"
    contours = [grid.voxel_from_world(contour.points_ras) for contour in roi.contours]
    if not contours:
        return (slice(0), slice(0), slice(0)), np.zeros((0, 0, 0), dtype=bool), notes
    axis = _axis_across(contours)
    slabs = None if axis is not None else _Slabs.of(roi, grid, where)
    reach = 1.0 if slabs is None else 1.0 + slabs.half_mm / min(grid.spacing_mm)
    low = np.floor(np.min([points.min(axis=0) for points in contours], axis=0) - reach)
    high = np.ceil(np.max([points.max(axis=0) for points in contours], axis=0) + reach) + 1
    begin = np.clip(low, 0, grid.shape_ijk).astype(int)
    end = np.clip(high, begin, grid.shape_ijk).astype(int)
    box = (slice(begin[0], end[0]), slice(begin[1], end[1]), slice(begin[2], end[2]))
    inside = np.zeros(tuple(end - begin), dtype=bool)
    if slabs is None:
        assert axis is not None  # noqa: S101 - one of both is known
        notes += _fill_along(inside, begin, contours, roi, grid, axis)
        notes += _gaps(contours, roi, grid, axis, where, allow_gaps=allow_gaps)
    else:
        slabs.fill(inside, begin, grid)
    if not inside.any():
        notes.append(f"{roi.name}: no centre of a voxel lies inside its contours")
    return box, inside, notes


def _axis_across(contours: Sequence[FloatArray]) -> int | None:
    """The voxel axis along which every contour stands still; None where they are oblique."""
    for axis in (2, 1, 0):
        if all(np.ptp(points[:, axis]) <= _PARALLEL_STEPS for points in contours):
            return axis
    return None


def _fill_along(
    inside: BoolArray,
    begin: FloatArray,
    contours: Sequence[FloatArray],
    roi: Roi,
    grid: Grid,
    axis: int,
) -> list[str]:
    """Fill slices that are parallel to the contours."""
    across = [other for other in range(3) if other != axis]
    heights = np.array([points[:, axis].mean() for points in contours])
    nearest = np.ceil(heights - _HALF).astype(int)
    within = (nearest >= 0) & (nearest < grid.shape_ijk[axis])
    notes: list[str] = []
    step_mm = grid.spacing_mm[axis]
    if not within.all():
        notes.append(f"{roi.name}: {_counted(~within)} outside the image left out")
    taken: dict[int, list[int]] = defaultdict(list)
    crowded = np.zeros(len(contours), dtype=bool)
    for index in np.flatnonzero(within):
        taken[int(nearest[index])].append(int(index))
    for place, members in taken.items():
        gaps = np.abs(heights[members] - place)
        # two planes at one distance on either side: the one of the lower index
        best = heights[members][np.lexsort((heights[members], gaps.round(6)))[0]]
        far = np.abs(heights[members] - best) > _ON_PLANE_STEPS
        crowded[np.array(members)[far]] = True
        taken[place] = [member for member, away in zip(members, far, strict=True) if not away]
    if crowded.any():
        notes.append(
            f"{roi.name}: {_counted(crowded)} left out where planes are closer together than slices"
        )
    used = np.array([index for members in taken.values() for index in members], dtype=int)
    off = np.abs(heights[used] - nearest[used])
    if (off > _ON_PLANE_STEPS).any():
        notes.append(
            f"{roi.name}: {_counted(off > _ON_PLANE_STEPS)} between slices, up to "
            f"{off.max() * step_mm:.2f} mm from the nearest, which is taken"
        )
    tolerance = (_PATH_MM / grid.spacing_mm[across[0]], _PATH_MM / grid.spacing_mm[across[1]])
    slices = np.moveaxis(inside, axis, 0)
    for place, members in taken.items():
        # the part of the slice around its contours, one voxel wider
        polygons = [contours[member][:, across] - begin[across] for member in members]
        low = np.floor(np.min([polygon.min(axis=0) for polygon in polygons], axis=0)) - 1
        high = np.ceil(np.max([polygon.max(axis=0) for polygon in polygons], axis=0)) + 2
        start = np.clip(low, 0, slices.shape[1:]).astype(int)
        stop = np.clip(high, start, slices.shape[1:]).astype(int)
        regions = []
        for polygon, member in zip(polygons, members, strict=True):
            filled, path = fill_polygon(polygon - start, tuple(stop - start), tolerance)
            regions.append(Region(filled, path, roi.contours[member].is_xor))
        part = slices[place - int(begin[axis]), start[0] : stop[0], start[1] : stop[1]]
        part[...], partly = combine(_without_copies(regions, members, contours))
        if partly:
            notes.append(f"{roi.name}: contours that overlap in part are joined in slice {place}")
    return notes


def _without_copies(
    regions: Sequence[Region], members: Sequence[int], contours: Sequence[FloatArray]
) -> list[Region]:
    """One of contours that were stored several times, which would exclude each other."""
    if len(regions) == 1:
        return list(regions)
    kept: dict[bytes, Region] = {}
    for region, member in zip(regions, members, strict=True):
        kept.setdefault(np.unique(contours[member].round(4), axis=0).tobytes(), region)
    return list(kept.values())


def _counted(which: BoolArray) -> str:
    count = int(np.count_nonzero(which))
    return f"{count} contour{'' if count == 1 else 's'}"


def _gaps(
    contours: Sequence[FloatArray],
    roi: Roi,
    grid: Grid,
    axis: int,
    where: str,
    *,
    allow_gaps: bool,
) -> list[str]:
    heights = np.array([points[:, axis].mean() for points in contours])
    places = np.unique(np.ceil(heights - _HALF).astype(int))
    places = places[(places >= 0) & (places < grid.shape_ijk[axis])]
    missing = (
        sorted(set(range(places[0], places[-1])) - set(places.tolist())) if len(places) else []
    )
    if not missing:
        return []
    step = float(np.median(np.diff(places)))
    if len(places) > 2 and step > 1 and not allow_gaps:
        raise FormatError(
            where,
            expected="contours on neighbouring slices",
            found=f"contours on every {step:g}th slice along {'IJK'[axis]} as a rule",
            remedy="interpolate them in the program that drew them, or give the series they were "
            "drawn on",
            code="rtstruct-gaps",
        )
    listed = ", ".join(map(str, missing[:_LISTED]))
    more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
    return [
        f"{roi.name}: slices along {'IJK'[axis]} without a contour between others: {listed}{more}"
    ]


@dataclass(frozen=True, slots=True, eq=False)
class _Slabs:
    """Contours in planes oblique to the grid, each standing for a slab around its plane.

    A slab is as thick as the planes are apart; a single plane's as the file says, else as the
    smallest step of the grid.
    """

    frame: FloatArray
    heights: FloatArray
    planes: tuple[tuple[tuple[FloatArray, bool], ...], ...]
    half_mm: float

    @classmethod
    def of(cls, roi: Roi, grid: Grid, where: str) -> _Slabs:
        normals = [_normal(contour.points_ras) for contour in roi.contours]
        largest = max(normals, key=lambda normal: float(np.linalg.norm(normal)))
        length = float(np.linalg.norm(largest))
        third = largest / length if length > 0 else np.array([0.0, 0.0, 1.0])
        first = np.cross(third, np.eye(3)[int(np.argmin(np.abs(third)))])
        first /= np.linalg.norm(first)
        frame = np.stack([first, np.cross(third, first), third])
        turned = [contour.points_ras @ frame.T for contour in roi.contours]
        if any(np.ptp(points[:, 2]) > _FLAT_MM for points in turned):
            raise FormatError(
                where,
                expected=f"flat contours in parallel planes, within {_FLAT_MM:g} mm",
                found="others",
                remedy="export the structure set again with contours of one orientation",
                code="rtstruct-planes",
            )
        order = sorted(range(len(turned)), key=lambda index: float(turned[index][:, 2].mean()))
        heights: list[float] = []
        planes: list[list[tuple[FloatArray, bool]]] = []
        for index in order:
            height = float(turned[index][:, 2].mean())
            if not heights or height - heights[-1] > _FLAT_MM:
                heights.append(height)
                planes.append([])
            planes[-1].append((turned[index][:, :2], roi.contours[index].is_xor))
        thick = roi.contours[0].slab_mm or min(grid.spacing_mm)
        if len(heights) > 1:
            thick = float(np.median(np.diff(heights)))
        return cls(frame, np.array(heights), tuple(map(tuple, planes)), thick / 2.0)

    def fill(self, inside: BoolArray, begin: FloatArray, grid: Grid) -> None:
        """Set the voxels whose centre is in a slab and inside its contours."""
        for k in range(inside.shape[2]):
            places = np.indices(inside.shape[:2]).reshape(2, -1)
            voxels = np.concatenate([places, np.full((1, places.shape[1]), k)]).T + begin
            points = grid.world_from_voxel(voxels) @ self.frame.T
            plane = np.searchsorted((self.heights[1:] + self.heights[:-1]) / 2.0, points[:, 2])
            gap = points[:, 2] - self.heights[plane]
            near = (gap > -self.half_mm - 1e-9) & (gap <= self.half_mm + 1e-9)
            row = np.zeros(len(points), dtype=bool)
            for index in np.unique(plane[near]):
                chosen = np.flatnonzero(near & (plane == index))
                regions = [
                    Region(*points_in_polygon(points[chosen, :2], polygon, _PATH_MM), is_xor)
                    for polygon, is_xor in self.planes[index]
                ]
                row[chosen] = combine(regions)[0]
            inside[:, :, k] = row.reshape(inside.shape[:2])


def _normal(points: FloatArray) -> FloatArray:
    """Normal of a polygon, as long as its area (Newell's method)."""
    local = points - points.mean(axis=0)
    area: FloatArray = np.cross(local, np.roll(local, -1, axis=0)).sum(axis=0) / 2.0
    return area
