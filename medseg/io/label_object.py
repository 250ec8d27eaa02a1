"""What a SEG or an RT structure set says of itself: the series it was drawn on, who drew it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medseg.io.dicom_folders import RTSTRUCT_CLASS, is_dicom_file, referenced_series
from medseg.io.dicom_quiet import quiet_dicom
from medseg.io.dicom_seg_reading import LABELMAP_CLASS, SEG_CLASS, background_of
from medseg.io.provenance import ALGORITHM_TYPES, AlgorithmType

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["LabelObject", "read_label_object"]


@dataclass(frozen=True, slots=True)
class LabelObject:
    """One DICOM object that holds labels.

    Args:
        path: The file.
        kind: Which object.
        series_uids: SeriesInstanceUIDs that it refers to; identifiers, not to be printed.
        description: Series description; free text.
        names: Of its segments or ROIs, as the file has them.
        types: Name of each segment or ROI to how it came about, where the file tells.
        algorithm: Name and version of what made them, where all that tell agree.
    """

    path: Path
    kind: Literal["SEG", "RTSTRUCT"]
    series_uids: tuple[str, ...]
    description: str
    names: tuple[str, ...]
    types: Mapping[str, AlgorithmType]
    algorithm: tuple[str, str] | None


def read_label_object(path: Path) -> LabelObject | None:
    """Look at a file; None if it is no SEG and no RT structure set, or damaged.

    Pixels are not read; the contours of a structure set are passed over.
    """
    from pydicom import dcmread  # noqa: PLC0415 - only where DICOM is read

    if not is_dicom_file(path):
        return None
    try:
        with quiet_dicom():
            header = dcmread(path, stop_before_pixels=True, defer_size=1024)
            class_uid = str(header.get("SOPClassUID", ""))
            if class_uid in (SEG_CLASS, LABELMAP_CLASS):
                nothing = background_of(header)
                segments = [one for one in header.SegmentSequence if one.SegmentNumber != nothing]
                names = _names(segments, "SegmentLabel")
                return LabelObject(path, "SEG", *_common(header), names, *_of_segments(segments))
            if class_uid == RTSTRUCT_CLASS:
                rois = header.get("StructureSetROISequence") or []
                names = _names(rois, "ROIName")
                return LabelObject(path, "RTSTRUCT", *_common(header), names, _of_rois(rois), None)
    except Exception:  # whatever a damaged file makes pydicom raise; reading it tells
        return None
    return None


def _common(header: Dataset) -> tuple[tuple[str, ...], str]:
    return referenced_series(header), str(header.get("SeriesDescription") or "")[:64]


def _names(items: Iterable[Dataset], keyword: str) -> tuple[str, ...]:
    names = (str(item.get(keyword) or "").strip() for item in items)
    return tuple(name for name in names if name)


def _of_segments(
    segments: Sequence[Dataset],
) -> tuple[dict[str, AlgorithmType], tuple[str, str] | None]:
    types: dict[str, AlgorithmType] = {}
    algorithms: set[tuple[str, str]] = set()
    for segment in segments:
        kind = str(segment.get("SegmentAlgorithmType") or "")
        if kind in ALGORITHM_TYPES:
            name = str(segment.get("SegmentLabel") or "").strip()
            types[name] = kind
        named = str(segment.get("SegmentAlgorithmName") or "").strip()
        if kind != "MANUAL" and named:
            items = segment.get("SegmentationAlgorithmIdentificationSequence") or []
            version = str(items[0].get("AlgorithmVersion") or "").strip() if items else ""
            algorithms.add((named[:64], version[:64] or "not recorded"))
    return types, algorithms.pop() if len(algorithms) == 1 else None


def _of_rois(rois: Any) -> dict[str, AlgorithmType]:  # noqa: ANN401 - a sequence of pydicom
    found: dict[str, AlgorithmType] = {}
    for roi in rois:
        kind = str(roi.get("ROIGenerationAlgorithm") or "")
        if kind in ALGORITHM_TYPES:
            found[str(roi.get("ROIName") or "").strip()] = kind
    return found
