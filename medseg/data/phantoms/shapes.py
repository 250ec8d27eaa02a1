"""Bodies in millimetres, painted on a grid: what phantoms are made of."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medseg.core import Grid

__all__ = ["Mask", "Point", "Space", "Values", "smooth_noise", "textured"]

Values = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Point = Sequence[float] | npt.NDArray[np.float64]


class Space:
    """Where the voxels of a grid are, bent a little so that no two bodies are alike.

    Args:
        grid: Its axes run along those of the world.
        rng: Draws the bending.
        bend_mm: Largest displacement of a voxel on each axis; 0 for none.
        cells: How many bends there are across the grid.
    """

    def __init__(
        self, grid: Grid, rng: np.random.Generator, *, bend_mm: float = 0.0, cells: int = 4
    ) -> None:
        self.grid = grid
        shape = grid.shape_ijk
        axes = []
        for axis in range(3):
            steps = np.arange(shape[axis], dtype=np.float64)
            line = grid.affine_ras[axis, axis] * steps + grid.affine_ras[axis, 3]
            extent = [1, 1, 1]
            extent[axis] = shape[axis]
            place = line.astype(np.float32).reshape(extent)
            if bend_mm:
                place = place + bend_mm * smooth_noise(shape, rng, cells=cells)
            axes.append(place)
        self.x_mm, self.y_mm, self.z_mm = axes

    def ellipsoid(self, centre: Point, radii: Point) -> Mask:
        """The inside of an ellipsoid with axes along the world's.

        Args:
            centre: ``(3,)`` RAS+ millimetres.
            radii: ``(3,)`` millimetres.
        """
        return self.level(centre, radii) <= 1.0

    def level(self, centre: Point, radii: Point) -> Values:
        """Squared distance from the centre, 1 on the surface of the ellipsoid."""
        parts = (
            np.square((place - middle) / radius, dtype=np.float32)
            for place, middle, radius in zip(self._places(), centre, radii, strict=True)
        )
        return np.asarray(sum(parts), dtype=np.float32)

    def tube(self, points: Sequence[Point], radius_mm: float) -> Mask:
        """Everything nearer than the radius to a line through the points."""
        inside = np.zeros(self.grid.shape_ijk, dtype=bool)
        for start, stop in pairwise(points):
            inside |= self._near(start, stop, radius_mm)
        return inside

    def _near(self, start: Point, stop: Point, radius_mm: float) -> Mask:
        along = np.asarray(stop, dtype=np.float64) - np.asarray(start)
        length_squared = float(along @ along)
        offsets = [
            place - float(middle) for place, middle in zip(self._places(), start, strict=True)
        ]
        dot = sum(offset * float(step) for offset, step in zip(offsets, along, strict=True))
        share = np.clip(np.asarray(dot) / length_squared, 0.0, 1.0)
        gaps = (
            np.square(offset - share * float(step))
            for offset, step in zip(offsets, along, strict=True)
        )
        return np.asarray(sum(gaps) <= radius_mm**2)

    def _places(self) -> tuple[Values, Values, Values]:
        return self.x_mm, self.y_mm, self.z_mm


def smooth_noise(
    shape: tuple[int, int, int], rng: np.random.Generator, *, cells: int = 4
) -> Values:
    """Noise between -1 and 1 that changes over the given fraction of the grid."""
    coarse = rng.uniform(-1.0, 1.0, (cells + 1,) * 3).astype(np.float32)
    lines = [np.linspace(0, cells, extent, dtype=np.float32) for extent in shape]
    # one axis after the other: linear interpolation of a box is separable
    for axis, line in enumerate(lines):
        low = np.minimum(line.astype(int), cells - 1)
        share = (line - low).reshape([-1 if other == axis else 1 for other in range(3)])
        share = share * share * (3 - 2 * share)
        first = np.take(coarse, low, axis=axis)
        coarse = first + share * (np.take(coarse, low + 1, axis=axis) - first)
    return np.asarray(coarse, dtype=np.float32)


def textured(
    tissue: Values, rng: np.random.Generator, *, blur_vox: Sequence[float], noise: float
) -> Values:
    """An image of tissue values: blurred as a scanner blurs, with noise as it has it."""
    blurred = ndimage.gaussian_filter(tissue, blur_vox, mode="nearest")
    return np.asarray(
        blurred + noise * rng.standard_normal(tissue.shape, dtype=np.float32), dtype=np.float32
    )
