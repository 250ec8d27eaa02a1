import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import label as components

from medseg.io.contours import Region, combine, fill_polygon, points_in_polygon, trace_mask

NEAR = (1e-3, 1e-3)
masks = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.booleans())


def square(low, high):
    return np.array([[low, low], [high, low], [high, high], [low, high]], dtype=float)


def filled(polygon, shape=(8, 8)):
    return Region(*fill_polygon(np.asarray(polygon, dtype=float), shape, NEAR))


# Laws


@settings(max_examples=60)
@given(masks)
def test_contours_of_a_mask_enclose_exactly_its_voxels(mask):
    regions = [Region(*fill_polygon(polygon, mask.shape, NEAR)) for polygon in trace_mask(mask)]
    joined = combine(regions)[0] if regions else np.zeros(mask.shape, dtype=bool)
    assert np.array_equal(joined, mask)
    assert not any(region.path.any() for region in regions), "no centre is on a contour"


@settings(max_examples=40)
@given(masks)
def test_one_contour_is_made_for_each_part_with_its_holes_joined_to_it(mask):
    polygons = trace_mask(mask)
    # parts that touch at a corner may be one or two
    fewest = components(mask, np.ones((3, 3)))[1]
    assert fewest <= len(polygons) <= components(mask)[1]


@settings(max_examples=40)
@given(arrays(np.float64, st.tuples(st.integers(3, 8), st.just(2)), elements=st.floats(-2, 9)))
def test_points_and_voxels_are_judged_alike(polygon):
    inside, path = fill_polygon(polygon, (8, 7), NEAR)
    points = np.argwhere(np.ones((8, 7), dtype=bool)).astype(float)
    of_points, on_path = points_in_polygon(points, polygon, 1e-3)
    settled = ~(path.ravel() | on_path)
    assert np.array_equal(inside.ravel()[settled], of_points[settled])


@settings(max_examples=40)
@given(arrays(np.float64, st.tuples(st.integers(3, 8), st.just(2)), elements=st.floats(-2, 9)))
def test_where_a_polygon_begins_and_which_way_it_runs_does_not_matter(polygon):
    first = fill_polygon(polygon, (8, 8), NEAR)
    second = fill_polygon(np.roll(polygon, 2, axis=0)[::-1], (8, 8), NEAR)
    assert all(np.array_equal(one, two) for one, two in zip(first, second, strict=True))


# Outsiders


@pytest.mark.parametrize("seed", range(6))
def test_scikit_image_fills_the_same_voxels(seed):
    draw = pytest.importorskip("skimage.draw", reason="scikit-image comes with napari")
    chance = np.random.default_rng(seed)
    angles = np.sort(chance.uniform(0, 2 * np.pi, 30))
    radii = chance.uniform(4, 14, 30)
    polygon = 16.03 + np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    assert np.array_equal(filled(polygon, (32, 30)).inside, draw.polygon2mask((32, 30), polygon))


# On paper


def test_a_centre_on_the_path_belongs_to_the_structure():
    region = filled(square(2, 5))
    expected = np.zeros((8, 8), dtype=bool)
    expected[2:6, 2:6] = True
    assert np.array_equal(region.all, expected)
    assert np.count_nonzero(region.path) == 12
    assert np.array_equal(filled(square(2.0004, 4.9996)).all, expected), "up to rounding"


def test_a_contour_in_another_is_a_hole_and_one_in_the_hole_an_island():
    regions = [filled(square(low, 7.5 - low)) for low in (-0.5, 0.5, 2.5)]
    whole, partly = combine(regions[::-1])
    assert (whole[3, 3], whole[1, 3], whole[0, 3]) == (True, False, True)
    assert partly == 0
    excluded = [Region(region.inside, region.path, is_xor=True) for region in regions]
    assert np.array_equal(combine(excluded)[0], whole)


def test_contours_that_overlap_in_part_are_joined_and_excluded_ones_are_not():
    first, second = filled(square(0.5, 4.5)), filled(square(2.5, 6.5))
    whole, partly = combine([first, second])
    assert partly == 1
    assert np.array_equal(whole, first.inside | second.inside)
    excluded = [Region(one.inside, one.path, is_xor=True) for one in (first, second)]
    assert np.array_equal(combine(excluded)[0], first.inside ^ second.inside)


def test_the_channel_of_a_keyhole_is_no_path():
    ring = [[0, 0], [6, 0], [6, 6], [0, 6], [0, 0], [2, 2], [2, 4], [4, 4], [4, 2], [2, 2]]
    region = filled(ring)
    assert not region.inside[3, 3]
    assert not region.path[1, 1], "the channel from corner to corner passes this centre"
    assert region.inside[1, 1]
    assert region.path[2, 3], "the border of the hole does not count as hole"


def test_a_polygon_outside_or_without_area_encloses_nothing():
    for polygon in (square(20, 30), square(-9, -3), [[1, 1], [1, 1], [1, 1]], [[1, 1], [3, 3]]):
        assert not filled(polygon).inside.any()
    assert filled(square(-9, 30)).inside.all()
    inside, path = points_in_polygon(np.zeros((2, 2)), np.ones((3, 2)), 0.1)
    assert not inside.any()
    assert not path.any()


def test_a_single_voxel_becomes_a_diamond_around_its_centre():
    mask = np.zeros((3, 3), dtype=bool)
    mask[1, 1] = True
    (diamond,) = trace_mask(mask)
    assert sorted(map(tuple, diamond.tolist())) == [(0.5, 1), (1, 0.5), (1, 1.5), (1.5, 1)]
