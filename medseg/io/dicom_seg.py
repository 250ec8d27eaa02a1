"""DICOM Segmentation objects, written through highdicom and verified before they appear.

Source: DICOM PS3.3 A.51 and C.8.20 (Segmentation IOD and Image Module).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from medseg import NOTICE, __version__
from medseg.atomic import atomic_path
from medseg.core import Code, Grid, Label, LabelMap
from medseg.core.labelmap import present_values
from medseg.errors import ConfigError, FormatError, GeometryError, MedsegError, ShapeError
from medseg.io.derived_uids import derived_uid
from medseg.io.dicom_identity import source_headers
from medseg.io.dicom_quiet import quiet_dicom
from medseg.io.dicom_seg_reading import concept_of, read_on_grid, read_seg, segment_label
from medseg.io.scan import DicomSource
from medseg.io.segment_types import made_by, types_in_words, types_of_segments

if TYPE_CHECKING:
    from highdicom.seg import SegmentDescription
    from pydicom.dataset import Dataset

__all__ = [
    "Algorithm",
    "AlgorithmType",
    "check_provenance",
    "check_seg",
    "read_seg",
    "series_number",
    "write_seg",
]

AlgorithmType = Literal["AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"]
"""Segment Algorithm Type (0062,0008): made by a program, with a person's help, or by hand."""

TOLERANCE_MM = 0.01
_TISSUE = Code("85756007", "SCT", "Tissue")
_RAS_FROM_LPS = np.array([-1.0, -1.0, 1.0])
_SERIES_NUMBER_STEP = 1000


@dataclass(frozen=True, slots=True)
class Algorithm:
    """What made a segmentation, as its segments will name it.

    Args:
        name: Name of the model, at most 64 characters.
        version: Its version, at most 64 characters.
    """

    name: str
    version: str

    def __post_init__(self) -> None:
        for field, text in (("name", self.name), ("version", self.version)):
            if not 1 <= len(text) <= 64 or "\\" in text:
                raise ConfigError(
                    f"algorithm {field}",
                    expected="1 to 64 characters without a backslash",
                    found=f"{len(text)} characters",
                    remedy="shorten it or add it; DICOM allows no more",
                    code="algorithm",
                )


def write_seg(
    labels: LabelMap,
    path: Path,
    source: DicomSource,
    *,
    algorithm: Algorithm | None,
    algorithm_type: AlgorithmType | Mapping[int, AlgorithmType] = "AUTOMATIC",
    omit_empty_frames: bool = False,
) -> None:
    """Write a label map as a BINARY DICOM SEG that refers to its source slices, and verify it.

    Every label that is present becomes one segment, numbered from 1 in the order of values. If none
    is, every label of the scheme becomes an empty segment: sought and not found.

    A label without a coded concept gets a private code of the scheme ``99MEDSEG`` made from its
    name; one without a category gets "Tissue". Frames have the positions of the source slices.
    Patient and study are those of the source; what it lacks stays empty. Series and instance UID
    are made from source, labels and algorithm: the same result has the same ones whenever it is
    made, and its dates and times alone differ.

    Args:
        labels: On the grid of the source.
        path: The file to be made; its folder must exist.
        source: The series that was segmented.
        algorithm: What segmented it; None for labels made by hand, or edited after a beginning that
            is not recorded.
        algorithm_type: How much of it a program did; one for all segments, or label value to type
            for those that are present.
        omit_empty_frames: Leave out the frames without foreground. Files become smaller, but some
            viewers expect a frame for every slice. With no label present one slice remains.

    Raises:
        ConfigError: ``algorithm-type`` if type and algorithm contradict each other.
        FormatError: If the source lacks identifiers a SEG must repeat, or the file read back holds
            other labels (``verify-labels``).
        GeometryError: If labels and source differ in their grid, or the file read back lies
            elsewhere (``verify-geometry``).
        ResourceError: If the file cannot be written.
    """
    present = [value for value in present_values(labels.data_ijk) if value]
    if not isinstance(algorithm_type, str) and not present:
        algorithm_type = "MANUAL" if algorithm is None else "SEMIAUTOMATIC"
    types = types_of_segments(present or labels.scheme.values, algorithm, algorithm_type)
    _check_same_grid(labels, source, str(path))
    headers = source_headers(source.datasets, labels.grid.spacing_mm[2], str(source.folder))
    number_of = np.zeros(max(labels.scheme.values) + 1, dtype=np.uint16)
    segments = present or list(labels.scheme.values)
    number_of[segments] = np.arange(1, len(segments) + 1)
    small = len(segments) < np.iinfo(np.uint8).max
    numbers = number_of.astype(np.uint8 if small else np.uint16)[labels.data_ijk]
    planes_kji = np.ascontiguousarray(numbers.transpose(2, 1, 0))
    if omit_empty_frames and not present:
        headers, planes_kji = headers[:1], planes_kji[:1]
    with quiet_dicom():
        try:
            seg = _build(
                planes_kji,
                headers,
                [labels.scheme.by_value(value) for value in segments],
                series_number(source),
                algorithm,
                types,
                types_in_words(algorithm_type),
                omit_empty_frames=omit_empty_frames and bool(present),
                content=_content_of(source, labels, segments, planes_kji),
            )
        except Exception as error:  # highdicom names what it dislikes, with values of the source
            raise FormatError(
                str(source.folder),
                expected="source headers from which a DICOM SEG can be made",
                found=f"something that highdicom refuses ({type(error).__name__})",
                remedy="take the NIfTI result, or export the series again from its archive",
                code="seg-build",
            ) from error
        with atomic_path(path) as temporary:
            seg.save_as(temporary)
            del seg
            check_seg(temporary, labels, source, where=str(path))


def check_seg(path: Path, labels: LabelMap, source: DicomSource, *, where: str) -> None:
    """Read a SEG back and compare it with the label map it should hold.

    Positions, orientations and spacings are those of the file's own functional groups, mapped
    through world coordinates; they must meet the grid within 0.01 mm, plus what the source slices
    themselves deviate from their grid.

    Args:
        path: The SEG.
        labels: What it should hold.
        source: The series it should lie on.
        where: How messages name it.

    Raises:
        FormatError: If labels differ (``verify-labels``).
        GeometryError: If the place or the frame of reference differs (``verify-geometry``).
    """
    tolerance = TOLERANCE_MM + _unevenness_mm(source)
    try:
        found = read_on_grid(path, labels.scheme, labels.grid, where, tolerance)
        own_frame = _frame_of_reference(path)
    except GeometryError as error:
        raise GeometryError(
            where,
            expected=error.expected,
            found=error.found,
            remedy="report this; nothing was written",
            code="verify-geometry",
        ) from error
    except MedsegError as error:
        raise FormatError(
            where,
            expected=error.expected,
            found=error.found,
            remedy="report this; nothing was written",
            code="verify-labels",
        ) from error
    if own_frame != str(source.datasets[0].FrameOfReferenceUID):
        raise GeometryError(
            where,
            expected="the frame of reference of the source",
            found="another one",
            remedy="report this; nothing was written",
            code="verify-geometry",
        )
    differing = int(np.count_nonzero(found.data_ijk != labels.data_ijk))
    if differing:
        raise FormatError(
            where,
            expected="the labels that were written",
            found=f"{differing} voxels that differ",
            remedy="report this; nothing was written",
            code="verify-labels",
        )


def check_provenance(algorithm: Algorithm | None, algorithm_type: AlgorithmType) -> None:
    """Check that what made a segmentation and how much it did agree.

    Raises:
        ConfigError: ``algorithm-type``.
    """
    needed = {"AUTOMATIC": "a named algorithm", "MANUAL": "no algorithm"}.get(algorithm_type)
    if needed is None or (algorithm is None) == (algorithm_type == "MANUAL"):
        return
    raise ConfigError(
        "segmentation provenance",
        expected=f"{needed} for segments of type {algorithm_type}",
        found="none" if algorithm is None else "an algorithm",
        remedy="say MANUAL for labels made by hand and SEMIAUTOMATIC for corrected ones",
        code="algorithm-type",
    )


def _check_same_grid(labels: LabelMap, source: DicomSource, where: str) -> None:
    first = source.datasets[0]
    shape = (int(first.Columns), int(first.Rows), len(source.datasets))
    grid = Grid(shape, np.diag([*_RAS_FROM_LPS, 1.0]) @ source.affine_lps)
    if labels.grid.shape_ijk != shape:
        raise GeometryError(
            where,
            expected=f"labels of shape {shape}, like the series",
            found=f"shape {labels.grid.shape_ijk}",
            remedy="bring the labels back to the grid of the series first",
            code="seg-grid-differs",
        )
    if shape[0] * shape[1] < 8:
        # highdicom 0.28 begins a new byte with each such frame, against PS3.5 8.1.1.
        raise ShapeError(
            where,
            expected="slices of at least 8 pixels",
            found=f"slices of {shape[0]} x {shape[1]}",
            remedy="take the NIfTI result",
            code="seg-too-small",
        )
    distance = grid.distance_mm(labels.grid)
    if distance > TOLERANCE_MM:
        raise GeometryError(
            where,
            expected=f"labels on the grid of the series within {TOLERANCE_MM} mm",
            found=f"a corner {distance:.3f} mm away",
            remedy="bring the labels back to the grid of the series first",
            code="seg-grid-differs",
        )


def _build(
    planes_kji: npt.NDArray[Any],
    headers: list[Dataset],
    labels: list[Label],
    series_number: int,
    algorithm: Algorithm | None,
    types: Mapping[int, AlgorithmType],
    types_text: str,
    *,
    omit_empty_frames: bool,
    content: Sequence[str],
) -> Dataset:
    import highdicom as hd  # noqa: PLC0415 - takes half a second, and only SEG output needs it

    made = "none" if algorithm is None else f"{algorithm.name}\n{algorithm.version}"
    parts = [*content, made, types_text, str(omit_empty_frames), __version__]
    seg = hd.seg.Segmentation(
        source_images=headers,
        pixel_array=planes_kji,
        segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[
            _describe(
                number, label, types[label.value], _identification(algorithm, types[label.value])
            )
            for number, label in enumerate(labels, 1)
        ],
        series_instance_uid=derived_uid("series", parts),
        series_number=series_number,
        sop_instance_uid=derived_uid("instance", parts),
        instance_number=1,
        manufacturer="medseg",
        manufacturer_model_name="medseg",
        software_versions=__version__,
        device_serial_number="none",
        content_label="SEGMENTATION",
        content_description=NOTICE,
        series_description=f"{made_by(algorithm, types)} segmentation"[:64],
        specific_character_set="ISO_IR 192",
        omit_empty_frames=omit_empty_frames,
    )
    dimensions = derived_uid("dimensions", parts)
    for item in (*seg.DimensionOrganizationSequence, *seg.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions
    seg.ContentCreatorName = ""  # must be present; who held the brush is not recorded
    return seg


def _identification(algorithm: Algorithm | None, algorithm_type: AlgorithmType) -> Any:  # noqa: ANN401
    """Name and family of the algorithm (CID 7162); None for segments made by hand."""
    import highdicom as hd  # noqa: PLC0415
    from pydicom.sr.codedict import codes  # noqa: PLC0415

    if algorithm_type == "MANUAL":
        return None
    if algorithm is None:
        return hd.AlgorithmIdentificationSequence(
            name="not recorded", family=codes.DCM.ManualProcessing, version="not recorded"
        )
    return hd.AlgorithmIdentificationSequence(
        name=algorithm.name, family=codes.DCM.ArtificialIntelligence, version=algorithm.version
    )


def _describe(
    number: int,
    label: Label,
    algorithm_type: AlgorithmType,
    identification: Any,  # noqa: ANN401
) -> SegmentDescription:
    import highdicom as hd  # noqa: PLC0415

    description = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=segment_label(label),
        segmented_property_category=_coded(label.category or _TISSUE),
        segmented_property_type=_coded(concept_of(label)),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues[algorithm_type],
        algorithm_identification=identification,
        display_color=hd.color.CIELabColor.from_rgb(*label.rgb),
    )
    if label.modifier:
        concept = description.SegmentedPropertyTypeCodeSequence[0]
        concept.SegmentedPropertyTypeModifierCodeSequence = [_coded(label.modifier)]
    return description


def _coded(code: Code) -> Any:  # noqa: ANN401 - a highdicom class
    import highdicom as hd  # noqa: PLC0415

    return hd.sr.CodedConcept(code.value, code.scheme, code.meaning)


def _content_of(
    source: DicomSource, labels: LabelMap, segments: Sequence[int], planes_kji: npt.NDArray[Any]
) -> tuple[str, ...]:
    """What identifies a segmentation: source instances, labels of its segments, voxels."""
    return (
        str(source.datasets[0].SeriesInstanceUID),
        *(str(header.get("SOPInstanceUID", "")) for header in source.datasets),
        json.dumps([labels.scheme.to_dict(), list(map(int, segments))], sort_keys=True),
        hashlib.sha256(planes_kji.data).hexdigest(),
    )


def series_number(source: DicomSource) -> int:
    """The number of the source series plus 1000, so that it sorts behind the images."""
    try:
        number = int(source.datasets[0].SeriesNumber)
    except Exception:  # absent or not a number
        number = 0
    return max(number, 0) + _SERIES_NUMBER_STEP


def _unevenness_mm(source: DicomSource) -> float:
    """How far the slices' own positions are from where the affine puts them, at most."""
    own = np.array([ds.ImagePositionPatient for ds in source.datasets], dtype=np.float64)
    steps = np.arange(len(own), dtype=np.float64)[:, None]
    lattice = source.affine_lps[:3, 3] + steps * source.affine_lps[:3, 2]
    return float(np.linalg.norm(own - lattice, axis=1).max())


def _frame_of_reference(path: Path) -> str:
    from pydicom import dcmread  # noqa: PLC0415

    return str(
        dcmread(path, specific_tags=["FrameOfReferenceUID"], stop_before_pixels=True).get(
            "FrameOfReferenceUID"
        )
    )
