"""Images out: a single-channel volume as NIfTI, NRRD or MetaImage."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medseg.atomic import atomic_path
from medseg.core import Volume
from medseg.errors import FormatError, GeometryError, MedsegError, ShapeError, one_of
from medseg.io.checks import SHEAR_TOLERANCE_DEG, relocated
from medseg.io.itk_formats import read_itk, write_itk_volume
from medseg.io.nifti import VERIFY_MM, read_nifti, write_nifti_volume

__all__ = ["verify_volume", "write_volume"]

_NIFTI = (".nii.gz", ".nii")
_ITK = (".nrrd", ".mha")


def write_volume(volume: Volume, path: Path) -> None:
    """Write a single-channel volume, read it back, and only then give it its name.

    Args:
        volume: Voxels of any type but wider integers than 32 bits; float16 is widened to float32.
        path: The ending chooses the format: ``.nii``, ``.nii.gz``, ``.nrrd`` or ``.mha``.

    Raises:
        FormatError: ``output-suffix``; ``verify-voxels`` if the written voxels differ.
        ShapeError: ``write-channels`` if there is more than one channel, ``write-type`` for
            integers of 64 bits.
        GeometryError: ``affine-sheared`` if the axes are not at right angles, ``verify-geometry``
            if the written file is elsewhere.
        ResourceError: If the file cannot be written.
    """
    name = path.name  # as written: ITK knows its endings in lower case only
    if not name.endswith(_NIFTI + _ITK):
        raise FormatError(
            str(path),
            expected=f"a name that ends in {one_of(path.suffix, _NIFTI + _ITK)}",
            found=f"the ending {path.suffix or 'none'}",
            remedy="rename the output",
            code="output-suffix",
        )
    _check_writable(volume, path)
    write = write_nifti_volume if name.endswith(_NIFTI) else write_itk_volume
    with atomic_path(path) as temporary:
        write(volume, temporary)
        verify_volume(volume, temporary, named=path)


def _check_writable(volume: Volume, path: Path) -> None:
    if len(volume.channels) != 1:
        raise ShapeError(
            str(path),
            expected="a volume of one channel",
            found=f"{len(volume.channels)} channels",
            remedy="write one file per channel",
            code="write-channels",
        )
    if volume.data_cijk.dtype.kind in "iu" and volume.data_cijk.dtype.itemsize > 4:
        raise ShapeError(
            str(path),
            expected="integers of at most 32 bits",
            found=f"type {volume.data_cijk.dtype}",
            remedy="convert the voxels; few programs read 64-bit integers",
            code="write-type",
        )
    if volume.grid.shear_deg > SHEAR_TOLERANCE_DEG:
        raise GeometryError(
            str(path),
            expected=f"voxel axes at right angles, within {SHEAR_TOLERANCE_DEG:g} degrees",
            found=f"axes {volume.grid.shear_deg:.2f} degrees off",
            remedy="resample the volume first",
            code="affine-sheared",
        )


def verify_volume(volume: Volume, path: Path, *, named: Path | None = None) -> None:
    """Compare a written image with what it should hold.

    Args:
        volume: What it should hold; float64 is compared as the float32 that is read.
        path: The file to read.
        named: The name to use in errors, if not ``path``.

    Raises:
        FormatError: ``verify-voxels``, or as the readers, for one ``voxels-not-finite``.
        GeometryError: ``verify-geometry``: a corner voxel is more than 0.01 mm off.
    """
    where = str(named or path)
    try:
        written = (read_nifti if path.name.endswith(_NIFTI) else read_itk)(path).volume
    except MedsegError as error:
        raise relocated(error, where) from error
    stored = volume.data_cijk
    if stored.dtype == np.float64:
        stored = stored.astype(written.data_cijk.dtype)
    if not np.array_equal(written.data_cijk, stored):
        raise FormatError(
            where,
            expected="the voxels that were written",
            found="others on reading back",
            remedy="check the disk and write again",
            code="verify-voxels",
        )
    apart_mm = written.grid.distance_mm(volume.grid)
    if apart_mm > VERIFY_MM:
        raise GeometryError(
            where,
            expected="the image where it was",
            found=f"a corner voxel {apart_mm:.3f} mm away on reading back",
            remedy="choose another format; this one rounds the positions too far",
            code="verify-geometry",
        )
