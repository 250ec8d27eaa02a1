"""Turning voxel axes: permutations and flips that move no voxel in the world."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from medseg.core.grid import Grid, closest_axes
from medseg.errors import GeometryError

__all__ = ["SLICES_LAST", "AxisTurn", "OnGrid", "axis_turn", "reorient", "turn"]


class OnGrid(Protocol):
    """What :class:`~medseg.core.volume.Volume` and ``LabelMap`` have in common."""

    @property
    def grid(self) -> Grid:
        """Where the voxels are."""
        ...

    @property
    def array(self) -> npt.NDArray[Any]:
        """The data; its last three axes are I, J, K."""
        ...

    def on_grid(self, data: npt.NDArray[Any], grid: Grid, /) -> Any:  # noqa: ANN401
        """The same kind of object with other data on another grid."""
        ...


OnGridT = TypeVar("OnGridT", bound=OnGrid)


@dataclass(frozen=True, slots=True)
class AxisTurn:
    """A permutation of the voxel axes followed by flips.

    Args:
        source_axes: New axis ``a`` runs along old axis ``source_axes[a]``.
        flipped: Whether new axis ``a`` runs against it.
    """

    source_axes: tuple[int, int, int]
    flipped: tuple[bool, bool, bool]

    def turn_grid(self, grid: Grid) -> Grid:
        """The turned grid; every voxel keeps its world position."""
        affine = np.array(grid.affine_ras)
        columns, origin = affine[:3, :3], affine[:3, 3].copy()
        turned = np.eye(4)
        shape: list[int] = []
        for axis, (source, flip) in enumerate(zip(self.source_axes, self.flipped, strict=True)):
            extent = grid.shape_ijk[source]
            step = columns[:, source]
            if flip:
                origin += step * (extent - 1)
                step = -step
            turned[:3, axis] = step
            shape.append(extent)
        turned[:3, 3] = origin
        return Grid((shape[0], shape[1], shape[2]), turned)

    def turn_array(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """A view of ``array`` (``(..., i, j, k)``) with its last three axes turned."""
        lead = array.ndim - 3
        order = (*range(lead), *(lead + source for source in self.source_axes))
        flips = tuple(lead + axis for axis, flip in enumerate(self.flipped) if flip)
        return np.asarray(np.flip(np.transpose(array, order), axis=flips))

    def after(self, first: AxisTurn) -> AxisTurn:
        """The turn that does ``first`` and then this one."""
        axes = [first.source_axes[source] for source in self.source_axes]
        flips = [
            flip != first.flipped[source]
            for source, flip in zip(self.source_axes, self.flipped, strict=True)
        ]
        return AxisTurn((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))

    @property
    def is_identity(self) -> bool:
        """Whether it leaves every axis as it is."""
        return self.source_axes == (0, 1, 2) and not any(self.flipped)

    def inverse(self) -> AxisTurn:
        """The turn that undoes this one."""
        axes = [0, 0, 0]
        flips = [False, False, False]
        for axis, (source, flip) in enumerate(zip(self.source_axes, self.flipped, strict=True)):
            axes[source] = axis
            flips[source] = flip
        return AxisTurn((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))


_CODES = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}


SLICES_LAST = "slices_last"
"""The orientation that puts the slice axis of every image last, whatever way it was acquired."""


def axis_turn(grid: Grid, orientation: str) -> AxisTurn:
    """The turn that brings ``grid`` nearest to an anatomical orientation.

    Args:
        grid: The grid as it is.
        orientation: Three letters, where I, J, K shall point to, such as ``RAS``; or
            ``slices_last``: as RAS, but the axis of the largest spacing comes last and the other
            two keep their order. Where it is not one axis that is thickest by more than 1 %, RAS.

    Raises:
        GeometryError: If the letters do not name each of left-right, front-back, head-foot once.
    """
    if orientation == SLICES_LAST:
        return _slices_last(grid)
    wanted = [_CODES.get(letter, (-1, 0)) for letter in orientation.upper()]
    if sorted(world for world, _ in wanted) != [0, 1, 2]:
        raise GeometryError(
            "orientation",
            expected=f"three letters, one each of R/L, A/P and S/I, or {SLICES_LAST}",
            found=repr(orientation),
            remedy="write for example RAS or LPS",
            code="orientation",
        )
    have = closest_axes(grid)
    axes: list[int] = []
    flips: list[bool] = []
    for world, sign in wanted:
        source = next(axis for axis, (other, _) in enumerate(have) if other == world)
        axes.append(source)
        flips.append(have[source][1] != sign)
    return AxisTurn((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))


def _slices_last(grid: Grid) -> AxisTurn:
    upright = axis_turn(grid, "RAS")
    spacing = [grid.spacing_mm[source] for source in upright.source_axes]
    thick = [axis for axis in range(3) if spacing[axis] > 0.99 * max(spacing)]
    if len(thick) > 1:
        return upright
    i, j, k = [axis for axis in range(3) if axis != thick[0]] + thick
    sources, flips = upright.source_axes, upright.flipped
    return AxisTurn(
        (sources[i], sources[j], sources[k]),
        (flips[i], flips[j], flips[k]),
    )


def turn(image: OnGridT, axis_turn_: AxisTurn) -> OnGridT:
    """Turn an image's voxel axes; the array of the result is a view."""
    turned: OnGridT = image.on_grid(
        axis_turn_.turn_array(image.array), axis_turn_.turn_grid(image.grid)
    )
    return turned


def reorient(image: OnGridT, orientation: str) -> OnGridT:
    """Turn an image's voxel axes nearest to an anatomical orientation.

    Args:
        image: A ``Volume`` or a ``LabelMap``.
        orientation: Three letters, such as ``RAS``.

    Raises:
        GeometryError: If the letters do not name an orientation.
    """
    return turn(image, axis_turn(image.grid, orientation))
