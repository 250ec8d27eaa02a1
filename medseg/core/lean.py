"""Stacks that lean, as those of a tilted gantry do, set upright for a network and leant back.

Slices of such a stack keep their shape and lie beside each other with a shift that grows from one
to the next. Setting it upright is therefore a translation of every slice within its plane; nothing
is interpolated across slices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from medseg.core.grid import FloatArray, Grid
from medseg.core.labelmap import LabelMap
from medseg.core.volume import Volume

__all__ = ["LEAN_DEG", "Lean"]

LEAN_DEG = 0.5
"""Shear above which a stack is set upright; less is the rounding of headers."""

_IN_PLANE_DEG = 0.5

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


@dataclass(frozen=True, slots=True, eq=False)
class Lean:
    """How the slices of a leaning stack lie in an upright one.

    Convention:
        Pixel ``(i, j)`` of slice ``k`` lies at ``(i, j) - first_ij + k * shift_ij`` of slice ``k``
        of the upright grid.

    Args:
        grid: The leaning stack; I and J are at right angles, K leans.
        upright: The same slices' planes along their normal, as wide as all of them together.
        shift_ij: Voxels along I and J from one slice to the next.
        first_ij: Place of the upright grid's first voxel in the plane of slice 0.
    """

    grid: Grid
    upright: Grid
    shift_ij: FloatArray
    first_ij: FloatArray

    @classmethod
    def of(cls, grid: Grid) -> Self | None:
        """The lean of a grid; None where K is upright or it is not K that leans."""
        if grid.shear_deg <= LEAN_DEG or grid.shape_ijk[2] < 2:
            return None
        across, down, step = grid.affine_ras[:3, :3].T
        cosine = across @ down / (np.linalg.norm(across) * np.linalg.norm(down))
        if np.degrees(np.arcsin(min(1.0, abs(float(cosine))))) > _IN_PLANE_DEG:
            return None
        normal = np.cross(across, down)
        normal = normal / np.linalg.norm(normal)
        upright_step = (step @ normal) * normal
        plane = np.stack([across, down], axis=1)
        shift, *_ = np.linalg.lstsq(plane, step - upright_step, rcond=None)
        ends = shift * (grid.shape_ijk[2] - 1)
        first = np.floor(np.minimum(0.0, ends))
        last = np.ceil(np.maximum(0.0, ends))
        extents = [
            int(extent + high - low)
            for extent, low, high in zip(grid.shape_ijk[:2], first, last, strict=True)
        ]
        affine = np.array(grid.affine_ras)
        affine[:3, 2] = upright_step
        affine[:3, 3] = affine[:3, 3] + plane @ first
        return cls(grid, Grid((extents[0], extents[1], grid.shape_ijk[2]), affine), shift, first)

    def straighten(self, volume: Volume) -> Volume:
        """The volume on the upright grid, linear within slices; its least value lies around it."""
        data = volume.data_cijk
        shape = (data.shape[0], *self.upright.shape_ijk)
        straight = np.empty(shape, dtype=data.dtype)
        for channel in range(data.shape[0]):
            straight[channel] = data[channel].min()
            for k in range(shape[3]):
                straight[channel, :, :, k] = self._shifted(
                    data[channel, :, :, k], k, straight[channel, 0, 0, k]
                )
        return Volume(straight, self.upright, volume.channels)

    def _shifted(
        self,
        slice_ij: npt.NDArray[Any],
        k: int,
        outside: Any,  # noqa: ANN401 - a voxel's value
    ) -> npt.NDArray[Any]:
        place = k * self.shift_ij - self.first_ij
        whole = np.floor(place + 1e-6)
        rest = np.maximum(0.0, place - whole)
        moved = np.full(self.upright.shape_ijk[:2], float(outside))
        low_i, low_j = (int(step) for step in whole)
        moved[low_i : low_i + slice_ij.shape[0], low_j : low_j + slice_ij.shape[1]] = slice_ij
        for axis, share in enumerate(rest):
            if share > 1e-6:
                before = np.roll(moved, 1, axis=axis)
                before[(slice(None),) * axis + (0,)] = float(outside)
                moved = (1 - share) * moved + share * before
        if slice_ij.dtype.kind in "iu":
            moved = np.rint(moved)
        return moved.astype(slice_ij.dtype)

    def lean_back(self, labels: LabelMap) -> LabelMap:
        """A label map of the upright grid on the leaning one, by nearest neighbours."""
        return LabelMap(self.lean_array_back(labels.data_ijk), self.grid, labels.scheme)

    def lean_array_back(self, data_ijk: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Voxels of the upright grid on the leaning one, by nearest neighbours."""
        back = np.empty(self.grid.shape_ijk, dtype=data_ijk.dtype)
        for k in range(back.shape[2]):
            first_i, first_j = self.nearest_ij(k)
            back[:, :, k] = data_ijk[
                first_i : first_i + back.shape[0], first_j : first_j + back.shape[1], k
            ]
        return back

    def nearest_ij(self, k: int) -> tuple[int, int]:
        """Where slice ``k`` begins in the upright one, to the nearest voxel."""
        i, j = (int(place) for place in np.rint(k * self.shift_ij - self.first_ij))
        return i, j

    def upright_box(self, box: Box) -> Box:
        """The box of the upright grid that holds a box of the leaning one."""
        first, last = box[2][0], max(box[2][0], box[2][1] - 1)
        firsts, lasts = self.nearest_ij(first), self.nearest_ij(last)
        spans = []
        for axis in range(2):
            low, high = sorted((firsts[axis], lasts[axis]))
            start = max(0, box[axis][0] + low - 1)
            stop = min(self.upright.shape_ijk[axis], box[axis][1] + high + 1)
            spans.append((start, stop))
        return spans[0], spans[1], box[2]
