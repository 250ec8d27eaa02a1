"""Where voxels are: a shape and an affine to patient millimetres.

Convention:
    Voxel axes are I, J, K; integer coordinates are voxel centres. The world is RAS+ millimetres
    (x to the patient's right, y to the front, z to the head), as in NIfTI and nibabel. DICOM and
    ITK speak LPS; ``medseg.io`` converts at its border and nowhere else.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from medseg.errors import GeometryError

__all__ = ["FloatArray", "Grid"]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """A regular lattice of voxels in the patient's RAS+ millimetre space; valid once built.

    Args:
        shape_ijk: Number of voxels along I, J, K; each at least 1.
        affine_ras: ``(4, 4)``, voxel centre to world millimetres. Shear is allowed (gantry tilt);
            what a file format or a network cannot take is refused there.

    Raises:
        GeometryError: If an extent is below 1, or the affine is not finite, not invertible or its
            last row is not ``0 0 0 1``.
    """

    shape_ijk: tuple[int, int, int]
    affine_ras: FloatArray

    def __post_init__(self) -> None:
        shape = tuple(int(extent) for extent in self.shape_ijk)
        if len(shape) != 3 or min(shape) < 1:
            raise GeometryError(
                "grid",
                expected="three extents of at least 1",
                found=f"{self.shape_ijk}",
                remedy="give one extent per voxel axis I, J, K",
                code="grid-shape",
            )
        affine = np.array(self.affine_ras, dtype=np.float64)
        problem = _affine_problem(affine)
        if problem:
            raise GeometryError(
                "grid",
                expected="a finite, invertible 4x4 affine with last row 0 0 0 1",
                found=problem,
                remedy="repair the header of the image (its qform, sform or direction)",
                code="affine-invalid",
            )
        affine.setflags(write=False)
        object.__setattr__(self, "shape_ijk", shape)
        object.__setattr__(self, "affine_ras", affine)

    def __eq__(self, other: object) -> bool:
        """Whether shape and affine are equal to the last bit."""
        if not isinstance(other, Grid):
            return NotImplemented
        return self.shape_ijk == other.shape_ijk and np.array_equal(
            self.affine_ras, other.affine_ras
        )

    def __hash__(self) -> int:
        return hash((self.shape_ijk, self.affine_ras.tobytes()))

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxel centres along I, J, K."""
        lengths = np.linalg.norm(self.affine_ras[:3, :3], axis=0)
        return (float(lengths[0]), float(lengths[1]), float(lengths[2]))

    @property
    def direction_ras(self) -> FloatArray:
        """``(3, 3)``; column ``a`` is the unit vector along voxel axis ``a``."""
        return np.asarray(self.affine_ras[:3, :3] / np.asarray(self.spacing_mm), dtype=np.float64)

    @property
    def origin_ras(self) -> FloatArray:
        """``(3,)``; centre of voxel (0, 0, 0) in millimetres."""
        return np.array(self.affine_ras[:3, 3])

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of one voxel; right for sheared grids too."""
        return float(abs(np.linalg.det(self.affine_ras[:3, :3])))

    @property
    def orientation(self) -> str:
        """Nearest anatomical code, such as ``RAS`` or ``LPI``: where each voxel axis points to."""
        code = ""
        for world_axis, sign in closest_axes(self):
            code += ("LR", "PA", "IS")[world_axis][sign > 0]
        return code

    @property
    def shear_deg(self) -> float:
        """Largest deviation of the angle between two voxel axes from 90 degrees."""
        direction = self.direction_ras
        cosines = direction.T @ direction
        off_diagonal = cosines[~np.eye(3, dtype=bool)]
        return float(np.degrees(np.arcsin(np.clip(np.abs(off_diagonal).max(), 0.0, 1.0))))

    def world_from_voxel(self, points_ijk: npt.ArrayLike) -> FloatArray:
        """World millimetres of voxel coordinates.

        Args:
            points_ijk: ``(..., 3)`` voxel coordinates, not necessarily integers.

        Returns:
            ``(..., 3)`` RAS+ millimetres.
        """
        points = np.asarray(points_ijk, dtype=np.float64)
        return np.asarray(points @ self.affine_ras[:3, :3].T + self.affine_ras[:3, 3])

    def voxel_from_world(self, points_ras: npt.ArrayLike) -> FloatArray:
        """Voxel coordinates of world millimetres; the inverse of :meth:`world_from_voxel`.

        Args:
            points_ras: ``(..., 3)`` RAS+ millimetres.

        Returns:
            ``(..., 3)`` voxel coordinates.
        """
        offset = np.asarray(points_ras, dtype=np.float64) - self.affine_ras[:3, 3]
        return np.asarray(offset @ np.linalg.inv(self.affine_ras[:3, :3]).T)

    def corners_ras(self) -> FloatArray:
        """``(8, 3)``; world millimetres of the centres of the eight corner voxels."""
        ends = [(0, extent - 1) for extent in self.shape_ijk]
        return self.world_from_voxel(list(itertools.product(*ends)))

    def distance_mm(self, other: Grid) -> float:
        """Largest distance between the same corner voxel of two grids of one shape.

        An affine map deviates most at a corner, so this bounds the deviation of every voxel.

        Raises:
            GeometryError: If the shapes differ.
        """
        if self.shape_ijk != other.shape_ijk:
            raise GeometryError(
                "grid comparison",
                expected=f"shape {self.shape_ijk}",
                found=f"shape {other.shape_ijk}",
                remedy="compare images that lie on one grid",
                code="grid-shape-differs",
            )
        gaps = np.linalg.norm(self.corners_ras() - other.corners_ras(), axis=1)
        return float(gaps.max())


def closest_axes(grid: Grid) -> tuple[tuple[int, int], ...]:
    """For each voxel axis the world axis it runs along most, and in which sense.

    All six assignments are tried and the one with the largest sum of absolute direction cosines is
    taken, so that no world axis is used twice even on oblique grids.

    Returns:
        Three pairs ``(world_axis, sign)``, world axes 0, 1, 2 being R, A, S; sign +1 or -1.
    """
    direction = grid.direction_ras
    best = max(
        itertools.permutations(range(3)),
        key=lambda world_axes: sum(
            abs(direction[world, axis]) for axis, world in enumerate(world_axes)
        ),
    )
    return tuple(
        (world, 1 if direction[world, axis] >= 0 else -1) for axis, world in enumerate(best)
    )


def extents(values: Sequence[int] | npt.NDArray[np.int64]) -> tuple[int, int, int]:
    """Three Python integers from any sequence of three."""
    first, second, third = (int(value) for value in values)
    return first, second, third


def _affine_problem(affine: FloatArray) -> str:
    if affine.shape != (4, 4):
        return f"an array of shape {affine.shape}"
    if not np.isfinite(affine).all():
        return "an affine with NaN or infinity"
    if not np.array_equal(affine[3], [0.0, 0.0, 0.0, 1.0]):
        return f"last row {affine[3].tolist()}"
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if (lengths < 1e-6).any():
        return "a voxel axis of length zero"
    if abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-4:
        return "voxel axes that lie in one plane"
    return ""
