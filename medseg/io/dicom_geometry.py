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
from medseg.io.notes import Note

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = [
    "COSINE_TOLERANCE",
    "SAME_POSITION_MM",
    "Lattice",
    "Plane",
    "lattice_of",
    "number_or",
    "numbers_of",
    "plane_of",
]

# Direction cosines are stored with 6 or more decimals; 1e-4 is 0.006 degrees.
COSINE_TOLERANCE = 1e-4
# Positions nearer than this are one position.
SAME_POSITION_MM = 0.01
# Positions are often rounded to 0.1 mm; a missing slice shifts by a whole spacing.
POSITION_TOLERANCE_MM = 0.1
POSITION_TOLERANCE_OF_SPACING = 0.1
# A lean below is rounding; the affine carries any lean, and one above is a gantry tilt.
TILT_NOTED_DEG = 0.05
TILT_DEG = 0.5
# Gantries tilt by 30 degrees at most; positions that lean more are no stack of slices.
MOST_TILT_DEG = 60.0
# Millimetres, factors, becquerels: a header that says more is damaged.
LARGEST_NUMBER = 1e15
# Of a slice; a header that says more is damaged.
MOST_PIXELS = 1 << 28
# How many times as many slices may be made up where slices are missing.
MOST_STEPS_PER_SLICE = 10
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
    "EchoTime": "(0018,0081)",
    "InversionTime": "(0018,0082)",
    "TriggerTime": "(0018,1060)",
    "PatientWeight": "(0010,1030)",
    "RadionuclideTotalDose": "(0018,1074)",
    "RadionuclideHalfLife": "(0018,1075)",
}


@dataclass(frozen=True, slots=True, eq=False)
class Plane:
    """Where one slice lies.

    Args:
        position_lps: ``(3,)``, centre of its first pixel.
        cosines: ``(6,)``, unit vectors along a row and along a column.
        spacing_mm: ``(2,)``, distance between rows, then between columns.
        columns: Pixels in a row.
        rows: Pixels in a column.
        name: The file or frame, for messages.
    """

    position_lps: FloatArray
    cosines: FloatArray
    spacing_mm: FloatArray
    columns: int
    rows: int
    name: str

    @property
    def normal(self) -> FloatArray:
        """``(3,)``, row x column."""
        return np.cross(self.cosines[:3], self.cosines[3:])


@dataclass(frozen=True, slots=True, eq=False)
class Lattice:
    """Slices in order, and where they are.

    Args:
        order: Indices into the planes given, in the order of the K axis.
        affine_lps: ``(4, 4)``, voxel (column, row, slice) to the DICOM patient system.
        k: Place of each slice in ``order`` along the K axis: 0, 1, 2, ... where there is no gap.
        notes: Harmless peculiarities.
    """

    order: tuple[int, ...]
    affine_lps: FloatArray
    k: FloatArray
    notes: tuple[str, ...]

    @property
    def has_gaps(self) -> bool:
        """Whether slices have to be made up between those that are there."""
        return not np.array_equal(self.k, np.arange(len(self.k)))


def plane_of(header: Dataset, where: str, name: str) -> Plane:
    """Where a slice lies, from tags of the Image Plane Module.

    Args:
        header: Orientation, spacing, matrix and position.
        where: The folder, for messages.
        name: The file or frame, for messages.

    Raises:
        FormatError: ``dicom-tag-missing`` or ``dicom-tag-invalid``.
    """
    cosines = _unit_cosines(header, where, name)
    spacing = numbers_of(header, "PixelSpacing", 2, where, name)
    if (spacing <= 0).any():
        raise _invalid("PixelSpacing", "two positive numbers", where, name)
    rows = int(numbers_of(header, "Rows", 1, where, name)[0])
    columns = int(numbers_of(header, "Columns", 1, where, name)[0])
    if min(rows, columns) < 1:
        raise _invalid("Rows", "a matrix of at least one pixel", where, name)
    if rows * columns > MOST_PIXELS:
        raise _invalid("Rows", f"a matrix of at most {MOST_PIXELS} pixels", where, name)
    position = numbers_of(header, "ImagePositionPatient", 3, where, name)
    return Plane(position, cosines, spacing, columns, rows, name)


def lattice_of(
    planes: Sequence[Plane], where: str, *, lone_step: Dataset, allow_gaps: bool = False
) -> Lattice:
    """Order slices by position and derive their affine, or refuse them.

    Convention:
        I runs along a row (column index), J along a column (row index), and K along the normal
        row x column. Instance numbers are not looked at. In-plane axes are those of the first
        slice. The step of the K axis is the displacement from the first to the last position
        divided by the number of steps; slice thickness plays no part unless there is one slice
        only. A stack may lean, as those of a tilted gantry do: the affine carries the lean, and
        nothing is straightened. The gantry tilt tag is not used: positions tell what it does.

    Tolerances:
        Direction cosines within a series may differ by 1e-4. Every slice must lie within 0.1 mm,
        and within a tenth of the spacing, of its place on the regular lattice; more than 0.01 mm is
        noted, and so is a lean of more than 0.05 degrees.

    Args:
        planes: One per slice, in any order.
        where: The folder, for messages.
        lone_step: Header that says how thick a slice is, for a stack of one.
        allow_gaps: Give slices that are not evenly apart their places on a lattice of the smallest
            usual step instead of refusing them.

    Raises:
        FormatError: ``dicom-tag-missing`` for one slice without its extent.
        GeometryError: ``slice-shape``, ``slice-orientation``, ``series-4d``, ``slice-duplicate``,
            ``slice-gap``, ``slice-shift``.
    """
    _check_alike(planes, where)
    normal = planes[0].normal
    positions = np.stack([plane.position_lps for plane in planes])
    order = np.argsort(positions @ normal, kind="stable")
    ordered = positions[order]
    first = planes[order[0]]
    affine = np.eye(4)
    affine[:3, 0] = first.cosines[:3] * first.spacing_mm[1]
    affine[:3, 1] = first.cosines[3:] * first.spacing_mm[0]
    affine[:3, 3] = ordered[0]
    places = tuple(int(index) for index in order)
    if len(planes) == 1:
        step, note = _lone_slice_step_mm(lone_step, where)
        affine[:3, 2] = normal * step
        return Lattice((0,), affine, np.zeros(1), (note,))
    _check_apart(ordered @ normal, where)
    k, step_lps = _steps(ordered, normal, where, allow_gaps)
    notes = _check_straight(ordered, k, step_lps, normal, where)
    affine[:3, 2] = step_lps
    if not np.array_equal(k, np.arange(len(k))):
        made = int(np.floor(k[-1] + 0.5)) + 1
        filled = Note(
            f"{len(k)} slices that are not evenly apart, the largest gap being "
            f"{np.diff(ordered @ normal).max():.3f} mm, were resampled to {made}",
            code="slice-gap-filled",
            remedy="look at the result where slices were made up, or add the missing ones",
        )
        notes = (filled, *notes)
    return Lattice(places, affine, k, notes)


def numbers_of(
    header: Dataset, keyword: str, count: int, where: str, name: str = "a file"
) -> FloatArray:
    """The values of a numeric tag.

    Args:
        header: Any dataset.
        keyword: A tag of the geometry or the rescaling.
        count: How many values it must have.
        where: The folder, for messages.
        name: The file or frame, for messages.

    Raises:
        FormatError: If the tag is missing, empty, of another length or not finite.
    """
    tag = f"{keyword} {_TAGS[keyword]}"
    try:
        value = header.get(keyword)
        listed = () if value is None or value == "" else tuple(np.atleast_1d(np.asarray(value)))
        values = np.array([float(item) for item in listed], dtype=np.float64)
    except Exception as error:  # an element that cannot be decoded fails in many ways
        raise FormatError(
            where,
            expected=f"{count} numbers in {tag}",
            found=f"something else in {name}",
            remedy="export the series again from its archive",
            code="dicom-tag-invalid",
        ) from error
    if values.size == 0:
        raise FormatError(
            where,
            expected=f"the tag {tag} in every slice",
            found=f"{name} without it",
            remedy="export the series again from its archive, with its geometry",
            code="dicom-tag-missing",
        )
    if values.size != count or not (np.abs(values) <= LARGEST_NUMBER).all():  # nor are NaN
        raise FormatError(
            where,
            expected=f"{count} finite numbers in {tag}",
            found=f"{values.size} in {name}, or one that is not finite",
            remedy="export the series again from its archive",
            code="dicom-tag-invalid",
        )
    return values


def number_or(
    default: float, header: Dataset, keyword: str, where: str, name: str = "a file"
) -> float:
    """The value of a numeric tag that may be absent or empty.

    Raises:
        FormatError: If it is there and not one finite number.
    """
    try:
        return float(numbers_of(header, keyword, 1, where, name)[0])
    except FormatError as error:
        if error.code == "dicom-tag-missing":
            return default
        raise


def _check_alike(planes: Sequence[Plane], where: str) -> None:
    """Refuse slices that differ in matrix, orientation or pixel spacing beyond the tolerances."""
    matrices = {(plane.columns, plane.rows) for plane in planes}
    if len(matrices) > 1:
        listed = ", ".join(f"{columns} x {rows}" for columns, rows in sorted(matrices)[:5])
        raise GeometryError(
            where,
            expected="slices of one matrix",
            found=f"{len(matrices)} different ones (columns x rows): {listed}",
            remedy="separate the slices by their matrix and read one folder at a time",
            code="slice-shape",
        )
    cosines = np.stack([plane.cosines for plane in planes])
    differing = np.abs(cosines - cosines[0]).max(axis=1) > COSINE_TOLERANCE
    if differing.any():
        raise GeometryError(
            where,
            expected="one orientation for all slices",
            found=f"{int(differing.sum())} of {len(planes)} slices turned against the others",
            remedy="choose one stack of the series (a localizer has several orientations)",
            code="slice-orientation",
        )
    spacings = np.stack([plane.spacing_mm for plane in planes])
    worst = np.abs(spacings - spacings[0]).max() * max(next(iter(matrices)))
    if worst > SAME_POSITION_MM:
        raise GeometryError(
            where,
            expected="one pixel spacing for all slices",
            found=f"spacings that put the far edge {worst:.3f} mm apart",
            remedy="separate the slices by their pixel spacing and read one folder at a time",
            code="slice-shape",
        )


def _unit_cosines(header: Dataset, where: str, name: str) -> FloatArray:
    cosines = numbers_of(header, "ImageOrientationPatient", 6, where, name)
    across, down = cosines[:3], cosines[3:]
    lengths = np.array([np.linalg.norm(across), np.linalg.norm(down)])
    if (np.abs(lengths - 1.0) > 1e-3).any() or abs(float(across @ down)) > 1e-3:
        raise _invalid("ImageOrientationPatient", "two unit vectors at right angles", where, name)
    return np.concatenate([across / lengths[0], down / lengths[1]])


def _invalid(keyword: str, expected: str, where: str, name: str) -> FormatError:
    return FormatError(
        where,
        expected=f"{expected} in {keyword} {_TAGS[keyword]}",
        found=f"something else in {name}",
        remedy="export the series again from its archive",
        code="dicom-tag-invalid",
    )


def _lone_slice_step_mm(header: Dataset, where: str) -> tuple[float, str]:
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        step = abs(number_or(0.0, header, keyword, where))
        if step > 0:
            return step, Note(
                f"one slice only: its extent across the slice is {keyword}, {step:g} mm",
                code="slice-lone",
                remedy="give the whole series, unless the model works on single slices",
            )
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
            remedy="separate the time points, echoes or b-values and choose one",
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


def _steps(
    ordered_lps: FloatArray, normal: FloatArray, where: str, allow_gaps: bool
) -> tuple[FloatArray, FloatArray]:
    """Place of each slice along K, and the displacement of one step; gaps are refused or placed."""
    last = len(ordered_lps) - 1
    heights = ordered_lps @ normal
    gaps = np.diff(heights)
    usual = float(np.quantile(gaps, 0.5, method="lower"))  # of two gaps the one that is no hole
    allowed = min(POSITION_TOLERANCE_MM, POSITION_TOLERANCE_OF_SPACING * usual)
    span_lps = ordered_lps[-1] - ordered_lps[0]
    lattice = heights[0] + np.arange(last + 1) * (heights[-1] - heights[0]) / last
    if np.abs(heights - lattice).max() <= allowed:
        return np.arange(last + 1, dtype=np.float64), span_lps / last
    if not allow_gaps:
        worst = int(np.argmax(np.abs(gaps - usual)))
        raise GeometryError(
            where,
            expected=f"slices {usual:.3f} mm apart, as most of them are",
            found=f"a gap of {gaps[worst]:.3f} mm between positions {worst + 1} and {worst + 2} "
            f"of {last + 1}",
            remedy="add the missing slices, or resample what is there with --allow-gaps",
            code="slice-gap",
        )
    span = heights[-1] - heights[0]
    steps = max(1, round(span / usual))
    if steps > MOST_STEPS_PER_SLICE * last:
        raise GeometryError(
            where,
            expected=f"gaps that {MOST_STEPS_PER_SLICE} times as many slices can fill",
            found=f"slices {usual:.3f} mm apart over {span:.1f} mm",
            remedy="separate the parts and read one at a time",
            code="slice-gap",
        )
    k = (heights - heights[0]) * steps / span
    whole = np.rint(k)
    near = np.abs(k - whole) * span / steps <= allowed
    k = np.where(near, whole, k)  # rounded positions are no reason to blur a slice
    return k, span_lps / steps


def _check_straight(
    ordered_lps: FloatArray, k: FloatArray, step_lps: FloatArray, normal: FloatArray, where: str
) -> tuple[str, ...]:
    """Refuse slices shifted sideways; note what is tolerated but visible."""
    upright = float(step_lps @ normal)
    lean_deg = float(np.degrees(np.arctan2(np.linalg.norm(step_lps - upright * normal), upright)))
    usual = float(np.quantile(np.diff(ordered_lps @ normal), 0.5, method="lower"))
    allowed = min(POSITION_TOLERANCE_MM, POSITION_TOLERANCE_OF_SPACING * usual)
    if lean_deg > MOST_TILT_DEG:
        raise GeometryError(
            where,
            expected=f"slices stacked along their normal within {MOST_TILT_DEG} degrees",
            found=f"a stack that leans by {lean_deg:.2f} degrees",
            remedy="separate what was stacked into one series",
            code="slice-tilt",
        )
    places = ordered_lps[0] + k[:, None] * step_lps
    off_mm = np.linalg.norm(ordered_lps - places, axis=1)
    if off_mm.max() > allowed:
        raise GeometryError(
            where,
            expected="slices in one straight stack",
            found=f"position {int(np.argmax(off_mm)) + 1} of {len(k)} shifted sideways "
            f"by {off_mm.max():.3f} mm",
            remedy="separate what was stacked into one series",
            code="slice-shift",
        )
    notes = []
    if off_mm.max() > NOTED_DEVIATION_MM:
        uneven = f"slice positions deviate by up to {off_mm.max():.3f} mm from even spacing"
        remedy = "nothing needs to be done: so much is the rounding of headers"
        notes.append(Note(uneven, code="slice-uneven", remedy=remedy))
    if lean_deg > TILT_NOTED_DEG:
        tilt = " (gantry tilt)" if lean_deg > TILT_DEG else ""
        leans = f"the stack leans by {lean_deg:.2f} degrees{tilt}; the affine carries it"
        remedy = "nothing needs to be done: results lie on the slices as they are"
        notes.append(Note(leans, code="stack-leans", remedy=remedy))
    return tuple(notes)
