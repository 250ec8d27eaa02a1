"""Stored pixel values of slices, and the step from them to intensities.

Source: DICOM PS3.5 8.1.1 (bits of a pixel cell) and PS3.3 C.11.1 (Modality LUT Module).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medseg.errors import FormatError, MedsegError
from medseg.io.dicom_decoding import HOLDING_THE_LOCK, Decoders, Undecodable, decode_frames
from medseg.io.dicom_geometry import number_or
from medseg.io.dicom_headers import Header

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["holds_the_lock", "read_pixels", "rescale_of", "rescaled"]

_PLAIN_SYNTAXES = ("", "1.2.840.10008.1.2", "1.2.840.10008.1.2.1")
_UNDEFINED = 0xFFFFFFFF


def read_pixels(
    header: Header,
    indices: Sequence[int],
    where: str,
    names: Sequence[str],
    decoders: Decoders | None = None,
) -> list[npt.NDArray[Any]]:
    """Decode frames of one file and take their stored bits for what they are.

    Bits above ``BitsStored`` are filled with the sign, or cleared where an overlay lives in them.
    Unsigned values that spill over ``BitsStored`` without an overlay are refused unless they are
    the padding value: clearing the bits would turn them into plausible, wrong intensities.

    Args:
        header: The file.
        indices: Frames wanted, from 0.
        where: The study, for messages.
        names: How messages name each frame.
        decoders: Processes that decode what keeps threads waiting; None to decode it here.

    Returns:
        ``(rows, columns)`` integers for each frame.

    Raises:
        FormatError: ``dicom-pixels`` if the pixel data are missing, truncated, damaged or of an
            unknown layout.
        ResourceError: ``input-unreadable``.
    """
    try:
        frames = _plain(header, indices, where)
        if frames is None:
            frames = _decoded(header, indices, where, names, decoders)
        return [
            _settle_bits(frame, header.dataset, where, name)
            for frame, name in zip(frames, names, strict=True)
        ]
    except (MedsegError, MemoryError):
        raise
    except Exception as error:  # an element that cannot be decoded fails in many ways
        raise _pixels_error(
            where,
            f"rows, columns or bits that are no numbers in {header.file.name}",
            "export the series again from its archive",
        ) from error


def _plain(header: Header, indices: Sequence[int], where: str) -> list[npt.NDArray[Any]] | None:
    """Frames of uncompressed little-endian pixels, taken from where they lie in the file.

    None where they are compressed, or anything is unusual: pydicom then tells what it is.
    """
    dataset = header.dataset
    syntax = str(dataset.file_meta.get("TransferSyntaxUID") or "")
    implicit, little = dataset.original_encoding
    allocated = dataset.get("BitsAllocated")
    signed = dataset.get("PixelRepresentation")
    if (
        header.pixel_offset < 0
        or syntax not in _PLAIN_SYNTAXES
        or not little
        or allocated not in (8, 16, 32)
        or signed not in (0, 1)
        or not isinstance(dataset.get("Rows"), int)
        or not isinstance(dataset.get("Columns"), int)
    ):
        return None
    dtype = np.dtype(f"<{'i' if signed else 'u'}{allocated // 8}")
    shape = (int(dataset.Rows), int(dataset.Columns))
    size = shape[0] * shape[1]
    with header.file.opened(where) as stream:
        end = stream.seek(0, io.SEEK_END)
        stream.seek(header.pixel_offset)
        head = stream.read(8 if implicit else 12)
        if len(head) < 8 or not (implicit or head[4:6] in (b"OB", b"OW")):
            return None
        length = int.from_bytes(head[-4:], "little")
        if length == _UNDEFINED or length < size * (max(indices) + 1) * dtype.itemsize:
            return None
        start = header.pixel_offset + len(head)
        if end < start + size * (max(indices) + 1) * dtype.itemsize:
            return None
        frames = []
        for index in indices:
            stream.seek(start + index * size * dtype.itemsize)
            content = stream.read(size * dtype.itemsize)
            if len(content) < size * dtype.itemsize:
                return None
            frames.append(np.frombuffer(content, dtype=dtype).reshape(shape))
    return frames


def _decoded(
    header: Header,
    indices: Sequence[int],
    where: str,
    names: Sequence[str],
    decoders: Decoders | None,
) -> list[npt.NDArray[Any]]:
    file = header.file
    shape = (int(header.dataset.get("Rows") or 0), int(header.dataset.get("Columns") or 0))
    try:
        if decoders is None or not holds_the_lock(header):
            with file.opened(where) as stream:
                return decode_frames(stream, shape, indices)
        with file.opened(where) as stream:
            content = file.path if file.archive is None else stream.read()
            return decoders.decode(content, shape, indices)
    except Undecodable as error:
        found, remedy = {
            "file": (f"{file.name} cut off or damaged", "copy the series again from its source"),
            "missing": (f"no pixel data in {file.name}", "copy the file again"),
            "pixels": (
                f"pixel data of {names[error.position]} that cannot be decoded (damaged or cut "
                "off)",
                "copy the series again from its source",
            ),
            "layout": (
                f"another layout of pixels in {names[error.position]}",
                "convert it to one integer per pixel",
            ),
        }[error.why]
        raise _pixels_error(where, found, remedy) from error


def holds_the_lock(header: Header) -> bool:
    """Whether the decoder of a file lets no other thread work meanwhile."""
    return str(header.dataset.file_meta.get("TransferSyntaxUID") or "") in HOLDING_THE_LOCK


def _settle_bits(
    data: npt.NDArray[Any], dataset: Dataset, where: str, file: str
) -> npt.NDArray[Any]:
    allocated = 8 * data.dtype.itemsize
    stored = int(dataset.get("BitsStored") or allocated)
    high = int(dataset.get("HighBit", stored - 1))
    if not 1 <= stored <= allocated or high != stored - 1:
        raise _pixels_error(
            where,
            f"{stored} bits with the highest at {high} in {file}",
            "export the series again with right-aligned pixels",
        )
    spare = allocated - stored
    if spare == 0:
        return data
    if data.dtype.kind == "u" and int(data.max()) < 1 << stored:
        return data
    # Shifting up and down fills the spare bits with the sign, or with zeros if unsigned.
    settled: npt.NDArray[Any] = np.right_shift(np.left_shift(data, spare), spare)
    if data.dtype.kind == "i":
        return settled
    spilling = settled != data
    if not spilling.any() or _overlay_in_pixels(dataset):
        return settled
    padding = dataset.get("PixelPaddingValue")
    if padding is not None and (data[spilling] == int(padding) % (1 << allocated)).all():
        return data
    raise _pixels_error(
        where,
        f"values above {stored} bits in {file}",
        "export the series again from its archive",
    )


def _overlay_in_pixels(dataset: Dataset) -> bool:
    """Whether a retired overlay lives in spare bits: OverlayBitPosition (60xx,0102) above zero."""
    for group in range(0x6000, 0x6020, 2):
        element = dataset.get((group, 0x0102))
        if element is not None and int(element.value or 0) > 0:
            return True
    return False


def _pixels_error(where: str, found: str, remedy: str) -> FormatError:
    return FormatError(
        where,
        expected="complete pixel data, one integer of 8, 16 or 32 bits per pixel",
        found=found,
        remedy=remedy,
        code="dicom-pixels",
    )


def rescale_of(header: Dataset, where: str, name: str) -> tuple[float, float]:
    """Slope and intercept of a slice; 1 and 0 where the tags are absent.

    Raises:
        FormatError: If a tag is not a finite number, the slope is zero, or the slice has a table
            (ModalityLUTSequence) instead.
    """
    if "ModalityLUTSequence" in header:
        raise FormatError(
            where,
            expected="a rescale slope and intercept",
            found=f"a lookup table in {name}",
            remedy="export the series with RescaleSlope and RescaleIntercept",
            code="dicom-lookup-table",
        )
    slope = number_or(1.0, header, "RescaleSlope", where, name)
    intercept = number_or(0.0, header, "RescaleIntercept", where, name)
    if slope == 0.0:
        raise FormatError(
            where,
            expected="a RescaleSlope (0028,1053) that is not zero",
            found=f"zero in {name}",
            remedy="export the series again from its archive",
            code="dicom-tag-invalid",
        )
    return slope, intercept


def rescaled(
    slices: Sequence[npt.NDArray[Any]], rescales: Sequence[tuple[float, float]]
) -> npt.NDArray[Any]:
    """Apply each slice's own slope and intercept.

    Args:
        slices: ``(rows, columns)`` stored integers per slice.
        rescales: ``(slope, intercept)`` per slice.

    Returns:
        ``(slices, rows, columns)``; int16, or else int32, where every slope and intercept is an
        integer and all values fit, otherwise float32 (computed in float64).
    """
    dtype = _rescaled_type(slices, rescales)
    volume = np.empty((len(slices), *slices[0].shape), dtype=dtype)
    for index, (data, (slope, intercept)) in enumerate(zip(slices, rescales, strict=True)):
        target = volume[index]
        if dtype == np.float32:
            target[...] = data.astype(np.float64) * slope + intercept
            continue
        # The results fit the type, so that wrapping on the way to them does no harm.
        target[...] = data.astype(dtype, copy=False)
        if slope != 1:
            target *= np.int64(int(slope)).astype(dtype)
        if intercept != 0:
            target += np.int64(int(intercept)).astype(dtype)
    return volume


def _rescaled_type(
    slices: Sequence[npt.NDArray[Any]], rescales: Sequence[tuple[float, float]]
) -> np.dtype[Any]:
    whole = all(slope.is_integer() and intercept.is_integer() for slope, intercept in rescales)
    if whole and all(max(abs(slope), abs(offset)) < 2**62 for slope, offset in rescales):
        bounds = [
            int(extreme) * int(slope) + int(intercept)
            for data, (slope, intercept) in zip(slices, rescales, strict=True)
            for extreme in (data.min(), data.max())
        ]
        for candidate in (np.int16, np.int32):
            limits = np.iinfo(candidate)
            if limits.min <= min(bounds) and max(bounds) <= limits.max:
                return np.dtype(candidate)
    return np.dtype(np.float32)
