"""What a derived DICOM object takes over from the series it was made from.

Attributes of the patient and the study are carried as they are. Those that must be present but may
be empty (type 2 of PS3.3 C.7.1 and C.7.2) are left empty where the series lacks them or holds a
value that cannot be written; identity is never made up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from medseg.errors import FormatError
from medseg.io.dicom_quiet import quiet_dicom

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["empty_identity", "instance_uid", "missing_references", "source_headers"]

_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
)
_OPTIONAL = (
    "IssuerOfPatientID",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "StudyDescription",
    "ClinicalTrialSponsorName",
    "ClinicalTrialProtocolID",
    "ClinicalTrialProtocolName",
    "ClinicalTrialSiteID",
    "ClinicalTrialSiteName",
    "ClinicalTrialSubjectID",
    "ClinicalTrialTimePointID",
)
_CODE = ("CodeValue", "CodingSchemeDesignator", "CodingSchemeVersion", "CodeMeaning")
_REFERENCES = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
)


def empty_identity(header: Dataset) -> tuple[str, ...]:
    """Names of the must-be-present attributes that a derived object will carry empty."""
    with quiet_dicom():
        return tuple(name for name in _MAY_BE_EMPTY if _writable(header, name) in (None, ""))


def missing_references(headers: Sequence[Dataset]) -> tuple[str, ...]:
    """Names of the identifiers without which no derived object can refer to a series.

    Anonymisers sometimes remove them. Class and instance are also looked for in the file meta
    information, which repeats them.
    """
    with quiet_dicom():
        return tuple(
            name
            for name in _REFERENCES
            if any(_reference(header, name) in (None, "") for header in headers)
        )


def source_headers(
    headers: Sequence[Dataset], step_mm: float, where: str, *, derived: str = "a DICOM SEG"
) -> list[Dataset]:
    """Slim copies of slice headers, safe to hand to the writer of a derived object.

    Only the attributes that a derived object uses are in them, so that odd private or unreadable
    elements of the source cannot get in the way, nor out. Orientation and pixel spacing are those
    of the first slice, from which the reader derives the affine.

    Args:
        headers: One header per slice, in the order of the K axis.
        step_mm: Distance between slices. It is written as slice thickness too: the extent of a
            labelled voxel is the step of the grid, whatever the thickness of the beam was.
        where: The folder, for messages.
        derived: What is made from it, for messages.

    Raises:
        FormatError: If an identifier that references need is missing.
    """
    missing = missing_references(headers)
    if missing:
        raise FormatError(
            where,
            expected=f"a series with {missing[0]}, which {derived} must repeat",
            found=f"slices without {', '.join(missing)}",
            remedy="take the NIfTI result, or export the series again from its archive",
            code="frame-of-reference-missing"
            if missing == ("FrameOfReferenceUID",)
            else "dicom-references-missing",
        )
    with quiet_dicom():
        return [_slim(header, headers[0], step_mm) for header in headers]


def instance_uid(header: Dataset) -> str:
    """SOPInstanceUID of a header, or of its meta information; empty where both lack it."""
    return str(_reference(header, "SOPInstanceUID") or "")


def _slim(header: Dataset, first: Dataset, step_mm: float) -> Dataset:
    from pydicom.dataset import Dataset, FileMetaDataset  # noqa: PLC0415 - only when DICOM is used
    from pydicom.uid import ExplicitVRLittleEndian  # noqa: PLC0415
    from pydicom.valuerep import DSfloat  # noqa: PLC0415

    slim = Dataset()
    slim.file_meta = FileMetaDataset()
    slim.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    slim.SpecificCharacterSet = "ISO_IR 192"
    for name in ("Rows", "Columns", "PixelSpacing", "ImageOrientationPatient"):
        setattr(slim, name, first.get(name))
    slim.ImagePositionPatient = header.ImagePositionPatient
    slim.SliceThickness = slim.SpacingBetweenSlices = DSfloat(step_mm, auto_format=True)
    for name in _REFERENCES:
        setattr(slim, name, str(_reference(header, name)))
    slim.Modality = header.get("Modality")
    slim.PositionReferenceIndicator = _writable(header, "PositionReferenceIndicator") or ""
    for name in _MAY_BE_EMPTY:
        setattr(slim, name, _writable(header, name) or "")
    for name in (*_OPTIONAL, "LossyImageCompression"):
        value = _writable(header, name)
        if value is not None:
            setattr(slim, name, value)
    _say_how_identity_was_removed(slim, header)
    return slim


def _say_how_identity_was_removed(slim: Dataset, header: Dataset) -> None:
    """Whoever says that it was must say how (type 1C of PS3.3 C.7.1.1): both are kept, or none."""
    removed, method = (
        _writable(header, name) for name in ("PatientIdentityRemoved", "DeidentificationMethod")
    )
    codes = _codes(header, "DeidentificationMethodCodeSequence")
    if removed is None or (removed == "YES" and method is None and not codes):
        return
    slim.PatientIdentityRemoved = removed
    if method is not None:
        slim.DeidentificationMethod = method
    if codes:
        slim.DeidentificationMethodCodeSequence = codes


def _codes(header: Dataset, name: str) -> list[Dataset]:
    """Whole and writable codes of a sequence, and nothing else of it."""
    from pydicom.dataset import Dataset  # noqa: PLC0415 - only when DICOM is used

    try:
        items = list(header.get(name) or ())
    except Exception:  # an unreadable sequence is none
        return []
    codes = []
    for item in items:
        code = Dataset()
        for part in _CODE:
            value = _writable(item, part)
            if value is not None:
                setattr(code, part, value)
        if all(part in code for part in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")):
            codes.append(code)
    return codes


def _reference(header: Dataset, name: str) -> Any:  # noqa: ANN401 - a UID or nothing
    value = header.get(name)
    if not value and name.startswith("SOP"):
        value = header.file_meta.get(f"MediaStorage{name}")
    return value


def _writable(header: Dataset, name: str) -> Any:  # noqa: ANN401 - any value representation
    """The value of an attribute, or None where it is absent or breaks the standard."""
    from pydicom.config import RAISE  # noqa: PLC0415
    from pydicom.datadict import dictionary_VR  # noqa: PLC0415
    from pydicom.multival import MultiValue  # noqa: PLC0415
    from pydicom.valuerep import validate_value  # noqa: PLC0415

    try:
        value = header.get(name)
        if value is None or value == "":
            return None
        kind = dictionary_VR(name)
        if kind != "PN":  # names are re-encoded as they are; every text is a name
            for one in value if isinstance(value, MultiValue) else [value]:
                validate_value(kind, str(one), RAISE)
    except Exception:  # an unreadable value is no value
        return None
    if name == "PatientSex" and value not in ("M", "F", "O"):
        return None
    return value
