"""Where the frames of a SEG lie: on the voxels of a grid, or on a grid of their own."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medseg.core import Grid
from medseg.core.grid import FloatArray
from medseg.errors import GeometryError
from medseg.io.dicom_seg_reading import Block, SegFile

__all__ = ["own_grid", "placed_blocks"]

_RAS_FROM_LPS = np.array([-1.0, -1.0, 1.0])
_ON_GRID_MM = 0.1
_MOST_SPARSE = 64  # steps of a grid for each plane that a file has


def own_grid(seg: SegFile) -> Grid:
    """The grid on which the frames of a file lie, where the image is not at hand.

    Planes without a frame are part of it between the first and the last. The step of K is the
    distance between slices that the file says, else the smallest between its planes.

    Raises:
        GeometryError: ``seg-grid-differs`` if the frames lie on no common grid.
    """
    frames = seg.frames
    cosines, spacing = frames.cosines[0], frames.spacings_mm[0]
    normal = np.cross(cosines[:3], cosines[3:])
    heights = frames.positions_lps @ normal
    order = np.argsort(heights, kind="stable")
    gaps = np.diff(heights[order])
    # nearer than 0.01 mm is one plane, in the decimals that files have
    usual = float(gaps[gaps > 0.01].min(initial=np.inf))
    step = min(seg.slice_step_mm or usual, usual)
    step = step if np.isfinite(step) else 1.0
    lowest, highest = order[0], order[-1]
    k = np.rint((heights - heights[lowest]) / step)
    alike = np.allclose(frames.cosines, cosines, atol=1e-4) and np.allclose(
        frames.spacings_mm, spacing, rtol=1e-4
    )
    planes = len(np.unique(k))
    if not alike or abs(np.linalg.norm(normal) - 1) > 1e-3 or k.max() >= _MOST_SPARSE * planes:
        raise _no_grid(seg.where, "frames of several orientations, spacings or far apart")
    first = frames.positions_lps[lowest]
    along = normal * step if k.max() == 0 else (frames.positions_lps[highest] - first) / k.max()
    apart_mm = np.linalg.norm(frames.positions_lps - first - k[:, None] * along, axis=1)
    if apart_mm.max() > _ON_GRID_MM:
        raise _no_grid(seg.where, "frames that are not evenly apart")
    affine = np.eye(4)
    affine[:3, 0] = cosines[:3] * spacing[1] * _RAS_FROM_LPS
    affine[:3, 1] = cosines[3:] * spacing[0] * _RAS_FROM_LPS
    affine[:3, 2] = along * _RAS_FROM_LPS
    affine[:3, 3] = first * _RAS_FROM_LPS
    return Grid((seg.columns, seg.rows, int(k.max()) + 1), affine)


def _no_grid(where: str, found: str) -> GeometryError:
    return GeometryError(
        where,
        expected="frames on one grid",
        found=found,
        remedy="read it on the grid of the series it was made from",
        code="seg-grid-differs",
    )


def placed_blocks(
    seg: SegFile,
    grid: Grid,
    data_kji: npt.NDArray[Any],
    tolerance_mm: float,
    numbers: Collection[int] | None = None,
) -> Iterator[tuple[Block, npt.NDArray[Any]]]:
    """The frames that hold anything, each with the voxels of an array that it lies on.

    Args:
        seg: The segmentation.
        grid: Where the voxels are.
        data_kji: ``(k, j, i)``, contiguous.
        tolerance_mm: How far centres of pixels and voxels may be apart.
        numbers: Segments whose frames are wanted; None, or of a LABELMAP, all.

    Yields:
        Rows of a frame, and a view into ``data_kji`` of the same shape.

    Raises:
        GeometryError: ``seg-grid-differs``.
        MedsegError: As :meth:`~medseg.io.dicom_seg_reading.SegFile.blocks`.
    """
    place = _Place.of(seg, grid, tolerance_mm)
    wanted = None
    if numbers is not None and seg.kind != "LABELMAP":
        wanted = np.flatnonzero(np.isin(seg.frames.segments, list(numbers))).tolist()
    for block in seg.blocks(wanted):
        place.check(block.index, seg.where)
        yield block, place.view(data_kji, block)


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """Where frames begin in a flat array, how they run in it, and those that cannot lie in it.

    ``starts``, ``across`` and ``down`` are ``(n,)`` voxels; ``off`` is ``(n,)``.
    """

    starts: npt.NDArray[np.int64]
    across: npt.NDArray[np.int64]
    down: npt.NDArray[np.int64]
    off: npt.NDArray[np.bool_]
    apart_mm: FloatArray
    tolerance_mm: float

    @classmethod
    def of(cls, seg: SegFile, grid: Grid, tolerance_mm: float) -> _Place:
        frames = seg.frames
        origin = frames.positions_lps * _RAS_FROM_LPS
        across = frames.cosines[:, :3] * frames.spacings_mm[:, 1:] * _RAS_FROM_LPS
        down = frames.cosines[:, 3:] * frames.spacings_mm[:, :1] * _RAS_FROM_LPS
        inverse = np.linalg.inv(grid.affine_ras[:3, :3]).T
        origin_ijk, across_ijk, down_ijk = (
            np.rint(part).astype(np.int64)
            for part in (grid.voxel_from_world(origin), across @ inverse, down @ inverse)
        )
        off = np.zeros(len(origin), dtype=bool)
        for part in (across_ijk, down_ijk):
            off |= np.abs(part).sum(axis=1) != 1
        off |= (across_ijk * down_ijk).any(axis=1)
        # All four corners of all frames: an affine map deviates most at a corner.
        apart_mm = np.zeros(len(origin))
        right, below = seg.columns - 1, seg.rows - 1
        for column, row in ((0, 0), (right, 0), (0, below), (right, below)):
            corner_ijk = origin_ijk + column * across_ijk + row * down_ijk
            gap = origin + column * across + row * down - grid.world_from_voxel(corner_ijk)
            apart_mm = np.maximum(apart_mm, np.linalg.norm(gap, axis=1))
            off |= ((corner_ijk < 0) | (corner_ijk >= grid.shape_ijk)).any(axis=1)
        strides = np.array([1, grid.shape_ijk[0], grid.shape_ijk[0] * grid.shape_ijk[1]])
        return cls(
            origin_ijk @ strides,
            across_ijk @ strides,
            down_ijk @ strides,
            off,
            apart_mm,
            tolerance_mm,
        )

    def check(self, index: int, where: str) -> None:
        if not self.off[index] and self.apart_mm[index] <= self.tolerance_mm:
            return
        raise GeometryError(
            where,
            expected=f"pixels on the voxels of the grid within {self.tolerance_mm:.3f} mm",
            found="pixels beside or outside of it"
            if self.off[index]
            else f"a pixel {self.apart_mm[index]:.3f} mm away",
            remedy="read it on the grid of the series it was made from",
            code="seg-grid-differs",
        )

    def view(self, data_kji: npt.NDArray[Any], block: Block) -> npt.NDArray[Any]:
        flat = data_kji.reshape(-1)
        start = (
            self.starts[block.index]
            + block.first_row * self.down[block.index]
            + block.first_column * self.across[block.index]
        )
        # All corners of the frame were found inside the grid, so that the view is too.
        return np.lib.stride_tricks.as_strided(
            flat[start:],
            shape=block.pixels.shape,
            strides=(
                self.down[block.index] * flat.itemsize,
                self.across[block.index] * flat.itemsize,
            ),
        )
