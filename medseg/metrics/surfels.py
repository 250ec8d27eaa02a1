"""Areas of the pieces of surface between eight neighbouring voxels.

A mask is looked at in cells: cubes whose eight corners are the centres of neighbouring voxels. The
surface cuts a cell's edge in the middle where one end is inside and the other outside. The element
of surface in a cell depends on nothing but which corners are inside, so there are 256 of them.

Source: marching cubes (Lorensen and Cline 1987) as the surface metrics of Nikolov et al. 2018
("Deep learning to achieve clinically applicable segmentation of head and neck anatomy",
arXiv:1809.04430) use it. Here the elements are put together from six shapes instead of being listed
by hand: of the corners inside or outside the fewer are taken, and each group of them that cube
edges join is cut off by a polygon of its own, split into a fan of triangles.
"""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import numpy.typing as npt

__all__ = ["surfel_areas"]

Floats = npt.NDArray[np.float64]
Corner = tuple[int, int, int]

_CORNERS: tuple[Corner, ...] = tuple(itertools.product((0, 1), (0, 1), (0, 1)))

# Corners that cube edges join, up to symmetry, and the polygon that cuts them off: edge midpoints
# in units of the cell, in the order of the fan's triangles (first, n, n + 1).
_SHAPES: tuple[tuple[tuple[Corner, ...], tuple[tuple[float, float, float], ...]], ...] = (
    (((0, 0, 0),), ((0.5, 0, 0), (0, 0.5, 0), (0, 0, 0.5))),
    (((0, 0, 0), (1, 0, 0)), ((0, 0.5, 0), (1, 0.5, 0), (1, 0, 0.5), (0, 0, 0.5))),
    (
        ((0, 0, 0), (1, 0, 0), (0, 1, 0)),
        ((0, 1, 0.5), (0, 0, 0.5), (1, 0, 0.5), (1, 0.5, 0), (0.5, 1, 0)),
    ),
    (
        ((0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0)),
        ((0, 0, 0.5), (1, 0, 0.5), (1, 1, 0.5), (0, 1, 0.5)),
    ),
    (
        ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)),
        ((1, 0.5, 0), (0.5, 1, 0), (0, 1, 0.5), (0, 0.5, 1), (0.5, 0, 1), (1, 0, 0.5)),
    ),
    (
        ((1, 0, 0), (0, 0, 0), (0, 1, 0), (0, 1, 1)),
        ((1, 0.5, 0), (1, 0, 0.5), (0, 0, 0.5), (0, 0.5, 1), (0.5, 1, 1), (0.5, 1, 0)),
    ),
)


def surfel_areas(axes_mm: npt.ArrayLike) -> Floats:
    """Area of the element of surface for every state of a cell's corners.

    Convention:
        Corner ``(i, j, k)`` of the cell, each 0 or 1, is bit ``4 i + 2 j + k`` of the code: set if
        that voxel is inside. Codes 0 and 255 have no surface.

    Args:
        axes_mm: ``(3, 3)``; column ``a`` is the step from a voxel to its neighbour along axis ``a``
            in millimetres, as in an affine; need not be orthogonal.

    Returns:
        ``(256,)`` float64, square millimetres.
    """
    steps = np.asarray(axes_mm, dtype=np.float64)
    sides, codes = _triangles()
    sides_mm = sides @ steps.T
    areas = 0.5 * np.linalg.norm(np.cross(sides_mm[:, 0], sides_mm[:, 1]), axis=1)
    return np.bincount(codes, areas, minlength=256).astype(np.float64)


@cache
def _triangles() -> tuple[Floats, npt.NDArray[np.int64]]:
    """``(n, 2, 3)`` two sides of every triangle, in units of the cell, and ``(n,)`` its code."""
    shapes = _placed_shapes()
    found, codes = [], []
    for code in range(1, 255):
        inside = {corner for corner in _CORNERS if code >> _bit(corner) & 1}
        fewer = inside if len(inside) <= 4 else set(_CORNERS) - inside
        for group in _groups(fewer):
            found.append(shapes[group])
            codes += [code] * len(shapes[group])
    return np.concatenate(found), np.array(codes)


def _placed_shapes() -> dict[frozenset[Corner], Floats]:
    """Every shape in every place that a symmetry of the cube takes it to."""
    placed: dict[frozenset[Corner], Floats] = {}
    for axes in itertools.permutations(range(3)):
        for flips in itertools.product((False, True), repeat=3):
            for corners, polygon in _SHAPES:
                points = _moved(np.array(polygon, dtype=np.float64), axes, flips)
                moved = _moved(np.array(corners), axes, flips)
                group = frozenset((int(i), int(j), int(k)) for i, j, k in moved)
                fan = np.stack([points[1:-1] - points[0], points[2:] - points[0]], axis=1)
                placed.setdefault(group, fan)
    return placed


def _moved(
    points: npt.NDArray[np.generic], axes: tuple[int, ...], flips: tuple[bool, ...]
) -> Floats:
    turned = points[:, list(axes)].astype(np.float64)
    return np.where(np.array(flips), 1.0 - turned, turned)


def _groups(corners: set[Corner]) -> list[frozenset[Corner]]:
    """The corners in groups that cube edges join."""
    left, groups = set(corners), []
    while left:
        group = {left.pop()}
        while near := {c for c in left if any(_adjacent(c, member) for member in group)}:
            group |= near
            left -= near
        groups.append(frozenset(group))
    return groups


def _adjacent(one: Corner, other: Corner) -> bool:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) == 1


def _bit(corner: Corner) -> int:
    return 4 * corner[0] + 2 * corner[1] + corner[2]
