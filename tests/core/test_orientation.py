import itertools

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core import AxisTurn, Grid, LabelMap, LabelScheme, Volume, axis_turn, reorient, turn
from medseg.errors import GeometryError
from tests.grids import grids, marked, small_rotation

SETTINGS = settings(max_examples=60, deadline=None)
CODES = [
    "".join(letters[axis] for axis in order)
    for order in itertools.permutations(range(3))
    for letters in itertools.product("RL", "AP", "SI")
]
LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def numbered(grid: Grid) -> Volume:
    return Volume(np.arange(np.prod(grid.shape_ijk)).reshape(1, *grid.shape_ijk), grid)


@SETTINGS
@given(marked(sheared=True), st.sampled_from(CODES))
def test_a_marked_voxel_keeps_its_place_when_axes_turn(grid_and_voxel, code):
    grid, voxel = grid_and_voxel
    data = np.zeros((2, *grid.shape_ijk), dtype=np.uint8)
    data[(1, *voxel)] = 1
    turned = reorient(Volume(data, grid, ("a", "b")), code)
    ((channel, *where),) = np.argwhere(turned.data_cijk)
    assert channel == 1
    there = turned.grid.world_from_voxel(where)
    np.testing.assert_allclose(there, grid.world_from_voxel(voxel), atol=1e-9)
    assert turned.grid.orientation == code


@SETTINGS
@given(grids(sheared=True), st.sampled_from(CODES))
def test_turning_back_restores_image_and_grid(grid, code):
    there = axis_turn(grid, code)
    image = numbered(grid)
    back = turn(turn(image, there), there.inverse())
    np.testing.assert_array_equal(back.data_cijk, image.data_cijk)
    assert back.grid.distance_mm(grid) < 1e-9
    assert there.inverse().inverse() == there


@SETTINGS
@given(grids(rotations=small_rotation))
def test_the_code_is_the_one_nibabel_gives(grid):
    assert grid.orientation == "".join(nibabel.aff2axcodes(grid.affine_ras))


@SETTINGS
@given(grids(rotations=small_rotation))
def test_turning_to_ras_agrees_with_nibabel(grid):
    image = numbered(grid)
    expected = nibabel.as_closest_canonical(
        nibabel.Nifti1Image(image.data_cijk[0].astype(np.int32), grid.affine_ras)
    )
    turned = reorient(image, "RAS")
    np.testing.assert_array_equal(turned.data_cijk[0], np.asarray(expected.dataobj))
    np.testing.assert_allclose(turned.grid.affine_ras, expected.affine, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(grids(rotations=small_rotation), st.sampled_from(CODES))
def test_turning_to_any_code_agrees_with_simpleitk(grid, code):
    image = numbered(grid)
    affine_lps = LPS_FROM_RAS @ grid.affine_ras
    itk_image = sitk.GetImageFromArray(image.data_cijk[0].astype(np.int32).transpose(2, 1, 0))
    itk_image.SetSpacing(grid.spacing_mm)
    itk_image.SetOrigin(affine_lps[:3, 3].tolist())
    itk_image.SetDirection((affine_lps[:3, :3] / grid.spacing_mm).ravel().tolist())
    expected = sitk.DICOMOrient(itk_image, code)
    turned = reorient(image, code)
    np.testing.assert_array_equal(
        turned.data_cijk[0], sitk.GetArrayFromImage(expected).transpose(2, 1, 0)
    )
    origin_lps = (LPS_FROM_RAS @ turned.grid.affine_ras)[:3, 3]
    np.testing.assert_allclose(origin_lps, expected.GetOrigin(), atol=1e-6)


def test_label_maps_turn_too_and_arrays_are_views():
    grid = Grid((2, 3, 4), np.diag([1.0, 2.0, 3.0, 1.0]))
    labels = LabelMap(np.zeros((2, 3, 4), np.uint8), grid, LabelScheme.plain("s", {1: "a"}))
    turned = reorient(labels, "SPL")
    assert isinstance(turned, LabelMap)
    assert turned.grid.shape_ijk == (4, 3, 2)
    assert turned.grid.spacing_mm == (3.0, 2.0, 1.0)
    assert np.shares_memory(turned.data_ijk, labels.data_ijk)


def test_a_flip_worked_on_paper():
    grid = Grid((3, 1, 1), np.diag([2.0, 1.0, 1.0, 1.0]))
    there = axis_turn(grid, "LAS")
    assert there == AxisTurn((0, 1, 2), (True, False, False))
    assert there.turn_grid(grid).origin_ras.tolist() == [4.0, 0.0, 0.0]
    assert there.turn_array(np.array([[[7]], [[8]], [[9]]])).ravel().tolist() == [9, 8, 7]


@pytest.mark.parametrize("code", ["RAR", "RA", "XYZ", "", "RASL"])
def test_letters_that_name_no_orientation_are_refused(code):
    with pytest.raises(GeometryError, match="three letters") as caught:
        axis_turn(Grid((1, 1, 1), np.eye(4)), code)
    assert caught.value.code == "orientation"


@pytest.mark.parametrize("seed", range(12))
def test_slices_last_puts_the_thickest_axis_last_and_moves_no_voxel(seed):
    rng = np.random.default_rng(seed)
    spacing = rng.permutation([1.0, 1.5, 6.0])
    axes = np.eye(3)[:, rng.permutation(3)] * rng.choice([-1.0, 1.0], 3)
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = rng.normal(size=3)
    grid = Grid((4, 5, 6), affine)
    turn_ = axis_turn(grid, "slices_last")
    turned = turn_.turn_grid(grid)
    assert turned.spacing_mm[2] == pytest.approx(6.0)
    # the other two keep the order and the directions that RAS gives them
    upright = [letter for letter in "RAS" if letter in turned.orientation]
    assert len(upright) == 3
    assert list(turned.orientation[:2]) == [c for c in "RAS" if c != turned.orientation[2]]
    index = np.indices(grid.shape_ijk).astype(float)
    world = np.einsum("ab,b...->a...", affine[:3, :3], index) + affine[:3, 3, None, None, None]
    again = np.indices(turned.shape_ijk).astype(float)
    moved = np.einsum("ab,b...->a...", turned.affine_ras[:3, :3], again)
    moved += turned.affine_ras[:3, 3, None, None, None]
    np.testing.assert_allclose(turn_.turn_array(world), moved, atol=1e-9)


def test_slices_last_is_ras_where_no_axis_is_the_thickest():
    grid = Grid((4, 5, 6), np.diag([-2.0, 2.0, 1.0, 1.0]))
    assert axis_turn(grid, "slices_last") == axis_turn(grid, "RAS")
