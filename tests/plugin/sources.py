"""Small images on disk for the reader and the writer: noise, so that none looks like labels."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from medseg.core import Grid, Volume
from tests.grids import rotation

GEOMETRY_FIELDS = (
    *("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "pixdim"),
)


def oblique_grid(shape_ijk: tuple[int, int, int] = (7, 6, 5)) -> Grid:
    """Anisotropic, flipped and some 12 degrees off the patient's axes."""
    affine = np.eye(4)
    affine[:3, :3] = rotation((1.0, 0.05, -0.08, 0.06)) @ np.diag([-0.9, 1.1, 2.5])
    affine[:3, 3] = (31.7, -45.3, 12.1)
    return Grid(shape_ijk, affine)


def noise(shape: tuple[int, ...], *, high: int = 1000) -> np.ndarray:
    return np.random.default_rng(0).integers(1, high, shape).astype(np.int16)


def noise_volume(grid: Grid) -> Volume:
    return Volume(noise((1, *grid.shape_ijk)), grid)


def write_nifti_image(path: Path, grid: Grid, *, version: int = 1) -> None:
    """An image by nibabel with sform and qform of different codes."""
    kind = {1: nib.Nifti1Image, 2: nib.Nifti2Image}[version]
    image = kind(noise(grid.shape_ijk), grid.affine_ras)
    image.set_sform(grid.affine_ras, code=2)
    image.set_qform(grid.affine_ras, code=1)
    nib.save(image, path)


def geometry_bytes(path: Path) -> dict[str, bytes]:
    header = nib.load(path).header
    return {name: header[name].tobytes() for name in GEOMETRY_FIELDS}
