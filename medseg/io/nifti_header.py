"""NIfTI headers: what they say about voxels and space, and headers for results.

Convention:
    The sform gives the affine if its code is above 0, else the qform if its code is above 0, else
    the axes are taken as nibabel takes them without any (voxel sizes along L, A, S from the centre
    of the image), with a note. Read for NIfTI-1 and NIfTI-2, in either byte order.

    One kind of sform is not believed in full: see :func:`header_grid`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from nibabel.spatialimages import HeaderDataError

from medseg.core import Grid
from medseg.core.grid import FloatArray
from medseg.errors import FormatError, GeometryError
from medseg.io.checks import checked_grid, not_an_image, truncated
from medseg.io.notes import Note
from medseg.io.scan import NiftiSource, Source

__all__ = [
    "GEOMETRY_FIELDS",
    "NiftiHeader",
    "field_bytes",
    "header_grid",
    "header_source",
    "parse_header",
    "result_header",
]

GEOMETRY_FIELDS = (
    "pixdim",
    "xyzt_units",
    "qform_code",
    "sform_code",
    "quatern_b",
    "quatern_c",
    "quatern_d",
    "qoffset_x",
    "qoffset_y",
    "qoffset_z",
    "srow_x",
    "srow_y",
    "srow_z",
)
"""The header fields that place an image in space; a result repeats them bit for bit."""

_CLASSES = {1: nibabel.Nifti1Header, 2: nibabel.Nifti2Header}
_SINGLE_MAGIC = {1: b"n+1\x00", 2: b"n+2\x00\r\n\x1a\n"}
_FORMS_DIFFER_MM = 0.1
_SIZES_DIFFER = 0.01
_LARGEST_NIFTI1_EXTENT = 32767


@dataclass(frozen=True, slots=True, eq=False)
class NiftiHeader:
    """A header as stored, and what it says about the voxels.

    Args:
        version: 1 or 2.
        block: The stored bytes.
        fields: nibabel's view of them, unrepaired.
        is_single: Whether the voxels follow in the same file.
        dimensions: Stored extents; those of 1 after the third are dropped.
        dtype: Stored voxel type with byte order.
        data_offset: Where the voxels begin.
        slope: ``scl_slope``, 1.0 where it is unset.
        intercept: ``scl_inter``, 0.0 where it is unset.
    """

    version: int
    block: bytes
    fields: Any
    is_single: bool
    dimensions: tuple[int, ...]
    dtype: np.dtype[Any]
    data_offset: int
    slope: float
    intercept: float

    @property
    def shape_ijk(self) -> tuple[int, int, int]:
        """The first three extents, 1 where the file has fewer."""
        i, j, k, *_ = (*self.dimensions, 1, 1, 1)
        return i, j, k

    @property
    def voxel_bytes(self) -> int:
        """All voxels that it tells of, of all volumes."""
        return math.prod(self.dimensions) * self.dtype.itemsize


def parse_header(path: Path, block: bytes) -> NiftiHeader:
    """Understand the first bytes of a NIfTI file.

    Args:
        path: Named in errors.
        block: The first 540 bytes of the file, or all of it if it is shorter.

    Raises:
        FormatError: ``not-an-image``, ``analyze-header``, ``file-truncated``, ``header-invalid``,
            or a voxel type that has no intensity (``voxels-colour``, ``voxels-complex``,
            ``voxel-type``).
    """
    version, is_single = _flavour(path, block)
    fields = _fields_of(version, block)
    count = int(fields["dim"][0])
    dimensions = tuple(int(extent) for extent in fields["dim"][1 : max(count, 0) + 1])
    if not 1 <= count <= 7 or min(dimensions) < 1:
        raise _invalid(path, "1 to 7 extents of at least 1", f"{count} extents {dimensions}")
    while len(dimensions) > 3 and dimensions[-1] == 1:
        dimensions = dimensions[:-1]
    try:
        slope, intercept = fields.get_slope_inter()
    except HeaderDataError as error:
        raise _invalid(path, "a finite scl_inter", f"{float(fields['scl_inter'])}") from error
    offset = float(fields["vox_offset"])
    lowest = fields.sizeof_hdr + 4 if is_single else 0
    if not (np.isfinite(offset) and offset >= lowest and offset.is_integer()):
        raise _invalid(path, f"voxels that begin at byte {lowest} or later", f"byte {offset:g}")
    return NiftiHeader(
        version=version,
        block=block[: fields.sizeof_hdr],
        fields=fields,
        is_single=is_single,
        dimensions=dimensions,
        dtype=_voxel_type(path, fields),
        data_offset=int(offset),
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
    )


def header_grid(
    path: Path, header: NiftiHeader, *, sheared: bool = False
) -> tuple[Grid, tuple[str, ...]]:
    """The grid that a header describes, with notes on how it was found.

    Some converters wrote an sform that holds directions alone: every column is an axis of exactly
    1 mm, no qform is set, and the voxel size is in ``pixdim`` (the released ACDC files, of 1.37 x
    1.37 x 10 mm, are so). Only for a header that is all of that, and whose ``pixdim`` differs from
    1 mm, the voxel size is that of ``pixdim``, with a note. Directions and the place of voxel
    (0, 0, 0) stay those of the sform, and ITK reads such a file likewise. A result repeats
    the header's own fields, so that it is read back on the same grid and overlays its image in
    programs that take the sform as in those that take ``pixdim``. Any other sform stands as it is:
    one that is not a signed permutation, or beside a qform, has its size on purpose.

    Args:
        path: The file, for messages.
        header: Of the file.
        sheared: Whether axes at any angle are kept.

    Raises:
        GeometryError: If the affine cannot be right, is sheared or not in millimetres.
    """
    unit = {1: "metres", 3: "micrometres"}.get(int(header.fields["xyzt_units"]) & 7)
    if unit:
        raise GeometryError(
            str(path),
            expected="positions in millimetres (xyzt_units 2, or 0 for unstated)",
            found=unit,
            remedy="convert the affine to millimetres and set the unit",
            code="units",
        )
    sform = header.fields.get_sform() if int(header.fields["sform_code"]) > 0 else None
    qform, problem = _qform(header) if int(header.fields["qform_code"]) > 0 else (None, "")
    if sform is not None:
        stated = f"geometry from the sform (code {int(header.fields['sform_code'])})"
        sizes_mm = _lost_sizes_mm(header, sform)
        if sizes_mm is not None:
            sized = sform @ np.diag([*sizes_mm, 1.0])
            grid, notes = checked_grid(str(path), header.shape_ijk, sized)
            lost = Note(
                f"voxel size from pixdim ({_millimetres(sizes_mm)}), because the sform has lost "
                "it: it says 1 mm on every axis, and no qform is set",
                code="pixdim-used",
                remedy="check the voxel size; writing the header anew with it ends the doubt",
            )
            return grid, (stated, lost, *notes)
        grid, notes = checked_grid(str(path), header.shape_ijk, sform, sheared=sheared)
        stated_otherwise = _pixdim_notes(grid, header)
        return grid, (stated, *stated_otherwise, *_qform_notes(grid, qform, problem), *notes)
    if problem:
        raise GeometryError(
            str(path),
            expected="a qform with a unit quaternion and finite numbers, no sform being set",
            found=problem,
            remedy="repair the header or set an sform",
            code="affine-invalid",
        )
    if qform is not None:
        grid, notes = checked_grid(str(path), header.shape_ijk, qform)
        return grid, (f"geometry from the qform (code {int(header.fields['qform_code'])})", *notes)
    grid, notes = checked_grid(str(path), header.shape_ijk, header.fields.get_base_affine())
    stated = Note(
        "neither sform nor qform is set: axes taken as L, A, S from the centre of the image",
        code="orientation-unstated",
        remedy="check that left is left; set an sform if it is not",
    )
    return grid, (stated, *notes)


def header_source(path: Path, header: NiftiHeader) -> NiftiSource:
    """What a writer needs to give a result the same place in space."""
    return NiftiSource(
        path=path,
        version=header.version,
        sform_code=int(header.fields["sform_code"]),
        qform_code=int(header.fields["qform_code"]),
        header_bytes=header.block,
    )


def result_header(grid: Grid, dtype: npt.DTypeLike, source: Source | None) -> NiftiHeader:
    """A single-file header for a three-dimensional result.

    For a NIfTI source it repeats version, byte order and every field of :data:`GEOMETRY_FIELDS`;
    free text and intents stay behind. Else sform and qform both hold the grid with code 1 (scanner
    anatomy); where a qform cannot hold it (shear) only the sform is set.

    Args:
        grid: Where the voxels are.
        dtype: Voxel type to be written.
        source: Where the image came from; None for an image without a file.
    """
    if isinstance(source, NiftiSource):
        template = _fields_of(source.version, source.header_bytes)
        version, endianness = source.version, template.endianness
        rank = min(3, int(template["dim"][0]))
    else:
        template = None
        version = 2 if max(grid.shape_ijk) > _LARGEST_NIFTI1_EXTENT else 1
        endianness, rank = "<", 3
    fields = _CLASSES[version](endianness=endianness)
    fields.set_data_dtype(dtype)
    fields.set_data_shape(grid.shape_ijk[:rank])
    if template is not None:
        for name in GEOMETRY_FIELDS:
            fields[name] = template[name]
    else:
        _place(fields, grid)
    fields["magic"] = _SINGLE_MAGIC[version]
    fields["vox_offset"] = fields.sizeof_hdr + 4
    fields["scl_slope"], fields["scl_inter"] = 1.0, 0.0
    fields["descrip"] = b"medseg"
    return NiftiHeader(
        version=version,
        block=fields.binaryblock,
        fields=fields,
        is_single=True,
        dimensions=grid.shape_ijk,
        dtype=np.dtype(dtype).newbyteorder(endianness),
        data_offset=fields.sizeof_hdr + 4,
        slope=1.0,
        intercept=0.0,
    )


def field_bytes(version: int, block: bytes, name: str) -> bytes:
    """The stored bytes of one header field."""
    return bytes(_fields_of(version, block)[name].tobytes())


def _flavour(path: Path, block: bytes) -> tuple[int, bool]:
    if block[4:12] in (b"n+2\x00\r\n\x1a\n", b"ni2\x00\r\n\x1a\n"):
        version, magic = 2, block[4:8]
    elif block[344:348] in (b"n+1\x00", b"ni1\x00"):
        version, magic = 1, block[344:348]
    elif 348 in (int.from_bytes(block[:4], "little"), int.from_bytes(block[:4], "big")):
        if len(block) < 348:
            raise truncated(path, "a NIfTI header of 348 bytes", f"{len(block)} bytes")
        raise FormatError(
            str(path),
            expected="a NIfTI header",
            found="an Analyze 7.5 header, which does not tell left from right",
            remedy="convert it to NIfTI with a tool that knows how it was made",
            code="analyze-header",
        )
    else:
        raise not_an_image(path, "a NIfTI header")
    size = _CLASSES[version].sizeof_hdr
    if len(block) < size:
        raise truncated(path, f"a NIfTI header of {size} bytes", f"{len(block)} bytes")
    return version, magic[1:2] == b"+"


def _fields_of(version: int, block: bytes) -> Any:  # noqa: ANN401 - nibabel is untyped
    """The header as nibabel sees it before its checks, which repair and write to stderr."""
    header_class = _CLASSES[version]
    return header_class(block[: header_class.sizeof_hdr], check=False)


def _voxel_type(path: Path, fields: Any) -> np.dtype[Any]:  # noqa: ANN401 - nibabel is untyped
    try:
        dtype: np.dtype[Any] = np.dtype(fields.get_data_dtype())
    except (HeaderDataError, KeyError) as error:
        raise _voxel_error(path, f"data type code {int(fields['datatype'])}") from error
    if dtype.fields:
        raise _voxel_error(path, "colour voxels (RGB)", "voxels-colour")
    if dtype.kind == "c":
        raise _voxel_error(path, "complex voxels", "voxels-complex")
    if dtype.kind not in "iuf":
        raise _voxel_error(path, f"data type code {int(fields['datatype'])}")
    return dtype


def _voxel_error(path: Path, found: str, code: str = "voxel-type") -> FormatError:
    return FormatError(
        str(path),
        expected="one integer or real number per voxel",
        found=found,
        remedy="convert it to an intensity image (of complex voxels take the magnitude)",
        code=code,
    )


def _invalid(path: Path, expected: str, found: str) -> FormatError:
    return FormatError(
        str(path),
        expected=f"a NIfTI header with {expected}",
        found=found,
        remedy="export the image again",
        code="header-invalid",
    )


def _qform(header: NiftiHeader) -> tuple[FloatArray | None, str]:
    """The qform affine, or None and what is wrong with it."""
    fields = header.fields.copy()
    # The standard takes a qfac of 0 as 1; negative voxel sizes are a known slip of some writers.
    fields["pixdim"][1:4] = np.abs(fields["pixdim"][1:4])
    fields["pixdim"][0] = -1.0 if fields["pixdim"][0] < 0 else 1.0
    try:
        affine = np.asarray(fields.get_qform(), dtype=np.float64)
    except ValueError:
        return None, "a quaternion longer than 1"
    if not np.isfinite(affine).all():
        return None, "a qform with NaN or infinity"
    return affine, ""


def _lost_sizes_mm(header: NiftiHeader, sform: FloatArray) -> tuple[float, ...] | None:
    """The voxel size in pixdim where the sform holds directions alone, else None."""
    axes = np.abs(sform[:3, :3])
    is_unit = (
        np.isin(axes, (0.0, 1.0)).all() and (axes.sum(0) == 1).all() and (axes.sum(1) == 1).all()
    )
    if not is_unit or int(header.fields["qform_code"]) > 0:
        return None
    sizes_mm = _pixdim_mm(header)
    usable = all(np.isfinite(size) and size > 0 for size in sizes_mm)
    return sizes_mm if usable and _sizes_differ(sizes_mm, (1.0, 1.0, 1.0)) else None


def _pixdim_notes(grid: Grid, header: NiftiHeader) -> tuple[str, ...]:
    sizes_mm = _pixdim_mm(header)
    if min(sizes_mm) == 0 or not _sizes_differ(sizes_mm, grid.spacing_mm):
        return ()
    return (
        Note(
            f"the voxel size in pixdim ({_millimetres(sizes_mm)}) is not that of the sform "
            f"({_millimetres(grid.spacing_mm)}), which was taken: spacing and volumes are wrong if "
            "the sform is",
            code="pixdim-differs",
            remedy="find out which is right, and write both alike",
        ),
    )


def _pixdim_mm(header: NiftiHeader) -> tuple[float, ...]:
    return tuple(abs(float(size)) for size in header.fields["pixdim"][1:4])


def _sizes_differ(sizes_mm: Sequence[float], steps_mm: Sequence[float]) -> bool:
    pairs = zip(sizes_mm, steps_mm, strict=True)
    return not all(abs(size - step) <= _SIZES_DIFFER * step for size, step in pairs)


def _millimetres(sizes_mm: Sequence[float]) -> str:
    return " x ".join(f"{size:g}" for size in sizes_mm) + " mm"


def _qform_notes(grid: Grid, qform: FloatArray | None, problem: str) -> tuple[str, ...]:
    if problem:
        told = f"the unused qform is invalid: {problem}"
    elif qform is None:
        return ()
    else:
        try:
            apart_mm = grid.distance_mm(Grid(grid.shape_ijk, qform))
        except GeometryError:
            told = "the unused qform is invalid: its affine cannot be inverted"
        else:
            if apart_mm <= _FORMS_DIFFER_MM:
                return ()
            told = f"the unused qform differs by up to {apart_mm:.2f} mm"
    remedy = "nothing needs to be done here; programs that take the qform show another place"
    return (Note(told, code="qform-differs", remedy=remedy),)


def _place(fields: Any, grid: Grid) -> None:  # noqa: ANN401 - nibabel is untyped
    fields.set_qform(grid.affine_ras, code=1, strip_shears=True)
    fields.set_sform(grid.affine_ras, code=1)
    fields.set_xyzt_units("mm")
    kept = Grid(grid.shape_ijk, fields.get_qform())
    if kept.distance_mm(grid) > 0.01:
        fields["qform_code"] = 0
