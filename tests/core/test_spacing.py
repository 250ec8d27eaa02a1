import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core import Grid, respace_grid, respace_shape
from medseg.errors import GeometryError
from tests.grids import grids, marked

SETTINGS = settings(max_examples=60, deadline=None)
SHAPES = st.tuples(*(st.integers(1, 20) for _ in range(3)))


@SETTINGS
@given(marked(sheared=True), st.sampled_from((3, 5)))
def test_a_marked_voxel_keeps_its_centre_when_split_into_an_odd_number(marking, parts):
    grid, voxel = marking
    finer = respace_grid(grid, tuple(extent * parts for extent in grid.shape_ijk))
    middle = [at * parts + parts // 2 for at in voxel]
    np.testing.assert_allclose(
        finer.world_from_voxel(middle), grid.world_from_voxel(voxel), atol=1e-9
    )


@SETTINGS
@given(grids(sheared=True), SHAPES)
def test_the_outer_faces_stay_and_going_back_is_exact(grid, shape):
    other = respace_grid(grid, shape)
    for first in (True, False):
        old, new = (
            [-0.5 if first else extent - 0.5 for extent in lattice.shape_ijk]
            for lattice in (grid, other)
        )
        np.testing.assert_allclose(
            other.world_from_voxel(new), grid.world_from_voxel(old), atol=1e-9
        )
    assert respace_grid(other, grid.shape_ijk).distance_mm(grid) < 1e-9


@SETTINGS
@given(grids(), st.tuples(*(st.floats(0.2, 8.0) for _ in range(3))))
def test_the_shape_meets_a_spacing_to_within_half_a_voxel(grid, spacing):
    shape = respace_shape(grid, spacing)
    wished = np.array(grid.spacing_mm) * grid.shape_ijk / spacing
    assert all((np.array(shape) == 1) | (np.abs(wished - shape) <= 0.5 + 1e-9))
    assert respace_shape(grid, grid.spacing_mm) == grid.shape_ijk


def test_halving_the_spacing_worked_on_paper():
    grid = Grid((4, 4, 2), np.diag([1.0, 1.0, 3.0, 1.0]))
    assert respace_shape(grid, (0.5, 2.0, 1.5)) == (8, 2, 4)
    finer = respace_grid(grid, (8, 2, 4))
    assert finer.spacing_mm == (0.5, 2.0, 1.5)
    assert finer.origin_ras.tolist() == [-0.25, 0.5, -0.75]


@pytest.mark.parametrize("spacing", [(0.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, float("nan"))])
def test_spacings_that_are_not_positive_are_refused(spacing):
    with pytest.raises(GeometryError, match="three positive numbers") as caught:
        respace_shape(Grid((2, 2, 2), np.eye(4)), spacing)
    assert caught.value.code == "spacing"


@pytest.mark.parametrize("shape", [(0, 2, 2), (2, -1, 2)])
def test_shapes_below_one_are_refused(shape):
    with pytest.raises(GeometryError, match="three extents of at least 1") as caught:
        respace_grid(Grid((2, 2, 2), np.eye(4)), shape)
    assert caught.value.code == "grid-shape"
