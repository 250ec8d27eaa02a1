"""Cleaning of label maps: laws, then SciPy and SimpleITK, then cases worked on paper."""

import tracemalloc

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medseg.core import Grid, LabelMap, LabelScheme, reorient
from medseg.errors import ConfigError
from medseg.events import Cancelled, Silent
from medseg.inference import ball, pieces, post_processing
from medseg.inference.post_processing import clean_labels, parse_cleaning
from medseg.models.card import LabelCleaning
from tests.grids import FLIPS, PERMUTATIONS, grids

SETTINGS = settings(max_examples=40, deadline=None)
SCHEME = LabelScheme.plain("test", {1: "liver", 2: "left kidney", 300: "spleen"})
STEPS = (
    LabelCleaning(closing_mm=2.5),
    LabelCleaning(fill_holes=True),
    LabelCleaning(keep_largest=True),
    LabelCleaning(min_mm3=20.0),
)
ALL_AT_ONCE = LabelCleaning(closing_mm=3.0, fill_holes=True, keep_largest=True, min_mm3=4.0)


def labelled(values, spacing=(1.0, 1.0, 1.0), dtype=np.uint16) -> LabelMap:
    array = np.asarray(values, dtype=dtype)
    return LabelMap(array, Grid(array.shape, np.diag([*spacing, 1.0])), SCHEME)


@st.composite
def maps(draw, *, sheared=False, largest=9) -> LabelMap:
    """Blobs and specks of three labels on any grid."""
    grid = draw(grids(sheared=sheared, largest=largest))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share = draw(st.sampled_from([0.2, 0.5, 0.9]))
    data = rng.choice([1, 2, 300], size=grid.shape_ijk) * (rng.random(grid.shape_ijk) < share)
    if draw(st.booleans()):
        data = data * (ndimage.uniform_filter(rng.random(grid.shape_ijk), 3) > 0.5)
    return LabelMap(data.astype(np.uint16), grid, SCHEME)


@SETTINGS
@given(maps(sheared=True), st.sampled_from([*STEPS, ALL_AT_ONCE]), st.sampled_from(["LPS", "SAR"]))
def test_cleaning_does_not_depend_on_the_order_and_direction_of_the_axes(labels, step, code):
    there, notes = clean_labels(reorient(labels, code), [step])
    here, same_notes = clean_labels(labels, [step])
    np.testing.assert_array_equal(there.data_ijk, reorient(here, code).data_ijk)
    assert notes == same_notes


@SETTINGS
@given(maps(sheared=True), st.sampled_from(STEPS))
def test_each_single_step_done_twice_changes_nothing_more(labels, step):
    once, _ = clean_labels(labels, [step])
    twice, notes = clean_labels(once, [step])
    assert twice is once
    assert notes == ()


@SETTINGS
@given(maps(), st.sampled_from(STEPS), st.sampled_from([0.25, 2.0, 16.0]))
def test_millimetres_scale_with_the_spacing(labels, step, factor):
    affine = labels.grid.affine_ras @ np.diag([factor, factor, factor, 1.0])
    larger = LabelMap(labels.data_ijk, Grid(labels.grid.shape_ijk, affine), SCHEME)
    scaled = step.model_copy(
        update={"closing_mm": step.closing_mm * factor, "min_mm3": step.min_mm3 * factor**3}
    )
    np.testing.assert_array_equal(
        clean_labels(larger, [scaled])[0].data_ijk, clean_labels(labels, [step])[0].data_ijk
    )


@SETTINGS
@given(maps(), st.sampled_from(["closing_mm", "fill_holes"]))
def test_closing_and_filling_take_background_only_and_remove_nothing(labels, what):
    step = LabelCleaning.model_validate({what: 3.0 if what == "closing_mm" else True})
    after = clean_labels(labels, [step])[0].data_ijk
    before = labels.data_ijk
    np.testing.assert_array_equal(after[before > 0], before[before > 0])


@SETTINGS
@given(maps())
def test_keeping_and_dropping_pieces_only_remove(labels):
    after = clean_labels(labels, [LabelCleaning(keep_largest=True, min_mm3=9.0)])[0].data_ijk
    assert np.isin(after[after != labels.data_ijk], 0).all()


@SETTINGS
@given(maps())
def test_the_given_map_is_left_as_it_is(labels):
    before = labels.data_ijk.copy()
    clean_labels(labels, [ALL_AT_ONCE])
    np.testing.assert_array_equal(labels.data_ijk, before)


@SETTINGS
@given(maps(), st.sampled_from([*STEPS, ALL_AT_ONCE]), st.sampled_from([1, 100, 400]))
def test_slabs_do_not_show_in_the_result(labels, step, slab_voxels):
    whole = clean_labels(labels, [step])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "SLAB_VOXELS", slab_voxels)
        parts = clean_labels(labels, [step])
    np.testing.assert_array_equal(parts[0].data_ijk, whole[0].data_ijk)
    assert parts[1] == whole[1]


@SETTINGS
@given(maps(sheared=True), st.sampled_from([STEPS[2], STEPS[3], ALL_AT_ONCE]))
def test_listing_the_voxels_of_scattered_pieces_gives_the_same(labels, step):
    results = []
    for share in (0, 10**9):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(post_processing, "_SCATTERED", share)
            cleaned, notes = clean_labels(labels, [step])
            results.append((cleaned.data_ijk.tolist(), notes))
    assert results[0] == results[1]


@SETTINGS
@given(maps(), st.floats(0.3, 5.0))
def test_both_ways_of_dilation_agree(labels, radius_mm):
    step = LabelCleaning(closing_mm=radius_mm)
    results = []
    for most in (0, 10**9):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ball, "_MOST_COLUMNS", most)
            results.append(clean_labels(labels, [step])[0].data_ijk)
    np.testing.assert_array_equal(*results)


def one_label(labels: LabelMap) -> LabelMap:
    return labels.on_grid((labels.data_ijk == 2).astype(np.uint16) * 2, labels.grid)


@SETTINGS
@given(maps(sheared=True, largest=7), st.floats(0.3, 9.0))
def test_closing_agrees_with_scipy_and_a_ball_spelled_out(labels, radius_mm):
    labels = one_label(labels)
    reach = 8
    steps = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3, indexing="ij"), axis=-1)
    lengths_mm = np.linalg.norm(steps @ labels.grid.affine_ras[:3, :3].T, axis=-1)
    assume(abs(lengths_mm - radius_mm).min() > 1e-4)  # rounding would decide
    ball = lengths_mm <= radius_mm
    inside = np.argwhere(ball)
    assume(inside.min() > 0 and inside.max() < 2 * reach)
    ball = ball[tuple(slice(a, b + 1) for a, b in zip(inside.min(0), inside.max(0), strict=True))]
    edge = 2 * reach
    padded = np.pad(labels.data_ijk == 2, edge)
    expected = ndimage.binary_closing(padded, ball)[edge:-edge, edge:-edge, edge:-edge]
    closed, _ = clean_labels(labels, [LabelCleaning(closing_mm=radius_mm)])
    np.testing.assert_array_equal(closed.data_ijk == 2, expected)


@pytest.mark.parametrize("radius_mm", [1.1, 2.3, 4.75, 30.1])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.8, 3.0), (5.0, 1.0, 1.25)])
def test_closing_agrees_with_the_distances_of_simpleitk(spacing, radius_mm):
    rng = np.random.default_rng(1)
    mask = ndimage.gaussian_filter(rng.normal(size=(14, 18, 20)), 1.0) > 0.25
    edge = [int(2 * radius_mm / step) + 3 for step in spacing]
    padded = np.pad(mask, [(width, width) for width in edge])

    def within(inside):
        image = sitk.GetImageFromArray(inside.astype(np.uint8).transpose(2, 1, 0))
        image.SetSpacing(spacing)
        distance = sitk.SignedMaurerDistanceMap(
            image, insideIsPositive=False, squaredDistance=False, useImageSpacing=True
        )
        # measured from the outermost voxel inside, so that inside counts as within
        return sitk.GetArrayFromImage(distance).transpose(2, 1, 0) <= radius_mm

    expected = ~within(~within(padded))
    expected = expected[tuple(slice(width, -width) for width in edge)]
    closed, notes = clean_labels(
        labelled(mask, spacing), [LabelCleaning(label="liver", closing_mm=radius_mm)]
    )
    np.testing.assert_array_equal(closed.data_ijk > 0, expected)
    added = np.count_nonzero(expected & ~mask)
    assert notes == (
        (f"liver: {added} voxels added by closing of {radius_mm:g} mm",) * int(added > 0)
    )


@SETTINGS
@given(maps())
def test_filling_agrees_with_scipy_and_simpleitk(labels):
    labels = one_label(labels)
    filled = clean_labels(labels, [LabelCleaning(fill_holes=True)])[0].data_ijk == 2
    np.testing.assert_array_equal(filled, ndimage.binary_fill_holes(labels.data_ijk == 2))
    image = sitk.GetImageFromArray((labels.data_ijk == 2).astype(np.uint8))
    np.testing.assert_array_equal(filled, sitk.GetArrayFromImage(sitk.BinaryFillhole(image)))


@SETTINGS
@given(maps())
def test_pieces_and_their_volumes_agree_with_simpleitk(labels):
    labels = one_label(labels)
    image = sitk.GetImageFromArray((labels.data_ijk == 2).astype(np.uint8))
    pieces = sitk.RelabelComponent(sitk.ConnectedComponent(image, True))  # largest first
    numbers = sitk.GetArrayFromImage(pieces)
    sizes = np.bincount(numbers.ravel())[1:]
    least = 3
    volume = least * labels.grid.voxel_volume_mm3
    dropped = clean_labels(labels, [LabelCleaning(min_mm3=volume)])[0].data_ijk == 2
    stays = np.concatenate([[False], sizes >= least])
    np.testing.assert_array_equal(dropped, stays[numbers])
    largest = clean_labels(labels, [LabelCleaning(keep_largest=True)])[0].data_ijk == 2
    if len(sizes) > 1 and sizes[0] > sizes[1]:
        np.testing.assert_array_equal(largest, numbers == 1)
    else:
        assert np.count_nonzero(largest) == (sizes[0] if len(sizes) else 0)
        assert len(np.unique(numbers[largest])) <= 1


@pytest.mark.parametrize("axes", PERMUTATIONS)
@pytest.mark.parametrize("flips", FLIPS)
def test_among_equal_pieces_the_lowest_place_in_the_patient_stays(axes, flips):
    data = np.zeros((5, 6, 7), dtype=np.uint16)
    data[0, 0, 0] = data[4, 5, 6] = data[4, 0, 6] = 1
    affine = np.eye(4)
    affine[:3, :3] = np.eye(3)[:, list(axes)] * flips
    labels = LabelMap(data, Grid(data.shape, affine), SCHEME)
    kept, _ = clean_labels(labels, [LabelCleaning(keep_largest=True)])
    places = labels.grid.world_from_voxel(np.argwhere(data)).tolist()
    (winner,) = labels.grid.world_from_voxel(np.argwhere(kept.data_ijk)).tolist()
    assert winner == min(places)


def test_a_gap_closes_in_millimetres_not_in_voxels():
    row = np.zeros((12, 5, 5))
    row[:4] = row[6:10] = 1  # two planes of gap
    step = LabelCleaning(label="liver", closing_mm=1.5)
    fine, notes = clean_labels(labelled(row, (1.0, 1.0, 1.0)), [step])
    # The ball holds steps such as (1, 1, 0), not (1, 1, 1). Round the four edges of the rod it fits
    # into the gap from outside, and so 21 of the 25 voxels of each plane are closed.
    assert notes == ("liver: 42 voxels added by closing of 1.5 mm",)
    assert fine.data_ijk[:, 0, 1].tolist() == [1] * 10 + [0] * 2
    assert fine.data_ijk[:, 0, 0].tolist() == [1] * 4 + [0] * 2 + [1] * 4 + [0] * 2
    coarse = labelled(row, (2.0, 1.0, 1.0))
    assert clean_labels(coarse, [step]) == (coarse, ())


def test_closing_at_the_edge_of_the_image_loses_and_invents_nothing():
    slab = np.zeros((6, 6, 6))
    slab[:2] = 1
    labels = labelled(slab)
    assert clean_labels(labels, [LabelCleaning(closing_mm=3.0)])[0] is labels


def test_closing_leaves_the_voxels_of_others():
    row = np.zeros((12, 3, 3))
    row[:4] = row[6:10] = 1  # as above, and the middle of the gap is closed
    row[4] = 300
    closed, _ = clean_labels(labelled(row), [LabelCleaning(closing_mm=1.5)])
    assert closed.data_ijk[:10, 1, 1].tolist() == [1, 1, 1, 1, 300, 1, 1, 1, 1, 1]


def test_a_hole_is_filled_round_another_label_and_one_open_at_the_edge_is_not():
    ball = np.zeros((7, 7, 7))
    ball[:6, 1:6, 1:6] = 1
    ball[2:5, 2:5, 2:5] = 0
    ball[3, 3, 3] = 2
    filled, notes = clean_labels(labelled(ball), [LabelCleaning(fill_holes=True)])
    assert notes == ("liver: 26 voxels added by filling holes",)
    assert filled.data_ijk[3, 3, 3] == 2
    ball[0, 2:5, 2:5] = ball[1, 2:5, 2:5] = 0  # now the hole reaches face i = 0
    open_map = labelled(ball)
    assert clean_labels(open_map, [LabelCleaning(fill_holes=True)]) == (open_map, ())


def test_a_diagonal_wall_holds():
    # faces alone connect the background, so a wall of voxels that touch by edges is closed
    disc = np.zeros((3, 5, 5))
    disc[0, 2, 2] = disc[2, 2, 2] = 1
    disc[1] = [[0, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 1, 0, 1, 0], [0, 0, 1, 0, 0], [0] * 5]
    filled, _ = clean_labels(labelled(disc), [LabelCleaning(fill_holes=True)])
    assert filled.data_ijk[1, 2, 2] == 1


def test_the_fields_act_in_order_and_the_notes_say_what_they_did():
    data = np.zeros((20, 5, 5))
    data[:7] = data[8:13] = 1  # a ball of 1 mm fits into the rim of the gap
    data[2:5, 2, 2] = data[3, 1:4, 2] = data[3, 2, 1:4] = 0  # a hole as large as that ball
    data[16] = 1
    data[18:, 0, 0] = 1
    data[18:, 4, 4] = 2
    step = LabelCleaning(
        label="liver", closing_mm=1.0, fill_holes=True, keep_largest=True, min_mm3=3
    )
    cleaned, notes = clean_labels(labelled(data), [step, LabelCleaning(min_mm3=2.5)])
    expected = np.zeros_like(data)
    expected[:7] = expected[8:13] = 1
    expected[7, 1:4, 1:4] = 1
    np.testing.assert_array_equal(cleaned.data_ijk, expected)
    assert notes == (
        "liver: 9 voxels added by closing of 1 mm",
        "liver: 7 voxels added by filling holes",
        "liver: 27 voxels removed in 2 pieces by keeping the largest piece",
        "left kidney: 2 voxels removed in 1 piece of less than 2.5 mm3",
    )


def test_a_label_that_vanishes_and_one_that_was_never_there_are_no_trouble():
    data = np.zeros((3, 3, 3))
    data[1, 1, 1] = 1
    gone, notes = clean_labels(labelled(data), [LabelCleaning(min_mm3=5), ALL_AT_ONCE])
    assert not gone.data_ijk.any()
    assert notes == ("liver: 1 voxel removed in 1 piece of less than 5 mm3",)


def test_a_volume_filled_by_one_label_stays():
    labels = labelled(np.full((4, 5, 6), 2))
    assert clean_labels(labels, [ALL_AT_ONCE]) == (labels, ())


def test_a_name_that_the_scheme_lacks_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match=r"step 2: .*\(nearest: spleen\), found 'spleeen'"):
        clean_labels(
            labelled(np.zeros((2, 2, 2))),
            [LabelCleaning(fill_holes=True), LabelCleaning(label="spleeen", fill_holes=True)],
        )


class Recorder(Silent):
    """Keeps what it hears and cancels after a number of steps."""

    def __init__(self, last=10**9):
        self.heard = []
        self.last = last

    def started(self, stage, total):
        self.heard.append((stage, 0, total))

    def advanced(self, stage, done):
        self.heard.append((stage, done))

    def cancelled(self):
        return len(self.heard) > self.last


def test_progress_counts_labels_and_cancelling_stops_between_two():
    labels = labelled(np.ones((2, 2, 2)))
    listener = Recorder()
    clean_labels(labels, [LabelCleaning(fill_holes=True)], listener)
    stage = "post-processing"
    assert listener.heard == [(stage, 0, 3), (stage, 1), (stage, 2), (stage, 3)]
    with pytest.raises(Cancelled):
        clean_labels(labels, [LabelCleaning(fill_holes=True)], Recorder(last=2))


def test_no_wider_copy_of_the_volume_is_made(monkeypatch):
    monkeypatch.setattr(pieces, "SLAB_VOXELS", 1 << 16)
    blocks = np.arange(1, 65).reshape(4, 4, 4)
    data = np.kron(blocks, np.ones((24, 32, 32))).astype(np.uint8)
    data[np.random.default_rng(0).random(data.shape) < 0.1] = 0
    data[0, 0, 0] = data[-1, -1, -1] = 50  # one box as large as the volume
    scheme = LabelScheme.plain("many", {value: f"n{value}" for value in range(1, 65)})
    labels = LabelMap(data, Grid(data.shape, np.eye(4)), scheme)
    tracemalloc.start()
    _, notes = clean_labels(labels, [ALL_AT_ONCE])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(notes) > 64
    fixed = 8 << 20  # checking a label map counts a million voxels at a time
    assert peak - fixed < 6 * data.nbytes


# The form that the command line takes.

NAMES = ["liver", "left kidney", "a:b"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("liver:keep_largest", {"label": "liver", "keep_largest": True}),
        (
            "liver:keep_largest,min_mm3=50,fill_holes,closing_mm=2",
            {
                "label": "liver",
                "keep_largest": True,
                "min_mm3": 50,
                "fill_holes": True,
                "closing_mm": 2,
            },
        ),
        ("*:keep_largest", {"label": "*", "keep_largest": True}),
        (" left kidney : min_mm3 = 1e2 ", {"label": "left kidney", "min_mm3": 100}),
        ("a:b:fill_holes", {"label": "a:b", "fill_holes": True}),
    ],
)
def test_a_step_is_read(text, expected):
    assert parse_cleaning(text, NAMES) == LabelCleaning.model_validate(expected)


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("keep_largest", "cleaning-form", "found no colon"),
        ("", "cleaning-form", "found no colon"),
        (":fill_holes", "cleaning-form", "found no name"),
        ("liver:", "cleaning-form", "found no option"),
        ("livr:fill_holes", "cleaning-label", r"nearest: liver\), found 'livr'"),
        ("liver:fill_hole", "cleaning-option", r"nearest: fill_holes\), found 'fill_hole'"),
        ("liver:fill_holes,", "cleaning-option", "found ''"),
        ("liver:fill_holes,fill_holes", "cleaning-option", "found fill_holes again"),
        ("liver:label=x", "cleaning-option", "found label again"),
        ("liver:fill_holes=yes", "cleaning-option", "without a value"),
        ("liver:closing_mm", "cleaning-number", "closing_mm without a number"),
        ("liver:closing_mm=2mm", "cleaning-number", "found closing_mm=2mm"),
        ("liver:min_mm3=nan", "cleaning-number", "found min_mm3=nan"),
        ("liver:min_mm3=inf", "cleaning-number", "found min_mm3=inf"),
        ("liver:min_mm3=-1", "cleaning-number", "found min_mm3=-1"),
        ("liver:closing_mm=101", "cleaning-number", "from 0 to 100.*found closing_mm=101"),
    ],
)
def test_what_cannot_be_read_is_said(text, code, words):
    with pytest.raises(ConfigError, match=words) as caught:
        parse_cleaning(text, NAMES)
    assert caught.value.code == code
