"""DICOM Segmentation objects, read back through world coordinates.

Nothing is assumed about the writer: a pixel belongs to the voxel at its place in the world.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from medseg.core import Code, Grid, Label, LabelMap, LabelScheme
from medseg.core.grid import FloatArray
from medseg.errors import FormatError, GeometryError
from medseg.io.dicom_quiet import quiet_dicom

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["concept_of", "read_on_grid", "read_seg", "segment_label"]

_PRIVATE_SCHEME = "99MEDSEG"
_SEG_CLASS = "1.2.840.10008.5.1.4.1.1.66.4"
_RAS_FROM_LPS = np.array([-1.0, -1.0, 1.0])
_ON_GRID_MM = 0.1


def read_seg(path: Path, scheme: LabelScheme, grid: Grid) -> LabelMap:
    """Rebuild a label map from a BINARY SEG by where its pixels are in the world.

    Frames may come in any order and be flipped or turned against the grid; slices without a frame
    are background. References and instance numbers are not looked at.

    Args:
        path: The SEG.
        scheme: What its segments mean; segments are matched by label, then by coded concept.
        grid: The grid to rebuild on; every pixel centre must meet a voxel centre within 0.1 mm.

    Raises:
        FormatError: If the file is no BINARY SEG, is damaged, has a segment that the scheme does
            not know, or segments that overlap.
        GeometryError: If its pixels do not lie on the grid.
    """
    with quiet_dicom():
        return read_on_grid(path, scheme, grid, str(path), _ON_GRID_MM)


def concept_of(label: Label) -> Code:
    """The coded concept of a label; a private one made from its name where it has none."""
    if label.concept:
        return label.concept
    slug = re.sub(r"[^a-z0-9]+", "-", label.name.lower()).strip("-") or f"label-{label.value}"
    return Code(slug, _PRIVATE_SCHEME, segment_label(label))


def segment_label(label: Label) -> str:
    """The name as a DICOM long string, where a backslash would begin a second value."""
    return label.name.replace("\\", "/").strip() or f"label {label.value}"


def read_on_grid(
    path: Path, scheme: LabelScheme, grid: Grid, where: str, tolerance_mm: float
) -> LabelMap:
    """Like :func:`read_seg`, with the name for messages and the tolerance given."""
    seg = _open(path, where)
    values = _values_of_segments(seg, scheme, where)
    frames = _frames(seg, where)
    origins_ijk, across_ijk, down_ijk = _place(frames, seg, grid, where, tolerance_mm)
    # I fastest, as the frames of most SEG objects run.
    depth, height, width = grid.shape_ijk[::-1]
    dtype = np.uint8 if max(scheme.values) < 256 else np.uint16
    data_kji = np.zeros((depth, height, width), dtype=dtype)
    flat = data_kji.reshape(-1)
    strides = np.array([1, width, width * height])
    starts, across, down = (part @ strides for part in (origins_ijk, across_ijk, down_ijk))
    rows, columns = int(seg.Rows), int(seg.Columns)
    for index, pixels in enumerate(_frame_pixels(seg, where)):
        # The corners of every frame were found inside the grid, so that the view is too.
        target = np.lib.stride_tricks.as_strided(
            flat[starts[index] :],
            shape=(rows, columns),
            strides=(down[index] * flat.itemsize, across[index] * flat.itemsize),
        )
        inside = pixels.reshape(rows, columns).astype(bool)
        value = values[int(frames.segments[index])]
        if (inside & (target != 0) & (target != value)).any():
            raise FormatError(
                where,
                expected="segments that do not overlap, so that one label fits each voxel",
                found="voxels in two segments",
                remedy="read its segments one at a time with highdicom",
                code="seg-overlap",
            )
        np.copyto(target, value, where=inside)
    return LabelMap(data_kji.transpose(2, 1, 0), grid, scheme)


def _open(path: Path, where: str) -> Dataset:
    from pydicom import dcmread  # noqa: PLC0415

    try:
        seg = dcmread(path)
        class_uid, kind = str(seg.SOPClassUID), str(seg.get("SegmentationType"))
        compressed = (
            seg.file_meta.TransferSyntaxUID.is_compressed
            and "deflate" not in str(seg.file_meta.TransferSyntaxUID.name).lower()
        )
    except Exception as error:  # whatever a damaged or foreign file makes pydicom raise
        raise FormatError(
            where,
            expected="a DICOM SEG",
            found="a file that is missing, damaged or no DICOM",
            remedy="give a DICOM Segmentation Storage file",
            code="seg-unreadable",
        ) from error
    if class_uid != _SEG_CLASS or kind != "BINARY" or compressed:
        found = "another DICOM object" if class_uid != _SEG_CLASS else f"type {kind}"
        raise FormatError(
            where,
            expected="an uncompressed BINARY DICOM SEG",
            found=f"compressed pixels, {found}" if compressed else found,
            remedy="convert it to a BINARY segmentation first",
            code="seg-type",
        )
    return seg


def _values_of_segments(seg: Dataset, scheme: LabelScheme, where: str) -> dict[int, int]:
    by_name = {segment_label(label): label.value for label in scheme.labels}
    by_code: dict[tuple[str, ...], int] = {}
    for label in scheme.labels:
        concept = concept_of(label)
        modifier = label.modifier.value if label.modifier else ""
        by_code[(concept.value, concept.scheme, modifier)] = label.value
    values = {}
    for segment in seg.SegmentSequence:
        value = by_name.get(str(segment.get("SegmentLabel", "")).strip())
        if value is None:
            value = by_code.get(_code_key(segment))
        if value is None:
            raise FormatError(
                where,
                expected=f"segments of the scheme {scheme.name!r}",
                found=f"segment {int(segment.SegmentNumber)} that it does not list",
                remedy="read it with the label scheme it was made with",
                code="seg-segment-unknown",
            )
        values[int(segment.SegmentNumber)] = value
    return values


def _code_key(segment: Dataset) -> tuple[str, ...]:
    concept = segment.SegmentedPropertyTypeCodeSequence[0]
    modifiers = concept.get("SegmentedPropertyTypeModifierCodeSequence") or [None]
    value = concept.get("CodeValue") or concept.get("LongCodeValue") or ""
    modifier = str(modifiers[0].CodeValue) if modifiers[0] is not None else ""
    return (str(value), str(concept.get("CodingSchemeDesignator", "")), modifier)


@dataclass(frozen=True, slots=True, eq=False)
class _Frames:
    """Segment number ``(n,)``, position ``(n, 3)``, cosines ``(n, 6)``, spacing ``(n, 2)``."""

    segments: npt.NDArray[np.int64]
    positions_lps: FloatArray
    cosines: FloatArray
    spacings_mm: FloatArray


def _frames(seg: Dataset, where: str) -> _Frames:
    shared = seg.SharedFunctionalGroupsSequence[0]
    segments, positions, cosines, spacings = [], [], [], []

    def group(frame: Dataset, name: str) -> Dataset:
        return frame[name][0] if name in frame else shared[name][0]

    try:
        for frame in seg.PerFrameFunctionalGroupsSequence:
            segments.append(
                int(group(frame, "SegmentIdentificationSequence").ReferencedSegmentNumber)
            )
            positions.append(group(frame, "PlanePositionSequence").ImagePositionPatient)
            cosines.append(group(frame, "PlaneOrientationSequence").ImageOrientationPatient)
            spacings.append(group(frame, "PixelMeasuresSequence").PixelSpacing)
        return _Frames(
            np.array(segments, dtype=np.int64),
            np.array(positions, dtype=np.float64).reshape(-1, 3),
            np.array(cosines, dtype=np.float64).reshape(-1, 6),
            np.array(spacings, dtype=np.float64).reshape(-1, 2),
        )
    except Exception as error:  # a missing functional group, or values of another length
        raise FormatError(
            where,
            expected="segment, position, orientation and spacing of every frame",
            found="a frame without them",
            remedy="export the segmentation again from its source",
            code="seg-frames",
        ) from error


def _place(
    frames: _Frames, seg: Dataset, grid: Grid, where: str, tolerance_mm: float
) -> tuple[npt.NDArray[np.int64], ...]:
    """Voxel of each frame's first pixel, and the voxel steps to the next column and row."""
    columns, rows = int(seg.Columns), int(seg.Rows)
    origin = frames.positions_lps * _RAS_FROM_LPS
    across = frames.cosines[:, :3] * frames.spacings_mm[:, 1:] * _RAS_FROM_LPS
    down = frames.cosines[:, 3:] * frames.spacings_mm[:, :1] * _RAS_FROM_LPS
    inverse = np.linalg.inv(grid.affine_ras[:3, :3]).T
    origin_ijk, across_ijk, down_ijk = (
        np.rint(part).astype(np.int64)
        for part in (grid.voxel_from_world(origin), across @ inverse, down @ inverse)
    )
    # All four corners of all frames: an affine map deviates most at a corner.
    worst_mm, outside = 0.0, False
    for column, row in ((0, 0), (columns - 1, 0), (0, rows - 1), (columns - 1, rows - 1)):
        corner_ijk = origin_ijk + column * across_ijk + row * down_ijk
        gap = origin + column * across + row * down - grid.world_from_voxel(corner_ijk)
        worst_mm = max(worst_mm, float(np.linalg.norm(gap, axis=1).max(initial=0.0)))
        outside = outside or bool(((corner_ijk < 0) | (corner_ijk >= grid.shape_ijk)).any())
    one_step = all((np.abs(part).sum(axis=1) == 1).all() for part in (across_ijk, down_ijk))
    if outside or not one_step or worst_mm > tolerance_mm:
        raise GeometryError(
            where,
            expected=f"pixels on the voxels of the grid within {tolerance_mm:.3f} mm",
            found="pixels beside or outside of it"
            if outside or not one_step
            else f"a pixel {worst_mm:.3f} mm away",
            remedy="read it on the grid of the series it was made from",
            code="seg-grid-differs",
        )
    return origin_ijk, across_ijk, down_ijk


def _frame_pixels(seg: Dataset, where: str) -> Iterator[npt.NDArray[np.uint8]]:
    """The pixels of one frame after the other; frames are packed to bits without filling."""
    size = int(seg.Rows) * int(seg.Columns)
    count = len(seg.PerFrameFunctionalGroupsSequence)
    packed = np.frombuffer(bytes(seg.get("PixelData") or b""), dtype=np.uint8)
    if packed.size * 8 < size * count:
        raise FormatError(
            where,
            expected=f"{count} frames of {size} pixels",
            found=f"{packed.size} bytes of pixel data",
            remedy="copy the file again from its source",
            code="seg-unreadable",
        )
    for index in range(count):
        start, stop = index * size, (index + 1) * size
        bits = np.unpackbits(packed[start // 8 : (stop + 7) // 8], bitorder="little")
        yield bits[start % 8 : start % 8 + size]
