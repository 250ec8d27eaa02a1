"""One classic CT or MR series in a folder, read or refused.

What cannot be read rightly yet (enhanced multi-frame objects, mosaics, several series, 4-D series,
tilted or gapped stacks) is refused with its own code, never read half rightly.

Padding voxels (PixelPaddingValue) keep the value that is stored, rescaled like any other, as
dcm2niix leaves them too; on CT they lie far below air. A note says that the series declares one.

Messages name a file by its place in the order of names, since file names are often made of
identifiers or of the patient's name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medseg.core import Grid, Volume
from medseg.errors import FormatError, GeometryError, ResourceError
from medseg.io.dicom_geometry import number_or, stack_slices
from medseg.io.dicom_identity import empty_identity, missing_references
from medseg.io.dicom_pixels import rescale_of, rescaled, stored_pixels
from medseg.io.dicom_quiet import quiet_dicom
from medseg.io.scan import DicomSource, Scan

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["RAS_FROM_LPS", "read_dicom_series"]

# DICOM counts x to the patient's left and y to the back; its inverse is itself.
RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

_MODALITIES = ("CT", "MR")
_MULTIFRAME_CLASSES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.2.1",  # Enhanced CT
        "1.2.840.10008.5.1.4.1.1.2.2",  # Legacy Converted Enhanced CT
        "1.2.840.10008.5.1.4.1.1.4.1",  # Enhanced MR
        "1.2.840.10008.5.1.4.1.1.4.3",  # Enhanced MR Color
        "1.2.840.10008.5.1.4.1.1.4.4",  # Legacy Converted Enhanced MR
    }
)
# Objects with rows and columns that are made from images rather than acquired.
_DERIVED_MODALITIES = frozenset({"SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "SR", "PR", "KO", "REG"})
_MAX_LISTED = 8
_LOOKED_AT = (
    "BitsStored",
    "FrameOfReferenceUID",
    "HighBit",
    "ImageType",
    "LossyImageCompression",
    "Modality",
    "PhotometricInterpretation",
    "PixelPaddingValue",
    "SeriesInstanceUID",
    "SOPClassUID",
)
# A data set without a preamble begins with group 0002 or 0008, in either byte order.
_BARE_BEGINNINGS = (b"\x08\x00", b"\x02\x00", b"\x00\x08")


@dataclass(frozen=True, slots=True, eq=False)
class _File:
    """A DICOM image file: where it is, its place in name order, its header."""

    path: Path
    place: int
    header: Dataset


def read_dicom_series(folder: Path) -> Scan:
    """Read the one CT or MR series in a folder and its sub-folders.

    Convention:
        Voxel axes are I = column index, J = row index, K = slice along the normal row x column
        (right-handed). Slices are ordered by position alone; names and instance numbers do not
        matter. The affine is turned from LPS to RAS here. See
        :func:`medseg.io.dicom_geometry.stack_slices` for tolerances.

    Args:
        folder: Files of any name and order; files that are not DICOM are passed over, DICOM objects
            without an image (reports, segmentations, structure sets, directories) are noted.

    Returns:
        One channel ``image``: int16 or int32 where rescaling keeps integers, else float32.

    Raises:
        FormatError: If the folder has no image, several series, an unsupported kind of image, a
            missing tag, or damaged files.
        GeometryError: If the slices do not make one regular stack.
        ResourceError: If a file cannot be opened.
    """
    where = str(folder)
    if not folder.is_dir():
        raise FormatError(
            where,
            expected="a folder with one DICOM series",
            found="a file" if folder.exists() else "nothing of that name",
            remedy="give the folder that holds the slices",
            code="not-a-folder" if folder.exists() else "file-missing",
        )
    with quiet_dicom():
        files, ignored = _find_images(folder, where)
        _check_one_series(files, where)
        for file in files:
            _check_kind(file, where)
        headers = [file.header for file in files]
        _check_one_frame_of_reference(headers, where)
        stack = stack_slices(headers, where)
        ordered = [files[index] for index in stack.order]
        rescales = [rescale_of(file.header, where, file.place) for file in ordered]
        slices = [_read_pixels(file, where) for file in ordered]
        data_kji = rescaled(slices, rescales)
        notes = (*_ignored_note(ignored), *stack.notes, *_image_notes(headers))
    data_ijk = data_kji.transpose(2, 1, 0)
    grid = Grid(data_ijk.shape, RAS_FROM_LPS @ stack.affine_lps)
    source = DicomSource(folder, tuple(file.header for file in ordered), stack.affine_lps)
    return Scan(Volume(data_ijk[None], grid), source, notes)


def _find_images(folder: Path, where: str) -> tuple[list[_File], Counter[str]]:
    """Image headers in name order, and how many objects of other kinds there are."""
    images: list[_File] = []
    ignored: Counter[str] = Counter()
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for place, path in enumerate(paths):
        header = _read_header(path, where, place)
        if header is None:
            continue
        kind = _derived_kind(header)
        if kind:
            ignored[kind] += 1
        else:
            images.append(_File(path, place, header))
    if not images:
        others = ", ".join(f"{count} {kind}" for kind, count in sorted(ignored.items()))
        raise FormatError(
            where,
            expected="a folder with the slices of one CT or MR series",
            found=f"no DICOM image among {len(paths)} file{'' if len(paths) == 1 else 's'}"
            + (f" (but {others})" if others else ""),
            remedy="give the folder that holds the slices",
            code="no-images",
        )
    return images, ignored


def _read_header(path: Path, where: str, place: int) -> Dataset | None:
    """The header of a DICOM file, None for any other file."""
    from pydicom import dcmread  # noqa: PLC0415 - loaded only where DICOM is read

    try:
        with path.open("rb") as stream:
            beginning = stream.read(132)
        marked = beginning[128:] == b"DICM"
        if not marked and not beginning.startswith(_BARE_BEGINNINGS):
            return None
        header = dcmread(path, stop_before_pixels=True, force=not marked)
        for keyword in _LOOKED_AT:  # elements are decoded, and may fail, only when looked at
            header.get(keyword)
        class_uid = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
    except OSError as error:
        raise ResourceError(
            where,
            expected="files that can be opened",
            found=f"file {place + 1} in name order: {error.strerror or type(error).__name__}",
            remedy="check the permissions and the disk",
            code="input-unreadable",
        ) from error
    except Exception as error:  # a damaged header fails in many ways
        if not marked:
            return None
        raise _unreadable(where, place) from error
    if class_uid:
        return header
    if marked:
        raise _unreadable(where, place)
    return None


def _unreadable(where: str, place: int) -> FormatError:
    return FormatError(
        where,
        expected="whole DICOM files",
        found=f"file {place + 1} in name order cut off or damaged in its header",
        remedy="copy the series again from its source",
        code="dicom-unreadable",
    )


def _derived_kind(header: Dataset) -> str:
    """A short name of what an object is if it is no acquired image, else nothing."""
    class_uid = str(header.get("SOPClassUID") or header.file_meta.MediaStorageSOPClassUID)
    if class_uid == "1.2.840.10008.1.3.10":
        return "DICOMDIR"
    modality = str(header.get("Modality") or "")
    if modality in _DERIVED_MODALITIES:
        return modality
    if "Rows" not in header and modality not in _MODALITIES:
        return modality or "object without image"
    return ""


def _ignored_note(ignored: Counter[str]) -> tuple[str, ...]:
    if not ignored:
        return ()
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(ignored.items()))
    return (f"passed over DICOM objects that are not images: {listed}",)


def _check_one_series(files: Sequence[_File], where: str) -> None:
    series: dict[str, list[Dataset]] = {}
    for file in files:
        uid = str(file.header.get("SeriesInstanceUID") or "")  # anonymisers may empty it
        series.setdefault(uid, []).append(file.header)
    if len(series) == 1:
        return
    # The description is left out: operators write names and findings into it.
    listed = [
        f"{headers[0].get('Modality') or 'unknown'} of {len(headers)} "
        f"{'file' if len(headers) == 1 else 'files'} (series {_series_number(headers[0])})"
        for headers in series.values()
    ]
    more = f" and {len(listed) - _MAX_LISTED} more" if len(listed) > _MAX_LISTED else ""
    raise FormatError(
        where,
        expected="one series",
        found=f"{len(listed)} series: {', '.join(listed[:_MAX_LISTED])}{more}",
        remedy="give a folder that holds one series",
        code="series-ambiguous",
    )


def _series_number(header: Dataset) -> str:
    try:
        return str(int(header.SeriesNumber))
    except Exception:  # absent or not a number
        return "without number"


def _check_kind(file: _File, where: str) -> None:
    """Refuse what is not a classic grey CT or MR slice."""
    header = file.header
    modality = str(header.get("Modality") or "none")
    if modality not in _MODALITIES:
        raise FormatError(
            where,
            expected="a CT or MR series",
            found=f"modality {modality}",
            remedy="give a CT or MR series, or convert this one to NIfTI",
            code="dicom-modality",
        )
    frames = int(number_or(1, header, "NumberOfFrames", where, file.place))
    if (
        frames > 1
        or str(header.get("SOPClassUID")) in _MULTIFRAME_CLASSES
        or "SharedFunctionalGroupsSequence" in header
    ):
        raise FormatError(
            where,
            expected="classic DICOM with one slice per file",
            found=f"an enhanced or multi-frame object of {frames} frames",
            remedy="convert it to NIfTI with dcm2niix and give that",
            code="dicom-multiframe",
        )
    image_type = [str(item).upper() for item in np.atleast_1d(header.get("ImageType") or [])]
    if "MOSAIC" in image_type:
        raise FormatError(
            where,
            expected="one slice per file",
            found="a Siemens mosaic, which tiles a whole volume into one picture",
            remedy="convert it to NIfTI with dcm2niix and give that",
            code="dicom-mosaic",
        )
    photometric = str(header.get("PhotometricInterpretation") or "MONOCHROME2")
    samples = int(number_or(1, header, "SamplesPerPixel", where, file.place))
    if samples != 1 or not photometric.startswith("MONOCHROME"):
        raise FormatError(
            where,
            expected="grey images with one number per pixel",
            found=f"a colour image ({photometric}, {samples} samples per pixel)",
            remedy="give the original series instead of a colour-coded one",
            code="dicom-colour",
        )


def _check_one_frame_of_reference(headers: Sequence[Dataset], where: str) -> None:
    frames = {str(header.get("FrameOfReferenceUID") or "") for header in headers}
    if len(frames) > 1:
        raise GeometryError(
            where,
            expected="one frame of reference for all slices",
            found=f"{len(frames)} of them, whose positions cannot be compared",
            remedy="separate the slices by frame of reference and read one at a time",
            code="slice-frame",
        )


def _read_pixels(file: _File, where: str) -> np.ndarray:
    from pydicom import dcmread  # noqa: PLC0415

    try:
        dataset = dcmread(file.path, force=True)
    except Exception as error:  # the header was fine, so that it is the rest of the file
        raise FormatError(
            where,
            expected="complete pixel data",
            found=f"file {file.place + 1} in name order cut off or damaged",
            remedy="copy the series again from its source",
            code="dicom-pixels",
        ) from error
    return stored_pixels(dataset, where, file.place)


def _image_notes(headers: Sequence[Dataset]) -> tuple[str, ...]:
    notes = []
    first = headers[0]
    if any("PixelPaddingValue" in header for header in headers):
        notes.append("the series declares a padding value; padding voxels keep it")
    if first.get("Modality") == "CT" and any("RescaleSlope" not in item for item in headers):
        notes.append("CT without rescale tags: stored values are taken as Hounsfield units")
    if str(first.get("PhotometricInterpretation")) == "MONOCHROME1":
        notes.append("MONOCHROME1 concerns display only; values are as stored")
    if str(first.get("LossyImageCompression")) == "01":
        notes.append("the series was compressed with losses before")
    missing = missing_references(headers)
    if missing:
        notes.append(f"no DICOM SEG can refer to this series: it lacks {', '.join(missing)}")
        return tuple(notes)
    empty = empty_identity(first)
    if empty:
        notes.append(f"a DICOM SEG will carry these empty, as here: {', '.join(empty)}")
    return tuple(notes)
