"""DICOM Segmentation objects, verified before they appear.

What describes them (patient, study, segments, dimensions) is made by highdicom; their frames are
encoded in :mod:`medseg.io.dicom_seg_frames`.

Source: DICOM PS3.3 A.51 and C.8.20 (Segmentation IOD and Image Module).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from medseg import NOTICE, __version__
from medseg.atomic import atomic_path
from medseg.core import Code, Grid, Label, LabelMap, LabelScheme
from medseg.core.labelmap import present_values
from medseg.errors import ConfigError, FormatError, GeometryError, MedsegError, one_of
from medseg.io.derived_uids import derived_uid
from medseg.io.dicom_identity import source_headers
from medseg.io.dicom_quiet import quiet_dicom
from medseg.io.dicom_seg_check import check_fractional_seg, check_seg
from medseg.io.dicom_seg_frames import (
    bits_packed,
    check_length,
    frame_groups,
    slice_groups,
    write_frames,
)
from medseg.io.dicom_seg_labels import read_seg
from medseg.io.dicom_seg_reading import SegType
from medseg.io.provenance import (
    Algorithm,
    AlgorithmType,
    made_by,
    series_number,
    types_in_words,
    types_of_segments,
)
from medseg.io.scan import DicomSource
from medseg.io.segment_names import class_labels, concept_of, segment_label

if TYPE_CHECKING:
    from highdicom.seg import SegmentDescription
    from pydicom.dataset import Dataset

    from medseg.io.probabilities import ProbabilityFile

__all__ = [
    "Algorithm",
    "AlgorithmType",
    "SegType",
    "check_fractional_seg",
    "check_seg",
    "read_seg",
    "write_fractional_seg",
    "write_seg",
]

TOLERANCE_MM = 0.01
_TISSUE = Code("85756007", "SCT", "Tissue")
_RAS_FROM_LPS = np.array([-1.0, -1.0, 1.0])
_CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
_FULL = 255
"""Maximum Fractional Value (0062,000E): the stored value of a probability of 1."""


def write_seg(
    labels: LabelMap,
    path: Path,
    source: DicomSource,
    *,
    algorithm: Algorithm | None,
    algorithm_type: AlgorithmType | Mapping[int, AlgorithmType] = "AUTOMATIC",
    seg_type: Literal["BINARY", "LABELMAP"] = "BINARY",
    omit_empty_frames: bool = False,
) -> None:
    """Write a label map as a DICOM SEG that refers to its source slices, and verify it.

    Every label that is present becomes one segment. If none is, every label of the scheme becomes
    an empty segment: sought and not found. In a BINARY segmentation segments are numbered from 1 in
    the order of values and have a frame for each slice; in a LABELMAP their numbers are the label
    values, and each slice has one frame.

    A label without a coded concept gets a private code of the scheme ``99MEDSEG`` made from its
    name; one without a category gets "Tissue". Frames have the positions of the source slices. Of a
    multi-frame source each refers to the frame it was derived from. Patient, study and identifiers
    are as :mod:`medseg.io.provenance` says.

    Args:
        labels: On the grid of the source.
        path: The file to be made; its folder must exist.
        source: The series that was segmented.
        algorithm: What segmented it, as for :func:`~medseg.io.provenance.types_of_segments`.
        algorithm_type: How much of it a program did; one for all segments, or label value to type
            for those that are present.
        seg_type: Few viewers know LABELMAP yet, which came in 2024.
        omit_empty_frames: Leave out the frames without foreground. Files become smaller, but some
            viewers expect a frame for every slice. With no label present one slice remains.

    Raises:
        ConfigError: ``algorithm-type`` if type and algorithm contradict each other, ``seg-type`` if
            there is no such type of label map.
        FormatError: If the source lacks identifiers a SEG must repeat, there are too many pixels
            for one file (``seg-too-large``), or the file read back holds other labels
            (``verify-labels``) or refers to other images (``verify-references``).
        GeometryError: If labels and source differ in their grid, or the file read back lies
            elsewhere (``verify-geometry``).
        ResourceError: If the file cannot be written.
    """
    present = [value for value in present_values(labels.data_ijk) if value]
    values = present or list(labels.scheme.values)
    types = types_of_segments(values, algorithm, algorithm_type, found=bool(present))
    if seg_type not in ("BINARY", "LABELMAP"):
        raise ConfigError(
            "type of the segmentation",
            expected=one_of(str(seg_type), ("BINARY", "LABELMAP")),
            found=repr(seg_type),
            remedy="choose one of them; a FRACTIONAL one is made of probabilities",
            code="seg-type",
        )
    _check_same_grid(labels.grid, source, str(path))
    of_binary = seg_type == "BINARY"
    numbers = range(1, len(values) + 1) if of_binary else values
    number_of = np.zeros(max(labels.scheme.values) + 1, dtype=np.uint16)
    number_of[values] = numbers
    dtype = np.uint8 if max(numbers) <= _FULL else np.uint16
    planes_kji = np.ascontiguousarray(number_of.astype(dtype)[labels.data_ijk].transpose(2, 1, 0))
    shown = _shown(planes_kji, max(numbers) + 1)
    frames: list[tuple[int | None, int]]
    pixels: Iterable[bytes]
    if of_binary:
        frames = [(n, k) for n in numbers for k in _kept(shown[:, n], omit_empty_frames)]
        pixels = bits_packed(
            (planes_kji[k] == number if shown[k, number] else None for number, k in frames),
            planes_kji[0].size,
        )
    else:
        held = np.asarray(shown[:, 1:].any(axis=1))
        frames = [(None, k) for k in _kept(held, omit_empty_frames)]
        little = planes_kji.dtype.newbyteorder("<")
        pixels = (planes_kji[k].astype(little).tobytes() for _, k in frames)
    content = _Content(
        seg_type,
        [(n, labels.scheme.by_value(v)) for n, v in zip(numbers, values, strict=True)],
        frames,
        pixels,
        1 if of_binary else 8 * planes_kji.itemsize,
        (json.dumps([labels.scheme.to_dict(), values], sort_keys=True), _sha256([planes_kji])),
    )
    _write(
        content,
        path,
        source,
        algorithm,
        types,
        omit_empty_frames,
        lambda temporary: check_seg(temporary, labels, source, where=str(path)),
    )


def write_fractional_seg(
    probabilities: ProbabilityFile,
    scheme: LabelScheme,
    path: Path,
    source: DicomSource,
    *,
    algorithm: Algorithm | None,
    algorithm_type: AlgorithmType | Mapping[int, AlgorithmType] = "AUTOMATIC",
    omit_empty_frames: bool = False,
) -> None:
    """Write probabilities as a FRACTIONAL DICOM SEG (PROBABILITY), and verify it.

    Every class but the background becomes one segment, numbered from 1 in the order of the file of
    probabilities. Stored values are 0 to 255 for 0 to 1: those of that file bit for bit where it
    has eight bits, else rounded. All else is as for :func:`write_seg`.

    Args:
        probabilities: On the grid of the source.
        scheme: The labels of the model, whose codes the segments get.
        path: The file to be made; its folder must exist.
        source: The series that was segmented.
        algorithm: As for :func:`write_seg`.
        algorithm_type: As there; a mapping has the value of every class but the background.
        omit_empty_frames: Leave out the frames whose pixels are all 0; of a segment without any
            other one remains.

    Raises:
        MedsegError: As :func:`write_seg`, and as reading the probabilities.
    """
    labels = class_labels(probabilities.classes, scheme, str(probabilities.path))
    types = types_of_segments([label.value for _, label in labels], algorithm, algorithm_type)
    _check_same_grid(probabilities.grid, source, str(path))
    frames: list[tuple[int | None, int]] = []
    digest = hashlib.sha256()
    for number, (which, _) in enumerate(labels, 1):
        planes_kji = _stored_planes(probabilities, which)
        digest.update(planes_kji.data)
        held = np.asarray(planes_kji.any(axis=(1, 2)))
        frames += [(number, k) for k in _kept(held, omit_empty_frames)]

    def pixels() -> Iterator[bytes]:
        for number, (which, _) in enumerate(labels, 1):
            planes_kji = _stored_planes(probabilities, which)
            for k in (k for of, k in frames if of == number):
                yield planes_kji[k].tobytes()

    content = _Content(
        "FRACTIONAL",
        [(number, label) for number, (_, label) in enumerate(labels, 1)],
        frames,
        pixels(),
        8,
        (
            json.dumps([LabelScheme("of", tuple(label for _, label in labels)).to_dict()]),
            digest.hexdigest(),
        ),
    )
    _write(
        content,
        path,
        source,
        algorithm,
        types,
        omit_empty_frames,
        lambda temporary: check_fractional_seg(
            temporary, probabilities, scheme, source, where=str(path)
        ),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Content:
    """What a segmentation holds.

    Args:
        kind: Its type.
        segments: Number and label of each.
        frames: Segment number (None in a LABELMAP) and slice of each.
        pixels: The pixel data, part by part.
        bits: Of one pixel.
        identity: What tells its segments and pixels from others, for identifiers.
    """

    kind: SegType
    segments: Sequence[tuple[int, Label]]
    frames: Sequence[tuple[int | None, int]]
    pixels: Iterable[bytes]
    bits: int
    identity: tuple[str, ...]


def _write(
    content: _Content,
    path: Path,
    source: DicomSource,
    algorithm: Algorithm | None,
    types: Mapping[int, AlgorithmType],
    omit_empty_frames: bool,
    check: Callable[[Path], None],
) -> None:
    """Write a segmentation under a temporary name, and give it its own once it is verified."""
    step_mm = float(np.linalg.norm(source.affine_lps[:3, 2]))
    headers = source_headers(source.datasets, step_mm, str(source.folder))
    rows, columns = int(headers[0].Rows), int(headers[0].Columns)
    length = check_length(rows, columns, content.bits, len(content.frames), str(path))
    made = "none" if algorithm is None else f"{algorithm.name}\n{algorithm.version}"
    parts = [
        str(headers[0].SeriesInstanceUID),
        *(str(header.SOPInstanceUID) for header in headers),
        *content.identity,
        *(content.kind, made, types_in_words(types), str(omit_empty_frames), __version__),
    ]
    with quiet_dicom():
        try:
            seg = _described(content, headers, source, algorithm, types, parts)
            groups = frame_groups(slice_groups(headers, source), content.frames)
        except MedsegError:
            raise
        except Exception as error:  # highdicom names what it dislikes, with values of the source
            raise FormatError(
                str(source.folder),
                expected="source headers from which a DICOM SEG can be made",
                found=f"something that highdicom refuses ({type(error).__name__})",
                remedy="take the NIfTI result, or export the series again from its archive",
                code="seg-build",
            ) from error
        with atomic_path(path) as temporary:
            with temporary.open("x+b") as stream:
                seg.save_as(stream, enforce_file_format=True)
                stream.seek(0, 2)
                write_frames(stream, groups, content.pixels, length, words=content.bits == 16)
            del seg, groups
            check(temporary)


def _stored_planes(probabilities: ProbabilityFile, which: int) -> npt.NDArray[np.uint8]:
    """``(k, j, i)`` probabilities of one class as 0 to 255."""
    stored_ijk = probabilities.read_stored(which)
    if stored_ijk.dtype != np.uint8:
        stored_ijk = np.rint(stored_ijk.astype(np.float32) * _FULL).astype(np.uint8)
    return np.ascontiguousarray(stored_ijk.transpose(2, 1, 0))


def _shown(planes_kji: npt.NDArray[Any], count: int) -> npt.NDArray[np.bool_]:
    """``(k, count)`` whether a slice shows a number."""
    return np.stack([np.bincount(plane.ravel(), minlength=count) > 0 for plane in planes_kji])


def _kept(held: npt.NDArray[np.bool_], omit_empty_frames: bool) -> Sequence[int]:
    """The slices that get a frame: all, or those that hold something, or the first."""
    if not omit_empty_frames:
        return range(held.size)
    return [int(k) for k in np.flatnonzero(held)] or [0]


def _sha256(arrays: Iterable[npt.NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.data)
    return digest.hexdigest()


def _check_same_grid(grid: Grid, source: DicomSource, where: str) -> None:
    first = source.datasets[0]
    shape = (int(first.Columns), int(first.Rows), len(source.datasets))
    own = Grid(shape, np.diag([*_RAS_FROM_LPS, 1.0]) @ source.affine_lps)
    if grid.shape_ijk != shape:
        raise GeometryError(
            where,
            expected=f"labels of shape {shape}, like the series",
            found=f"shape {grid.shape_ijk}",
            remedy="bring the labels back to the grid of the series first",
            code="seg-grid-differs",
        )
    distance = own.distance_mm(grid)
    if distance > TOLERANCE_MM:
        raise GeometryError(
            where,
            expected=f"labels on the grid of the series within {TOLERANCE_MM} mm",
            found=f"a corner {distance:.3f} mm away",
            remedy="bring the labels back to the grid of the series first",
            code="seg-grid-differs",
        )


def _described(
    content: _Content,
    headers: Sequence[Dataset],
    source: DicomSource,
    algorithm: Algorithm | None,
    types: Mapping[int, AlgorithmType],
    parts: Sequence[str],
) -> Dataset:
    """Everything but the frames."""
    import highdicom as hd  # noqa: PLC0415 - takes half a second, and only SEG output needs it

    first = headers[0]
    if source.frame_numbers is not None:
        # its frames are described as classic slices are; what it is, references say
        first = deepcopy(first)
        first.SOPClassUID = _CT_CLASS
    seg = hd.seg.Segmentation(
        source_images=[first],
        pixel_array=np.zeros((1, int(first.Rows), int(first.Columns)), dtype=np.uint8),
        segmentation_type=hd.seg.SegmentationTypeValues[content.kind],
        segment_descriptions=[
            _describe(number, label, types[label.value], algorithm)
            for number, label in content.segments
        ],
        series_instance_uid=derived_uid("series", parts),
        series_number=series_number(source),
        sop_instance_uid=derived_uid("instance", parts),
        instance_number=1,
        manufacturer="medseg",
        manufacturer_model_name="medseg",
        software_versions=__version__,
        device_serial_number="none",
        fractional_type=hd.seg.SegmentationFractionalTypeValues.PROBABILITY,
        max_fractional_value=_FULL,
        content_label="SEGMENTATION",
        content_description=NOTICE,
        series_description=f"{made_by(algorithm, types)} segmentation"[:64],
        specific_character_set="ISO_IR 192",
        omit_empty_frames=False,
    )
    dimensions = derived_uid("dimensions", parts)
    for item in (*seg.DimensionOrganizationSequence, *seg.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions
    seg.ContentCreatorName = ""  # must be present; who held the brush is not recorded
    seg.SegmentsOverlap = (
        "UNDEFINED" if content.kind == "FRACTIONAL" and len(content.segments) > 1 else "NO"
    )
    images = [_reference(header) for header in _instances(headers)]
    seg.SourceImageSequence = images
    seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence = images
    seg.NumberOfFrames = len(content.frames)
    for group in ("SegmentIdentificationSequence", "PlanePositionSequence"):
        if group in seg.SharedFunctionalGroupsSequence[0]:  # each frame has its own
            delattr(seg.SharedFunctionalGroupsSequence[0], group)
    for element in ("DimensionOrganizationType", "PerFrameFunctionalGroupsSequence", "PixelData"):
        if element in seg:
            delattr(seg, element)
    return seg


def _instances(headers: Sequence[Dataset]) -> list[Dataset]:
    """A header for each instance: frames of one object, and made-up slices, share theirs."""
    return list({str(header.SOPInstanceUID): header for header in headers}.values())


def _reference(header: Dataset) -> Dataset:
    from pydicom.dataset import Dataset  # noqa: PLC0415

    item = Dataset()
    item.ReferencedSOPClassUID = header.SOPClassUID
    item.ReferencedSOPInstanceUID = header.SOPInstanceUID
    return item


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
    algorithm: Algorithm | None,
) -> SegmentDescription:
    import highdicom as hd  # noqa: PLC0415

    description = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=segment_label(label),
        segmented_property_category=_coded(label.category or _TISSUE),
        segmented_property_type=_coded(concept_of(label)),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues[algorithm_type],
        algorithm_identification=_identification(algorithm, algorithm_type),
        display_color=hd.color.CIELabColor.from_rgb(*label.rgb),
    )
    if label.modifier:
        concept = description.SegmentedPropertyTypeCodeSequence[0]
        concept.SegmentedPropertyTypeModifierCodeSequence = [_coded(label.modifier)]
    return description


def _coded(code: Code) -> Any:  # noqa: ANN401 - a highdicom class
    import highdicom as hd  # noqa: PLC0415

    return hd.sr.CodedConcept(code.value, code.scheme, code.meaning)
