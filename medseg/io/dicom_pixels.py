"""Stored pixel values of slices, and the step from them to intensities.

Source: DICOM PS3.5 8.1.1 (bits of a pixel cell) and PS3.3 C.11.1 (Modality LUT Module).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medseg.errors import FormatError
from medseg.io.dicom_geometry import number_or

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["rescale_of", "rescaled", "stored_pixels"]


def stored_pixels(dataset: Dataset, where: str, place: int) -> npt.NDArray[Any]:
    """Decode one slice and take its stored bits for what they are.

    Bits above ``BitsStored`` are filled with the sign, or cleared where an overlay lives in them.
    Unsigned values that spill over ``BitsStored`` without an overlay are refused unless they are
    the padding value: clearing the bits would turn them into plausible, wrong intensities.

    Args:
        dataset: One slice with its pixel data.
        where: The folder, for messages.
        place: Place of the file in name order, for messages.

    Returns:
        ``(rows, columns)`` integers.

    Raises:
        FormatError: If the pixel data are missing, truncated, damaged or of an unknown layout.
    """
    file = f"file {place + 1} in name order"
    if "PixelData" not in dataset:
        raise _pixels_error(where, f"no pixel data in {file}", "copy the file again")
    from pydicom.pixels import pixel_array  # noqa: PLC0415 - loaded only where DICOM is read

    try:
        _name_transfer_syntax(dataset)
        data = np.asarray(pixel_array(dataset, correct_unused_bits=False))
    except Exception as error:  # decoders fail in many ways, all of them the file's content
        raise _pixels_error(
            where,
            f"pixel data of {file} that cannot be decoded (damaged or cut off)",
            "copy the series again from its source",
        ) from error
    if data.shape != (int(dataset.Rows), int(dataset.Columns)) or data.dtype.kind not in "iu":
        raise _pixels_error(
            where, f"another layout of pixels in {file}", "convert it to one integer per pixel"
        )
    return _settle_bits(data, dataset, where, file)


def _name_transfer_syntax(dataset: Dataset) -> None:
    """Give a file without that entry the syntax its elements were read with."""
    if "TransferSyntaxUID" not in dataset.file_meta:
        from pydicom.uid import (  # noqa: PLC0415 - pydicom is loaded by the reader already
            ExplicitVRBigEndian,
            ExplicitVRLittleEndian,
            ImplicitVRLittleEndian,
        )

        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


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


def rescale_of(header: Dataset, where: str, place: int) -> tuple[float, float]:
    """Slope and intercept of a slice; 1 and 0 where the tags are absent.

    Raises:
        FormatError: If a tag is not a finite number, the slope is zero, or the slice has a table
            (ModalityLUTSequence) instead.
    """
    if "ModalityLUTSequence" in header:
        raise FormatError(
            where,
            expected="a rescale slope and intercept",
            found=f"a lookup table in file {place + 1} in name order",
            remedy="export the series with RescaleSlope and RescaleIntercept",
            code="dicom-lookup-table",
        )
    slope = number_or(1.0, header, "RescaleSlope", where, place)
    intercept = number_or(0.0, header, "RescaleIntercept", where, place)
    if slope == 0.0:
        raise FormatError(
            where,
            expected="a RescaleSlope (0028,1053) that is not zero",
            found=f"zero in file {place + 1} in name order",
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
    dtype: type[np.generic] = np.float32
    if all(slope.is_integer() and intercept.is_integer() for slope, intercept in rescales):
        bounds = [
            int(extreme) * int(slope) + int(intercept)
            for data, (slope, intercept) in zip(slices, rescales, strict=True)
            for extreme in (data.min(), data.max())
        ]
        for candidate in (np.int16, np.int32):
            limits = np.iinfo(candidate)
            if limits.min <= min(bounds) and max(bounds) <= limits.max:
                dtype = candidate
                break
    volume = np.empty((len(slices), *slices[0].shape), dtype=dtype)
    for index, (data, (slope, intercept)) in enumerate(zip(slices, rescales, strict=True)):
        if dtype is np.float32:
            volume[index] = data.astype(np.float64) * slope + intercept
        else:
            volume[index] = data.astype(np.int64) * int(slope) + int(intercept)
    return volume
