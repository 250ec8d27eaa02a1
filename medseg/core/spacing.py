"""Finer and coarser lattices over the same box of space."""

from __future__ import annotations

import numpy as np

from medseg.core.grid import Grid, extents
from medseg.errors import GeometryError

__all__ = ["respace_grid", "respace_shape"]


def respace_shape(grid: Grid, spacing_mm: tuple[float, float, float]) -> tuple[int, int, int]:
    """Number of voxels that brings a grid nearest to a spacing, at least 1 on each axis.

    Raises:
        GeometryError: If a spacing is not a positive number.
    """
    if not all(np.isfinite(step) and step > 0 for step in spacing_mm):
        raise GeometryError(
            "spacing",
            expected="three positive numbers of millimetres",
            found=str(tuple(spacing_mm)),
            remedy="give the distance between voxel centres on each axis",
            code="spacing",
        )
    ratios = [
        extent * have / want
        for extent, have, want in zip(grid.shape_ijk, grid.spacing_mm, spacing_mm, strict=True)
    ]
    return extents([max(1, round(ratio)) for ratio in ratios])


def respace_grid(grid: Grid, shape_ijk: tuple[int, int, int]) -> Grid:
    """The same box of space, divided into another number of voxels.

    Convention:
        The outer faces of the box stay (as ``align_corners=False`` means it): voxel centre ``i`` of
        the new grid lies at ``(i + 0.5) * old / new - 0.5`` of the old one. The spacing is then
        exactly ``old spacing * old / new``, so a wished-for spacing is met up to rounding to whole
        voxels, and going back is exact.

    Raises:
        GeometryError: If an extent is below 1.
    """
    if len(shape_ijk) != 3 or min(shape_ijk) < 1:
        raise GeometryError(
            "respacing",
            expected="three extents of at least 1",
            found=str(tuple(shape_ijk)),
            remedy="give the number of voxels on each axis",
            code="grid-shape",
        )
    ratio = np.asarray(grid.shape_ijk, dtype=np.float64) / np.asarray(shape_ijk, dtype=np.float64)
    affine = np.array(grid.affine_ras)
    affine[:3, 3] = grid.world_from_voxel((ratio - 1.0) / 2.0)
    affine[:3, :3] = grid.affine_ras[:3, :3] * ratio
    return Grid(extents(shape_ijk), affine)
