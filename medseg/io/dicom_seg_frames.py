"""The frames of a SEG as they are written: functional groups, then pixels, one frame at a time.

A file of many segments has tens of thousands of frames, whose functional groups differ in four
places only: the image that a frame was derived from, its indices, its position and its segment.
Building each of them as a tree of objects takes longer than all else together, so the parts that
frames share are encoded once, by pydicom, and put together as bytes. Pixels go to the file as they
are made.

Source: DICOM PS3.3 C.7.6.16, C.8.20.3; PS3.5 7.5 (sequences) and 8.1.1 (bits without filling).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import numpy.typing as npt

from medseg.errors import FormatError
from medseg.io.scan import DicomSource

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = [
    "bits_packed",
    "check_length",
    "frame_groups",
    "slice_groups",
    "write_frames",
]

_PER_FRAME = (0x5200, 0x9230)
_FRAME_CONTENT = (0x0020, 0x9111)
_DIMENSION_INDICES = (0x0020, 0x9157)
_PIXEL_DATA = (0x7FE0, 0x0010)
_ITEM = (0xFFFE, 0xE000)
_MOST_BYTES = 0xFFFFFFFE  # PS3.5 7.1.1: an even length of 32 bits, less the one for undefined


def slice_groups(headers: Sequence[Dataset], source: DicomSource) -> list[tuple[bytes, bytes]]:
    """Derivation image and plane position of every slice, encoded.

    Slices that were made up between others are derived from no image of their own.

    Args:
        headers: Of the slices, in the order of the K axis.
        source: Tells frames of multi-frame objects, and slices that were made up.
    """
    from pydicom.dataset import Dataset  # noqa: PLC0415 - only when DICOM is used

    purpose = _code("121322", "Source image for image processing operation")
    derivation = _code("113076", "Segmentation")
    found = []
    for k, header in enumerate(headers):
        group = Dataset()
        images = []
        if k not in source.made_up_k:
            image = Dataset()
            image.ReferencedSOPClassUID = header.SOPClassUID
            image.ReferencedSOPInstanceUID = header.SOPInstanceUID
            if source.frame_numbers is not None:
                image.ReferencedFrameNumber = source.frame_numbers[k]
            image.PurposeOfReferenceCodeSequence = [purpose]
            image.SpatialLocationsPreserved = "YES"
            derived = Dataset()
            derived.SourceImageSequence = [image]
            derived.DerivationCodeSequence = [derivation]
            images = [derived]
        group.DerivationImageSequence = images
        place = Dataset()
        position = Dataset()
        position.ImagePositionPatient = header.ImagePositionPatient
        place.PlanePositionSequence = [position]
        found.append((_encoded(group), _encoded(place)))
    return found


def frame_groups(
    slices: Sequence[tuple[bytes, bytes]], frames: Sequence[tuple[int | None, int]]
) -> bytes:
    """The items of the Per-frame Functional Groups Sequence.

    Convention:
        Dimension indices are those of the segment, where there are segments, and of the position
        among those that occur, both from 1.

    Args:
        slices: As :func:`slice_groups` makes them.
        frames: Segment number (None for a LABELMAP) and slice of every frame.
    """
    from pydicom.dataset import Dataset  # noqa: PLC0415 - only when DICOM is used

    place = {k: number for number, k in enumerate(sorted({k for _, k in frames}), 1)}
    segments: dict[int | None, bytes] = {None: b""}
    for segment in {number for number, _ in frames if number is not None}:
        identification, group = Dataset(), Dataset()
        identification.ReferencedSegmentNumber = segment
        group.SegmentIdentificationSequence = [identification]
        segments[segment] = _encoded(group)
    parts = []
    for number, k in frames:
        indices = (place[k],) if number is None else (number, place[k])
        values = struct.pack(f"<{len(indices)}I", *indices)
        index = struct.pack("<HH2sH", *_DIMENSION_INDICES, b"UL", len(values)) + values
        derivation, position = slices[k]
        content = b"".join(
            (derivation, _sequence(_FRAME_CONTENT, _item(index)), position, segments[number])
        )
        parts.append(_item(content))
    return b"".join(parts)


def check_length(rows: int, columns: int, bits: int, frames: int, where: str) -> int:
    """Bytes of the pixel data, padded to an even number.

    Raises:
        FormatError: ``seg-too-large`` if they are more than one DICOM element may hold.
    """
    length = (rows * columns * bits * frames + 7) // 8
    length += length % 2
    if length > _MOST_BYTES:
        raise FormatError(
            where,
            expected="less than 4 GiB of pixels, as one DICOM element can hold",
            found=f"{length / (1 << 30):.1f} GiB in {frames} frames",
            remedy="leave out empty frames, or write a LABELMAP",
            code="seg-too-large",
        )
    return length


def write_frames(
    stream: BinaryIO, groups: bytes, pixels: Iterable[bytes], length: int, *, words: bool
) -> None:
    """Append functional groups and pixel data to a data set of explicit VR, little endian.

    Args:
        stream: At the end of a data set without these two elements, the last of their order.
        groups: As :func:`frame_groups` makes them.
        pixels: The pixel data, part by part.
        length: Bytes of it, as :func:`check_length` says.
        words: Whether a pixel has 16 bits.
    """
    stream.write(_sequence(_PER_FRAME, groups))
    stream.write(struct.pack("<HH2sHI", *_PIXEL_DATA, b"OW" if words else b"OB", 0, length))
    written = 0
    for part in pixels:
        stream.write(part)
        written += len(part)
    stream.write(bytes(length - written))


def bits_packed(masks: Iterable[npt.NDArray[np.bool_] | None], size: int) -> Iterator[bytes]:
    """Frames of bits, which follow each other without filling.

    Args:
        masks: ``(rows, columns)``, None for a frame without foreground.
        size: Pixels of a frame.
    """
    nothing = bytes(size // 8)
    if size % 8 == 0:
        for mask in masks:
            yield nothing if mask is None else np.packbits(mask, bitorder="little").tobytes()
        return
    rest = np.zeros(0, dtype=bool)
    empty = np.zeros(size, dtype=bool)
    for mask in masks:
        bits = np.concatenate([rest, empty if mask is None else mask.ravel()])
        whole = bits.size - bits.size % 8
        yield np.packbits(bits[:whole], bitorder="little").tobytes()
        rest = bits[whole:]
    yield np.packbits(rest, bitorder="little").tobytes()


def _code(value: str, meaning: str) -> Dataset:
    from pydicom.dataset import Dataset  # noqa: PLC0415 - only when DICOM is used

    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
    return code


def _encoded(dataset: Dataset) -> bytes:
    """A data set as explicit VR, little endian; all sequences with their lengths."""
    from pydicom.filebase import DicomBytesIO  # noqa: PLC0415 - only when DICOM is used
    from pydicom.filewriter import write_dataset  # noqa: PLC0415

    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, dataset)
    return bytes(buffer.getvalue())


def _item(content: bytes) -> bytes:
    return struct.pack("<HHI", *_ITEM, len(content)) + content


def _sequence(tag: tuple[int, int], items: bytes) -> bytes:
    return struct.pack("<HH2sHI", *tag, b"SQ", 0, len(items)) + items
