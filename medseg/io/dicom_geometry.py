"""From the position tags of single slices to one affine, or to the reason why there is none.

Source: DICOM PS3.3 C.7.6.2 (Image Plane Module). ``PixelSpacing`` lists the distance between rows
first; ``ImageOrientationPatient`` lists the direction along a row (towards the next column) first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medseg.core.grid import FloatArray
from medseg.errors import FormatError, GeometryError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["Stack", "number_or", "numbers_of", "stack_slices"]

# Direction cosines are stored with 6 or more decimals; 1e-4 is 0.006 degrees.
COSINE_TOLERANCE = 1e-4
# Positions nearer than this are one position.
SAME_POSITION_MM = 0.01
# Positions are often rounded to 0.1 mm; a missing slice shifts by a whole spacing.
POSITION_TOLERANCE_MM = 0.1
POSITION_TOLERANCE_OF_SPACING = 0.1
# A stack may lean by this much; the affine then carries the lean, nothing is straightened.
TILT_TOLERANCE_DEG = 0.5
# What the deviation of a slice from the regular lattice must exceed to earn a note.
NOTED_DEVIATION_MM = 0.01

_TAGS = {
    "ImageOrientationPatient": "(0020,0037)",
    "ImagePositionPatient": "(0020,0032)",
    "PixelSpacing": "(0028,0030)",
    "Rows": "(0028,0010)",
    "Columns": "(0028,0011)",
    "SpacingBetweenSlices": "(0018,0088)",
    "SliceThickness": "(0018,0050)",
    "RescaleSlope": "(0028,1053)",
    "RescaleIntercept": "(0028,1052)",
    "NumberOfFrames": "(0028,0008)",
    "SamplesPerPixel": "(0028,0002)",
}


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """Slices in order, and where they are.

    Args:
        order: Indices into the headers given, in the order of the K axis.
        affine_lps: ``(4, 4)``, voxel (column, row, slice) to the DICOM patient system.
        notes: Harmless peculiarities.
    """

    order: tuple[int, ...]
    affine_lps: FloatArray
    notes: tuple[str, ...]


def stack_slices(headers: Sequence[Dataset], where: str) -> Stack:
    """Order slices by position and derive their affine, or refuse them.

    Convention:
        I runs along a row (column index), J along a column (row index), and K along the normal
        row x column, so that the voxel axes are right-handed. Instance numbers are not looked at.
        In-plane axes are those of the first slice. The step of the K axis is the displacement from
        the first to the last position divided by the number of steps; slice thickness plays no part
        unless there is one slice only.

    Tolerances:
        Direction cosines within a series may differ by 1e-4. Every slice must lie within 0.1 mm,
        and within a tenth of the spacing, of its place on the regular lattice; more than 0.01 mm is
        noted. The stack may lean by 0.5 degrees from the normal; the affine carries the lean.
        The gantry tilt tag is not used: positions tell what it does to the voxels.

    Args:
        headers: One header per slice, in any order.
        where: The folder, for messages.

    Raises:
        FormatError: If a tag is missing or not a number.
        GeometryError: If the slices do not make one regular, straight stack.
    """
    orientations, spacings = _in_plane(headers, where)
    normal = np.cross(orientations[0, :3], orientations[0, 3:])
    positions = np.stack(
        [
            numbers_of(header, "ImagePositionPatient", 3, where, place)
            for place, header in enumerate(headers)
        ]
    )
    order = np.argsort(positions @ normal, kind="stable")
    ordered = positions[order]
    affine = np.eye(4)
    affine[:3, 0] = orientations[order[0], :3] * spacings[order[0], 1]
    affine[:3, 1] = orientations[order[0], 3:] * spacings[order[0], 0]
    affine[:3, 3] = ordered[0]
    if len(headers) == 1:
        step, note = _lone_slice_step_mm(headers[0], where)
        affine[:3, 2] = normal * step
        return Stack((0,), affine, (note,))
    _check_apart(ordered @ normal, where)
    notes = _check_regular(ordered, normal, where)
    affine[:3, 2] = (ordered[-1] - ordered[0]) / (len(headers) - 1)
    return Stack(tuple(int(index) for index in order), affine, notes)


def numbers_of(
    header: Dataset, keyword: str, count: int, where: str, place: int | None = None
) -> FloatArray:
    """The values of a numeric tag.

    Args:
        header: Any dataset.
        keyword: A tag of the geometry or the rescaling.
        count: How many values it must have.
        where: The folder, for messages.
        place: Place of the file in name order, for messages.

    Raises:
        FormatError: If the tag is missing, empty, of another length or not finite.
    """
    name = f"{keyword} {_TAGS[keyword]}"
    file = "a file" if place is None else f"file {place + 1} in name order"
    try:
        value = header.get(keyword)
        listed = () if value is None or value == "" else tuple(np.atleast_1d(np.asarray(value)))
        values = np.array([float(item) for item in listed], dtype=np.float64)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise FormatError(
            where,
            expected=f"{count} numbers in {name}",
            found=f"something else in {file}",
            remedy="export the series again from its archive",
            code="dicom-tag-invalid",
        ) from error
    if values.size == 0:
        raise FormatError(
            where,
            expected=f"the tag {name} in every slice",
            found=f"{file} without it",
            remedy="export the series again from its archive, with its geometry",
            code="dicom-tag-missing",
        )
    if values.size != count or not np.isfinite(values).all():
        raise FormatError(
            where,
            expected=f"{count} finite numbers in {name}",
            found=f"{values.size} in {file}, or one that is not finite",
            remedy="export the series again from its archive",
            code="dicom-tag-invalid",
        )
    return values


def number_or(
    default: float, header: Dataset, keyword: str, where: str, place: int | None = None
) -> float:
    """The value of a numeric tag that may be absent or empty.

    Raises:
        FormatError: If it is there and not one finite number.
    """
    try:
        return float(numbers_of(header, keyword, 1, where, place)[0])
    except FormatError as error:
        if error.code == "dicom-tag-missing":
            return default
        raise


def _in_plane(headers: Sequence[Dataset], where: str) -> tuple[FloatArray, FloatArray]:
    """``(n, 6)`` unit cosines and ``(n, 2)`` pixel spacings, equal within the tolerances."""
    orientations, spacings, matrices = [], [], []
    for place, header in enumerate(headers):
        orientations.append(_unit_cosines(header, where, place))
        spacing = numbers_of(header, "PixelSpacing", 2, where, place)
        if (spacing <= 0).any():
            raise _invalid("PixelSpacing", "two positive numbers", where, place)
        spacings.append(spacing)
        rows = int(numbers_of(header, "Rows", 1, where, place)[0])
        columns = int(numbers_of(header, "Columns", 1, where, place)[0])
        if min(rows, columns) < 1:
            raise _invalid("Rows", "a matrix of at least one pixel", where, place)
        matrices.append((columns, rows))
    if len(set(matrices)) > 1:
        listed = ", ".join(f"{columns} x {rows}" for columns, rows in sorted(set(matrices))[:5])
        raise GeometryError(
            where,
            expected="slices of one matrix",
            found=f"{len(set(matrices))} different ones (columns x rows): {listed}",
            remedy="separate the slices by their matrix and read one folder at a time",
            code="slice-shape",
        )
    differing = np.abs(np.stack(orientations) - orientations[0]).max(axis=1) > COSINE_TOLERANCE
    if differing.any():
        raise GeometryError(
            where,
            expected="one orientation for all slices",
            found=f"{int(differing.sum())} of {len(headers)} slices turned against the others",
            remedy="separate the orientations (a localizer has several) and read one at a time",
            code="slice-orientation",
        )
    worst = np.abs(np.stack(spacings) - spacings[0]).max() * max(matrices[0])
    if worst > SAME_POSITION_MM:
        raise GeometryError(
            where,
            expected="one pixel spacing for all slices",
            found=f"spacings that put the far edge {worst:.3f} mm apart",
            remedy="separate the slices by their pixel spacing and read one folder at a time",
            code="slice-shape",
        )
    return np.stack(orientations), np.stack(spacings)


def _unit_cosines(header: Dataset, where: str, place: int) -> FloatArray:
    cosines = numbers_of(header, "ImageOrientationPatient", 6, where, place)
    across, down = cosines[:3], cosines[3:]
    lengths = np.array([np.linalg.norm(across), np.linalg.norm(down)])
    if (np.abs(lengths - 1.0) > 1e-3).any() or abs(float(across @ down)) > 1e-3:
        raise _invalid("ImageOrientationPatient", "two unit vectors at right angles", where, place)
    return np.concatenate([across / lengths[0], down / lengths[1]])


def _invalid(keyword: str, expected: str, where: str, place: int) -> FormatError:
    return FormatError(
        where,
        expected=f"{expected} in {keyword} {_TAGS[keyword]}",
        found=f"something else in file {place + 1} in name order",
        remedy="export the series again from its archive",
        code="dicom-tag-invalid",
    )


def _lone_slice_step_mm(header: Dataset, where: str) -> tuple[float, str]:
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        step = abs(number_or(0.0, header, keyword, where))
        if step > 0:
            return step, f"one slice only: its extent across the slice is {keyword}, {step:g} mm"
    raise FormatError(
        where,
        expected="SpacingBetweenSlices (0018,0088) or SliceThickness (0018,0050) of a lone slice",
        found="neither",
        remedy="give the whole series, from whose positions the spacing follows",
        code="dicom-tag-missing",
    )


def _check_apart(heights_mm: FloatArray, where: str) -> None:
    """Refuse positions that occur more than once, telling a 4-D series from a stray copy."""
    apart = np.diff(heights_mm) > SAME_POSITION_MM
    if apart.all():
        return
    starts = np.concatenate([[0], np.flatnonzero(apart) + 1])
    sizes = np.diff(np.concatenate([starts, [heights_mm.size]]))
    if starts.size > 1 and (sizes == sizes[0]).all():
        raise GeometryError(
            where,
            expected="one slice at each position",
            found=f"{int(sizes[0])} slices at each of {starts.size} positions (a 4-D series)",
            remedy="separate the time points, echoes or b-values and read one at a time",
            code="series-4d",
        )
    worst = int(np.argmax(sizes))
    raise GeometryError(
        where,
        expected="one slice at each position",
        found=f"{int(sizes[worst])} slices at position {worst + 1} of {starts.size}",
        remedy="remove the copies, or separate what was stacked into one series",
        code="slice-duplicate",
    )


def _check_regular(ordered_lps: FloatArray, normal: FloatArray, where: str) -> tuple[str, ...]:
    """Refuse gaps, lean and sideways shifts; note what is tolerated but visible."""
    steps = len(ordered_lps) - 1
    heights = ordered_lps @ normal
    gaps = np.diff(heights)
    usual = float(np.quantile(gaps, 0.5, method="lower"))  # of two gaps the one that is no hole
    allowed = min(POSITION_TOLERANCE_MM, POSITION_TOLERANCE_OF_SPACING * usual)
    lattice = heights[0] + np.arange(steps + 1) * (heights[-1] - heights[0]) / steps
    if np.abs(heights - lattice).max() > allowed:
        worst = int(np.argmax(np.abs(gaps - usual)))
        raise GeometryError(
            where,
            expected=f"slices {usual:.3f} mm apart, as most of them are",
            found=f"a gap of {gaps[worst]:.3f} mm between positions {worst + 1} and {worst + 2} "
            f"of {steps + 1}",
            remedy="add the missing slices, or separate the parts and read one at a time",
            code="slice-gap",
        )
    step = (ordered_lps[-1] - ordered_lps[0]) / steps
    upright = float(step @ normal)
    lean_deg = float(np.degrees(np.arctan2(np.linalg.norm(step - upright * normal), upright)))
    if lean_deg > TILT_TOLERANCE_DEG:
        raise GeometryError(
            where,
            expected=f"slices stacked along their normal within {TILT_TOLERANCE_DEG} degrees",
            found=f"a stack that leans by {lean_deg:.2f} degrees (gantry tilt)",
            remedy="resample the series to a straight stack first",
            code="slice-tilt",
        )
    places = ordered_lps[0] + np.arange(steps + 1)[:, None] * step
    off_mm = np.linalg.norm(ordered_lps - places, axis=1)
    if off_mm.max() > allowed:
        raise GeometryError(
            where,
            expected="slices in one straight stack",
            found=f"position {int(np.argmax(off_mm)) + 1} of {steps + 1} shifted sideways "
            f"by {off_mm.max():.3f} mm",
            remedy="separate what was stacked into one series",
            code="slice-shift",
        )
    notes = []
    if off_mm.max() > NOTED_DEVIATION_MM:
        notes.append(f"slice positions deviate by up to {off_mm.max():.3f} mm from even spacing")
    if lean_deg > 0.05:
        notes.append(f"the stack leans by {lean_deg:.2f} degrees; the affine carries it")
    return tuple(notes)
