"""Hypothesis strategies for grids and for one marked voxel; shared by several test folders."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import strategies as st

from medseg.core import Grid

PERMUTATIONS = tuple(itertools.permutations(range(3)))
FLIPS = tuple(itertools.product((1.0, -1.0), repeat=3))


def rotation(quaternion: tuple[float, float, float, float]) -> np.ndarray:
    """``(3, 3)`` rotation of a quaternion of any length but zero."""
    w, x, y, z = np.asarray(quaternion) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


_component = st.floats(-1.0, 1.0)
any_rotation = (
    st.tuples(_component, _component, _component, _component)
    .filter(lambda quaternion: np.linalg.norm(quaternion) > 0.1)
    .map(rotation)
)
small_rotation = st.tuples(*(st.floats(-0.12, 0.12) for _ in range(3))).map(
    lambda vector: rotation((1.0, *vector))  # at most 24 degrees
)
shears = st.tuples(*(st.floats(-0.3, 0.3) for _ in range(3))).map(
    lambda s: np.array([[1.0, s[0], s[1]], [0.0, 1.0, s[2]], [0.0, 0.0, 1.0]])
)


@st.composite
def grids(draw, *, rotations=any_rotation, sheared=False, largest=7, smallest=1) -> Grid:
    """Oblique, flipped, permuted, anisotropic grids, up to half a metre from the origin."""
    shape = draw(st.tuples(*(st.integers(smallest, largest) for _ in range(3))))
    spacing = np.array(draw(st.tuples(*(st.floats(0.3, 6.0) for _ in range(3)))))
    origin = draw(st.tuples(*(st.floats(-500.0, 500.0) for _ in range(3))))
    axes = np.eye(3)[:, list(draw(st.sampled_from(PERMUTATIONS)))] * draw(st.sampled_from(FLIPS))
    affine = np.eye(4)
    affine[:3, :3] = draw(rotations) @ (draw(shears) if sheared else np.eye(3)) @ axes * spacing
    affine[:3, 3] = origin
    return Grid(shape, affine)


@st.composite
def marked(draw, **options) -> tuple[Grid, tuple[int, int, int]]:
    """A grid and the coordinates of one of its voxels."""
    grid = draw(grids(**options))
    voxel = draw(st.tuples(*(st.integers(0, extent - 1) for extent in grid.shape_ijk)))
    return grid, voxel
