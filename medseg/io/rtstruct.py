"""RT structure sets, written from a label map and verified before they appear.

Source: DICOM PS3.3 A.19 (RT Structure Set IOD), C.8.8.5, C.8.8.6 and C.8.8.8.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from math import ceil, log10
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medseg import NOTICE, __version__
from medseg.atomic import atomic_path
from medseg.core import Grid, Label, LabelMap
from medseg.core.grid import FloatArray
from medseg.core.labelmap import label_counts, present_values
from medseg.errors import ConfigError, FormatError, GeometryError, MedsegError, one_of
from medseg.io.contours import BoolArray, trace_mask
from medseg.io.derived_uids import derived_uid
from medseg.io.dicom_folders import RTSTRUCT_CLASS
from medseg.io.dicom_identity import source_headers
from medseg.io.dicom_quiet import quiet_dicom
from medseg.io.provenance import (
    Algorithm,
    AlgorithmType,
    made_by,
    series_number,
    types_in_words,
    types_of_segments,
)
from medseg.io.rtstruct_labels import read_rtstruct
from medseg.io.rtstruct_reading import read_structure_set
from medseg.io.rtstruct_voxels import roi_box
from medseg.io.scan import DicomSource
from medseg.io.segment_names import segment_label

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["INTERPRETED_TYPES", "check_rtstruct", "read_rtstruct", "write_rtstruct"]

INTERPRETED_TYPES = (
    "EXTERNAL",
    "PTV",
    "CTV",
    "GTV",
    "TREATED_VOLUME",
    "IRRAD_VOLUME",
    "BOLUS",
    "AVOIDANCE",
    "ORGAN",
    "CONTRAST_AGENT",
    "CAVITY",
    "SUPPORT",
    "FIXATION",
    "DOSE_REGION",
    "CONTROL",
)
"""RT ROI Interpreted Types (3006,00A4) of volumes."""

LEAST_DICE = 0.97
_TOLERANCE_MM = 0.01
_RAS_FROM_LPS = np.array([-1.0, -1.0, 1.0])
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management, retired but asked for
_ANATOMY = "91723000"  # SNOMED CT: anatomical structure
_OF_IMAGES = (
    "Rows",
    "Columns",
    "PixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "SliceThickness",
    "SpacingBetweenSlices",
    "LossyImageCompression",
)
_SERIES_NUMBER_STEP = 1000


def write_rtstruct(
    labels: LabelMap,
    path: Path,
    source: DicomSource,
    *,
    algorithm: Algorithm | None,
    algorithm_type: AlgorithmType | Mapping[int, AlgorithmType] = "AUTOMATIC",
    label: str = "medseg",
    interpreted_types: Mapping[str, str] | None = None,
) -> None:
    """Write a label map as an RT structure set that refers to its source slices, and verify it.

    Every label that is present becomes one ROI, numbered from 1 in the order of values. If none is,
    every label of the scheme becomes an ROI without contours: sought and not found. Contours lie in
    the planes of the source slices, half-way between the centres of the structure's voxels and
    others; a hole is joined to its outer contour by a channel without width (keyhole).

    Patient, study and identifiers are as :mod:`medseg.io.provenance` says.

    Args:
        labels: On the grid of the source.
        path: The file to be made; its folder must exist.
        source: The series that was segmented.
        algorithm: What segmented it, as for :func:`~medseg.io.provenance.types_of_segments`.
        algorithm_type: How much of it a program did; the ROI Generation Algorithm. One for all, or
            label value to type for those that are present.
        label: Structure Set Label, at most 16 characters.
        interpreted_types: Label name to RT ROI Interpreted Type. Others are ``ORGAN`` where the
            scheme says that they are anatomical structures, else empty.

    Raises:
        ConfigError: ``algorithm-type`` if type and algorithm contradict each other,
            ``rtstruct-label``, ``rtstruct-type``.
        FormatError: If the source lacks identifiers that must be repeated, or the file read back
            holds other structures (``verify-labels``): a Dice below 0.97 and, on average, surfaces
            half a voxel apart or more.
        GeometryError: If labels and source differ in their grid (``rtstruct-grid-differs``), or the
            file read back lies elsewhere (``verify-geometry``).
        ResourceError: If the file cannot be written.
    """
    present = [value for value in present_values(labels.data_ijk) if value]
    made = types_of_segments(
        present or labels.scheme.values, algorithm, algorithm_type, found=bool(present)
    )
    types = _checked_types(labels, interpreted_types or {})
    if not 1 <= len(label.strip()) <= 16 or "\\" in label:
        raise ConfigError(
            "structure set label",
            expected="1 to 16 characters without a backslash",
            found=f"{len(label)} characters",
            remedy="shorten it; DICOM allows no more",
            code="rtstruct-label",
        )
    _check_same_grid(labels, source, str(path))
    step_mm = labels.grid.spacing_mm[2]
    headers = source_headers(
        source.datasets, step_mm, str(source.folder), derived="an RT structure set"
    )
    wanted = [labels.scheme.by_value(value) for value in present or labels.scheme.values]
    with quiet_dicom():
        dataset = _header(labels, source, headers, algorithm, made, label.strip(), types)
        _add_references(dataset, headers)
        _add_rois(dataset, wanted, headers[0].FrameOfReferenceUID, algorithm, made, types)
        _add_contours(dataset, labels, wanted if present else [], headers, source)
        with atomic_path(path) as temporary:
            dataset.save_as(temporary, enforce_file_format=True)
            del dataset
            check_rtstruct(temporary, labels, source, where=str(path))


def check_rtstruct(path: Path, labels: LabelMap, source: DicomSource, *, where: str) -> None:
    """Read a structure set back and compare it with the label map it should hold.

    Args:
        path: The RTSTRUCT.
        labels: What it should hold.
        source: The series it should lie on.
        where: How messages name it.

    Raises:
        FormatError: If a structure is missing, or differs by a Dice below 0.97 with surfaces that
            are, on average, half a voxel apart or more (``verify-labels``).
        GeometryError: If the frame of reference differs (``verify-geometry``).
    """
    counts = label_counts(labels.data_ijk)
    value_of = {
        segment_label(label): label.value for label in labels.scheme.labels if counts[label.value]
    }
    try:
        structures = read_structure_set(path, where)
        drawn = [roi for roi in structures.rois if roi.contours]
        boxes = {roi.name: roi_box(roi, labels.grid, where, allow_gaps=True)[:2] for roi in drawn}
    except MedsegError as error:
        raise _differs(where, error.expected, error.found) from error
    if set(boxes) != set(value_of):
        raise _differs(where, f"contours of {len(value_of)} structures", f"of {len(boxes)}")
    own_frame = str(source.datasets[0].FrameOfReferenceUID)
    if {roi.frame_of_reference for roi in structures.rois} != {own_frame}:
        raise GeometryError(
            where,
            expected="the frame of reference of the source",
            found="another one",
            remedy="report this; nothing was written",
            code="verify-geometry",
        )
    for name, (box, inside) in boxes.items():
        common = np.count_nonzero(inside & (labels.data_ijk[box] == value_of[name]))
        dice = 2.0 * common / float(counts[value_of[name]] + np.count_nonzero(inside))
        if dice >= LEAST_DICE:
            continue
        apart_mm = _mean_gap_mm(labels, value_of[name], box, inside)
        if apart_mm >= 0.5 * min(labels.grid.spacing_mm):
            raise _differs(
                where,
                f"{name!r} with a Dice of at least {LEAST_DICE:g}, or surfaces less than half a "
                "voxel apart",
                f"a Dice of {dice:.3f} and surfaces {apart_mm:.2f} mm apart",
            )


def _differs(where: str, expected: str, found: str) -> FormatError:
    return FormatError(
        where,
        expected=expected,
        found=found,
        remedy="report this; nothing was written",
        code="verify-labels",
    )


def _mean_gap_mm(
    labels: LabelMap, value: int, box: tuple[slice, slice, slice], inside: BoolArray
) -> float:
    """Mean distance between the border voxels of two structures, both ways."""
    from scipy.ndimage import binary_erosion, distance_transform_edt  # noqa: PLC0415

    first = labels.data_ijk == value
    second = np.zeros_like(first)
    second[box] = inside
    if not second.any():
        return float("inf")
    borders = [mask & ~binary_erosion(mask) for mask in (first, second)]
    gaps = [
        distance_transform_edt(~other, sampling=labels.grid.spacing_mm)[border]
        for border, other in (borders, borders[::-1])
    ]
    return float(np.concatenate(gaps).mean())


def _checked_types(labels: LabelMap, wanted: Mapping[str, str]) -> dict[str, str]:
    names = [label.name for label in labels.scheme.labels]
    for name, kind in wanted.items():
        if name not in names or kind not in INTERPRETED_TYPES:
            is_name = name not in names
            raise ConfigError(
                f"interpreted type of {name!r}",
                expected=one_of(name, names) if is_name else one_of(kind, INTERPRETED_TYPES),
                found=repr(name if is_name else kind),
                remedy="name a label of the scheme and one of the types of DICOM",
                code="rtstruct-type",
            )
    return {
        label.name: wanted.get(
            label.name,
            "ORGAN" if label.category and label.category.value == _ANATOMY else "",
        )
        for label in labels.scheme.labels
    }


def _check_same_grid(labels: LabelMap, source: DicomSource, where: str) -> None:
    first = source.datasets[0]
    shape = (int(first.Columns), int(first.Rows), len(source.datasets))
    grid = Grid(shape, np.diag([*_RAS_FROM_LPS, 1.0]) @ source.affine_lps)
    same = labels.grid.shape_ijk == shape
    if same and grid.distance_mm(labels.grid) <= _TOLERANCE_MM:
        return
    raise GeometryError(
        where,
        expected=f"labels on the grid of the series, {shape} voxels, within {_TOLERANCE_MM} mm",
        found=f"a corner {grid.distance_mm(labels.grid):.3f} mm away"
        if same
        else f"shape {labels.grid.shape_ijk}",
        remedy="bring the labels back to the grid of the series first",
        code="rtstruct-grid-differs",
    )


def _header(
    labels: LabelMap,
    source: DicomSource,
    headers: Sequence[Dataset],
    algorithm: Algorithm | None,
    how: Mapping[int, AlgorithmType],
    label: str,
    types: Mapping[str, str],
) -> Dataset:
    from copy import deepcopy  # noqa: PLC0415

    from pydicom.dataset import FileMetaDataset  # noqa: PLC0415
    from pydicom.uid import ImplicitVRLittleEndian  # noqa: PLC0415

    made = "none" if algorithm is None else f"{algorithm.name}\n{algorithm.version}"
    parts = [
        str(headers[0].SeriesInstanceUID),
        *(str(header.SOPInstanceUID) for header in headers),
        json.dumps([labels.scheme.to_dict(), types, label], sort_keys=True),
        hashlib.sha256(labels.data_ijk.tobytes(order="F")).hexdigest(),
        made,
        types_in_words(how),
        __version__,
    ]
    dataset = deepcopy(headers[0])
    for name in _OF_IMAGES:
        if name in dataset:
            delattr(dataset, name)
    now = datetime.now(tz=UTC)
    date, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    values = {
        "SOPClassUID": RTSTRUCT_CLASS,
        "SOPInstanceUID": derived_uid("rtstruct instance", parts),
        "SeriesInstanceUID": derived_uid("rtstruct series", parts),
        "TimezoneOffsetFromUTC": "+0000",
        "InstanceCreationDate": date,
        "InstanceCreationTime": time,
        "SeriesDate": date,
        "SeriesTime": time,
        "StructureSetDate": date,
        "StructureSetTime": time,
        "Modality": "RTSTRUCT",
        "SeriesNumber": series_number(source) + _SERIES_NUMBER_STEP,
        "InstanceNumber": 1,
        "SeriesDescription": f"{made_by(algorithm, how)} contours"[:64],
        "OperatorsName": "",
        "Manufacturer": "medseg",
        "ManufacturerModelName": "medseg",
        "SoftwareVersions": __version__,
        "StructureSetLabel": label,
        "StructureSetName": f"{made_by(algorithm, how)} contours"[:64],
        "StructureSetDescription": NOTICE,
        "ApprovalStatus": "UNAPPROVED",
    }
    for name, value in values.items():
        setattr(dataset, name, value)
    dataset.file_meta = FileMetaDataset()
    # contours are longer than an explicit length of 16 bits can say (PS3.3 C.8.8.6)
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    return dataset


def _add_references(dataset: Dataset, headers: Sequence[Dataset]) -> None:
    from pydicom.dataset import Dataset as Item  # noqa: PLC0415

    images = {str(header.SOPInstanceUID): header for header in headers}  # frames share theirs
    series = Item()
    series.SeriesInstanceUID = headers[0].SeriesInstanceUID
    series.ContourImageSequence = [_reference(header) for header in images.values()]
    study = Item()
    study.ReferencedSOPClassUID = _STUDY_CLASS
    study.ReferencedSOPInstanceUID = headers[0].StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame = Item()
    frame.FrameOfReferenceUID = headers[0].FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    dataset.ReferencedFrameOfReferenceSequence = [frame]


def _reference(header: Dataset, frame: int | None = None) -> Dataset:
    from pydicom.dataset import Dataset as Item  # noqa: PLC0415

    item = Item()
    item.ReferencedSOPClassUID = header.SOPClassUID
    item.ReferencedSOPInstanceUID = header.SOPInstanceUID
    if frame is not None:
        item.ReferencedFrameNumber = frame
    return item


def _add_rois(
    dataset: Dataset,
    wanted: Sequence[Label],
    frame_of_reference: str,
    algorithm: Algorithm | None,
    how: Mapping[int, AlgorithmType],
    types: Mapping[str, str],
) -> None:
    from pydicom.dataset import Dataset as Item  # noqa: PLC0415

    rois, drawn, observed = [], [], []
    for number, label in enumerate(wanted, start=1):
        roi = Item()
        roi.ROINumber = number
        roi.ReferencedFrameOfReferenceUID = frame_of_reference
        roi.ROIName = segment_label(label)
        roi.ROIGenerationAlgorithm = how[label.value]
        if algorithm is not None and how[label.value] != "MANUAL":
            roi.ROIGenerationDescription = f"{algorithm.name} {algorithm.version}"[:64]
        rois.append(roi)
        contour = Item()
        contour.ROIDisplayColor = list(label.rgb)
        contour.ReferencedROINumber = number
        drawn.append(contour)
        observation = Item()
        observation.ObservationNumber = number
        observation.ReferencedROINumber = number
        if label.concept is not None:
            code = Item()
            code.CodeValue = label.concept.value
            code.CodingSchemeDesignator = label.concept.scheme
            code.CodeMeaning = label.concept.meaning
            observation.RTROIIdentificationCodeSequence = [code]
        observation.RTROIInterpretedType = types[label.name]
        observation.ROIInterpreter = ""  # must be present; nobody did
        observed.append(observation)
    dataset.StructureSetROISequence = rois
    dataset.ROIContourSequence = drawn
    dataset.RTROIObservationsSequence = observed


def _add_contours(
    dataset: Dataset,
    labels: LabelMap,
    wanted: Sequence[Label],
    headers: Sequence[Dataset],
    source: DicomSource,
) -> None:
    from pydicom.dataelem import DataElement  # noqa: PLC0415
    from pydicom.dataset import Dataset as Item  # noqa: PLC0415
    from scipy.ndimage import find_objects  # noqa: PLC0415

    # enough digits for a thousandth of a voxel, and for 0.001 mm
    decimals = max(3, 3 + ceil(-log10(min(labels.grid.spacing_mm))))
    frames = source.frame_numbers
    boxes = find_objects(labels.data_ijk) if wanted else []
    for label, roi in zip(wanted, dataset.ROIContourSequence, strict=False):
        box = boxes[label.value - 1]
        inside = labels.data_ijk[box] == label.value
        contours: list[Dataset] = []
        for k in range(inside.shape[2]):
            place = box[2].start + k
            for polygon in trace_mask(inside[:, :, k]):
                item = Item()
                if place not in source.made_up_k:  # else no image lies in the plane of the contour
                    frame = frames[place] if frames else None
                    item.ContourImageSequence = [_reference(headers[place], frame)]
                item.ContourGeometricType = "CLOSED_PLANAR"
                item.NumberOfContourPoints = len(polygon)
                item.ContourNumber = len(contours) + 1
                corner = np.array([box[0].start, box[1].start])
                text = _text(polygon + corner, place, labels.grid, decimals)
                # as it will be in the file: pydicom takes a millisecond to check 100 numbers
                item.add(DataElement("ContourData", "DS", text, already_converted=True))
                contours.append(item)
        roi.ContourSequence = contours


def _text(polygon_ij: FloatArray, k: int, grid: Grid, decimals: int) -> str:
    """Points as decimal strings, at most 16 characters each."""
    voxels = np.concatenate([polygon_ij, np.full((len(polygon_ij), 1), float(k))], axis=1)
    points_lps = grid.world_from_voxel(voxels) * _RAS_FROM_LPS
    return "\\".join([f"{value:.{decimals}f}" for value in points_lps.ravel().tolist()])
