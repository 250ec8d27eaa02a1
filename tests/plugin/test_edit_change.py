"""Laws of every edit: undo is exact, locks hold, nothing is written before it is asked for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.errors import ConfigError, ShapeError
from medseg_napari.editing import boxes
from medseg_napari.editing.boxes import box_of, label_box, whole
from medseg_napari.editing.change import Change, ChangeBuilder
from medseg_napari.editing.rules import IntensityRange, Rules
from tests.plugin.label_maps import edits, label_maps

SETTINGS = settings(max_examples=60)


@SETTINGS
@given(label_maps(), edits(), st.sampled_from([40, 1 << 22]))
def test_an_edit_is_undone_and_redone_exactly(labels, edit, part_voxels):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boxes, "PART_VOXELS", part_voxels)
        before = labels.copy()
        change = edit(labels)
        np.testing.assert_array_equal(labels, before)  # computing writes nothing
        change.apply(labels)
        after = labels.copy()
        change.revert(labels)
        np.testing.assert_array_equal(labels, before)
        change.apply(labels)
        np.testing.assert_array_equal(labels, after)
    assert change.voxels == np.count_nonzero(before != after)
    assert bool(change) == (change.voxels > 0)
    if change:
        outside = after != before
        outside[change.box] = False
        assert not outside.any()


@SETTINGS
@given(label_maps(), edits())
def test_parts_do_not_show_in_the_result(labels, edit):
    results = []
    for part_voxels in (1, 50, 1 << 22):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(boxes, "PART_VOXELS", part_voxels)
            result = labels.copy()
            edit(labels).apply(result)
            results.append(result)
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@SETTINGS
@given(label_maps(), edits(locked=frozenset({2, 4})))
def test_locked_labels_neither_lose_nor_gain(labels, edit):
    after = labels.copy()
    edit(labels).apply(after)
    for value in (2, 4):
        np.testing.assert_array_equal(after == value, labels == value)


@SETTINGS
@given(label_maps(), st.lists(edits(), min_size=2, max_size=5), st.sampled_from([1, 200, 1 << 22]))
def test_edits_put_together_are_the_edits_one_after_the_other(labels, row, part_voxels):
    work, changes = labels.copy(), []
    for edit in row:
        changes.append(edit(work))
        changes[-1].apply(work)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boxes, "PART_VOXELS", part_voxels)
        merged = Change.joined(changes).merged()
    again = labels.copy()
    merged.apply(again)
    np.testing.assert_array_equal(again, work)
    merged.revert(again)
    np.testing.assert_array_equal(again, labels)


@SETTINGS
@given(label_maps(), edits(with_range=False))
def test_the_numbers_of_moved_voxels_are_those_of_the_arrays(labels, edit):
    after = labels.copy()
    change = edit(labels)
    change.apply(after)
    expected = {}
    for pair in zip(labels[labels != after].tolist(), after[labels != after].tolist(), strict=True):
        expected[pair] = expected.get(pair, 0) + 1
    assert dict(change.moved) == expected


@SETTINGS
@given(label_maps(), edits(), st.sets(st.integers(0, 4)))
def test_a_change_parts_into_what_concerns_some_labels_and_what_does_not(labels, edit, refused):
    after = labels.copy()
    change = edit(labels)
    change.apply(after)
    table = np.zeros(65536, dtype=bool)
    table[list(refused)] = True
    kept, parted = change.split(table)
    concerned = (table[labels] | table[after]) & (labels != after)
    parted.revert(after)
    np.testing.assert_array_equal(after[concerned], labels[concerned])
    kept.revert(after)
    np.testing.assert_array_equal(after, labels)
    assert parted.voxels == np.count_nonzero(concerned)


@given(label_maps(), st.integers(0, 4))
def test_the_box_of_a_label_is_the_smallest(labels, value):
    found = label_box(labels, value)
    places = np.argwhere(labels == value)
    if not places.size:
        assert found is None
    else:
        assert found == box_of(places.min(axis=0), places.max(axis=0) + 1)


def test_a_range_of_intensities_limits_what_is_changed():
    labels = np.zeros((4, 4, 4), dtype=np.uint8)
    image = np.arange(64.0).reshape(4, 4, 4)
    builder = ChangeBuilder(labels, Rules(within=IntensityRange(image, 10, 20)))
    builder.put(whole(labels.shape), None, 1)
    builder.done("all").apply(labels)
    np.testing.assert_array_equal(labels == 1, (image >= 10) & (image <= 20))


def test_what_cannot_be_meant_is_refused_in_a_sentence():
    labels = np.zeros((4, 4, 4), dtype=np.uint8)
    with pytest.raises(
        ConfigError, match="lower end that is not above the upper end, found 3 to 2"
    ):
        IntensityRange(labels, 3, 2)
    with pytest.raises(ShapeError, match=r"an image of shape \(4, 4, 4\), that of the labels"):
        ChangeBuilder(labels, Rules(within=IntensityRange(np.zeros((2, 2, 2)), 0, 1)))
    with pytest.raises(ConfigError, match="label 1: expected a label that is not locked"):
        ChangeBuilder(labels, Rules(frozenset({1}))).put(whole(labels.shape), None, 1)
    with pytest.raises(ConfigError, match="background: expected a label that is not locked"):
        ChangeBuilder(labels, Rules(frozenset({0}))).put(whole(labels.shape), None, 0)


def test_a_change_of_a_large_organ_takes_few_bytes():
    labels = np.zeros((40, 200, 200), dtype=np.uint8)
    i, p, l = np.ogrid[-20:20, -100:100, -100:100]  # noqa: E741
    builder = ChangeBuilder(labels)
    builder.put(whole(labels.shape), (i / 18) ** 2 + (p / 90) ** 2 + (l / 90) ** 2 < 1, 1)
    change = builder.done("organ")
    assert change.voxels > 500_000
    assert change.nbytes < 40_000
