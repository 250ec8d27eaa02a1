import numpy as np
import pytest
from hypothesis import given, settings

from medseg.core import Grid
from medseg.errors import GeometryError
from tests.grids import grids, marked

SETTINGS = settings(max_examples=60, deadline=None)


def affine_of(spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0)) -> np.ndarray:
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    return affine


@SETTINGS
@given(marked(sheared=True))
def test_voxel_and_world_coordinates_are_inverse_to_each_other(grid_and_voxel):
    grid, voxel = grid_and_voxel
    back = grid.voxel_from_world(grid.world_from_voxel(voxel))
    np.testing.assert_allclose(back, voxel, atol=1e-8)


@SETTINGS
@given(grids())
def test_spacing_direction_and_origin_rebuild_the_affine(grid):
    rebuilt = np.eye(4)
    rebuilt[:3, :3] = grid.direction_ras * grid.spacing_mm
    rebuilt[:3, 3] = grid.origin_ras
    np.testing.assert_allclose(rebuilt, grid.affine_ras, atol=1e-9)
    assert grid.shear_deg < 1e-5
    assert grid.voxel_volume_mm3 == pytest.approx(np.prod(grid.spacing_mm))


@SETTINGS
@given(grids(sheared=True))
def test_the_shear_is_the_worst_angle_between_two_axes(grid):
    columns = grid.affine_ras[:3, :3].T
    angles = [
        np.degrees(np.arccos(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
        for a, b in ((columns[0], columns[1]), (columns[0], columns[2]), (columns[1], columns[2]))
    ]
    assert grid.shear_deg == pytest.approx(max(abs(90.0 - angle) for angle in angles), abs=1e-5)


@SETTINGS
@given(grids(sheared=True))
def test_no_voxel_deviates_more_than_the_corners_say(grid):
    affine = np.array(grid.affine_ras)
    affine[:3] *= 1.001
    other = Grid(grid.shape_ijk, affine)
    voxels = np.stack(np.meshgrid(*map(np.arange, grid.shape_ijk), indexing="ij"), axis=-1)
    gaps = np.linalg.norm(grid.world_from_voxel(voxels) - other.world_from_voxel(voxels), axis=-1)
    assert grid.distance_mm(other) == pytest.approx(gaps.max(), abs=1e-9)


def test_a_grid_worked_on_paper():
    grid = Grid((2, 3, 4), affine_of((2.0, -3.0, 4.0), (10.0, 20.0, 30.0)))
    assert grid.spacing_mm == (2.0, 3.0, 4.0)
    assert grid.orientation == "RPS"
    assert grid.world_from_voxel((1, 2, 3)).tolist() == [12.0, 14.0, 42.0]
    assert grid.corners_ras()[[0, -1]].tolist() == [[10.0, 20.0, 30.0], [12.0, 14.0, 42.0]]


def test_grids_are_equal_when_shape_and_affine_are():
    one, same = Grid((2, 3, 4), affine_of()), Grid((2, 3, 4), affine_of())
    assert one == same
    assert hash(one) == hash(same)
    assert one != Grid((2, 3, 5), affine_of())
    assert one != Grid((2, 3, 4), affine_of((1.0, 1.0, 1.0001)))
    assert one != "a grid"


def test_a_grid_keeps_its_own_unchangeable_affine():
    affine = affine_of()
    grid = Grid((1, 1, 1), affine)
    affine[0, 3] = 99.0
    assert grid.affine_ras[0, 3] == 0.0
    with pytest.raises(ValueError, match="read-only"):
        grid.affine_ras[0, 3] = 1.0


@pytest.mark.parametrize("shape", [(0, 1, 1), (1, 1), (1, 1, 1, 1)])
def test_extents_below_one_or_other_than_three_are_refused(shape):
    with pytest.raises(GeometryError, match="three extents of at least 1") as caught:
        Grid(shape, np.eye(4))
    assert caught.value.code == "grid-shape"


@pytest.mark.parametrize(
    ("affine", "words"),
    [
        (np.eye(3), "shape"),
        (np.diag([1.0, np.nan, 1.0, 1.0]), "NaN or infinity"),
        (np.diag([1.0, 1.0, 1.0, 2.0]), "last row"),
        (np.diag([1.0, 0.0, 1.0, 1.0]), "length zero"),
        ([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], "in one plane"),
    ],
)
def test_affines_that_place_nothing_are_refused(affine, words):
    with pytest.raises(GeometryError, match=words) as caught:
        Grid((2, 2, 2), affine)
    assert caught.value.code == "affine-invalid"


def test_grids_of_two_shapes_have_no_distance():
    with pytest.raises(GeometryError, match="expected shape") as caught:
        Grid((2, 2, 2), np.eye(4)).distance_mm(Grid((2, 2, 3), np.eye(4)))
    assert caught.value.code == "grid-shape-differs"
