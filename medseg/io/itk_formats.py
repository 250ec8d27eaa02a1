"""NRRD and MetaImage files, read by SimpleITK; LPS becomes RAS here.

SimpleITK decodes; missing, short and broken data are looked for first, since ITK reports them on
stderr or, where a compressed stream is corrupt, not at all.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk  # noqa: N813 - the name that its users know

from medseg.core import LabelMap, LabelScheme, Volume
from medseg.core.grid import FloatArray
from medseg.errors import FormatError, GeometryError
from medseg.io.checks import (
    check_file,
    check_finite,
    checked_grid,
    damaged,
    data_missing,
    not_an_image,
    truncated,
)
from medseg.io.labels import labels_from_voxels
from medseg.io.notes import Note
from medseg.io.scan import ItkSource, Scan
from medseg.io.voxels import rescale_voxels

__all__ = ["itk_data_file", "read_itk", "read_itk_labels", "write_itk_volume"]

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_HEADER_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 22
_COMPONENT_BYTES = {
    sitk.sitkUInt8: 1,
    sitk.sitkInt8: 1,
    sitk.sitkUInt16: 2,
    sitk.sitkInt16: 2,
    sitk.sitkUInt32: 4,
    sitk.sitkInt32: 4,
    sitk.sitkUInt64: 8,
    sitk.sitkInt64: 8,
    sitk.sitkFloat32: 4,
    sitk.sitkFloat64: 8,
}
_COMPLEX = (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64)
_WORLD_SPACES = re.compile(
    r"(left|right)-(anterior|posterior)-(superior|inferior)(-time)?|(las|lps|ras|rps|lpi|rai)t?"
)


def read_itk(path: Path) -> Scan:
    """Read a three-dimensional image from an NRRD or MetaImage file.

    Args:
        path: ``.nrrd``, ``.nhdr``, ``.mha`` or ``.mhd``; the last and ``.nhdr`` name a second file.

    Raises:
        ResourceError: ``file-missing`` or ``input-unreadable``.
        FormatError: ``file-empty``, ``file-truncated``, ``file-damaged``, ``not-an-image``,
            ``image-unreadable``, ``image-data-missing``, ``image-2d``, ``image-4d``,
            ``voxels-vector``, ``voxels-complex``, ``voxels-not-finite``.
        GeometryError: ``affine-invalid``, ``affine-sheared``; ``space-unknown`` if an NRRD file
            does not say where left and right are.
    """
    check_file(path)
    data = _nrrd_data(path) if _is_nrrd(path) else _meta_data(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("NrrdImageIO" if _is_nrrd(path) else "MetaImageIO")
    with _quiet_itk(path):
        reader.ReadImageInformation()
    size = _check_kind(path, reader)
    _check_space(path, data.space)
    _check_data(path, data, math.prod(size) * _COMPONENT_BYTES[reader.GetPixelID()])
    with _quiet_itk(path):
        image = reader.Execute()
    stored_kji = sitk.GetArrayFromImage(image).reshape(size[2::-1])
    voxels = rescale_voxels(stored_kji.transpose(2, 1, 0))
    check_finite(voxels, str(path))
    i, j, k = size[:3]
    grid, notes = checked_grid(str(path), (i, j, k), _affine_ras(reader))
    return Scan(Volume(voxels[np.newaxis], grid), ItkSource(path), (*data.notes, *notes))


def read_itk_labels(path: Path, scheme: LabelScheme) -> LabelMap:
    """Read a label map from an NRRD or MetaImage file; whole floats are accepted.

    Raises:
        MedsegError: As :func:`read_itk`, and as :func:`~medseg.io.labels.labels_from_voxels`.
    """
    return labels_from_voxels(read_itk(path).volume, scheme, str(path))


def write_itk_volume(volume: Volume, path: Path) -> None:
    """Write a single-channel volume to an already chosen path, compressed.

    The writer behind :func:`medseg.io.writing.write_volume`, which names and checks the file.

    Raises:
        FormatError: ``image-unwritable`` if ITK does not write it.
    """
    data = volume.data_cijk[0]
    if data.dtype == np.float16:
        data = data.astype(np.float32)
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.transpose(2, 1, 0)))
    affine_lps = _LPS_TO_RAS @ volume.grid.affine_ras
    image.SetSpacing(volume.grid.spacing_mm)
    image.SetOrigin(affine_lps[:3, 3].tolist())
    image.SetDirection((affine_lps[:3, :3] / np.asarray(volume.grid.spacing_mm)).ravel().tolist())
    path.touch()  # so that a full disk or a missing folder speaks as an OSError, not as ITK's text
    try:
        sitk.WriteImage(image, str(path), useCompression=True)
    except RuntimeError as error:
        raise FormatError(
            str(path),
            expected="an image that ITK can write",
            found="its refusal",
            remedy="check the free space and choose another format",
            code="image-unwritable",
        ) from error


@dataclass(frozen=True, slots=True)
class _DataFile:
    """What a header says about its voxels beyond what ITK tells.

    ``path`` is None where they are in several files.
    """

    path: Path | None
    offset: int
    compressed: bool
    plain: bool
    space: str
    notes: tuple[str, ...] = ()


def itk_data_file(path: Path) -> Path | None:
    """The file that holds the voxels of an NRRD or MetaImage header; None if they are in several.

    Raises:
        FormatError: If it is no such header, or names a file that is not there.
    """
    return (_nrrd_data(path) if _is_nrrd(path) else _meta_data(path)).path


def _is_nrrd(path: Path) -> bool:
    return path.name.lower().endswith((".nrrd", ".nhdr"))


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(_HEADER_BYTES)


def _nrrd_data(path: Path) -> _DataFile:
    head = _head(path)
    if not head.startswith(b"NRRD"):
        raise not_an_image(path, "an NRRD header")
    text, _, _ = head.replace(b"\r\n", b"\n").partition(b"\n\n")
    fields = {
        key.strip().lower(): value.strip()
        for key, separator, value in (
            line.partition(": ") for line in text.decode("latin-1").splitlines()[1:]
        )
        if separator and not key.startswith("#")
    }
    space = fields.get("space", "").lower()
    encoding = fields.get("encoding", "").lower()
    compressed, plain = encoding in ("gzip", "gz"), encoding == "raw"
    name = fields.get("data file") or fields.get("datafile")
    if "byte skip" in fields or "line skip" in fields:
        compressed = plain = False  # the data begin elsewhere: left to ITK
    if name is None:
        offset = re.search(rb"\r?\n\r?\n", head)
        return _DataFile(path, offset.end() if offset else 0, compressed, plain, space)
    if name.upper().startswith("LIST") or "%" in name:
        return _DataFile(None, 0, compressed, plain, space)
    return _DataFile(_beside(path, name), 0, compressed, plain, space)


def _meta_data(path: Path) -> _DataFile:
    head = _head(path)
    found = re.search(rb"(?m)^\s*ElementDataFile\s*=\s*(.*?)\s*?\n", head)
    text = head[: found.end()] if found else b""
    fields = dict(re.findall(r"(?m)^\s*(\w+)\s*=\s*(.*?)\s*$", text.decode("latin-1")))
    if found is None or "NDims" not in fields or "DimSize" not in fields:
        raise not_an_image(path, "a MetaImage header")
    compressed = fields.get("CompressedData", "False").lower() == "true"
    plain = not compressed and fields.get("BinaryData", "True").lower() == "true"
    space = "left-posterior-superior"  # ITK's own; MetaImage has no field that says another
    notes: tuple[str, ...] = ()
    if not {"TransformMatrix", "Rotation", "Orientation"} & set(fields):
        stated = "the header states no directions: axes taken as L, P, S"
        remedy = "check that left is left; write the directions if it is not"
        notes = (Note(stated, code="orientation-unstated", remedy=remedy),)
    name = fields["ElementDataFile"]
    if name.upper() == "LOCAL":
        return _DataFile(path, found.end(), compressed, plain, space, notes)
    if name.upper().startswith("LIST") or "%" in name:
        return _DataFile(None, 0, compressed, plain, space, notes)
    offset = int(fields["HeaderSize"]) if fields.get("HeaderSize", "").isdigit() else 0
    return _DataFile(_beside(path, name), offset, compressed, plain, space, notes)


def _beside(path: Path, name: str) -> Path:
    data_path = path.parent / name
    if not data_path.is_file():
        raise data_missing(path, "that the header names")
    return data_path


def _check_kind(path: Path, reader: sitk.ImageFileReader) -> tuple[int, ...]:
    size = tuple(int(extent) for extent in reader.GetSize())
    if len(size) < 3:
        raise _wrong_kind(path, f"{len(size)} dimensions", "stack the slices first", "image-2d")
    if max(size[3:], default=1) > 1:
        remedy = "split it into one file per volume and give those"
        raise _wrong_kind(path, f"extents {size}", remedy, "image-4d")
    if reader.GetPixelID() in _COMPLEX:
        raise _wrong_kind(path, "complex voxels", "take the magnitude", "voxels-complex")
    if reader.GetPixelID() not in _COMPONENT_BYTES:
        found = f"{reader.GetNumberOfComponents()} numbers per voxel (colour or vectors)"
        raise _wrong_kind(path, found, "convert it to one intensity per voxel", "voxels-vector")
    return size


def _wrong_kind(path: Path, found: str, remedy: str, code: str) -> FormatError:
    return FormatError(
        str(path),
        expected="a three-dimensional image with one number per voxel",
        found=found,
        remedy=remedy,
        code=code,
    )


def _check_space(path: Path, space: str) -> None:
    if not _WORLD_SPACES.fullmatch(space):
        raise GeometryError(
            str(path),
            expected="a field 'space' such as left-posterior-superior",
            found=repr(space) if space else "none",
            remedy="add the field if you know how the patient lies in the image",
            code="space-unknown",
        )


def _check_data(path: Path, data: _DataFile, wanted: int) -> None:
    """Refuse short or corrupt voxel data before ITK meets them."""
    if data.path is None:
        return
    there = data.path.stat().st_size - data.offset
    if data.plain and there < wanted:
        raise truncated(path, f"{wanted} bytes of voxels", f"{max(there, 0)} bytes")
    if not data.compressed:
        return
    unpacker = zlib.decompressobj(wbits=47)  # 47: zlib or gzip, by its own header
    count = 0
    with data.path.open("rb") as stream:
        stream.seek(data.offset)
        try:
            while not unpacker.eof and (chunk := stream.read(_CHUNK_BYTES)):
                while chunk and not unpacker.eof:
                    count += len(unpacker.decompress(chunk, _CHUNK_BYTES))
                    chunk = unpacker.unconsumed_tail
        except zlib.error as error:
            found = "a broken one or a wrong checksum"
            raise damaged(path, "an intact compressed stream", found) from error
    if not unpacker.eof or count < wanted:
        raise truncated(path, f"{wanted} bytes of voxels", f"{count} bytes")


def _affine_ras(reader: sitk.ImageFileReader) -> FloatArray:
    rank = reader.GetDimension()
    direction: npt.NDArray[np.float64] = np.reshape(reader.GetDirection(), (rank, rank))
    affine_lps = np.eye(4)
    affine_lps[:3, :3] = direction[:3, :3] * np.asarray(reader.GetSpacing()[:3])
    affine_lps[:3, 3] = reader.GetOrigin()[:3]
    return np.asarray(_LPS_TO_RAS @ affine_lps, dtype=np.float64)


@contextmanager
def _quiet_itk(path: Path) -> Iterator[None]:
    """Turn ITK's exceptions into ours and keep its warnings off stderr."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    except RuntimeError as error:
        raise FormatError(
            str(path),
            expected="an NRRD or MetaImage file that ITK can read",
            found="one that it refuses",
            remedy="see the cause; export the image again, as NIfTI if need be",
            code="image-unreadable",
        ) from error
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)
