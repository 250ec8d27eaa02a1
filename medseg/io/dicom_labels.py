"""Labels that come as a DICOM object beside the image: a SEG or an RT structure set."""

from __future__ import annotations

from pathlib import Path

from medseg.core import Grid, LabelMap, LabelScheme
from medseg.io.dicom_folders import RTSTRUCT_CLASS
from medseg.io.dicom_quiet import quiet_dicom
from medseg.io.scan import DicomSource, Source
from medseg.io.segment_names import LabelReading

__all__ = ["is_rtstruct", "read_dicom_labels", "read_label_scheme"]


def is_rtstruct(path: Path) -> bool:
    """Whether a file is an RT structure set; a damaged file is none."""
    from pydicom import dcmread  # noqa: PLC0415 - only where DICOM is read

    try:
        with quiet_dicom():
            header = dcmread(path, stop_before_pixels=True, specific_tags=["SOPClassUID"])
            return str(header.get("SOPClassUID", "")) == RTSTRUCT_CLASS
    except Exception:  # the reader that is tried next tells what is wrong
        return False


def read_dicom_labels(
    path: Path, scheme: LabelScheme, grid: Grid, source: Source | None = None
) -> LabelMap:
    """Read a SEG or an RTSTRUCT as a label map.

    Structures often contain each other: a voxel in several goes to the one with the fewest voxels.
    Structures that the scheme does not list are left out, unless one is likely meant by a label
    that the file lacks.

    Args:
        path: The SEG or RTSTRUCT.
        scheme: What its segments or ROIs mean.
        grid: The grid of the image.
        source: Where the image came from; for a DICOM series the frame of reference is compared.

    Raises:
        FormatError: As :func:`~medseg.io.dicom_seg_labels.read_seg_labels` and
            :func:`~medseg.io.rtstruct_labels.read_rtstruct`.
        GeometryError: As these.
    """
    from medseg.io.dicom_seg_labels import read_seg_labels  # noqa: PLC0415
    from medseg.io.rtstruct_labels import read_rtstruct  # noqa: PLC0415

    frame = None
    if isinstance(source, DicomSource):
        frame = source.datasets[0].get("FrameOfReferenceUID")
    read = read_rtstruct if is_rtstruct(path) else read_seg_labels
    reading = LabelReading(str(frame) if frame else None, overlaps="smaller", unknown="leave")
    labels, _ = read(path, scheme, grid, reading)
    return labels


def read_label_scheme(path: Path) -> LabelScheme:
    """The segments of a SEG, or the ROIs of an RTSTRUCT that enclose something, as a scheme.

    Raises:
        FormatError: ``seg-unreadable``, ``rtstruct-unreadable``, ``rtstruct-contours``,
            ``rtstruct-empty``, ``rtstruct-roi-twice``.
    """
    if is_rtstruct(path):
        from medseg.io.rtstruct_labels import read_roi_scheme  # noqa: PLC0415

        return read_roi_scheme(path)
    from medseg.io.dicom_seg_labels import read_segment_scheme  # noqa: PLC0415

    return read_segment_scheme(path)
