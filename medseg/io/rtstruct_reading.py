"""RT structure sets (DICOM RTSTRUCT): contours read, and turned into the voxels of a grid.

Nothing is assumed about the writer: a contour lies where its points are in the world. A voxel
belongs to a structure if its centre is inside the contour or on its path, to 0.001 mm.

Source: DICOM PS3.3 C.8.8.5 (Structure Set), C.8.8.6 (ROI Contour), C.8.8.8 (RT ROI Observations).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medseg.core import Code
from medseg.core.grid import FloatArray
from medseg.errors import FormatError
from medseg.io.dicom_folders import RTSTRUCT_CLASS, referenced_series
from medseg.io.dicom_quiet import quiet_dicom
from medseg.io.segment_names import code_of

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["Contour", "Roi", "StructureSet", "read_structure_set"]

_RAS_FROM_LPS = np.array([-1.0, -1.0, 1.0])
_FARTHEST_MM = 100_000.0
_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
_KINDS = {
    "POINT": "point",
    "OPEN_PLANAR": "open contour",
    "OPEN_NONPLANAR": "open contour out of a plane",
}


@dataclass(frozen=True, slots=True, eq=False)
class Contour:
    """One closed planar contour.

    Args:
        points_ras: ``(n, 3)`` vertices in mm; the last is joined to the first.
        is_xor: Whether contours of its plane are combined by exclusion (CLOSEDPLANAR_XOR).
        slab_mm: Thickness of the slab that it stands for; None where the file does not say.
    """

    points_ras: FloatArray
    is_xor: bool = False
    slab_mm: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Roi:
    """One region of interest.

    Args:
        number: ROI Number.
        name: As stored, without spaces around it; ``ROI <number>`` where there is none.
        rgb: Display colour, 0 to 255; None where there is none.
        interpreted_type: RT ROI Interpreted Type, such as ``ORGAN`` or ``GTV``; may be empty.
        generation_algorithm: ``AUTOMATIC``, ``SEMIAUTOMATIC``, ``MANUAL``; may be empty.
        concept: Code that identifies the structure (TG-263, SNOMED CT); None for none.
        frame_of_reference: Its UID; empty where the file does not say.
        contours: Those that enclose something.
        notes: What was left out.
    """

    number: int
    name: str
    rgb: tuple[int, int, int] | None
    interpreted_type: str
    generation_algorithm: str
    concept: Code | None
    frame_of_reference: str
    contours: tuple[Contour, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class StructureSet:
    """A structure set as stored.

    Args:
        label: Structure Set Label.
        rois: In order of number.
        series: UIDs of the image series that it refers to.
        notes: Harmless peculiarities.
    """

    label: str
    rois: tuple[Roi, ...]
    series: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_structure_set(path: Path, where: str = "") -> StructureSet:
    """Read names, colours, types and contours of all ROIs.

    Points and open contours enclose nothing: they are left out with a note.

    Args:
        path: The RTSTRUCT.
        where: How messages name it; empty for its path.

    Raises:
        FormatError: ``rtstruct-unreadable``, or ``rtstruct-contours`` where the points of a contour
            are no numbers or no triplets.
    """
    where = where or str(path)
    with quiet_dicom():
        dataset = _open(path, where)
        try:
            return _structure_set(dataset, where)
        except FormatError:
            raise
        except Exception as error:  # whatever a damaged element makes pydicom raise
            raise _unreadable(where, "a damaged or incomplete one") from error


def _open(path: Path, where: str) -> Dataset:
    from pydicom import dcmread  # noqa: PLC0415

    try:
        dataset = dcmread(path, force=True)  # some writers leave the preamble out
        class_uid = str(dataset.get("SOPClassUID", ""))
    except Exception as error:  # whatever a damaged or foreign file makes pydicom raise
        raise _unreadable(where, "a file that is missing, damaged or no DICOM") from error
    if class_uid != RTSTRUCT_CLASS:
        raise _unreadable(where, "another DICOM object" if class_uid else "no DICOM object")
    return dataset


def _unreadable(where: str, found: str) -> FormatError:
    return FormatError(
        where,
        expected="an RT structure set with its ROIs",
        found=found,
        remedy="give an RT Structure Set Storage file, or export it again",
        code="rtstruct-unreadable",
    )


def _structure_set(dataset: Dataset, where: str) -> StructureSet:
    listed = _items(dataset, "StructureSetROISequence")
    numbers = [int(item.ROINumber) for item in listed]
    if len(set(numbers)) < len(numbers):
        raise _unreadable(where, "two ROIs of one number")
    frames = {
        str(item.get("FrameOfReferenceUID") or "")
        for item in _items(dataset, "ReferencedFrameOfReferenceSequence")
    } - {""}
    only_frame = next(iter(frames)) if len(frames) == 1 else ""
    observed = {
        int(item.ReferencedROINumber): item
        for item in reversed(_items(dataset, "RTROIObservationsSequence"))
        if item.get("ReferencedROINumber") is not None
    }
    drawn: dict[int, list[Dataset]] = {}
    for item in _items(dataset, "ROIContourSequence"):
        drawn.setdefault(int(item.ReferencedROINumber), []).append(item)
    strangers = len(set(drawn) - set(numbers))
    notes = (f"{strangers} ROIs with contours but without a name are left out",) * bool(strangers)
    rois = [
        _roi(item, drawn.get(number, []), observed.get(number), only_frame, where)
        for number, item in zip(numbers, listed, strict=True)
    ]
    rois.sort(key=lambda roi: roi.number)
    label = str(dataset.get("StructureSetLabel") or "").strip()
    return StructureSet(label, tuple(rois), referenced_series(dataset), notes)


def _items(dataset: Dataset, name: str) -> list[Dataset]:
    return list(dataset.get(name) or [])


def _roi(
    item: Dataset,
    drawn: Sequence[Dataset],
    observation: Dataset | None,
    only_frame: str,
    where: str,
) -> Roi:
    number = int(item.ROINumber)
    name = str(item.get("ROIName") or "").strip() or f"ROI {number}"
    contours: list[Contour] = []
    skipped: Counter[str] = Counter()
    for one in (contour for part in drawn for contour in _items(part, "ContourSequence")):
        kind = str(one.get("ContourGeometricType") or "").strip().upper()
        if kind not in _CLOSED:
            skipped[_KINDS.get(kind, "contour of an unknown type")] += 1
            continue
        points = _points(one, f"{where}, ROI {name!r}")
        if len(points) < 3:
            skipped["closed contour of fewer than three points"] += 1
            continue
        slab = one.get("ContourSlabThickness")
        contours.append(
            Contour(points * _RAS_FROM_LPS, kind == _CLOSED[1], float(slab) if slab else None)
        )
    colours = [rgb for rgb in map(_rgb, drawn) if rgb]
    codes = [] if observation is None else _items(observation, "RTROIIdentificationCodeSequence")
    kind = "" if observation is None else str(observation.get("RTROIInterpretedType") or "")
    return Roi(
        number,
        name,
        colours[0] if colours else None,
        kind.strip().upper(),
        str(item.get("ROIGenerationAlgorithm") or "").strip().upper(),
        code_of(codes),
        str(item.get("ReferencedFrameOfReferenceUID") or "") or only_frame,
        tuple(contours),
        tuple(_left_out(name, skipped)),
    )


def _left_out(name: str, skipped: Counter[str]) -> Iterable[str]:
    for kind, count in sorted(skipped.items()):
        noun = "point" if kind == "point" else "contour"
        counted = kind if count == 1 else kind.replace(noun, f"{noun}s", 1)
        yield f"{name}: {count} {counted} left out"


def _points(contour: Dataset, where: str) -> FloatArray:
    """``(n, 3)`` in LPS; the text is parsed as a whole, since files hold millions of numbers."""
    element: Any = contour.get_item("ContourData")
    value = b"" if element is None else element.value
    try:
        if isinstance(value, bytes):
            texts = value.decode("ascii").strip("\0 ").split("\\")
            numbers = np.array([] if texts == [""] else texts, dtype=np.float64)
        else:
            numbers = np.array(value, dtype=np.float64).reshape(-1)
        offset = np.array(contour.get("ContourOffsetVector") or [0, 0, 0], dtype=np.float64)
        points = numbers.reshape(-1, 3) + offset
    except (ValueError, TypeError) as error:
        raise _bad_points(
            where, "text that is no number, or a count that is no multiple of three"
        ) from error
    if not np.isfinite(points).all():
        raise _bad_points(where, "NaN or infinity")
    if points.size and np.abs(points).max() > _FARTHEST_MM:
        raise _bad_points(where, f"one more than {_FARTHEST_MM / 1000:g} m from the origin")
    return points


def _bad_points(where: str, found: str) -> FormatError:
    return FormatError(
        where,
        expected="contours of points with three coordinates each",
        found=found,
        remedy="export the structure set again from the program that drew it",
        code="rtstruct-contours",
    )


def _rgb(drawn: Dataset) -> tuple[int, int, int] | None:
    try:
        red, green, blue = (int(level) for level in drawn.ROIDisplayColor)
    except Exception:  # absent, or not three whole numbers: a colour is no reason to refuse
        return None
    return (red, green, blue) if 0 <= min(red, green, blue) <= max(red, green, blue) < 256 else None
