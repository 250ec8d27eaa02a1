from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medseg.core import Grid
from medseg.io.scan import ItkSource
from medseg_napari._origin import METADATA_KEY, LayerOrigin, origin_of
from tests.grids import grids, marked, rotation, small_rotation

SOURCE = ItkSource(Path("image.nrrd"))
IPL_FROM_RAS = np.array([[0.0, 0.0, -1.0], [0.0, -1.0, 0.0], [-1.0, 0.0, 0.0]])


@given(marked())
def test_what_is_shown_comes_back_voxel_for_voxel(case):
    grid, voxel = case
    origin = LayerOrigin.of(grid, SOURCE)
    data = np.arange(np.prod(grid.shape_ijk)).reshape(grid.shape_ijk)
    shown = origin.shown_array(data)
    assert shown.shape == origin.shown_grid.shape_ijk
    np.testing.assert_array_equal(origin.original_array(shown), data)
    place = np.argwhere(shown == data[voxel])[0]
    apart = origin.shown_grid.world_from_voxel(place) - grid.world_from_voxel(voxel)
    assert np.linalg.norm(apart) < 0.01


@given(grids(rotations=small_rotation))
def test_axes_shown_point_to_the_feet_the_back_and_the_left(grid):
    assert LayerOrigin.of(grid, SOURCE).shown_grid.orientation == "IPL"


@given(grids())
def test_axes_shown_are_right_handed_whatever_the_axes_read(grid):
    assert np.linalg.det(LayerOrigin.of(grid, SOURCE).shown_grid.direction_ras) > 0


@given(marked(rotations=st.just(np.eye(3))))
def test_layer_coordinates_are_millimetres_along_those_axes(case):
    grid, voxel = case
    origin = LayerOrigin.of(grid, SOURCE)
    marks = np.zeros(grid.shape_ijk)
    marks[voxel] = 1
    scale, translate = origin.placement()
    layer_mm = translate + scale * np.argwhere(origin.shown_array(marks))[0]
    assert np.linalg.norm(layer_mm - IPL_FROM_RAS @ grid.world_from_voxel(voxel)) < 0.01
    assert origin.oblique_deg == pytest.approx(0, abs=1e-4)
    assert not origin.is_oblique


@given(grids())
def test_oblique_grids_keep_their_spacing_and_their_middle(grid):
    origin = LayerOrigin.of(grid, SOURCE)
    scale, translate = origin.placement()
    np.testing.assert_allclose(sorted(scale), sorted(grid.spacing_mm))
    middle_mm = translate + scale * (np.array(origin.shown_grid.shape_ijk) - 1) / 2
    true_mm = IPL_FROM_RAS @ grid.world_from_voxel((np.array(grid.shape_ijk) - 1) / 2)
    assert np.linalg.norm(middle_mm - true_mm) < 0.01


def test_an_oblique_grid_says_by_how_much():
    affine = np.eye(4)
    half = np.radians(10) / 2
    affine[:3, :3] = rotation((np.cos(half), 0, 0, np.sin(half)))
    origin = LayerOrigin.of(Grid((4, 4, 4), affine), SOURCE)
    assert origin.oblique_deg == pytest.approx(10)
    assert origin.is_oblique


def test_the_origin_travels_under_one_key_in_the_metadata():
    origin = LayerOrigin.of(Grid((2, 3, 4), np.eye(4)), SOURCE)
    settings = origin.layer_settings("T1")
    assert list(settings["metadata"]) == [METADATA_KEY]
    assert origin_of(settings) is origin
    assert settings["units"] == ("mm", "mm", "mm")


@pytest.mark.parametrize("settings", [{}, {"metadata": {}}, {"metadata": {METADATA_KEY: "me"}}])
def test_layers_from_elsewhere_have_no_origin(settings):
    assert origin_of(settings) is None
