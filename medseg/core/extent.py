"""Cutting and padding: the lattice goes on, only its ends move."""

from __future__ import annotations

import numpy as np

from medseg.core.grid import Grid, extents
from medseg.core.orientation import OnGridT
from medseg.errors import GeometryError

__all__ = ["crop", "crop_grid", "pad", "pad_grid"]

Extents = tuple[int, int, int]


def crop_grid(grid: Grid, start_ijk: Extents, stop_ijk: Extents) -> Grid:
    """The part of a grid from ``start_ijk`` up to, not including, ``stop_ijk``.

    Raises:
        GeometryError: If the box is empty or reaches outside the grid.
    """
    for start, stop, extent in zip(start_ijk, stop_ijk, grid.shape_ijk, strict=True):
        if not 0 <= start < stop <= extent:
            raise GeometryError(
                "crop",
                expected=f"0 <= start < stop <= {grid.shape_ijk} on every axis",
                found=f"start {start_ijk}, stop {stop_ijk}",
                remedy="clip the box to the grid; pad to go beyond it",
                code="crop-box",
            )
    return _moved(
        grid, start_ijk, extents([b - a for a, b in zip(start_ijk, stop_ijk, strict=True)])
    )


def pad_grid(grid: Grid, before_ijk: Extents, after_ijk: Extents) -> Grid:
    """A grid with more voxels before and after on each axis.

    Raises:
        GeometryError: If a number is negative.
    """
    if min(*before_ijk, *after_ijk) < 0:
        raise GeometryError(
            "pad",
            expected="numbers of voxels of at least 0",
            found=f"before {before_ijk}, after {after_ijk}",
            remedy="crop to make a grid smaller",
            code="pad-width",
        )
    shape = [
        extent + before + after
        for extent, before, after in zip(grid.shape_ijk, before_ijk, after_ijk, strict=True)
    ]
    return _moved(grid, extents([-before for before in before_ijk]), extents(shape))


def crop(image: OnGridT, start_ijk: Extents, stop_ijk: Extents) -> OnGridT:
    """Cut a box out of a ``Volume`` or ``LabelMap``; the array of the result is a view.

    Raises:
        GeometryError: If the box is empty or reaches outside the grid.
    """
    grid = crop_grid(image.grid, start_ijk, stop_ijk)
    i, j, k = (slice(start, stop) for start, stop in zip(start_ijk, stop_ijk, strict=True))
    cut: OnGridT = image.on_grid(image.array[..., i, j, k], grid)
    return cut


def pad(image: OnGridT, before_ijk: Extents, after_ijk: Extents, value: float = 0) -> OnGridT:
    """Add voxels of one value round a ``Volume`` or ``LabelMap``.

    Raises:
        GeometryError: If a number is negative.
    """
    grid = pad_grid(image.grid, before_ijk, after_ijk)
    lead = [(0, 0)] * (image.array.ndim - 3)
    widths = lead + list(zip(before_ijk, after_ijk, strict=True))
    padded: OnGridT = image.on_grid(np.pad(image.array, widths, constant_values=value), grid)
    return padded


def _moved(grid: Grid, start_ijk: Extents, shape_ijk: Extents) -> Grid:
    affine = np.array(grid.affine_ras)
    affine[:3, 3] = grid.world_from_voxel(start_ijk)
    return Grid(shape_ijk, affine)
