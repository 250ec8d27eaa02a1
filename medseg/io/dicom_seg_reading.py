"""DICOM Segmentation objects of any writer: their segments, where their frames lie, their pixels.

Nothing is assumed of the order of frames, and nothing is held that is not asked for: pixels come
one frame after the other, from where they lie in the file.

Source: DICOM PS3.3 C.8.20 (Segmentation Image and Segmentation Multi-frame Functional Groups).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

import numpy as np
import numpy.typing as npt

from medseg.core import Code
from medseg.errors import FormatError, MedsegError, ResourceError
from medseg.io.dicom_geometry import MOST_PIXELS
from medseg.io.dicom_headers import check_deflated
from medseg.io.dicom_quiet import quiet_dicom
from medseg.io.dicom_seg_groups import (
    Frames,
    Reference,
    incomplete,
    read_frames,
    read_references,
)
from medseg.io.segment_names import code_of

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = [
    "LABELMAP_CLASS",
    "SEG_CLASS",
    "Block",
    "SegFile",
    "SegType",
    "Segment",
    "background_of",
    "open_seg",
    "segments_of",
]

SegType = Literal["BINARY", "FRACTIONAL", "LABELMAP"]
"""Segmentation Type (0062,0001): a bit, a fraction, or the number of its segment for each pixel."""

SEG_CLASS = "1.2.840.10008.5.1.4.1.1.66.4"
LABELMAP_CLASS = "1.2.840.10008.5.1.4.1.1.66.7"
"""SOP classes: Segmentation Storage, and Label Map Segmentation Storage of 2024."""

_DEFLATED = "1.2.840.10008.1.2.1.99"
_BACKGROUND = ("125040", "DCM")
_MOST_UNPACKED = 1 << 30
_UNDEFINED = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Segment:
    """What one segment of a file says of itself.

    Args:
        number: Its number; of a LABELMAP the value of its pixels.
        label: Its label, empty where it has none.
        category: Coded category.
        concept: Coded type.
        modifier: Modifier of the type, such as a side.
    """

    number: int
    label: str
    category: Code | None = None
    concept: Code | None = None
    modifier: Code | None = None

    @property
    def name(self) -> str:
        """Its label, or its number where it has none."""
        return self.label or f"segment {self.number}"


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """The part of a frame that shows something.

    Args:
        index: The frame, from 0.
        first_row: Of the frame.
        first_column: Of the frame.
        pixels: ``(rows, columns)`` as stored: 0 and 1, fractions, or numbers of segments.
    """

    index: int
    first_row: int
    first_column: int
    pixels: npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class SegFile:
    """A segmentation that was looked into; its pixels are read by :meth:`blocks`.

    Args:
        path: The file.
        where: How messages name it.
        kind: BINARY, FRACTIONAL or LABELMAP.
        segments: In the order of the file, the background of a LABELMAP left out.
        background: Value of the pixels of a LABELMAP that belong to no segment.
        frames: Of which there is at least one.
        rows: Pixels in a column of every frame.
        columns: Pixels in a row.
        maximum: Stored value of the fraction 1; 1 but for FRACTIONAL.
        frame_of_reference: UID; None where the file has none.
        slice_step_mm: Distance between slices, as the file says; None where it does not.
    """

    path: Path
    where: str
    kind: SegType
    segments: tuple[Segment, ...]
    background: int
    frames: Frames
    rows: int
    columns: int
    maximum: int
    frame_of_reference: str | None
    slice_step_mm: float | None
    _dataset: Dataset
    _pixel_offset: int

    def blocks(self, frames: Sequence[int] | None = None) -> Iterator[Block]:
        """The frames that hold anything, in the order of the file.

        Args:
            frames: Those that are wanted, from 0 and rising; None for all.

        Raises:
            FormatError: ``seg-unreadable`` if pixels are missing, or cannot be decoded.
            ResourceError: ``input-unreadable``.
        """
        try:
            with quiet_dicom():
                yield from self._blocks(
                    range(len(self.frames.segments)) if frames is None else frames
                )
        except MedsegError:
            raise
        except OSError as error:
            raise _cannot_read(self.where) from error
        except BaseException as error:
            # decoders fail in many ways; a panic of one in Rust is no Exception
            foreign = type(error).__module__ == "pyo3_runtime"
            if not (isinstance(error, Exception) or foreign) or isinstance(error, MemoryError):
                raise
            raise self._damaged("pixel data that cannot be decoded") from error

    def references(self) -> list[tuple[Reference, ...]]:
        """The images that each frame says it was derived from.

        Raises:
            FormatError: ``seg-frames`` if that cannot be read.
        """
        return read_references(self._dataset, self.where)

    def _blocks(self, wanted: Sequence[int]) -> Iterator[Block]:
        syntax = self._dataset.file_meta.TransferSyntaxUID
        if syntax.is_encapsulated:
            yield from self._decoded(wanted)
            return
        count, size = len(self.frames.segments), self.rows * self.columns
        bits = int(self._dataset.BitsAllocated)
        least = (count * size * bits + 7) // 8
        implicit = bool(self._dataset.original_encoding[0])
        with _opened(self.path, self.where) as stream:
            if syntax == _DEFLATED:
                from pydicom import dcmread  # noqa: PLC0415 - loaded by whoever opened the file

                stream = io.BytesIO(dcmread(stream).get("PixelData") or b"")  # noqa: PLW2901
                begin, found = 0, stream.getbuffer().nbytes
            else:
                begin, found = _value_of_pixels(stream, self._pixel_offset, implicit=implicit)

            def take(start: int, stop: int) -> bytes:
                stream.seek(begin + start)
                return cast(bytes, stream.read(stop - start))

            if found < least:
                raise self._damaged(f"{found} bytes of pixel data")
            if bits == 1:
                yield from self._bits(wanted, size, take)
            else:
                dtype = np.dtype(f"<u{bits // 8}")
                for index in wanted:
                    part = take(index * size * dtype.itemsize, (index + 1) * size * dtype.itemsize)
                    yield from self._block(index, np.frombuffer(part, dtype))

    def _bits(
        self, wanted: Sequence[int], size: int, take: Callable[[int, int], bytes]
    ) -> Iterator[Block]:
        """Frames of bits, which follow each other without filling (PS3.5 8.1.1)."""
        width = self.columns // 8
        for index in wanted:
            start, stop = index * size, (index + 1) * size
            packed = np.frombuffer(take(start // 8, (stop + 7) // 8), np.uint8)
            if self.columns % 8 or start % 8:
                bits = np.unpackbits(packed, bitorder="little")
                yield from self._block(index, bits[start % 8 : start % 8 + size])
                continue
            rows = np.flatnonzero(packed.reshape(self.rows, width).any(axis=1))
            if rows.size:  # most frames of most segments show nothing, or little
                first, last = int(rows[0]), int(rows[-1]) + 1
                bits = np.unpackbits(packed[first * width : last * width], bitorder="little")
                yield from self._block(index, bits, first)

    def _decoded(self, wanted: Sequence[int]) -> Iterator[Block]:
        from pydicom import dcmread  # noqa: PLC0415 - loaded by whoever opened the file
        from pydicom.pixels import iter_pixels  # noqa: PLC0415

        with _opened(self.path, self.where) as stream:
            dataset = dcmread(stream)
        found, asked = 0, set(wanted)
        for index, pixels in enumerate(iter_pixels(dataset, raw=True)):
            if pixels.shape != (self.rows, self.columns) or pixels.dtype.kind != "u":
                raise self._damaged("frames of another layout")
            found += 1
            if index in asked:
                yield from self._block(index, pixels)
        if found != len(self.frames.segments):
            raise self._damaged(f"{found} frames of pixel data")

    def _block(self, index: int, flat: npt.NDArray[Any], first_row: int = 0) -> Iterator[Block]:
        pixels = flat.reshape(-1, self.columns)
        held = pixels != self.background if self.background else pixels
        rows = np.flatnonzero(held.any(axis=1))
        if rows.size:
            top, below = int(rows[0]), int(rows[-1]) + 1
            columns = np.flatnonzero(held[top:below].any(axis=0))
            left, right = int(columns[0]), int(columns[-1]) + 1
            yield Block(index, first_row + top, left, pixels[top:below, left:right])

    def _damaged(self, found: str) -> FormatError:
        return FormatError(
            self.where,
            expected=f"{len(self.frames.segments)} frames of {self.rows * self.columns} pixels",
            found=found,
            remedy="copy the file again from its source",
            code="seg-unreadable",
        )


def open_seg(path: Path, where: str = "") -> SegFile:
    """Look into a DICOM SEG; pixels are not read yet.

    Args:
        path: The file.
        where: How messages name it; empty for its path.

    Raises:
        FormatError: ``seg-unreadable`` if it is damaged, ``seg-type`` if it is another object or of
            a layout that is not known, ``seg-frames`` if a frame lacks its place or its segment.
        ResourceError: ``input-unreadable``.
    """
    where = where or str(path)
    with quiet_dicom():
        dataset, offset = _header(path, where)
        try:
            return _described(path, where, dataset, offset)
        except (MedsegError, MemoryError):
            raise
        except Exception as error:  # whatever a damaged element makes pydicom raise
            raise _unreadable(where) from error


def segments_of(path: Path, where: str = "") -> tuple[Segment, ...]:
    """The segments of a file alone, which is enough to tell what it is about.

    Raises:
        FormatError: ``seg-unreadable``.
        ResourceError: ``input-unreadable``.
    """
    where = where or str(path)
    with quiet_dicom():
        dataset, _ = _header(path, where)
        try:
            return _segments(dataset, background_of(dataset))
        except Exception as error:  # as above
            raise _unreadable(where) from error


def _header(path: Path, where: str) -> tuple[Dataset, int]:
    from pydicom import dcmread  # noqa: PLC0415 - loaded only where DICOM is read

    try:
        with path.open("rb") as stream:
            beginning = stream.read(1024)
            if _DEFLATED.encode() in beginning:
                stream.seek(0)
                check_deflated(stream, _MOST_UNPACKED)
            stream.seek(0)
            dataset = dcmread(stream, stop_before_pixels=True)
            str(dataset.SOPClassUID)
            return dataset, stream.tell()
    except PermissionError as error:
        raise _cannot_read(where) from error
    except Exception as error:  # whatever a damaged or foreign file makes pydicom raise
        raise _unreadable(where) from error


def _opened(path: Path, where: str) -> Any:  # noqa: ANN401 - a file
    try:
        return path.open("rb")
    except OSError as error:
        raise _cannot_read(where) from error


def _value_of_pixels(stream: BinaryIO, offset: int, *, implicit: bool) -> tuple[int, int]:
    """Where the value of the element of pixel data begins, and how many of its bytes there are."""
    end = stream.seek(0, io.SEEK_END)
    stream.seek(offset)
    head = stream.read(8 if implicit else 12)
    if head[:4] != b"\xe0\x7f\x10\x00" or not (implicit or head[4:6] in (b"OB", b"OW")):
        return offset, 0
    begin, length = offset + len(head), int.from_bytes(head[-4:], "little")
    return begin, max(0, min(end - begin, 0 if length == _UNDEFINED else length))


def _unreadable(where: str) -> FormatError:
    return FormatError(
        where,
        expected="a DICOM SEG",
        found="a file that is missing, damaged or no DICOM",
        remedy="give a DICOM Segmentation Storage file",
        code="seg-unreadable",
    )


def _cannot_read(where: str) -> ResourceError:
    return ResourceError(
        where,
        expected="a file that can be read",
        found="one that cannot",
        remedy="check its permissions, and that its disk is there",
        code="input-unreadable",
    )


def _described(path: Path, where: str, dataset: Dataset, offset: int) -> SegFile:
    kind, maximum = _checked_type(dataset, where)
    background = background_of(dataset)
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if min(rows, columns) < 1 or rows * columns > MOST_PIXELS:
        raise FormatError(
            where,
            expected=f"frames of 1 to {MOST_PIXELS} pixels",
            found=f"{rows} x {columns}",
            remedy="export the segmentation again from its source",
            code="seg-unreadable",
        )
    frames, step = read_frames(dataset, where, of_segments=kind != "LABELMAP")
    segments = _segments(dataset, background if kind == "LABELMAP" else None)
    known = {segment.number for segment in segments}
    if kind != "LABELMAP" and not set(frames.segments.tolist()) <= known:
        raise incomplete(where, "a frame of a segment that the file does not describe")
    reference = str(dataset.get("FrameOfReferenceUID") or "")
    return SegFile(
        path,
        where,
        kind,
        segments,
        background if kind == "LABELMAP" and background is not None else 0,
        frames,
        rows,
        columns,
        maximum,
        reference or None,
        step,
        dataset,
        offset,
    )


def _checked_type(dataset: Dataset, where: str) -> tuple[SegType, int]:
    """The type of a segmentation whose pixels can be read, and its maximum."""
    class_uid, kind = str(dataset.SOPClassUID), str(dataset.get("SegmentationType"))
    bits = int(dataset.get("BitsAllocated") or 0)
    found = ""
    if class_uid not in (SEG_CLASS, LABELMAP_CLASS):
        found = "another DICOM object"
    elif kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        found = "no known type"
    elif not dataset.file_meta.TransferSyntaxUID.is_little_endian:
        found = "big-endian pixels"
    elif bits not in {"BINARY": (1, 8), "FRACTIONAL": (8, 16), "LABELMAP": (8, 16)}[kind]:
        found = f"type {kind} in {bits} bits"
    elif int(dataset.get("SamplesPerPixel", 1)) != 1 or dataset.get("PixelRepresentation", 0) != 0:
        found = "pixels that are not one unsigned number each"
    if found:
        raise FormatError(
            where,
            expected="a DICOM SEG of type BINARY, FRACTIONAL or LABELMAP",
            found=found,
            remedy="convert it to a BINARY segmentation first",
            code="seg-type",
        )
    maximum = int(dataset.get("MaximumFractionalValue") or 255) if kind == "FRACTIONAL" else 1
    return cast(SegType, kind), maximum


def background_of(dataset: Dataset) -> int | None:
    """The value of a LABELMAP that stands for no segment; None if it names none but 0."""
    if str(dataset.get("SegmentationType")) != "LABELMAP":
        return None
    if dataset.get("PixelPaddingValue") is not None:
        return int(dataset.PixelPaddingValue)
    for item in dataset.SegmentSequence:
        concept = code_of(item.get("SegmentedPropertyTypeCodeSequence"))
        if concept is not None and (concept.value, concept.scheme) == _BACKGROUND:
            return int(item.SegmentNumber)
    return None


def _segments(dataset: Dataset, background: int | None) -> tuple[Segment, ...]:
    found = []
    for item in dataset.SegmentSequence:
        number = int(item.SegmentNumber)
        if number == background:
            continue
        concepts = item.get("SegmentedPropertyTypeCodeSequence") or []
        found.append(
            Segment(
                number,
                str(item.get("SegmentLabel") or "").strip(),
                code_of(item.get("SegmentedPropertyCategoryCodeSequence")),
                code_of(concepts),
                code_of(concepts[0].get("SegmentedPropertyTypeModifierCodeSequence"))
                if concepts
                else None,
            )
        )
    if len({segment.number for segment in found}) < len(found) or not found:
        raise ValueError(len(found))
    return tuple(found)
