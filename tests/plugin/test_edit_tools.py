"""Each edit against a plain computation on the whole array, by scipy, scikit-image or SimpleITK."""

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.morphology import convex_hull_image
from skimage.segmentation import flood

from medseg.errors import ConfigError, ResourceError, ShapeError
from medseg_napari.editing import brush, fill, islands, logic, morphology, repair
from medseg_napari.editing.between import drawn_slices, fill_between, shape_between
from medseg_napari.editing.boxes import whole
from medseg_napari.editing.rules import FREE, ONLY_BACKGROUND, IntensityRange, Rules
from medseg_napari.editing.scribbles import INSIDE, OUTSIDE, Scribbles
from tests.plugin.label_maps import SPACINGS, label_maps

SETTINGS = settings(max_examples=40)
ANISOTROPIC = (2.5, 0.7, 0.9)
lengths = st.sampled_from([0.5, 1.0, 2.5, 3.3])
spacings = st.sampled_from(SPACINGS)
axes = st.sampled_from([None, 0, 1, 2])
values = st.integers(1, 4)


def done(change, labels):
    after = labels.copy()
    change.apply(after)
    return after


def distances_mm(shape, point, spacing_mm):
    steps = [
        (np.arange(extent) - at) * mm
        for extent, at, mm in zip(shape, point, spacing_mm, strict=True)
    ]
    return np.sqrt(sum(np.square(step) for step in np.meshgrid(*steps, indexing="ij")))


# ---- brush and eraser


@pytest.mark.parametrize("spacing_mm", SPACINGS)
@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_a_dab_is_a_ball_or_a_disc_in_millimetres(spacing_mm, axis):
    labels = np.zeros((21, 25, 23), dtype=np.uint8)
    point = (10, 12, 11)
    change = brush.paint(labels, 3, point, size_mm=13, spacing_mm=spacing_mm, axis=axis)
    expected = distances_mm(labels.shape, point, spacing_mm) <= 6.5 + 1e-6
    if axis is not None:
        in_slice = np.zeros_like(expected)
        np.moveaxis(in_slice, axis, 0)[point[axis]] = True
        expected &= in_slice
    np.testing.assert_array_equal(done(change, labels) == 3, expected)


@settings(max_examples=25)
@given(spacings, st.integers(0, 2**32 - 1), st.sampled_from([0.5, 3.0]))
def test_a_long_way_is_covered_in_parts_that_do_not_overlap(spacing_mm, seed, size_mm):
    rng = np.random.default_rng(seed)
    shape = (60, 50, 55)
    start, stop = rng.uniform(-5, 60, (2, 3))
    parts = brush.capsule(shape, start, stop, size_mm, spacing_mm)
    covered = np.zeros(shape, dtype=np.uint8)
    for box, mask in parts:
        covered[box] += (1 + mask).astype(np.uint8)
    assert covered.max(initial=0) <= 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(brush, "_THINNEST_VOX", 1000)
        whole_way = brush.capsule(shape, start, stop, size_mm, spacing_mm)
    expected = np.zeros(shape, dtype=bool)
    for box, mask in whole_way:
        expected[box] = mask
    np.testing.assert_array_equal(covered == 2, expected)


def test_a_ball_has_the_volume_of_its_diameter():
    labels = np.zeros((40, 80, 80), dtype=np.uint8)
    change = brush.paint(labels, 1, (20, 40, 40), size_mm=20, spacing_mm=(1.5, 0.7, 0.7))
    volume_mm3 = change.voxels * 1.5 * 0.7 * 0.7
    assert volume_mm3 == pytest.approx(4 / 3 * np.pi * 10**3, rel=0.02)


@SETTINGS
@given(spacings, axes, st.integers(0, 2**32 - 1), st.sampled_from([0.2, 2.0, 6.0]))
def test_a_stroke_is_all_that_is_near_the_line_and_has_no_gaps(spacing_mm, axis, seed, size_mm):
    rng = np.random.default_rng(seed)
    labels = np.zeros((12, 14, 13), dtype=np.uint8)
    start, stop = rng.uniform(-2, 15, (2, 3))
    after = done(
        brush.paint(labels, 1, start, stop, size_mm=size_mm, spacing_mm=spacing_mm, axis=axis),
        labels,
    )
    if axis is not None:
        start[axis] = stop[axis] = np.floor(stop[axis] + 0.5)
    path = start + np.linspace(0, 1, 200)[:, None] * (stop - start)
    near = np.full(labels.shape, np.inf)
    for point in path:
        near = np.minimum(near, distances_mm(labels.shape, point, spacing_mm))
    if axis is not None:
        off = np.ones_like(near, dtype=bool)
        if 0 <= stop[axis] < labels.shape[axis]:
            np.moveaxis(off, axis, 0)[int(stop[axis])] = False
        near[off] = np.inf
    assert after[near <= size_mm / 2 - 0.1].all()
    voxels = np.floor(path + 0.5).astype(int)
    inside = ((voxels >= 0) & (voxels < labels.shape)).all(axis=1)
    reach = max(size_mm / 2, np.linalg.norm(spacing_mm) / 2) + 0.05
    assert not after[near > reach].any()
    assert after[tuple(voxels[inside].T)].all()
    _, pieces = ndimage.label(after, np.ones((3, 3, 3)))
    assert pieces <= 1


@given(label_maps(), values, st.booleans())
def test_the_eraser_takes_one_label_or_all(labels, value, only_one):
    of = value if only_one else None
    centre = [extent // 2 for extent in labels.shape]
    change = brush.erase(labels, centre, size_mm=50, spacing_mm=(1, 1, 1), of=of)
    expected = np.where(labels == value, 0, labels) if only_one else np.zeros_like(labels)
    np.testing.assert_array_equal(done(change, labels), expected)


def test_painting_over_background_alone_leaves_other_labels():
    labels = np.zeros((5, 5, 5), dtype=np.uint8)
    labels[2] = 2
    change = brush.paint(
        labels, 1, (2, 2, 2), size_mm=50, spacing_mm=(1, 1, 1), rules=ONLY_BACKGROUND
    )
    np.testing.assert_array_equal(done(change, labels), np.where(labels == 2, 2, 1))


def test_a_stroke_outside_the_image_changes_nothing():
    labels = np.zeros((5, 5, 5), dtype=np.uint8)
    assert not brush.paint(labels, 1, (9, 9, 9), size_mm=2, spacing_mm=(1, 1, 1))


def test_a_threshold_labels_a_range():
    image = np.arange(60).reshape(3, 4, 5)
    labels = np.zeros(image.shape, dtype=np.uint8)
    change = brush.threshold(labels, 2, within=IntensityRange(image, 7, 33))
    np.testing.assert_array_equal(done(change, labels) == 2, (image >= 7) & (image <= 33))


# ---- fill


@SETTINGS
@given(label_maps(), axes, st.integers(0, 5), st.data())
def test_fill_is_a_flood(labels, axis, value, data):
    seed = tuple(data.draw(st.integers(0, extent - 1)) for extent in labels.shape)
    after = done(fill.fill(labels, value, seed, axis=axis), labels)
    if axis is None:
        expected = flood(labels, seed, connectivity=1)
    else:
        expected = np.zeros(labels.shape, dtype=bool)
        plane = np.moveaxis(labels, axis, 0)[seed[axis]]
        rest = tuple(at for other, at in enumerate(seed) if other != axis)
        np.moveaxis(expected, axis, 0)[seed[axis]] = flood(plane, rest, connectivity=1)
    np.testing.assert_array_equal(after, np.where(expected, value, labels))


# ---- islands


def pieces_by_sitk(mask):
    found = sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8)), True)
    return sitk.GetArrayFromImage(sitk.RelabelComponent(found))  # largest first


@SETTINGS
@given(label_maps(), values)
def test_the_largest_piece_is_the_one_of_sitk(labels, value):
    numbers = pieces_by_sitk(labels == value)
    sizes = np.bincount(numbers.ravel())[1:]
    assume(sizes.size < 2 or sizes[0] > sizes[1])
    after = done(islands.keep_largest(labels, value, spacing_mm=(1, 1, 1)), labels)
    np.testing.assert_array_equal(after, np.where(numbers > 1, 0, labels))
    assert islands.count_pieces(labels, value) == sizes.size


@SETTINGS
@given(label_maps(), values, st.integers(1, 12))
def test_small_pieces_are_those_below_the_volume(labels, value, least):
    numbers = pieces_by_sitk(labels == value)
    small = np.bincount(numbers.ravel()) < least
    small[0] = False
    change = islands.remove_small(
        labels, value, min_ml=least * 2.5 * 0.7 * 0.9 / 1000, spacing_mm=ANISOTROPIC
    )
    np.testing.assert_array_equal(done(change, labels), np.where(small[numbers], 0, labels))


@SETTINGS
@given(label_maps(), values, st.integers(0, 4))
def test_pieces_become_labels_of_their_own_largest_first(labels, value, new):
    names = list(range(10, 10 + new))
    after = done(islands.split(labels, value, names), labels)
    untouched = labels != value
    np.testing.assert_array_equal(after[untouched], labels[untouched])
    numbers = pieces_by_sitk(labels == value)
    sizes = np.bincount(numbers.ravel())[1:]
    got = [int((after == v).sum()) for v in names]
    wanted = [int(size) for size in sizes[1 : new + 1]]
    assert got == wanted + [0] * (new - len(wanted))
    for number in range(1, sizes.size + 1):
        assert len(set(after[numbers == number].tolist())) == 1


@SETTINGS
@given(label_maps(), values, axes)
def test_holes_are_those_of_scipy_and_other_labels_stay_in_them(labels, value, axis):
    mask = labels == value
    if axis is None:
        filled = ndimage.binary_fill_holes(mask)
    else:
        filled = np.zeros_like(mask)
        for index in range(labels.shape[axis]):
            np.moveaxis(filled, axis, 0)[index] = ndimage.binary_fill_holes(
                np.moveaxis(mask, axis, 0)[index]
            )
    after = done(islands.fill_holes(labels, value, axis=axis), labels)
    np.testing.assert_array_equal(after, np.where(filled & (labels == 0), value, labels))


# ---- morphology


def sampling_of(spacing_mm, axis):
    return [1e6 if other == axis else mm for other, mm in enumerate(spacing_mm)]


@SETTINGS
@given(label_maps(), values, lengths, spacings, axes)
def test_growing_reaches_as_far_as_the_distance_in_millimetres(labels, value, mm, spacing, axis):
    assume((labels == value).any())
    far = ndimage.distance_transform_edt(labels != value, sampling=sampling_of(spacing, axis))
    change = morphology.grow(labels, value, by_mm=mm, spacing_mm=spacing, axis=axis, rules=FREE)
    np.testing.assert_array_equal(done(change, labels) == value, far <= mm * (1 + 1e-6))
    change = morphology.grow(labels, value, by_mm=mm, spacing_mm=spacing, axis=axis)
    expected = np.where((far <= mm * (1 + 1e-6)) & (labels == 0), value, labels)
    np.testing.assert_array_equal(done(change, labels), expected)


@SETTINGS
@given(label_maps(), values, lengths, spacings, axes)
def test_shrinking_leaves_what_is_further_inside(labels, value, mm, spacing, axis):
    assume((labels != value).any())
    deep = ndimage.distance_transform_edt(labels == value, sampling=sampling_of(spacing, axis))
    change = morphology.shrink(labels, value, by_mm=mm, spacing_mm=spacing, axis=axis)
    worn = (labels == value) & (deep <= mm * (1 + 1e-6))
    np.testing.assert_array_equal(done(change, labels), np.where(worn, 0, labels))


@SETTINGS
@given(label_maps(), values, lengths, spacings, axes)
def test_closing_is_growing_and_then_shrinking(labels, value, mm, spacing, axis):
    assume((labels == value).any())
    edge, sampling = 8, sampling_of(spacing, axis)
    mask = np.pad(labels == value, edge)
    grown = ndimage.distance_transform_edt(~mask, sampling=sampling) <= mm * (1 + 1e-6)
    closed = ndimage.distance_transform_edt(grown, sampling=sampling) > mm * (1 + 1e-6)
    inner = closed[edge:-edge, edge:-edge, edge:-edge]
    change = morphology.close(labels, value, by_mm=mm, spacing_mm=spacing, axis=axis)
    np.testing.assert_array_equal(
        done(change, labels), np.where(inner & (labels == 0), value, labels)
    )


@SETTINGS
@given(label_maps(), st.sets(values, min_size=1).map(sorted), lengths, spacings, axes)
def test_smoothing_is_the_highest_of_the_blurred_masks(labels, chosen, mm, spacing, axis):
    sigma = mm / np.asarray(sampling_of(spacing, axis))
    blurred = [
        ndimage.gaussian_filter((labels == v).astype(np.float32), sigma, mode="nearest", truncate=3)
        for v in chosen
    ]
    best = np.max(blurred, axis=0)
    winner = np.asarray(chosen)[np.argmax(blurred, axis=0)]
    stays = best >= 1 - np.sum(blurred, axis=0)
    clear = np.abs(best - (1 - np.sum(blurred, axis=0))) > 1e-5
    second = np.sort(blurred, axis=0)[-2] if len(chosen) > 1 else np.zeros(labels.shape)
    clear &= (best - second > 1e-5) | ~stays
    own = np.isin(labels, chosen)
    expected = np.where(stays & (own | (labels == 0)), winner, np.where(own, 0, labels))
    change = morphology.smooth(labels, chosen, sigma_mm=mm, spacing_mm=spacing, axis=axis)
    np.testing.assert_array_equal(done(change, labels)[clear], expected[clear])


# ---- logic and slices


@SETTINGS
@given(label_maps(np.uint8), st.integers(0, 2**32 - 1), values, values)
def test_labels_are_combined_with_those_of_another_map(labels, seed, value, other):
    second = np.random.default_rng(seed).integers(0, 5, labels.shape).astype(np.uint8)
    own, theirs = labels == value, second == other
    expected = {
        "union": np.where(theirs, value, labels),
        "subtract": np.where(own & theirs, 0, labels),
        "intersect": np.where(own & ~theirs, 0, labels),
        "copy": np.where(theirs, value, np.where(own, 0, labels)),
    }
    for operation in logic.OPERATIONS:
        change = logic.combine(labels, value, operation, other, other_labels=second)
        np.testing.assert_array_equal(done(change, labels), expected[operation])


@given(label_maps(), values, values)
def test_a_union_within_one_map_takes_the_other_labels_voxels(labels, value, other):
    expected = np.where(labels == other, value, labels)
    np.testing.assert_array_equal(
        done(logic.combine(labels, value, "union", other), labels), expected
    )
    np.testing.assert_array_equal(done(logic.merge(labels, other, value), labels), expected)


@given(label_maps(), values, st.sampled_from([0, 1, 2]), st.booleans())
def test_a_slice_is_copied_to_the_next(labels, value, axis, all_labels):
    after = done(logic.copy_slice(labels, axis, 0, 1, value=None if all_labels else value), labels)
    before, now = np.moveaxis(labels, axis, 0), np.moveaxis(after, axis, 0)
    drawn = before[0] == value
    one = np.where(drawn, value, np.where(before[1] == value, 0, before[1]))
    np.testing.assert_array_equal(now[1], before[0] if all_labels else one)
    np.testing.assert_array_equal(now[[0, *range(2, len(now))]], before[[0, *range(2, len(now))]])


@given(label_maps(np.uint8), st.integers(0, 2**32 - 1))
def test_labels_are_replaced_as_a_whole(labels, seed):
    other = np.random.default_rng(seed).integers(0, 200, labels.shape)
    np.testing.assert_array_equal(done(logic.replace(labels, other), labels), other)


# ---- between slices


def disc(centre, radius_mm, shape=(40, 44), spacing_mm=(1.0, 1.0)):
    p, l = np.ogrid[: shape[0], : shape[1]]  # noqa: E741
    far = np.square((p - centre[0]) * spacing_mm[0]) + np.square((l - centre[1]) * spacing_mm[1])
    return far <= radius_mm**2


def stacked(first, last, axis, between=5):
    labels = np.zeros((between + 4, *first.shape), dtype=np.uint8)
    labels[1], labels[between + 2] = first, last
    return np.ascontiguousarray(np.moveaxis(labels, 0, axis))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_between_two_discs_lie_convex_shapes_that_grow_from_one_to_the_other(axis):
    labels = stacked(disc((16, 17), 6), disc((22, 21), 11), axis)
    assert drawn_slices(labels, 1, axis) == [1, 7]
    change = fill_between(labels, 1, axis=axis, spacing_mm=(1, 1, 1))
    after = np.moveaxis(done(change, labels), axis, 0)
    drawn = np.moveaxis(labels, axis, 0)
    np.testing.assert_array_equal(after[[0, 1, 7, 8]], drawn[[0, 1, 7, 8]])
    for step, plane in enumerate(after[2:7], start=1):
        wanted = disc((16 + step, 17 + step * 4 / 6), 6 + step * 5 / 6)
        assert 2 * (wanted & (plane > 0)).sum() / (wanted.sum() + plane.sum()) > 0.95
        hull = convex_hull_image(plane, offset_coordinates=False)
        assert plane.sum() >= 0.97 * hull.sum()
    areas = after[1:8].sum(axis=(1, 2)).tolist()
    assert areas == sorted(areas)


def test_a_shape_that_moves_stays_as_it_is_on_its_way():
    first, last = disc((10, 10), 4), disc((10, 34), 4)  # without overlap
    labels = stacked(first, last, 0)
    after = done(fill_between(labels, 1, axis=0, spacing_mm=(5, 1, 1)), labels)
    for step in range(1, 6):
        np.testing.assert_array_equal(after[1 + step] == 1, disc((10, 10 + 4 * step), 4))


@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_between_slices_the_order_of_the_ends_does_not_matter(seed, share):
    rng = np.random.default_rng(seed)
    first, last = (ndimage.gaussian_filter(rng.normal(size=(14, 15)), 2) > 0.1 for _ in range(2))
    there = shape_between(first, last, share, (0.8, 1.3))
    back = shape_between(last, first, 1 - share, (0.8, 1.3))
    assert (there != back).mean() < 0.02  # equal distances of several pieces may pair otherwise
    np.testing.assert_array_equal(shape_between(first, last, 0.0, (0.8, 1.3)) & first, first)
    np.testing.assert_array_equal(shape_between(first, first, share, (0.8, 1.3)), first)


def test_millimetres_in_the_slice_count():
    spacing = (0.5, 1.5)
    first, last = disc((20, 20), 3, spacing_mm=spacing), disc((20, 20), 9, spacing_mm=spacing)
    middle = shape_between(first, last, 0.5, spacing)
    wanted = disc((20, 20), 6, spacing_mm=spacing)
    assert 2 * (middle & wanted).sum() / (middle.sum() + wanted.sum()) > 0.95


def test_a_shape_parts_into_two_and_one_without_counterpart_tapers_off():
    first = disc((20, 22), 12)
    last = disc((20, 14), 4) | disc((20, 30), 4)
    pieces = [ndimage.label(shape_between(first, last, share, (1, 1)))[1] for share in (0.1, 0.95)]
    assert pieces == [1, 2]
    areas = [
        int(shape_between(first, np.zeros_like(first), share, (1, 1)).sum())
        for share in (0, 0.25, 0.5, 0.75, 1)
    ]
    assert areas[0] == first.sum()
    assert areas == sorted(areas, reverse=True)
    assert areas[2] > 0
    assert areas[4] == 0


def test_filling_between_slices_respects_other_labels_and_other_slices():
    labels = stacked(disc((16, 17), 6), disc((22, 21), 11), 0)
    labels[4, 15:20] = 2
    labels[8] = labels[7]
    after = done(fill_between(labels, 1, axis=0, spacing_mm=(1, 1, 1)), labels)
    np.testing.assert_array_equal(after == 2, labels == 2)
    assert (after[4] == 1).any()
    np.testing.assert_array_equal(after[8], labels[8])
    assert not fill_between(labels, 3, axis=0, spacing_mm=(1, 1, 1))
    with pytest.raises(ConfigError, match="label 1: expected a label that is not locked"):
        fill_between(labels, 1, axis=0, spacing_mm=(1, 1, 1), rules=Rules(frozenset({1})))


# ---- repair


def two_regions(shape=(12, 20, 24)):
    image = np.zeros(shape, dtype=np.float32)
    image[:, 5:15, 6:18] = 100
    image += np.random.default_rng(1).normal(scale=4, size=shape).astype(np.float32)
    return image, np.asarray(image > 50)


@SETTINGS
@given(st.integers(0, 2**32 - 1), spacings)
def test_a_region_grows_over_like_intensities_as_far_as_it_may(seed, spacing):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 10, (7, 8, 9))
    labels = np.zeros(image.shape, dtype=np.uint8)
    at = tuple(int(v) for v in rng.integers(0, image.shape))
    low, high = int(image[at]) - 3, int(image[at]) + 3
    change = repair.grow_region(
        labels, 1, at, image=image, spacing_mm=spacing, reach_mm=6, low=low, high=high
    )
    allowed = (
        (image >= low) & (image <= high) & (distances_mm(image.shape, at, spacing) <= 6 + 1e-6)
    )
    np.testing.assert_array_equal(
        done(change, labels) == 1, flood(allowed.astype(np.uint8), at, connectivity=1) & allowed
    )


def test_a_region_takes_its_range_from_round_the_seed():
    image, truth = two_regions()
    labels = np.zeros(image.shape, dtype=np.uint8)
    change = repair.grow_region(
        labels, 1, (6, 10, 12), image=image, spacing_mm=(1, 1, 1), reach_mm=50, deviations=5
    )
    np.testing.assert_array_equal(done(change, labels) == 1, truth)


def scribbled(shape, spacing_mm=(1, 1, 1)):
    marks = Scribbles(shape, spacing_mm)
    marks.add(INSIDE, (6, 8, 9), (6, 12, 15), size_mm=2)
    marks.add(OUTSIDE, (6, 1, 1), (6, 1, 22), size_mm=2)
    marks.add(OUTSIDE, (6, 18, 1), (6, 18, 22), size_mm=2)
    marks.add(OUTSIDE, (6, 2, 1), (6, 18, 1), size_mm=2)
    return marks


@pytest.mark.parametrize("tool", [repair.geodesic_fill, repair.walk_randomly])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_scribbles_find_a_region_by_its_edges_along_every_axis(tool, order):
    image, truth = two_regions()
    image, truth = (np.ascontiguousarray(np.transpose(a, order)) for a in (image, truth))
    labels = np.zeros(image.shape, dtype=np.uint8)
    labels[
        np.transpose(np.broadcast_to(np.arange(20)[None, :, None] > 16, (12, 20, 24)), order)
    ] = 1
    marks = Scribbles(image.shape, (1, 1, 1))
    for mark, start, stop in (
        (INSIDE, (6, 8, 9), (6, 12, 15)),
        (OUTSIDE, (6, 1, 1), (6, 1, 22)),
        (OUTSIDE, (6, 18, 1), (6, 18, 22)),
        (OUTSIDE, (6, 2, 1), (6, 18, 1)),
        (OUTSIDE, (6, 2, 22), (6, 18, 22)),
    ):
        marks.add(mark, [start[a] for a in order], [stop[a] for a in order], size_mm=2)
    after = done(tool(labels, 1, marks, image=image, margin_mm=30), labels) == 1
    overlap = 2 * (after & truth).sum() / (after.sum() + truth.sum())
    assert overlap > 0.97


def test_without_edges_the_geodesic_border_is_half_way_in_millimetres():
    shape, spacing = (9, 9, 31), (3.0, 1.0, 0.5)
    labels = np.zeros(shape, dtype=np.uint8)
    marks = Scribbles(shape, spacing)
    marks.add(INSIDE, (4, 4, 4), size_mm=0.4)
    marks.add(OUTSIDE, (4, 4, 24), size_mm=0.4)
    change = repair.geodesic_fill(labels, 1, marks, image=np.zeros(shape), margin_mm=50)
    line = done(change, labels)[4, 4] == 1
    np.testing.assert_array_equal(line, np.arange(31) < 14)


def test_scribbles_that_cannot_be_used_are_refused():
    labels = np.zeros((30, 200, 400), dtype=np.uint8)
    marks = Scribbles(labels.shape, (1, 1, 1))
    with pytest.raises(ConfigError, match="at least one stroke inside the structure, found none"):
        repair.geodesic_fill(labels, 1, marks, image=labels)
    marks.add(INSIDE, (10, 50, 50), (10, 150, 350), size_mm=3)
    with pytest.raises(ResourceError, match="surroundings of at most 2000000 voxels"):
        repair.walk_randomly(labels, 1, marks, image=labels, margin_mm=100)
    with pytest.raises(ShapeError, match="an image of shape"):
        repair.geodesic_fill(labels, 1, marks, image=np.zeros((3, 3, 3)))
    marks.clear()
    assert len(marks) == 0


def test_marks_drawn_in_a_layer_are_scribbles():
    drawn = np.zeros((4, 5, 6), dtype=np.uint8)
    drawn[1, 2, 3], drawn[2, 2, 2] = INSIDE, OUTSIDE
    marks = Scribbles(drawn.shape, (1, 1, 1))
    marks.add_layer(drawn)
    np.testing.assert_array_equal(marks.drawn(whole(drawn.shape)), drawn)


def test_wrong_arguments_are_refused_in_a_sentence():
    labels = np.zeros((4, 5, 6), dtype=np.uint8)
    spacing = (1.0, 1.0, 1.0)
    image = np.zeros(labels.shape)
    with pytest.raises(ConfigError, match="brush size: expected a length above 0"):
        brush.paint(labels, 1, (1, 1, 1), size_mm=0, spacing_mm=spacing)
    with pytest.raises(ConfigError, match="margin: expected a length above 0 and up to 100 mm"):
        morphology.grow(labels, 1, by_mm=np.nan, spacing_mm=spacing)
    with pytest.raises(ShapeError, match="expected 0, 1 or 2 for slices along I, P or L, found 3"):
        brush.paint(labels, 1, (1, 1, 1), size_mm=1, spacing_mm=spacing, axis=3)
    with pytest.raises(
        ShapeError, match=r"expected a voxel of the image, .* found voxel \(4, 0, 0\)"
    ):
        fill.fill(labels, 1, (4, 0, 0))
    with pytest.raises(ConfigError, match="one of copy, intersect, subtract, union"):
        logic.combine(labels, 1, "unite", 2)
    with pytest.raises(ShapeError, match="second labels: expected labels of shape"):
        logic.replace(labels, labels[1:])
    with pytest.raises(ConfigError, match="which uint8 holds, found values from 0 to 300"):
        logic.replace(labels, np.arange(120).reshape(labels.shape) // 119 * 300)
    with pytest.raises(ShapeError, match="expected a slice from 0 to 3, found 4"):
        logic.copy_slice(labels, 0, 3, 4)
    with pytest.raises(ConfigError, match="a start with an intensity from 1 to 2, found 0"):
        repair.grow_region(
            labels, 1, (1, 1, 1), image=image, spacing_mm=spacing, reach_mm=3, low=1, high=2
        )


@pytest.mark.parametrize("locked", [0, 1])
def test_what_would_change_a_locked_label_is_refused(locked):
    labels = np.ones((4, 5, 6), dtype=np.uint8)
    rules = Rules(frozenset({locked}))
    with pytest.raises(ConfigError, match="expected a label that is not locked"):
        islands.keep_largest(labels, 1, spacing_mm=(1, 1, 1), rules=rules)
    with pytest.raises(ConfigError, match="expected a label that is not locked"):
        logic.erase_label(labels, 1, rules=rules)
