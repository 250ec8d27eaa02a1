"""Segmentations of any writer as label maps, through world coordinates; overlaps settled as asked.

A pixel belongs to the voxel at its place in the world. References and instance numbers are not
looked at. The rules of names and overlaps are those of RTSTRUCT.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.core import Code, Grid, Label, LabelMap, LabelScheme
from medseg.core.labelmap import present_values
from medseg.errors import ConfigError, FormatError, GeometryError, one_of
from medseg.io.dicom_seg_places import placed_blocks
from medseg.io.dicom_seg_reading import Block, SegFile, Segment, open_seg, segments_of
from medseg.io.segment_names import (
    STRICT,
    LabelReading,
    Overlaps,
    Unknown,
    concept_of,
    likely_meant,
    plain_name,
    segment_label,
)

__all__ = [
    "labels_of",
    "read_seg",
    "read_seg_labels",
    "read_segment_scheme",
    "scheme_of",
    "segment_fractions",
    "segment_mask",
]

BoolArray = npt.NDArray[np.bool_]

_ON_GRID_MM = 0.1
_LISTED = 6


def read_segment_scheme(path: Path) -> LabelScheme:
    """The segments of a DICOM SEG as a label scheme, numbered as they are in the file.

    Raises:
        FormatError: ``seg-unreadable``.
    """
    return scheme_of(segments_of(path), str(path))


def scheme_of(segments: Sequence[Segment], where: str) -> LabelScheme:
    """Segments as a label scheme; those that share a name are told apart by their numbers.

    Raises:
        FormatError: ``seg-unreadable`` if a number is no label value.
    """
    often = Counter(segment.name for segment in segments)
    names = {
        one.number: one.name[:64]
        if often[one.name] == 1
        else f"{one.name[:50]} (segment {one.number})"
        for one in segments
    }
    if len(set(names.values())) < len(names):  # names that are equal but for their ends
        names = {number: f"{name[:50]} (segment {number})" for number, name in names.items()}
    try:
        plain = LabelScheme.plain("segments", names)
    except ConfigError as error:
        raise FormatError(
            where,
            expected="segments numbered from 1",
            found="other numbers",
            remedy="give a DICOM Segmentation Storage file",
            code="seg-unreadable",
        ) from error
    codes = {one.number: (one.category, one.concept, one.modifier) for one in segments}
    return LabelScheme(
        "segments",
        tuple(
            Label(label.value, label.name, label.rgb, *codes[label.value]) for label in plain.labels
        ),
    )


def read_seg(path: Path, scheme: LabelScheme, grid: Grid) -> LabelMap:
    """Rebuild a label map from a SEG whose segments are all known and do not overlap.

    As :func:`read_seg_labels` with its defaults, without the notes.
    """
    return read_seg_labels(path, scheme, grid)[0]


def read_seg_labels(
    path: Path,
    scheme: LabelScheme,
    grid: Grid,
    reading: LabelReading = STRICT,
    *,
    where: str = "",
) -> tuple[LabelMap, tuple[str, ...]]:
    """Rebuild a label map from a SEG by where its pixels are in the world.

    Frames may come in any order and be flipped, turned or smaller than the grid; places without a
    frame are background. Segments are matched with labels by label (capitals, spaces and
    underscores do not count), then by coded concept where only one label has it. Several segments
    of one label are taken together.

    Args:
        path: The SEG, of type BINARY, FRACTIONAL or LABELMAP.
        scheme: What its segments mean.
        grid: The grid to rebuild on; the centre of every pixel that holds something must meet that
            of a voxel within 0.1 mm.
        reading: What is refused, left out or settled.
        where: How messages name the file; empty for its path.

    Returns:
        The map, and notes on what was left out, taken together or overlapped.

    Raises:
        FormatError: As :func:`~medseg.io.dicom_seg_reading.open_seg`; ``seg-segment-unknown``,
            ``seg-overlap``; ``seg-hidden`` if a segment lies wholly under others.
        GeometryError: ``seg-frame-differs``; ``seg-grid-differs`` if pixels do not lie on the grid.
    """
    return labels_of(open_seg(path, where), scheme, grid, reading)


def labels_of(
    seg: SegFile,
    scheme: LabelScheme,
    grid: Grid,
    reading: LabelReading = STRICT,
    *,
    tolerance_mm: float = _ON_GRID_MM,
) -> tuple[LabelMap, tuple[str, ...]]:
    """As :func:`read_seg_labels`, of a file that was opened.

    Args:
        seg: As opened by :func:`~medseg.io.dicom_seg_reading.open_seg`.
        scheme: As there.
        grid: As there.
        reading: As there.
        tolerance_mm: How far the centres of pixels and voxels may be apart.
    """
    wanted = reading.frame_of_reference
    if wanted and seg.frame_of_reference not in (None, wanted):
        raise GeometryError(
            seg.where,
            expected="segments in the frame of reference of the image",
            found="another one, whose positions cannot be compared",
            remedy="give the series that was segmented, or register them first",
            code="seg-frame-differs",
        )
    values, notes = _matched(seg, scheme, reading.unknown)
    painter = _Painter(seg, values, grid, reading.threshold, tolerance_mm)
    data_ijk = painter.painted(scheme, reading.overlaps, notes)
    return LabelMap(data_ijk, grid, scheme), tuple(notes)


def segment_mask(seg: SegFile, number: int, grid: Grid, *, threshold: float = 0.5) -> BoolArray:
    """One segment as a mask, whatever it overlaps.

    Args:
        seg: As opened by :func:`~medseg.io.dicom_seg_reading.open_seg`.
        number: Of the segment.
        grid: As for :func:`read_seg_labels`.
        threshold: As there.

    Returns:
        ``(i, j, k)``.

    Raises:
        MedsegError: As :func:`read_seg_labels`; ``seg-segment-unknown`` if there is no such number.
    """
    mask_kji = np.zeros(grid.shape_ijk[::-1], dtype=bool)
    for target, pixels in _of_segment(seg, number, grid, mask_kji):
        inside = pixels == number if seg.kind == "LABELMAP" else pixels >= _least(seg, threshold)
        np.logical_or(target, inside, out=target)
    return mask_kji.transpose(2, 1, 0)


def segment_fractions(seg: SegFile, number: int, grid: Grid) -> npt.NDArray[np.float32]:
    """One segment as fractions from 0 to 1; of another type than FRACTIONAL they are 0 and 1.

    Args and errors are those of :func:`segment_mask`.

    Returns:
        ``(i, j, k)``.
    """
    found_kji = np.zeros(grid.shape_ijk[::-1], dtype=np.float32)
    for target, pixels in _of_segment(seg, number, grid, found_kji):
        if seg.kind == "LABELMAP":
            np.maximum(target, pixels == number, out=target)
        else:
            np.maximum(target, np.minimum(pixels / np.float32(seg.maximum), 1), out=target)
    return found_kji.transpose(2, 1, 0)


def _of_segment(
    seg: SegFile, number: int, grid: Grid, data_kji: npt.NDArray[Any]
) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    if number not in {segment.number for segment in seg.segments}:
        numbers = [str(segment.number) for segment in seg.segments]
        raise FormatError(
            seg.where,
            expected=f"the number of a segment, {one_of(str(number), numbers)}",
            found=str(number),
            remedy="choose one of them",
            code="seg-segment-unknown",
        )
    for block, target in placed_blocks(seg, grid, data_kji, _ON_GRID_MM, [number]):
        yield target, block.pixels


def _least(seg: SegFile, threshold: float) -> float:
    """The least stored value that counts as inside."""
    return threshold * seg.maximum if seg.kind == "FRACTIONAL" else 1


class _Painter:
    """Label values from the frames of a file, onto a grid."""

    def __init__(
        self,
        seg: SegFile,
        values: dict[int, int],
        grid: Grid,
        threshold: float,
        tolerance_mm: float,
    ) -> None:
        self._seg = seg
        self._values = values
        self._grid = grid
        self._least = _least(seg, threshold)
        self._tolerance_mm = tolerance_mm
        self._dtype = np.dtype(np.uint8 if max(values.values(), default=0) < 256 else np.uint16)
        self._lookup = self._lookup_table() if seg.kind == "LABELMAP" else None

    def _lookup_table(self) -> npt.NDArray[Any]:
        """Label value of every value that a pixel of a LABELMAP may have."""
        table = np.zeros(1 << 16, dtype=self._dtype)
        for number, value in self._values.items():
            if 0 <= number < table.size:
                table[number] = value
        return table

    def _label_values(self, block: Block) -> npt.NDArray[Any]:
        """``(rows, columns)`` label values of a block; 0 where it shows nothing."""
        if self._lookup is None:
            value = self._values.get(int(self._seg.frames.segments[block.index]), 0)
            return np.where(block.pixels >= self._least, self._dtype.type(value), 0)
        strangers = set(present_values(block.pixels)) - self._described
        if strangers:
            raise FormatError(
                self._seg.where,
                expected="pixels of segments that the file describes",
                found=f"the number {min(strangers)}",
                remedy="export the segmentation again from its source",
                code="seg-frames",
            )
        found: npt.NDArray[Any] = self._lookup[block.pixels]
        return found

    @property
    def _described(self) -> set[int]:
        return {0, self._seg.background, *(segment.number for segment in self._seg.segments)}

    def _placed(
        self, data_kji: npt.NDArray[Any]
    ) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
        """Label values of every block, and the voxels that it lies on."""
        for block, target in placed_blocks(
            self._seg, self._grid, data_kji, self._tolerance_mm, self._values
        ):
            yield self._label_values(block), target

    def painted(
        self, scheme: LabelScheme, overlaps: Overlaps, notes: list[str]
    ) -> npt.NDArray[Any]:
        """``(i, j, k)`` label values.

        Raises:
            FormatError: ``seg-overlap``, ``seg-hidden``.
        """
        data_kji = np.zeros(self._grid.shape_ijk[::-1], dtype=self._dtype)
        names = {label.value: label.name for label in scheme.labels}
        rank = np.arange(max(names) + 1)
        counts = np.zeros(rank.size, dtype=np.int64)
        if overlaps == "smaller":
            for found, _ in self._placed(data_kji):
                counts += np.bincount(found.ravel(), minlength=rank.size)
            # the fewest last; the higher value where as many
            order = sorted(range(1, rank.size), key=lambda value: (-counts[value], value))
            rank[order] = np.arange(1, rank.size)
        clashes: Counter[tuple[int, int]] = Counter()
        for found, target in self._placed(data_kji):
            clash = (found != 0) & (target != 0) & (target != found)
            if clash.any():
                pairs = np.stack([found[clash], target[clash]]).astype(np.int64)
                higher = rank[pairs[0]] > rank[pairs[1]]
                top, below = np.where(higher, pairs, pairs[::-1])
                if overlaps == "refuse":
                    raise FormatError(
                        self._seg.where,
                        expected="segments that do not overlap, so that one label fits each voxel",
                        found=f"voxels in {names[int(top[0])]!r} and {names[int(below[0])]!r}",
                        remedy="say which shall lie on top, or read one mask for each segment",
                        code="seg-overlap",
                    )
                clashes.update(zip(top.tolist(), below.tolist(), strict=True))
                target[clash] = top
            np.copyto(target, found, where=(found != 0) & (target == 0))
        notes += [
            f"{names[top]} lies on top of {names[below]} in {count} voxels"
            for (top, below), count in sorted(clashes.items())
        ]
        data_ijk = data_kji.transpose(2, 1, 0)
        hidden = clashes and sorted({below for _, below in clashes} - set(present_values(data_kji)))
        if hidden:
            raise FormatError(
                self._seg.where,
                expected="every segment to keep a voxel where they overlap",
                found=f"{names[hidden[0]]!r} wholly under others",
                remedy="leave it or the others out, or read one mask for each segment",
                code="seg-hidden",
            )
        return data_ijk


def _matched(
    seg: SegFile, scheme: LabelScheme, unknown: Unknown
) -> tuple[dict[int, int], list[str]]:
    """Number of each segment to label value, and notes on what was left out or put together."""
    exact = {segment_label(label): label.value for label in scheme.labels}
    alike = {plain_name(segment_label(label)): label.value for label in scheme.labels}
    coded: dict[tuple[str, ...], list[int]] = {}
    for label in scheme.labels:
        key = _code_key(concept_of(label), label.modifier)
        coded.setdefault(key, []).append(label.value)
    values: dict[int, int] = {}
    strangers: list[Segment] = []
    for segment in seg.segments:
        value = exact.get(segment.label) or alike.get(plain_name(segment.label))
        if value is None and segment.concept is not None:
            of_code = coded.get(_code_key(segment.concept, segment.modifier), [])
            value = of_code[0] if len(of_code) == 1 else None
        if value is None:
            strangers.append(segment)
        else:
            values[segment.number] = value
    names = {label.value: label.name for label in scheme.labels}
    lacking = [name for value, name in names.items() if value not in values.values()]
    for segment in strangers:
        if unknown == "refuse" or any(likely_meant(segment.name, name) for name in lacking):
            raise _unknown(seg, segment, scheme)
    if strangers and not values:
        raise _unknown(seg, strangers[0], scheme)
    notes = []
    if strangers:
        listed = ", ".join(segment.name for segment in strangers[:_LISTED])
        more = f" and {len(strangers) - _LISTED} more" if len(strangers) > _LISTED else ""
        notes.append(f"segments that the labels do not list are left out: {listed}{more}")
    for value, count in sorted(Counter(values.values()).items()):
        if count > 1:
            notes.append(f"{count} segments are taken together as {names[value]}")
    return values, notes


def _code_key(concept: Code, modifier: Code | None) -> tuple[str, str, str, str]:
    side = ("", "") if modifier is None else _current(modifier)
    return (*_current(concept), *side)


def _current(code: Code) -> tuple[str, str]:
    """Value and scheme, of SNOMED CT where an older file has the identifier of SNOMED RT."""
    from pydicom.sr.coding import snomed_mapping  # noqa: PLC0415 - loaded where DICOM is read

    if code.scheme == "SRT" and code.value in snomed_mapping["SRT"]:
        return snomed_mapping["SRT"][code.value], "SCT"
    return code.value, code.scheme


def _unknown(seg: SegFile, segment: Segment, scheme: LabelScheme) -> FormatError:
    nearest = one_of(segment.name, [label.name for label in scheme.labels])
    return FormatError(
        seg.where,
        expected=f"segments of the scheme {scheme.name!r}, {nearest}",
        found=f"segment {segment.number} ({segment.name!r}) that it does not list",
        remedy="read it with the label scheme it was made with",
        code="seg-segment-unknown",
    )
