"""What lies in a folder of DICOM files: image series, segmentations, structure sets.

Identifiers never leave as they stand: a patient or a series is named by a hash of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medseg.io.dicom_files import StudyFile, files_below, is_dicomdir, list_study
from medseg.io.dicom_quiet import quiet_dicom
from medseg.io.dicom_seg_reading import LABELMAP_CLASS, SEG_CLASS

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = [
    "RTSTRUCT_CLASS",
    "DicomObject",
    "has_dicom",
    "is_dicom_file",
    "looks_like_dicom",
    "read_objects",
    "referenced_series",
]

RTSTRUCT_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"

_LOOKED_AT = (
    "Modality",
    "PatientID",
    "ReferencedFrameOfReferenceSequence",
    "ReferencedSeriesSequence",
    "Rows",
    "SeriesInstanceUID",
    "SOPClassUID",
    "StudyInstanceUID",
)
_TRIED_FILES = 64
# (0002,0000) or one of the first elements of group 0008, in either byte order.
_FIRST_ELEMENTS = frozenset(
    [b"\x02\x00\x00\x00"]
    + [
        bytes(order)
        for element in (0x00, 0x01, 0x05, 0x08, 0x12, 0x16, 0x18)
        for order in ((8, 0, element, 0), (0, 8, 0, element))
    ]
)


@dataclass(frozen=True, slots=True)
class DicomObject:
    """One DICOM file of interest.

    Args:
        path: Where it is.
        kind: ``image``, ``SEG`` or ``RTSTRUCT``.
        series: Hash of its series.
        patient: Hash of its patient; empty where no identifier is stored.
        refers_to: Hash of the series that a SEG or an RTSTRUCT was drawn on; empty where it does
            not say, or an RTSTRUCT names several.
    """

    path: Path
    kind: str
    series: str
    patient: str
    refers_to: str


def has_dicom(root: Path) -> bool:
    """Whether one of the first files under a folder is DICOM with its preamble."""
    return any(is_dicom_file(path) for path in _first_files(root, _TRIED_FILES))


def read_objects(folder: Path) -> tuple[DicomObject, ...]:
    """The images, segmentations and structure sets under a folder, in order of path.

    Files that are no DICOM, and objects of other kinds, are passed over.
    """
    with quiet_dicom():
        files = sorted(files_below(folder, strict=False))
        found = (_read_object(path) for path in files if path.is_file())
        return tuple(one for one in found if one is not None)


def _read_object(path: Path) -> DicomObject | None:
    from pydicom import dcmread  # noqa: PLC0415

    if not is_dicom_file(path):
        return None
    try:
        header = dcmread(path, stop_before_pixels=True, specific_tags=list(_LOOKED_AT))
        class_uid = str(header.get("SOPClassUID", ""))
        if class_uid in (SEG_CLASS, LABELMAP_CLASS):
            kind = "SEG"
        elif class_uid == RTSTRUCT_CLASS:
            kind = "RTSTRUCT"
        elif header.get("Rows") and header.get("Modality") in ("CT", "MR", "PT"):
            kind = "image"
        else:
            return None
        series = referenced_series(header)
        refers_to = series[0] if len(series) == 1 or (series and kind == "SEG") else ""
        # a study stands for the patient where de-identification emptied the identifier
        patient = header.get("PatientID") or header.get("StudyInstanceUID") or ""
    except Exception:  # no DICOM after all: read_image tells if it was needed
        return None
    return DicomObject(
        path,
        kind,
        _hash(str(header.get("SeriesInstanceUID", ""))),
        _hash(str(patient)),
        _hash(str(refers_to)),
    )


def referenced_series(dataset: Dataset) -> tuple[str, ...]:
    """UIDs of the image series that a SEG or a structure set refers to, each once."""
    seg = dataset.get("ReferencedSeriesSequence") or []
    rtstruct = (
        series
        for frame in dataset.get("ReferencedFrameOfReferenceSequence") or []
        for study in frame.get("RTReferencedStudySequence") or []
        for series in study.get("RTReferencedSeriesSequence") or []
    )
    found = (str(series.get("SeriesInstanceUID") or "") for series in (*seg, *rtstruct))
    return tuple(dict.fromkeys(uid for uid in found if uid))


def _hash(identifier: str) -> str:
    return hashlib.sha256(identifier.encode()).hexdigest()[:12] if identifier else ""


def is_dicom_file(path: Path) -> bool:
    """Whether a file can be read and begins as DICOM files do."""
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def looks_like_dicom(path: Path) -> bool:
    """The same, or the file begins with an element of DICOM, as those of old archives do."""
    try:
        with path.open("rb") as stream:
            head = stream.read(132)
    except OSError:
        return False
    return head[128:] == b"DICM" or head[:4] in _FIRST_ELEMENTS


def study_uid(path: Path) -> str | None:
    """StudyInstanceUID of the first DICOM file of a study; None if unknown.

    Args:
        path: A folder, of which only files that lie directly in it are looked at, a zip or a
            DICOMDIR.
    """
    import pydicom  # noqa: PLC0415 - costs half a second

    try:
        for file in _direct_files(path) if path.is_dir() else list_study(path):
            if file.beginning("", 132)[128:] != b"DICM":
                continue
            with file.opened("") as stream:
                tags = ["StudyInstanceUID"]
                header = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=tags)
            if uid := str(header.get("StudyInstanceUID") or ""):
                return uid
            if not is_dicomdir(file.path):
                return None
    except Exception:  # a damaged header or zip fails in many ways; reading the case tells
        return None
    return None


def _direct_files(folder: Path) -> Iterator[StudyFile]:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return (StudyFile(path, place) for place, path in enumerate(files))


def _first_files(root: Path, count: int) -> Iterator[Path]:
    files = (path for path in files_below(root, strict=False) if path.is_file())
    for _, path in zip(range(count), files, strict=False):
        yield path
