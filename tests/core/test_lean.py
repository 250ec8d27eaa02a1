import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core import Grid, LabelMap, LabelScheme, Lean, Volume
from tests.grids import any_rotation

SCHEME = LabelScheme.plain("two", {1: "a", 2: "b"})


@st.composite
def leaning(draw):
    """Stacks of any direction whose slices are shifted within their plane by up to two pixels."""
    spacing = np.array(draw(st.tuples(*(st.floats(0.5, 3.0) for _ in range(3)))))
    shift = draw(st.tuples(st.floats(-2.0, 2.0), st.floats(0.3, 2.0)))
    columns = draw(any_rotation) * spacing
    columns[:, 2] += columns[:, :2] @ np.array(shift)
    affine = np.eye(4)
    affine[:3, :3] = columns
    affine[:3, 3] = draw(st.tuples(*(st.floats(-100, 100) for _ in range(3))))
    return Grid((9, 8, draw(st.integers(2, 5))), affine)


@settings(max_examples=40, deadline=None)
@given(leaning())
def test_a_linear_function_of_the_world_stays_that_function_inside(grid):
    lean = Lean.of(grid)
    if lean is None:
        return
    assert lean.upright.shear_deg < 1e-6
    weights = np.array([0.3, -0.2, 0.1])
    index = np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape_ijk), indexing="ij"), axis=-1)
    data = grid.world_from_voxel(index) @ weights
    straight = lean.straighten(Volume(data[None], grid)).data_cijk[0]
    index = np.stack(
        np.meshgrid(*(np.arange(n) for n in lean.upright.shape_ijk), indexing="ij"), axis=-1
    )
    world = lean.upright.world_from_voxel(index)
    place = grid.voxel_from_world(world)
    inside = ((place >= -1e-6) & (place <= np.array(grid.shape_ijk) - 1 + 1e-6)).all(axis=-1)
    assert inside.sum() > 0
    assert np.allclose(straight[inside], (world @ weights)[inside], atol=1e-6)
    # whole pixels of every slice have their place within the upright grid
    corners = lean.upright.voxel_from_world(grid.corners_ras())
    assert (corners > -1e-6).all()
    assert (corners < np.array(lean.upright.shape_ijk) - 1 + 1e-6).all()


@settings(max_examples=40, deadline=None)
@given(leaning(), st.integers(0, 2**32 - 1))
def test_labels_lean_back_to_within_half_a_pixel(grid, seed):
    lean = Lean.of(grid)
    if lean is None:
        return
    chance = np.random.default_rng(seed)
    labels = chance.integers(0, 3, lean.upright.shape_ijk).astype(np.uint8)
    back = lean.lean_back(LabelMap(labels, lean.upright, SCHEME))
    assert back.grid == grid
    voxel = tuple(chance.integers(0, grid.shape_ijk))
    place = lean.upright.voxel_from_world(grid.world_from_voxel(voxel))
    nearest = np.rint(place).astype(int)
    if np.abs(np.abs(place - np.floor(place)) - 0.5)[:2].min() > 1e-6:  # no tie
        assert back.data_ijk[voxel] == labels[tuple(nearest)]


def test_a_shift_by_whole_pixels_moves_slices_and_nothing_else():
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[1, 2] = 1.0
    grid = Grid((2, 2, 3), affine)
    lean = Lean.of(grid)
    data = np.arange(12, dtype=np.int16).reshape(1, 2, 2, 3) + 5
    straight = lean.straighten(Volume(data, grid))
    assert straight.grid.shape_ijk == (2, 4, 3)
    assert straight.data_cijk[0, 0].tolist() == [[5, 5, 5], [8, 6, 5], [5, 9, 7], [5, 5, 10]]
    labels = LabelMap(np.ones((2, 4, 3), np.uint8), lean.upright, SCHEME)
    assert lean.lean_back(labels).grid == grid
    assert lean.upright_box(((0, 1), (0, 2), (1, 3))) == ((0, 2), (0, 4), (1, 3))


@pytest.mark.parametrize("column", [None, 0])
def test_upright_grids_and_other_shears_are_left_alone(column):
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    if column is not None:
        affine[0, 1] = 0.3
    assert Lean.of(Grid((3, 3, 3), affine)) is None
