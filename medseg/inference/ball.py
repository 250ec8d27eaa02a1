"""Growing and closing of a mask by a ball in millimetres, in slabs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from medseg.core import Grid
from medseg.inference import pieces
from medseg.inference.pieces import Mask, MaskLike

__all__ = ["Ball", "closed", "planes_closed", "planes_grown"]

Floats = npt.NDArray[np.float64]
Reach = tuple[int, int, int]

_MOST_COLUMNS = 1500  # from about there on distances are quicker than shifts
_UPRIGHT_DEG = 0.05  # below it axes count as perpendicular: headers round to about 1e-6
_ROUNDING = 1e-6


def closed(mask: Mask, grid: Grid, radius_mm: float) -> Mask:
    """Closing by a ball, as :func:`planes_closed`, in one array."""
    result = np.empty_like(mask)
    for planes, part in planes_closed(mask, grid, radius_mm):
        result[planes] = part
    return result


def planes_closed(mask: MaskLike, grid: Grid, radius_mm: float) -> Iterator[tuple[slice, Mask]]:
    """Closing by a ball, in slabs; the mask goes on as background beyond its box.

    Yields:
        Planes along the first axis, together all of them, and the closed mask there.
    """
    ball = Ball.of(grid, radius_mm)
    wide = [extent + 4 * reach for extent, reach in zip(mask.shape, ball.reach, strict=True)]
    halo = 2 * ball.reach[0]
    thickness = max(1, halo, pieces.SLAB_VOXELS // (wide[1] * wide[2]) - 2 * halo)
    inner = tuple(
        slice(2 * reach, 2 * reach + extent)
        for reach, extent in zip(ball.reach[1:], mask.shape[1:], strict=True)
    )
    for first in range(0, mask.shape[0], thickness):
        stop = min(first + thickness, mask.shape[0])
        planes = slice(first, stop)
        source = slice(max(first - halo, 0), min(stop + halo, mask.shape[0]))
        around = mask[source]
        here = around[first - source.start : stop - source.start]
        if not any(ball.reach) or not around.any() or here.all():
            yield planes, here
            continue
        padded = np.zeros((stop - first + 2 * halo, wide[1], wide[2]), dtype=bool)
        offset = source.start - (first - halo)
        padded[(slice(offset, offset + source.stop - source.start), *inner)] = around
        gaps = ball.grown(padded)
        np.logical_not(gaps, out=gaps)
        yield planes, ~ball.grown(gaps)


def planes_grown(mask: MaskLike, ball: Ball) -> Iterator[tuple[slice, Mask]]:
    """Dilation by a ball, in slabs, within the mask's box; beyond it nothing is set.

    Yields:
        Planes along the first axis and the grown mask there; planes that no voxel reaches are left
        out.
    """
    along, *across = ball.reach
    wide = [extent + 2 * reach for extent, reach in zip(mask.shape[1:], across, strict=True)]
    thickness = max(1, along, pieces.SLAB_VOXELS // (wide[0] * wide[1]) - 2 * along)
    inner = tuple(
        slice(reach, reach + extent) for reach, extent in zip(across, mask.shape[1:], strict=True)
    )
    for first in range(0, mask.shape[0], thickness):
        stop = min(first + thickness, mask.shape[0])
        source = slice(max(first - along, 0), min(stop + along, mask.shape[0]))
        around = mask[source]
        if not around.any():
            continue
        padded = np.zeros((stop - first + 2 * along, *wide), dtype=bool)
        offset = source.start - (first - along)
        padded[(slice(offset, offset + source.stop - source.start), *inner)] = around
        yield slice(first, stop), ball.grown(padded)


@dataclass(frozen=True, slots=True, eq=False)
class Ball:
    """All voxel steps of at most a length in millimetres.

    Args:
        metric_mm2: ``(3, 3)``; a step ``v`` has the squared length ``v @ metric_mm2 @ v``.
        radius_mm2: The squared radius, with room for rounding.
        reach: The longest step along each voxel axis.
    """

    metric_mm2: Floats
    radius_mm2: float
    reach: Reach

    @classmethod
    def of(cls, grid: Grid, radius_mm: float) -> Ball:
        """The ball of a radius on a grid."""
        axes = grid.affine_ras[:3, :3]
        metric = axes.T @ axes
        if grid.shear_deg < _UPRIGHT_DEG:
            metric = np.diag(np.diag(metric))
        radius_mm2 = radius_mm**2 * (1.0 + _ROUNDING)
        i, j, k = (
            math.floor(step) for step in np.sqrt(radius_mm2 * np.diag(np.linalg.inv(metric)))
        )
        return cls(metric, radius_mm2, (i, j, k))

    def grown(self, mask: Mask) -> Mask:
        """Dilation, of the part of ``mask`` that lies at least ``reach`` from its ends."""
        upright = not (self.metric_mm2 - np.diag(np.diag(self.metric_mm2))).any()
        # the ball's cross-section, in columns along its longest axis
        i, j, k = sorted(self.reach)
        if upright and math.pi * i * j > _MOST_COLUMNS and k > 1:
            return self.grown_by_distance(mask)
        return self.grown_by_columns(mask)

    def grown_by_distance(self, mask: Mask) -> Mask:
        """By the distance to the nearest voxel of the mask; for perpendicular axes only."""
        inner = self._inner(mask.shape)
        if not mask.any():
            return np.zeros([part.stop - part.start for part in inner], dtype=bool)
        spacing_mm2 = np.diag(self.metric_mm2)
        nearest = ndimage.distance_transform_edt(
            ~mask, sampling=np.sqrt(spacing_mm2), return_distances=False, return_indices=True
        )
        grown = np.empty([part.stop - part.start for part in inner], dtype=bool)
        here = np.ogrid[inner[1:]]
        for plane in range(len(grown)):
            at = plane + inner[0].start
            i, j, k = nearest[(slice(None), at, *inner[1:])]
            length_mm2 = (
                spacing_mm2[0] * np.square(i - at)
                + spacing_mm2[1] * np.square(j - here[0])
                + spacing_mm2[2] * np.square(k - here[1])
            )
            grown[plane] = length_mm2 <= self.radius_mm2
        return grown

    def grown_by_columns(self, mask: Mask) -> Mask:
        """By shifting: the ball is a bundle of columns, and a column a union of two windows."""
        inner = self._inner(mask.shape)
        grown = np.zeros([part.stop - part.start for part in inner], dtype=bool)
        along = int(np.argmax(self.reach))
        window, length = mask, 1
        for extent, start in self._columns(along):
            while 2 * length <= extent:
                window = _either(window, length, along)
                length *= 2
            for skipped in {0, extent - length}:
                part = [
                    slice(place.start + step, place.stop + step)
                    for place, step in zip(inner, start, strict=True)
                ]
                place = part[along]
                part[along] = slice(place.start + skipped, place.stop + skipped)
                np.logical_or(grown, window[tuple(part)], out=grown)
        return grown

    def _columns(self, along: int) -> list[tuple[int, Reach]]:
        """Number of voxels and first step of each column along an axis, short ones first."""
        one, other = (axis for axis in range(3) if axis != along)
        grid = np.zeros((2 * self.reach[one] + 1, 2 * self.reach[other] + 1, 3))
        grid[:, :, one] = np.arange(-self.reach[one], self.reach[one] + 1)[:, None]
        grid[:, :, other] = np.arange(-self.reach[other], self.reach[other] + 1)
        feet = grid.reshape(-1, 3)
        # |foot + t * axis|^2 = length^2 + 2 t lean + t^2 square is at most radius^2 between roots
        square = self.metric_mm2[along, along]
        lean = feet @ self.metric_mm2[:, along]
        length_mm2 = np.einsum("na,ab,nb->n", feet, self.metric_mm2, feet)
        under_root = np.square(lean) + square * (self.radius_mm2 - length_mm2)
        root = np.sqrt(np.maximum(under_root, 0.0))
        first, last = np.ceil((-lean - root) / square), np.floor((-lean + root) / square)
        inside = (under_root >= 0) & (first <= last)
        feet[:, along] = first
        return sorted(
            (int(extent), (int(i), int(j), int(k)))
            for extent, (i, j, k) in zip((last - first + 1)[inside], feet[inside], strict=True)
        )

    def _inner(self, shape: tuple[int, ...]) -> tuple[slice, ...]:
        return tuple(
            slice(reach, extent - reach) for reach, extent in zip(self.reach, shape, strict=True)
        )


def _either(window: Mask, step: int, axis: int) -> Mask:
    """Each voxel or the one ``step`` further along an axis."""
    near, far = [slice(None)] * 3, [slice(None)] * 3
    near[axis], far[axis] = slice(None, -step), slice(step, None)
    either: Mask = window[tuple(near)] | window[tuple(far)]
    return either
