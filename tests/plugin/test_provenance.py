import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medseg_napari._provenance import Beginning, StoredLabels, changes, segment_types

SHAPE = (4, 3, 5)
label_maps = st.sampled_from([np.uint8, np.uint16]).flatmap(
    lambda dtype: arrays(dtype, SHAPE, elements=st.sampled_from([0, 0, 1, 2, 200]))
)


def by_model(labels):
    return Beginning.by_model(labels, "m", "1", weights_sha256="0", seconds=1.0)


@given(label_maps)
def test_stored_labels_come_back_as_they_were(labels):
    for view in (labels, labels[::-1].transpose(2, 0, 1), np.asfortranarray(labels)):
        found = StoredLabels.of(view).labels()
        assert found.dtype == view.dtype
        np.testing.assert_array_equal(found, view)


def test_stored_labels_take_little():
    labels = np.zeros((64, 128, 128), dtype=np.uint8)
    labels[10:40, 30:90, 30:90] = 3
    assert len(StoredLabels.of(labels).content) < labels.nbytes / 100


@given(label_maps, label_maps)
def test_changes_are_those_that_counting_finds(before, after):
    found = changes(before, after)
    assert set(found) == set(np.union1d(before, after)) - {0}
    for value, change in found.items():
        was, now = before == value, after == value
        assert change.added == np.sum(now & ~was)
        assert change.removed == np.sum(was & ~now)
        assert change.dice == pytest.approx(2 * np.sum(was & now) / (was.sum() + now.sum()))


def test_how_a_label_came_about_follows_from_what_changed():
    before = np.zeros(SHAPE, np.uint8)
    before[0], before[1], before[2] = 1, 2, 3
    after = before.copy()
    after[1, 0, 0] = 0  # a voxel of 2 goes
    after[2] = 0  # 3 is erased
    after[3, 0, 0] = 4  # 4 is new
    expected = {1: "AUTOMATIC", 2: "SEMIAUTOMATIC", 4: "MANUAL"}
    assert segment_types(after, by_model(before)) == expected


def test_labels_that_were_moved_by_one_voxel_are_corrected_though_their_volume_is_the_same():
    before = np.zeros(SHAPE, np.uint8)
    before[0, 0, 0] = 1
    after = np.roll(before, 1, axis=2)
    assert segment_types(after, by_model(before)) == {1: "SEMIAUTOMATIC"}


def test_labels_of_a_file_keep_what_it_says_until_they_are_changed():
    before = np.zeros(SHAPE, np.uint8)
    before[0], before[1], before[2], before[3] = 1, 2, 3, 4
    types = {1: "AUTOMATIC", 2: "AUTOMATIC", 3: "MANUAL"}
    after = before.copy()
    after[1:3, 0, 0] = 0
    found = segment_types(after, Beginning.opened(before, types=types))
    assert found == {1: "AUTOMATIC", 2: "SEMIAUTOMATIC", 3: "MANUAL", 4: "SEMIAUTOMATIC"}


def test_labels_drawn_from_nothing_are_manual():
    labels = np.zeros(SHAPE, np.uint8)
    labels[0] = 7
    assert segment_types(labels, None) == {7: "MANUAL"}


def test_an_editor_may_know_better_but_cannot_make_a_label_automatic():
    before = np.zeros(SHAPE, np.uint8)
    before[0], before[1] = 1, 2
    after = before.copy()
    after[0, 0, 0] = after[1, 0, 0] = 0
    edited = {1: "MANUAL", 2: "AUTOMATIC", 9: "MANUAL"}
    found = segment_types(after, by_model(before), edited)
    assert found == {1: "MANUAL", 2: "SEMIAUTOMATIC"}
