"""NIfTI-1 and NIfTI-2 files: images in, label maps in and out.

Voxels are read here rather than by nibabel, so that the whole file is decompressed once, its
checksum is looked at, and integers stay integers; nibabel decodes the headers.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from medseg.atomic import atomic_path
from medseg.core import Grid, LabelMap, LabelScheme, Volume
from medseg.errors import FormatError, GeometryError, MedsegError, ResourceError, ShapeError
from medseg.io.checks import (
    check_file,
    check_finite,
    damaged,
    data_missing,
    not_an_image,
    relocated,
    truncated,
    unreadable,
)
from medseg.io.labels import labels_from_voxels
from medseg.io.nifti_header import (
    GEOMETRY_FIELDS,
    NiftiHeader,
    field_bytes,
    header_grid,
    header_source,
    parse_header,
    result_header,
)
from medseg.io.scan import NiftiSource, Scan, Source
from medseg.io.voxels import rescale_voxels

__all__ = [
    "VERIFY_MM",
    "file_pair",
    "read_nifti",
    "read_nifti_channels",
    "read_nifti_labels",
    "verify_nifti_labels",
    "write_nifti_labels",
    "write_nifti_scaled",
    "write_nifti_volume",
]

VERIFY_MM = 0.01
"""Largest distance between where a label should be and where the written file puts it."""

_HEADER_BYTES = 540
_MOST_DEFLATED = 1040  # deflate cannot shrink by more than this factor
_CHUNK_BYTES = 1 << 24
_MOST_BEHIND_BYTES = 64 << 20
_LEAST_SLOPE = 1e-30  # well inside the normal range of 32-bit floats


def read_nifti(path: Path, *, time_index: int | None = None) -> Scan:
    """Read a three-dimensional image from a NIfTI file.

    Intensities are scaled by ``scl_slope`` and ``scl_inter``; integers stay integers where that is
    exact (:func:`~medseg.io.voxels.rescale_voxels`). Extents of 1 after the third are dropped, a
    two-dimensional image becomes one slice. For the choice between sform and qform see
    :mod:`medseg.io.nifti_header`.

    Args:
        path: ``.nii``, ``.nii.gz``, or either file of an ``.hdr``/``.img`` pair.
        time_index: Which volume of a four-dimensional file to read, counted from 0.

    Raises:
        ResourceError: ``file-missing`` or ``input-unreadable``.
        FormatError: ``file-empty``, ``file-truncated``, ``file-damaged``, ``not-an-image``,
            ``analyze-header``, ``header-invalid``, ``image-data-missing``, ``image-4d``,
            ``voxels-colour``, ``voxels-complex``, ``voxel-type``, ``voxels-not-finite``.
        ShapeError: ``time-index``.
        GeometryError: ``affine-invalid``, ``affine-sheared``, ``units``.
    """
    return _read(path, time_index, sheared=False)


def _read(path: Path, time_index: int | None, *, sheared: bool) -> Scan:
    header, stored = _read_stored(path, time_index)
    data = rescale_voxels(stored, header.slope, header.intercept)
    check_finite(data, str(path))
    grid, notes = header_grid(path, header, sheared=sheared)
    return Scan(Volume(data[np.newaxis], grid), header_source(path, header), notes)


def read_nifti_channels(path: Path, channels: Sequence[str]) -> Scan:
    """Read a four-dimensional file whose fourth axis are the channels of one image.

    The Medical Segmentation Decathlon keeps the modalities of a case so. A three-dimensional file
    is an image of one channel.

    Args:
        path: As :func:`read_nifti`.
        channels: Names of the channels in their order.

    Raises:
        ShapeError: ``channel-count`` if the file holds another number of channels.
        MedsegError: As :func:`read_nifti`.
    """
    header, stored = _read_stored(path, None, all_volumes=True)
    data = rescale_voxels(stored, header.slope, header.intercept)
    if data.shape[3] != len(channels):
        raise ShapeError(
            str(path),
            expected=f"{len(channels)} channels ({', '.join(channels)}) along the fourth axis",
            found=f"{data.shape[3]}",
            remedy="correct the dataset's list of channels or the file",
            code="channel-count",
        )
    check_finite(data, str(path))
    grid, notes = header_grid(path, header)
    volume = Volume(np.moveaxis(data, 3, 0), grid, tuple(channels))
    return Scan(volume, header_source(path, header), notes)


def read_nifti_labels(path: Path, scheme: LabelScheme) -> LabelMap:
    """Read a label map from a NIfTI file; labels stored as floats are accepted if whole.

    Axes at any angle are kept: the label map of a tilted series lies on its leaning grid.

    Raises:
        MedsegError: As :func:`read_nifti`, and as
            :func:`~medseg.io.labels.labels_from_voxels`.
    """
    scan = _read(path, None, sheared=True)
    return labels_from_voxels(scan.volume, scheme, str(path))


def write_nifti_labels(labels: LabelMap, path: Path, source: Source) -> None:
    """Write a label map, read it back, and only then give it its name.

    The type is uint8, or uint16 where a label is above 255. For an image that came from NIfTI the
    file repeats its version, byte order and geometry fields bit for bit. Equal content makes equal
    bytes: the gzip header holds neither name nor time.

    Args:
        labels: What to write; on the grid of the source.
        path: Ends in ``.nii`` or ``.nii.gz``.
        source: Where the segmented image came from.

    Raises:
        FormatError: ``output-suffix``; ``verify-labels`` if the written voxels differ.
        GeometryError: ``verify-geometry`` if the written file is elsewhere in space than the
            labels, for one because they do not lie on the grid of the source.
        ResourceError: If the file cannot be written.
    """
    highest = int(labels.data_ijk.max())
    dtype = np.dtype(np.uint8 if highest <= 255 else np.uint16)
    header = result_header(labels.grid, dtype, source)
    _check_output_suffix(path)
    with atomic_path(path) as temporary:
        _write_file(temporary, header, labels.data_ijk)
        verify_nifti_labels(temporary, labels, source, named=path)


def verify_nifti_labels(
    path: Path, labels: LabelMap, source: Source, *, named: Path | None = None
) -> None:
    """Compare a written label file with what it should hold.

    Args:
        path: The file to read.
        labels: What it should hold.
        source: Whose geometry fields it should repeat, if that is a NIfTI file.
        named: The name to use in errors, if not ``path``.

    Raises:
        FormatError: ``verify-labels``, or as :func:`read_nifti`.
        GeometryError: ``verify-geometry``: a corner voxel is more than 0.01 mm off, or a geometry
            field differs from the source's.
    """
    where = str(named or path)
    try:
        header, stored = _read_stored(path, None)
        grid, _ = header_grid(path, header, sheared=True)
    except MedsegError as error:
        raise relocated(error, where) from error
    if stored.shape != labels.grid.shape_ijk or not np.array_equal(stored, labels.data_ijk):
        raise FormatError(
            where,
            expected="the labels that were written",
            found="other voxels on reading back",
            remedy="check the disk and write again",
            code="verify-labels",
        )
    _verify_place(where, header, grid.distance_mm(labels.grid), source)


def write_nifti_scaled(
    data_ijk: npt.NDArray[Any], grid: Grid, path: Path, slope: float, source: Source | None
) -> None:
    """Write small numbers with the factor that makes quantities of them, as a viewer shows them.

    The header says ``scl_slope``, so that an entropy or a probability of 8 bits is shown from 0 to
    1. Geometry fields, version and byte order are those that :func:`write_nifti_labels` writes, and
    the file is likewise read back before it gets its name. No second copy of the voxels is made.

    Args:
        data_ijk: ``(i, j, k)`` of type uint8, or float16, which is stored as float32 because NIfTI
            has no type for it.
        grid: Where the voxels are.
        path: Ends in ``.nii`` or ``.nii.gz``.
        slope: Stored value to quantity, above 0; kept in 32 bits (64 in NIfTI-2).
        source: Where the image came from; None writes the grid alone.

    Raises:
        FormatError: ``output-suffix``; ``verify-voxels`` if the written voxels differ.
        ShapeError: ``write-type``, ``write-shape`` if array and grid do not fit, ``write-slope``.
        GeometryError: ``verify-geometry``, as :func:`write_nifti_labels`.
        ResourceError: If the file cannot be written.
    """
    _check_output_suffix(path)
    _check_scaled(data_ijk, grid, path, slope)
    dtype = np.dtype(np.uint8 if data_ijk.dtype == np.uint8 else np.float32)
    header = result_header(grid, dtype, source)
    header.fields["scl_slope"] = slope
    header = replace(header, block=header.fields.binaryblock, slope=slope)
    with atomic_path(path) as temporary:
        _write_file(temporary, header, data_ijk)
        try:
            _verify_scaled(temporary, data_ijk, grid, header, source, named=path)
        except MedsegError as error:
            raise relocated(error, str(path)) from error


def write_nifti_volume(volume: Volume, path: Path) -> None:
    """Write a single-channel volume to an already chosen, not yet existing path.

    The writer behind :func:`medseg.io.writing.write_volume`, which names and checks the file.
    """
    data = volume.data_cijk[0]
    if data.dtype == np.float16:
        data = data.astype(np.float32)
    _write_file(path, result_header(volume.grid, data.dtype, None), data)


def _check_output_suffix(path: Path) -> None:
    if not path.name.endswith((".nii", ".nii.gz")):
        raise FormatError(
            str(path),
            expected="a name that ends in .nii or .nii.gz",
            found=f"the ending {path.suffix or 'none'}",
            remedy="rename the output",
            code="output-suffix",
        )


def _check_scaled(data_ijk: npt.NDArray[Any], grid: Grid, path: Path, slope: float) -> None:
    if data_ijk.dtype not in (np.dtype(np.uint8), np.dtype(np.float16)):
        expected, found, code = "type uint8 or float16", f"type {data_ijk.dtype}", "write-type"
    elif data_ijk.shape != grid.shape_ijk:
        expected, found = f"an array of shape {grid.shape_ijk}", f"shape {data_ijk.shape}"
        code = "write-shape"
    elif not (_LEAST_SLOPE <= slope <= 1.0 / _LEAST_SLOPE):
        expected, found, code = "a finite slope above 0", f"{slope:g}", "write-slope"
    else:
        return
    raise ShapeError(
        str(path),
        expected=expected,
        found=found,
        remedy="give quantised voxels on the grid of the image and their factor",
        code=code,
    )


def _verify_scaled(
    path: Path,
    data_ijk: npt.NDArray[Any],
    grid: Grid,
    wanted: NiftiHeader,
    source: Source | None,
    *,
    named: Path,
) -> None:
    """Compare a written file with the voxels, slice by slice, and with the header wanted."""
    where = str(named)
    with _decoded(path) as stream:
        header = parse_header(path, stream.read(_HEADER_BYTES))
        stream.seek(header.data_offset)
        alike = field_bytes(header.version, header.block, "scl_slope") == field_bytes(
            wanted.version, wanted.block, "scl_slope"
        )
        for k in range(data_ijk.shape[2]):
            expected = _slice_bytes(data_ijk, k, wanted.dtype)
            alike = alike and stream.read(len(expected)) == expected
        if not alike or stream.read(1):  # at the end gzip compares its checksum
            raise FormatError(
                where,
                expected="the voxels and the slope that were written",
                found="others on reading back",
                remedy="check the disk and write again",
                code="verify-voxels",
            )
    written, _ = header_grid(path, header, sheared=True)
    _verify_place(where, header, written.distance_mm(grid), source)


def _verify_place(where: str, header: NiftiHeader, apart_mm: float, source: Source | None) -> None:
    if apart_mm > VERIFY_MM:
        raise _verify_geometry(where, f"a corner voxel {apart_mm:.3f} mm away on reading back")
    if isinstance(source, NiftiSource):
        for name in GEOMETRY_FIELDS:
            wanted = field_bytes(source.version, source.header_bytes, name)
            if field_bytes(header.version, header.block, name) != wanted:
                raise _verify_geometry(where, f"another {name} in the header on reading back")


def _verify_geometry(where: str, found: str) -> GeometryError:
    return GeometryError(
        where,
        expected="the result where the image was",
        found=found,
        remedy="bring the result back to the grid of the image before writing",
        code="verify-geometry",
    )


def _write_file(path: Path, header: NiftiHeader, data_ijk: npt.NDArray[Any]) -> None:
    with path.open("wb") as raw:
        if path.name.endswith(".gz"):
            with gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as packed:
                _write_stream(packed, header, data_ijk)
        else:
            _write_stream(raw, header, data_ijk)


def _write_stream(
    stream: IO[bytes] | gzip.GzipFile, header: NiftiHeader, data_ijk: npt.NDArray[Any]
) -> None:
    stream.write(header.block + bytes(4))
    for k in range(data_ijk.shape[2]):  # by slices, so that no second copy of the volume is made
        stream.write(_slice_bytes(data_ijk, k, header.dtype))


def _slice_bytes(data_ijk: npt.NDArray[Any], k: int, dtype: np.dtype[Any]) -> bytes:
    return data_ijk[:, :, k].astype(dtype).tobytes(order="F")


def _read_stored(
    path: Path, time_index: int | None, *, all_volumes: bool = False
) -> tuple[NiftiHeader, npt.NDArray[Any]]:
    """The header and the unscaled voxels in Fortran order.

    Of one volume they are ``(i, j, k)``, of all volumes ``(i, j, k, n)``.
    """
    header_path, data_path = file_pair(path)
    check_file(header_path)
    with _decoded(header_path) as stream:
        header = parse_header(path, stream.read(_HEADER_BYTES))
        skipped = 0
        shape: tuple[int, ...] = header.shape_ijk
        if all_volumes and len(header.dimensions) <= 4:
            shape = (*shape, header.dimensions[3] if len(header.dimensions) == 4 else 1)
        else:
            skipped = _volume_number(path, header, time_index)
        if header.is_single:
            return header, _read_voxels(path, header_path, stream, header, skipped, shape)
    if data_path == header_path:
        raise not_an_image(path, "a NIfTI file with its voxels", "the header of an .hdr/.img pair")
    try:
        check_file(data_path)
    except ResourceError as error:
        if error.code != "file-missing":
            raise
        raise data_missing(path, "of the same name ending in .img") from error
    with _decoded(data_path) as stream:
        return header, _read_voxels(path, data_path, stream, header, skipped, shape)


def file_pair(path: Path) -> tuple[Path, Path]:
    """Header file and data file; one and the same unless the suffix is of a pair."""
    name = path.name
    packed = name[-3:] if name.lower().endswith(".gz") else ""
    stem, suffix = name[: len(name) - len(packed) - 4], name[: len(name) - len(packed)][-4:]
    if suffix.lower() not in (".hdr", ".img"):
        return path, path
    other = {".hdr": ".img", ".img": ".hdr", ".HDR": ".IMG", ".IMG": ".HDR"}.get(suffix, ".img")
    partner = path.with_name(stem + other + packed)
    if not partner.exists():
        unlike = path.with_name(stem + other + ("" if packed else ".gz"))
        partner = unlike if unlike.exists() else partner
    return (path, partner) if suffix.lower() == ".hdr" else (partner, path)


def _volume_number(path: Path, header: NiftiHeader, time_index: int | None) -> int:
    """How many volumes lie before the wanted one."""
    dimensions = header.dimensions
    if len(dimensions) <= 3 and time_index in (None, 0):
        return 0
    if len(dimensions) > 4 or (len(dimensions) == 4 and time_index is None):
        kind = "a vector or tensor image" if len(dimensions) > 4 else "a series or several channels"
        raise FormatError(
            str(path),
            expected="a three-dimensional image",
            found=f"extents {dimensions}, {kind}",
            remedy="split it into one file per volume and give those",
            code="image-4d",
        )
    count = dimensions[3] if len(dimensions) == 4 else 1
    if time_index is None or not 0 <= time_index < count:
        raise ShapeError(
            str(path),
            expected=f"a time index from 0 to {count - 1}",
            found=str(time_index),
            remedy="count the volumes from 0",
            code="time-index",
        )
    return time_index


@contextmanager
def _decoded(path: Path) -> Iterator[IO[bytes] | gzip.GzipFile]:
    """The decompressed file; what goes wrong in reading becomes an error of ours."""
    is_packed = path.name.lower().endswith(".gz")
    try:
        with path.open("rb") as raw:
            if is_packed and raw.read(2) != b"\x1f\x8b":
                raise not_an_image(path, "gzip-compressed content", "other content")
            raw.seek(0)
            if is_packed:
                with gzip.GzipFile(fileobj=raw, mode="rb") as unpacked:
                    yield unpacked
            else:
                yield raw
    except MedsegError:  # a ResourceError is an OSError too, and needs no second wrapping
        raise
    except EOFError as error:
        raise truncated(path, "a complete gzip stream") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise damaged(path, "an intact gzip stream", "a broken one or a wrong checksum") from error
    except OSError as error:
        raise unreadable(path, error) from error


def _read_voxels(
    path: Path,
    data_path: Path,
    stream: IO[bytes] | gzip.GzipFile,
    header: NiftiHeader,
    skipped: int,
    shape: tuple[int, ...],
) -> npt.NDArray[Any]:
    wanted = int(np.prod(shape, dtype=object)) * header.dtype.itemsize
    start = header.data_offset + skipped * wanted
    size = data_path.stat().st_size
    most = size * _MOST_DEFLATED if data_path.name.lower().endswith(".gz") else size
    expected = f"{wanted} bytes of voxels"
    if start + wanted > most:  # before anything is allocated: a broken header can ask for exabytes
        raise truncated(path, expected)
    buffer = np.empty(wanted, dtype=np.uint8)
    view = buffer.data
    stream.seek(start)
    filled = 0
    while filled < wanted:
        count = stream.readinto(view[filled : filled + _CHUNK_BYTES])  # type: ignore[union-attr]
        if not count:
            raise truncated(path, expected, f"{filled} bytes")
        filled += count
    # on to the end, where gzip compares its checksum
    left = header.voxel_bytes - (skipped + 1) * wanted + _MOST_BEHIND_BYTES
    while chunk := stream.read(_CHUNK_BYTES):
        left -= len(chunk)
        if left < 0:
            raise damaged(path, "the end of the file behind the voxels", "far more than voxels")
    return buffer.view(header.dtype).reshape(shape, order="F")
