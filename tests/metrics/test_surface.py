"""Surface distances: laws, three libraries as oracle, brute force, one case on paper."""

import math
import warnings

import numpy as np
import pytest
import surface_distance as deepmind
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from medpy.metric import binary as medpy
from monai.metrics import (
    compute_average_surface_distance,
    compute_hausdorff_distance,
    compute_surface_dice,
)
from scipy import ndimage
from scipy.spatial.distance import cdist
from surface_distance import lookup_tables

from medseg.errors import ShapeError
from medseg.metrics import surface
from medseg.metrics.surface import surface_distances
from medseg.metrics.surfels import surfel_areas
from tests.grids import rotation

quick = settings(max_examples=12, deadline=None)
spacings = st.tuples(*(st.floats(0.3, 5.0) for _ in range(3)))
shapes = st.tuples(*(st.integers(1, 7) for _ in range(3)))


@st.composite
def mask_pairs(draw):
    shape = draw(shapes)
    masks = [draw(arrays(np.bool_, shape)) for _ in range(2)]
    for mask in masks:
        if not mask.any():
            mask[tuple(extent // 2 for extent in shape)] = True
    return masks


def blobs(seed=0, shape=(12, 10, 9)):
    generator = np.random.default_rng(seed)
    smooth = [ndimage.gaussian_filter(generator.standard_normal(shape), 1.5) for _ in range(2)]
    return [one > np.quantile(one, 0.8) for one in smooth]


def figures(found, tolerance_mm=1.0):
    return np.array(
        [
            found.hausdorff_mm(95),
            found.hausdorff_mm(),
            found.mean_mm(),
            found.surface_dice(tolerance_mm),
            *found.directed_means_mm(),
        ]
    )


@quick
@given(spacings)
def test_areas_of_all_256_elements_are_those_of_surface_distance(spacing):
    theirs = lookup_tables.create_table_neighbour_code_to_surface_area(spacing)
    kernel = lookup_tables.ENCODE_NEIGHBOURHOOD_3D_KERNEL
    ours = surfel_areas(np.diag(spacing))
    for code in range(256):
        inside = np.argwhere(code & kernel)
        bits = sum(1 << (4 * i + 2 * j + k) for i, j, k in inside)
        assert ours[bits] == pytest.approx(theirs[code], rel=1e-12, abs=1e-12)


@quick
@given(spacings, st.integers(0, 255))
def test_inside_and_outside_have_one_surface(spacing, code):
    areas = surfel_areas(np.diag(spacing))
    assert areas[code] == pytest.approx(areas[255 - code], rel=1e-12)


@quick
@given(mask_pairs(), spacings, st.floats(0.0, 6.0))
def test_figures_are_those_of_surface_distance(masks, spacing, tolerance_mm):
    prediction, reference = masks
    ours = surface_distances(prediction, reference, spacing)
    theirs = deepmind.compute_surface_distances(reference, prediction, spacing)
    to_prediction, to_reference = deepmind.compute_average_surface_distance(theirs)
    assert ours.directed_means_mm() == pytest.approx((to_reference, to_prediction), rel=1e-9)
    assert ours.hausdorff_mm() == pytest.approx(deepmind.compute_robust_hausdorff(theirs, 100))
    dice = deepmind.compute_surface_dice_at_tolerance(theirs, tolerance_mm)
    assert ours.surface_dice(tolerance_mm) == pytest.approx(dice, abs=1e-9)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.7, 2.5), (3.0, 0.5, 1.1)])
@pytest.mark.parametrize("percentile", [50, 95])
def test_percentiles_are_those_of_surface_distance(spacing, percentile):
    prediction, reference = blobs()
    ours = surface_distances(prediction, reference, spacing)
    theirs = deepmind.compute_surface_distances(reference, prediction, spacing)
    expected = deepmind.compute_robust_hausdorff(theirs, percentile)
    assert ours.hausdorff_mm(percentile) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.7, 2.5), (3.0, 0.5, 1.1)])
def test_figures_under_the_convention_of_monai_are_monais(spacing):
    masks = blobs(1)
    one, other = (torch.from_numpy(mask)[None, None] for mask in masks)
    ours = surface_distances(*masks, spacing, convention="monai")
    same = {"include_background": True, "spacing": spacing}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [
            compute_hausdorff_distance(one, other, percentile=95, **same).item(),
            compute_hausdorff_distance(one, other, **same).item(),
            compute_average_surface_distance(one, other, symmetric=True, **same).item(),
            compute_surface_dice(one, other, [1.0], **same).item(),
        ]
        by_elements = compute_surface_dice(one, other, [1.0], use_subvoxels=True, **same).item()
    assert figures(ours)[:4] == pytest.approx(expected, rel=1e-5)
    assert surface_distances(*masks, spacing).surface_dice(1.0) == pytest.approx(by_elements, 1e-5)


@quick
@given(mask_pairs(), spacings)
def test_figures_under_the_convention_of_medpy_are_medpys(masks, spacing):
    ours = surface_distances(*masks, spacing, convention="medpy")
    assert ours.hausdorff_mm(95) == pytest.approx(medpy.hd95(*masks, spacing), rel=1e-9)
    assert ours.hausdorff_mm() == pytest.approx(medpy.hd(*masks, spacing), rel=1e-9)
    assert ours.mean_mm() == pytest.approx(medpy.assd(*masks, spacing), rel=1e-9)


@pytest.mark.parametrize("shear", [0.0, 0.2])
def test_distances_on_oblique_and_sheared_grids_are_those_between_all_pairs(shear):
    masks = blobs(2)
    axes_mm = rotation((0.9, 0.3, -0.2, 0.25)) @ np.array(
        [[0.8, shear, 0.0], [0.0, 1.1, 2 * shear], [0.0, 0.0, 2.3]]
    )
    edges = [np.argwhere(mask & ~ndimage.binary_erosion(mask)) @ axes_mm.T for mask in masks]
    between = cdist(*edges)
    found = surface_distances(*masks, axes_mm, convention="medpy")
    assert np.sort(found.to_reference_mm) == pytest.approx(np.sort(between.min(axis=1)))
    assert np.sort(found.to_prediction_mm) == pytest.approx(np.sort(between.min(axis=0)))


def test_areas_on_a_sheared_grid_are_those_of_the_sheared_shape():
    """A cuboid of voxels sheared along a face keeps that face's area; elements bevel its edges."""
    axes_mm = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    areas = surfel_areas(axes_mm)
    lower_face = 0b01010101  # the four corners with k = 0 inside
    assert areas[lower_face] == pytest.approx(1.0)
    assert areas[0b00001111] == pytest.approx(math.hypot(1.0, 0.5))


@quick
@given(mask_pairs(), spacings)
def test_exchanging_the_masks_exchanges_the_directions(masks, spacing):
    there, back = surface_distances(*masks, spacing), surface_distances(*masks[::-1], spacing)
    assert figures(there)[:4] == pytest.approx(figures(back)[:4], rel=1e-12)
    assert there.directed_means_mm() == back.directed_means_mm()[::-1]


@quick
@given(mask_pairs(), spacings)
def test_a_mask_is_at_no_distance_from_itself(masks, spacing):
    found = surface_distances(masks[0], masks[0].copy(), spacing)
    assert figures(found, 0.0).tolist() == [0.0, 0.0, 0.0, 1.0, 0.0, 0.0]


@quick
@given(mask_pairs(), spacings, st.floats(0.1, 10.0))
def test_distances_grow_with_the_spacing(masks, spacing, factor):
    small = surface_distances(*masks, spacing)
    large = surface_distances(*masks, [factor * step for step in spacing])
    assert large.hausdorff_mm() == pytest.approx(factor * small.hausdorff_mm(), rel=1e-9)
    assert large.mean_mm() == pytest.approx(factor * small.mean_mm(), rel=1e-9)


@quick
@given(mask_pairs(), spacings, st.permutations(range(3)), st.sampled_from("CF"))
def test_order_of_axes_and_of_memory_change_nothing(masks, spacing, axes, memory):
    plain = surface_distances(*masks, spacing)
    turned = [np.asarray(mask.transpose(axes)[::-1], order=memory) for mask in masks]
    found = surface_distances(*turned, [spacing[axis] for axis in axes])
    assert figures(found) == pytest.approx(figures(plain), rel=1e-9)


def test_slabs_and_threads_change_nothing(monkeypatch):
    masks = blobs(3)
    plain = surface_distances(*masks, (1.0, 0.6, 2.0))
    monkeypatch.setattr(surface, "_SLAB_CELLS", 200)
    for threads in (1, 2):
        found = surface_distances(*masks, (1.0, 0.6, 2.0), threads=threads)
        assert np.array_equal(found.to_reference_mm, plain.to_reference_mm)
        assert np.array_equal(found.to_prediction_mm, plain.to_prediction_mm)


def test_two_voxels_worked_on_paper():
    """Each is a diamond of eight elements; those face to face are 2 voxels apart, others 3."""
    masks = np.zeros((2, 3, 3, 6), dtype=bool)
    masks[0, 1, 1, 1] = masks[1, 1, 1, 4] = True
    found = surface_distances(masks[0], masks[1], (1.0, 1.0, 1.0))
    assert sorted(found.to_reference_mm) == [2.0] * 4 + [3.0] * 4
    assert found.prediction_weights == pytest.approx(np.full(8, math.sqrt(3) / 8))
    assert found.hausdorff_mm() == 3.0
    assert found.mean_mm() == pytest.approx(2.5)
    assert (found.surface_dice(1.99), found.surface_dice(2.0)) == (0.0, pytest.approx(0.5))


def test_a_tolerance_reached_exactly_counts_whatever_the_fractions():
    masks = np.zeros((2, 1, 1, 9), dtype=bool)
    masks[0, 0, 0, 0] = masks[1, 0, 0, 7] = True
    found = surface_distances(masks[0], masks[1], (0.1, 0.1, 0.1), convention="medpy")
    assert found.to_reference_mm[0] != 0.7  # 7 * 0.1 is above 0.7 in binary
    assert found.surface_dice(0.7) == 1.0


def test_an_empty_mask_is_infinitely_far_and_two_are_nowhere():
    full, empty = np.ones((2, 2, 2), dtype=bool), np.zeros((2, 2, 2), dtype=bool)
    one = surface_distances(empty, full, (1.0, 1.0, 1.0))
    assert one.hausdorff_mm(95) == one.mean_mm() == math.inf
    assert one.surface_dice(5.0) == 0.0
    assert math.isnan(one.directed_means_mm()[0])
    none = surface_distances(empty, empty, (1.0, 1.0, 1.0))
    assert all(math.isnan(figure) for figure in figures(none))


def test_masks_of_two_shapes_are_refused():
    with pytest.raises(ShapeError, match="expected two masks of one three-dimensional shape"):
        surface_distances(np.ones((2, 2, 2)), np.ones((2, 2, 3)), (1, 1, 1))
    with pytest.raises(ShapeError, match="give a slice a third axis"):
        surface_distances(np.ones((2, 2)), np.ones((2, 2)), (1, 1, 1))
