import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core import Grid, LabelMap, LabelScheme, Volume, crop, crop_grid, pad, pad_grid
from medseg.errors import GeometryError
from tests.grids import marked

SETTINGS = settings(max_examples=60, deadline=None)
WIDTHS = st.tuples(*(st.integers(0, 3) for _ in range(3)))


def marked_volume(grid: Grid, voxel: tuple[int, int, int]) -> Volume:
    data = np.zeros((1, *grid.shape_ijk), dtype=np.int16)
    data[(0, *voxel)] = 1
    return Volume(data, grid)


def world_of_mark(image: Volume) -> np.ndarray:
    ((_, *voxel),) = np.argwhere(image.data_cijk)
    return image.grid.world_from_voxel(voxel)


@SETTINGS
@given(marked(sheared=True), WIDTHS, WIDTHS)
def test_a_marked_voxel_keeps_its_place_in_padding_and_in_cropping_back(marking, before, after):
    grid, voxel = marking
    image = marked_volume(grid, voxel)
    padded = pad(image, before, after)
    np.testing.assert_allclose(world_of_mark(padded), grid.world_from_voxel(voxel), atol=1e-9)
    stop = tuple(a + b for a, b in zip(before, grid.shape_ijk, strict=True))
    back = crop(padded, before, stop)
    np.testing.assert_array_equal(back.data_cijk, image.data_cijk)
    assert back.grid.distance_mm(grid) < 1e-9


@SETTINGS
@given(marked(sheared=True), st.data())
def test_a_marked_voxel_keeps_its_place_in_a_crop_around_it(marking, data):
    grid, voxel = marking
    start = tuple(data.draw(st.integers(0, at)) for at in voxel)
    stop = tuple(
        data.draw(st.integers(at + 1, extent))
        for at, extent in zip(voxel, grid.shape_ijk, strict=True)
    )
    cut = crop(marked_volume(grid, voxel), start, stop)
    np.testing.assert_allclose(world_of_mark(cut), grid.world_from_voxel(voxel), atol=1e-9)


def test_padding_fills_with_the_value_and_cropping_is_a_view():
    grid = Grid((1, 2, 3), np.eye(4))
    image = Volume(np.ones((1, 1, 2, 3), np.int16), grid)
    padded = pad(image, (1, 0, 0), (0, 0, 2), value=-1000)
    assert padded.data_cijk.shape == (1, 2, 2, 5)
    assert padded.data_cijk[0, 0].tolist() == [[-1000] * 5] * 2
    assert np.shares_memory(crop(image, (0, 1, 1), (1, 2, 3)).data_cijk, image.data_cijk)
    labels = LabelMap(np.ones((1, 2, 3), np.uint8), grid, LabelScheme.plain("s", {1: "a"}))
    assert crop(labels, (0, 0, 0), (1, 1, 1)).data_ijk.shape == (1, 1, 1)
    assert pad(labels, (0, 0, 0), (1, 1, 1)).data_ijk.sum() == 6


@pytest.mark.parametrize(
    ("start", "stop"),
    [((0, 0, 0), (4, 3, 3)), ((-1, 0, 0), (3, 3, 3)), ((2, 0, 0), (2, 3, 3))],
)
def test_boxes_that_are_empty_or_reach_outside_are_refused(start, stop):
    with pytest.raises(GeometryError, match="clip the box to the grid") as caught:
        crop_grid(Grid((3, 3, 3), np.eye(4)), start, stop)
    assert caught.value.code == "crop-box"


def test_negative_padding_is_refused():
    with pytest.raises(GeometryError, match="at least 0") as caught:
        pad_grid(Grid((3, 3, 3), np.eye(4)), (0, 0, 0), (0, -1, 0))
    assert caught.value.code == "pad-width"
